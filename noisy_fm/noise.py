"""Who is corrupted, and how: exact, nested label and caption noise, recorded in a manifest.

Noise is a pure function of the seed and the *set* of example ids. Each id is hashed to 64 bits
(SplitMix64's finaliser, so distinct ids never tie); the ⌊γN⌉ ids with the smallest hashes are
corrupted, and a second hash of the id draws the wrong supervision. So the order, host or shard in
which examples arrive changes nothing, and for one seed the examples corrupted at 5 % are among
those at 10 %, with the same wrong labels. A host that holds a shard applies the manifest made of
all ids: `manifest.apply(labels, ids)`.

⌊γN⌉ rounds half up, with γ read as the decimal it prints as (0.29 of 50 is 14.5, hence 15).
"""

import dataclasses
import functools
import hashlib
import io
import json
import math
import os
import zipfile
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import numpy as np
from etils import epath

from noisy_fm.messages import unknown
from noisy_fm.scalars import plain

KINDS = ("symmetric", "subset", "transition")
_SELECT, _REPLACE, _PARTNER = 1, 2, 3  # streams of the hash: who, what with, and with whom


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Manifest:
    """What was corrupted: enough to do it again, to undo it and to cite it.

    ids, old, new: int64 [k], ascending ids of the corrupted examples with their true and their
    wrong supervision (classes; for captions, the ids of the images they belong to). `rate` is what
    was asked, a fraction of `base` examples: all `n`, or those of the class subset. `num_classes`
    is None for captions. `options` are the kind's own arguments, and where ids or labels were not
    numbers, `names` [k] of the ids and `label_names` [num_classes] of the classes.
    """

    kind: str
    seed: int
    rate: float | None
    n: int
    base: int
    num_classes: int | None
    ids: np.ndarray
    old: np.ndarray
    new: np.ndarray
    options: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name in ("ids", "old", "new"):
            # A copy, so that no caller holds a writable view of what the hash vouches for.
            value = np.array(getattr(self, name), np.int64)
            value.flags.writeable = False
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return (
            f"Manifest({self.kind}, rate {self.rate}, {len(self.ids):,} of {self.n:,} changed "
            f"({self.realised:.2%} of {self.base:,}), seed {self.seed}, hash {self.hash})"
        )

    @property
    def realised(self) -> float:
        """The fraction of `base` examples whose supervision differs from the truth."""
        return len(self.ids) / self.base if self.base else 0.0

    @functools.cached_property
    def hash(self) -> str:
        """Sixteen hex digits of the SHA-256 of everything in the manifest."""
        digest = hashlib.sha256(json.dumps(self._header(), sort_keys=True).encode())
        for _, array in sorted(self._arrays().items()):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]

    def summary(self) -> dict:
        """The manifest without its arrays, as JSON types."""
        header = self._header()
        return {**header, "realised": self.realised, "changed": len(self.ids), "hash": self.hash}

    def to_frame(self, *, names=None, label_names=None):
        """What was corrupted as a pandas table: id, name, old and new, a row an example.

        names: {id: name}, as of a source's files, `{i: source.name(n) for n, i in
        enumerate(source.ids.tolist())}`; by default ids given as texts. label_names [num_classes]:
        by default labels given as such; classes without names stay numbers. For captions, old and
        new are images. Raises ValueError for names that lack an id, or a class.
        """
        import pandas as pd

        if names is None and "names" in self.options:
            names = dict(zip(self.ids.tolist(), self.options["names"].tolist(), strict=True))
        known = names
        if self.num_classes is not None:
            label_names = self.options.get("label_names") if label_names is None else label_names
            known = None if label_names is None else dict(enumerate(label_names))
        name = {} if names is None else {"name": _named(self.ids, names)}
        old, new = (_named(values, known) for values in (self.old, self.new))
        return pd.DataFrame({"id": self.ids, **name, "old": old, "new": new})

    def mask(self, ids) -> np.ndarray:
        """bool [m]: which of these ids [m] are corrupted."""
        return self._find(_unique_ids(ids))[1]

    def apply(self, labels, ids=None) -> np.ndarray:
        """The labels [m] of examples `ids` [m] (default 0 … n − 1), corrupted as recorded.

        Any shard, order or subset will do. Raises ValueError if a label to be corrupted is not
        the one that the manifest was made from.
        """
        given, label_names = _plain(labels, "labels"), self.options.get("label_names")
        labels = _numbers_of(given, self.num_classes, label_names)
        if ids is None and len(labels) != self.n:
            raise ValueError(
                f"got {len(labels)} labels without ids, the manifest is of {self.n} examples; "
                "expected ids= for a part of them"
            )
        where, hit = self._find(_unique_ids(len(labels) if ids is None else ids, like=labels))
        if not np.array_equal(labels[hit], self.old[where[hit]]):
            bad = np.flatnonzero(hit)[labels[hit] != self.old[where[hit]]][0]
            number = self.old[where[bad]]
            true = number if label_names is None else label_names[number]
            raise ValueError(
                f"id {self.ids[where[bad]]} has label {given[bad]}, the manifest {self.hash} was "
                f"made from {true}; expected the same data"
            )
        labels[hit] = self.new[where[hit]]
        return labels if label_names is None else label_names[labels]

    def save(self, path) -> None:
        """Writes one .npz file (a JSON header and plain arrays), whole or not at all."""
        path = epath.Path(path)
        header = json.dumps({**self._header(), "hash": self.hash}).encode()
        file = io.BytesIO()
        np.savez_compressed(file, header=np.frombuffer(header, np.uint8), **self._arrays())
        part = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            part.write_bytes(file.getvalue())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path) -> "Manifest":
        """Reads what `save` wrote. Raises ValueError for a file that is not whole."""
        try:
            content = io.BytesIO(epath.Path(path).read_bytes())
            with np.load(content, allow_pickle=False) as file:
                arrays = dict(file)
            header = json.loads(bytes(arrays.pop("header")))
            digest = header.pop("hash")
            fields = {name: arrays.pop(name) for name in ("ids", "old", "new")}
            fields["options"] = {**header.pop("options"), **arrays}
            manifest = cls(**header, **fields)
        except FileNotFoundError:
            raise FileNotFoundError(f"no noise manifest at {path}") from None
        except (ValueError, KeyError, TypeError, EOFError, OSError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{path} is not a readable noise manifest ({type(error).__name__}); expected a "
                "file written by Manifest.save"
            ) from None
        if manifest.hash != digest:
            raise ValueError(
                f"{path} has changed since it was written: its content hashes to {manifest.hash}, "
                f"its header says {digest}"
            )
        return manifest

    def _header(self) -> dict:
        names = ("kind", "seed", "rate", "n", "base", "num_classes")
        header = {name: getattr(self, name) for name in names}
        plain = {k: v for k, v in self.options.items() if not isinstance(v, np.ndarray)}
        return {**header, "options": plain}

    def _arrays(self) -> dict[str, Any]:
        own = {k: v for k, v in self.options.items() if isinstance(v, np.ndarray)}
        return {"ids": self.ids, "old": self.old, "new": self.new, **own}

    def _find(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each id its place in `self.ids`, and whether it really is there."""
        if not len(self.ids):
            return np.zeros(len(ids), np.int64), np.zeros(len(ids), bool)
        where = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return where, self.ids[where] == ids


def flip_labels(
    labels,
    num_classes: int | None = None,
    rate: float | None = None,
    *,
    ids=None,
    seed: int = 0,
    kind: str = "symmetric",
    classes=None,
    within: bool = True,
    of: str = "subset",
    matrix=None,
) -> tuple[np.ndarray, Manifest]:
    """Gives exactly ⌊γN⌉ of the labels a wrong class; returns (noisy labels [n], manifest).

    labels: integers [n] in 0 … num_classes − 1; or, without `num_classes`, texts or any integers.
    Their classes are then those that occur, sorted (as the rows of `matrix` are), and the noisy
    labels and `classes` are of their kind. ids: unique integers or texts [n], by default
    0 … n − 1; a text counts as its `text_ids`.
    The true class is never redrawn, so γ is the fraction of labels that are wrong (arXiv
    2403.06869, §2.1). Kinds:

    - "symmetric": the wrong class is uniform over the num_classes − 1 others.
    - "subset": only examples of `classes` are flipped, uniformly over the other `classes`
      (`within=True`) or over all other classes. γ is a fraction of the examples of `classes`
      (`of="subset"`) or of all examples (`of="all"`).
    - "transition": `matrix` [C, C], T_ij = P(noisy = j | true = i). Class i gets flips in
      proportion to n_i (1 − T_ii), within one of its quota in all but contrived cases (Webster's
      divisor method, which keeps rates nested), its wrong classes are drawn from row i. `rate=None`
      flips the matrix' own ⌊Σ_i n_i (1 − T_ii)⌉; a number scales all off-diagonal mass to it.

    Raises ValueError or TypeError, one line, for arguments outside these.
    """
    if isinstance(num_classes, float) and rate is None:
        raise TypeError(f"num_classes is {num_classes}; a rate is given as rate={num_classes}")
    given = _plain(labels, "labels")
    num_classes, label_names = _classes_of(given, num_classes)
    labels = _numbers_of(given, num_classes, label_names)
    if np.iinfo(labels.dtype).max < num_classes - 1:
        raise ValueError(f"labels are {labels.dtype}, which cannot hold class {num_classes - 1}")
    names = len(labels) if ids is None else ids
    ids = _unique_ids(names, like=labels)
    seed = _integer("seed", seed, least=0)
    _check_kind(kind, classes=classes, within=within, of=of, matrix=matrix)
    if rate is not None:
        rate = _checked_rate(rate)

    options: dict = {} if label_names is None else {"label_names": label_names}
    base = len(labels)
    keys = _hash(seed, _SELECT, ids)
    if kind == "transition":
        transition = _checked_matrix(matrix, num_classes)
        options["matrix"] = transition
        chosen = _select_by_row(labels, keys, transition, rate)
        new = _draw_from_rows(_hash(seed, _REPLACE, ids[chosen]), labels[chosen], transition)
    else:
        targets = np.arange(num_classes)
        eligible = np.arange(len(labels))
        if kind == "subset":
            subset = _checked_classes(classes, num_classes, label_names, within)
            options |= {"classes": subset.tolist(), "within": bool(within), "of": of}
            eligible = np.flatnonzero(np.isin(labels, subset))
            base = base if of == "all" else len(eligible)
            targets = subset if within else targets
        count = _round_half_up(_checked_rate(rate), base)
        if count > len(eligible):
            raise ValueError(
                f"rate {rate} of all {base} examples is {count} flips, the subset has "
                f"{len(eligible)} examples; expected a rate of at most {len(eligible) / base:.6g}"
            )
        chosen = eligible[_smallest(keys[eligible], count)]
        new = _draw_other(_hash(seed, _REPLACE, ids[chosen]), labels[chosen], targets)

    chosen, new = _by_id(chosen, new, ids)
    options |= _names_of(names, chosen)
    manifest = Manifest(
        kind, seed, rate, len(labels), base, num_classes, ids[chosen], labels[chosen], new, options
    )
    labels[chosen] = new
    return labels if label_names is None else label_names[labels].astype(given.dtype), manifest


def swap_captions(
    n_or_ids, rate: float, *, seed: int = 0, pair_swaps: bool = False
) -> tuple[np.ndarray, Manifest]:
    """Displaces exactly ⌊γN⌉ captions; returns (permutation [n], manifest).

    Example i gets the caption of example `permutation[i]` (positions in the order given). A
    displaced caption is never on its own image. The ⌊γN⌉ examples with the smallest hashes form
    one cycle in hash order, each taking the next one's caption, the last the first's: so rates are
    nested, and of the examples displaced at a lower rate only the one that closed the cycle has
    another wrong caption at a higher (no permutation can keep them all). One caption alone
    cannot be displaced: γN in [0.5, 1) displaces none, [1, 1.5) two.

    `pair_swaps=True` does what the paper's released code does: ⌊γN⌋ swaps of random pairs, with
    replacement, which displaces about 1 − e^(−2γ) of the captions; `manifest.realised` says how
    many. Raises ValueError or TypeError, one line, for a rate outside [0, 1) or repeated ids.
    """
    if isinstance(n_or_ids, int | np.integer):
        n_or_ids = _integer("n", n_or_ids, least=0)
    ids = _unique_ids(n_or_ids)  # texts too, as in `flip_labels`
    seed = _integer("seed", seed, least=0)
    rate = _checked_rate(rate)
    n = len(ids)
    permutation = np.arange(n)
    if pair_swaps:
        order = np.argsort(ids)  # swaps are drawn between ids' ranks: the order given is no matter
        permutation[order] = order[_random_pair_swaps(n, _floor(rate, n), seed)]
    else:
        count = _round_half_up(rate, n)
        if count == 1:
            count = 2 * _floor(rate, n)
        if count > n:
            raise ValueError(f"{n} caption cannot be displaced; expected at least two")
        keys = _hash(seed, _SELECT, ids)
        cycle = _smallest(keys, count)
        cycle = cycle[np.argsort(keys[cycle])]
        permutation[cycle] = np.roll(cycle, -1)
    moved = np.flatnonzero(permutation != np.arange(n))
    moved, source = _by_id(moved, permutation[moved], ids)
    options = {"pair_swaps": bool(pair_swaps), **_names_of(n_or_ids, moved)}
    return permutation, Manifest(
        "captions", seed, rate, n, n, None, ids[moved], ids[moved], ids[source], options
    )


# Hashing and drawing -------------------------------------------------------------------------


def text_ids(texts) -> np.ndarray:
    """int64 [n] in [0, 2⁶³): the upper 63 bits of the 64-bit BLAKE2b of each text.

    A folder's ids are those of its files' stems, so both have the same noise.
    """
    digests = b"".join(hashlib.blake2b(os.fsencode(t), digest_size=8).digest() for t in texts)
    return (np.frombuffer(digests, "<u8") >> np.uint64(1)).astype(np.int64)


def splitmix64(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser, a bijection of uint64 (Steele, Lea and Flood, OOPSLA 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _hash(seed: int, stream: int, ids: np.ndarray) -> np.ndarray:
    """uint64 [n]: for one seed and stream a bijection of the ids."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    key = np.array([seed], np.uint64)
    key = splitmix64(splitmix64(key + golden) + np.array([stream], np.uint64) * golden)
    return splitmix64(splitmix64(ids.astype(np.uint64) + golden) ^ key)


def _below(bits: np.ndarray, bound: int) -> np.ndarray:
    """int64 [n] uniform in 0 … bound − 1 (to bound / 2³²) from the upper half of the hashes."""
    return (((bits >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32)).astype(np.int64)


def _smallest(keys: np.ndarray, count: int) -> np.ndarray:
    """Positions of the `count` smallest keys, in no order."""
    if count in (0, len(keys)):
        return np.arange(count)
    return np.argpartition(keys, count - 1)[:count]


def _by_id(chosen: np.ndarray, new: np.ndarray, ids: np.ndarray):
    order = np.argsort(ids[chosen])
    return chosen[order], new[order]


def _draw_other(bits: np.ndarray, old: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Uniform over the ascending `targets`, which hold every old class, without the old class."""
    place = np.searchsorted(targets, old)
    draw = _below(bits, len(targets) - 1)
    return targets[draw + (draw >= place)]


def _draw_from_rows(bits: np.ndarray, old: np.ndarray, transition: np.ndarray) -> np.ndarray:
    """Inverse-transform draws from the off-diagonal part of row `old`."""
    num_classes = len(transition)
    cumulative = np.cumsum(_off_diagonal(transition), axis=1)
    # Zero rows are never drawn from. Dividing by the last entry makes it exactly one.
    cumulative /= np.where(cumulative[:, -1:] > 0, cumulative[:, -1:], 1)
    # Rows laid end to end make one ascending table; 32-bit draws keep old + u below old + 1.
    table = (cumulative + np.arange(num_classes)[:, None]).ravel()
    u = (bits >> np.uint64(32)).astype(np.float64) / 2.0**32
    return np.searchsorted(table, old + u, side="right") - old.astype(np.int64) * num_classes


def _select_by_row(labels, keys, transition: np.ndarray, rate: float | None) -> np.ndarray:
    """Whom to flip: classes take turns by Webster's divisors, examples within one by their key."""
    n = len(labels)
    sizes = np.bincount(labels, minlength=len(transition))
    share = _off_diagonal(transition).sum(axis=1)
    expected = sizes * share
    total = float(expected.sum())
    count = math.floor(total + 0.5) if rate is None else _round_half_up(rate, n)
    most = total / share[sizes > 0].max() if total else 0.0
    if rate is not None and Fraction(repr(rate)) * n > most * (1 + 1e-9):
        raise ValueError(
            f"rate {rate} needs more than every example of some class flipped; expected at most "
            f"{most / n if n else 0:.6g} with this matrix and these labels"
        )
    order = np.lexsort((keys, labels))
    rank = np.empty(n, np.int64)
    rank[order] = np.arange(n) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    with np.errstate(divide="ignore"):
        turn = (rank + 0.5) / expected[labels]
    return np.lexsort((keys, turn))[: min(count, int(np.isfinite(turn).sum()))]


def _off_diagonal(transition: np.ndarray) -> np.ndarray:
    return transition * (1 - np.eye(len(transition)))


def _random_pair_swaps(n: int, count: int, seed: int) -> list[int]:
    """`count` swaps of two distinct random entries of 0 … n − 1, one after another."""
    steps = np.arange(count)
    permutation = list(range(n))
    if n < 2:
        return permutation
    first = _below(_hash(seed, _SELECT, steps), n)
    second = _below(_hash(seed, _PARTNER, steps), n - 1)
    second += second >= first
    for a, b in zip(first.tolist(), second.tolist(), strict=True):
        permutation[a], permutation[b] = permutation[b], permutation[a]
    return permutation


# Checks: one line each -----------------------------------------------------------------------


def _floor(rate: float, n: int) -> int:
    return math.floor(Fraction(repr(rate)) * n)


def _round_half_up(rate: float, n: int) -> int:
    return math.floor(Fraction(repr(rate)) * n + Fraction(1, 2))


def _checked_rate(rate: Any) -> float:
    if isinstance(rate, bool) or not isinstance(rate, int | float | np.number):
        raise TypeError(f"rate is {rate!r}; expected a number γ in [0, 1)")
    if not 0 <= rate < 1:
        raise ValueError(f"rate is {rate}; expected γ in [0, 1)")
    return float(rate)


def _integer(name: str, value: Any, *, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} is {value!r}; expected a whole number")
    if not least <= value < 2**63:
        raise ValueError(f"{name} is {value}; expected at least {least} and below 2^63")
    return int(value)


def _plain(values, what: str) -> np.ndarray:
    """A copy of values [n] without Python objects: integers, texts or truth values."""
    if np.ma.is_masked(values):
        hidden = np.ma.getmaskarray(values)
        raise ValueError(
            f"{what} are masked in {hidden.sum()} of {len(values)} examples, the first at "
            f"{hidden.argmax()}: leave those out"
        )
    array = np.array(values)
    if array.dtype.kind in "US" and not hasattr(values, "dtype"):
        array = np.array(values, object)  # NumPy makes the text "None" of a None among texts
    if array.ndim != 1:
        raise ValueError(f"{what} have shape {array.shape}; expected one axis, [n]")
    if array.dtype.kind in "OT":
        held = [plain(value) for value in array.tolist()]
        odd = next((i for i, value in enumerate(held) if type(value) is not type(held[0])), None)
        if odd is not None:
            raise TypeError(
                f"{what} are {type(held[0]).__name__}, but at {odd} {held[odd]!r}; expected one "
                "type, and none missing"
            )
        array = np.array(held)
    if array.dtype.kind not in "iuUSb" or array.ndim != 1:
        raise TypeError(f"{what} are {array.dtype}; expected integers, or texts")
    return array


def _classes_of(labels: np.ndarray, num_classes: int | None) -> tuple[int, np.ndarray | None]:
    """How many classes there are and, unless the labels are their numbers, their names [C]."""
    if num_classes is not None:
        num_classes = _integer("num_classes", num_classes, least=2)
        if labels.dtype.kind in "iu":
            return num_classes, None
    names = np.unique(labels)
    if len(names) < 2:
        raise ValueError(f"labels hold the classes {names.tolist()}; expected two or more")
    if num_classes not in (None, len(names)):
        raise ValueError(
            f"num_classes is {num_classes}, the labels are of {len(names)} classes: leave it out"
        )
    if labels.dtype.kind in "iu" and np.array_equal(names, np.arange(len(names))):
        return len(names), None
    return len(names), np.array(names.tolist())  # of the width that the longest needs


def _numbers_of(labels: np.ndarray, num_classes: int | None, names: np.ndarray | None):
    """The numbers [n] of the labels' classes: the labels themselves where classes have no names."""
    if names is None:
        return _checked_labels(labels, num_classes)
    alike = labels.dtype.kind == names.dtype.kind or labels.dtype.kind + names.dtype.kind == "ui"
    where = np.zeros(len(labels), np.int64)
    if alike:
        where = np.minimum(np.searchsorted(names, labels), len(names) - 1)
    odd = np.flatnonzero(names[where] != labels) if alike else np.arange(len(labels))
    if len(odd):
        raise ValueError(
            f"label {plain(labels[odd[0]])!r} is none of the {len(names)} classes, "
            f"{plain(names[0])!r} to {plain(names[-1])!r}"
        )
    return where


def _checked_labels(labels: np.ndarray, num_classes: int | None) -> np.ndarray:
    if labels.dtype.kind not in "iu":
        raise TypeError(f"labels are {labels.dtype}; expected integers, as the manifest's are")
    if num_classes is not None and len(labels):
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"labels span {low} to {high}; expected 0 to {num_classes - 1} "
                f"({num_classes} classes)"
            )
    return labels


def _unique_ids(ids, like: np.ndarray | None = None) -> np.ndarray:
    if isinstance(ids, int | np.integer):
        return np.arange(int(ids))
    given = _plain(ids, "ids") if len(ids) else np.zeros(0, np.int64)
    if given.dtype.kind == "b":
        raise TypeError("ids are truth values; expected integers, or texts")
    if like is not None and len(given) != len(like):
        raise ValueError(f"got {len(given)} ids for {len(like)} labels; expected one each")
    ids = text_ids(given.tolist()) if given.dtype.kind in "US" else given.astype(np.int64)
    ordered = np.sort(ids)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(repeated):
        raise ValueError(
            f"id {given[ids == repeated[0]][0]} is given more than once; expected unique ids"
        )
    return ids


def _names_of(ids, chosen: np.ndarray) -> dict[str, np.ndarray]:
    """{"names": those chosen of ids that are texts}; of others nothing."""
    if isinstance(ids, int | np.integer) or not len(ids):
        return {}
    given = _plain(ids, "ids")
    kind = given.dtype.kind
    return {"names": np.array(given[chosen].tolist(), kind)} if kind in "US" else {}


def _named(values: np.ndarray, names) -> Any:
    """The values' names [n], of a mapping; the values themselves without one."""
    if names is None:
        return values
    try:
        return [names[value] for value in values.tolist()]
    except KeyError as error:
        raise ValueError(f"names lack {error}; expected a name for every id and class") from None


def _check_kind(kind, *, classes, within, of, matrix) -> None:
    if kind not in KINDS:
        raise ValueError(unknown("noise kind", kind, KINDS))
    if of not in ("subset", "all"):
        raise ValueError(f"of is {of!r}; expected 'subset' or 'all'")
    for name, given, owner in (
        ("classes", classes is not None, "subset"),
        ("within", within is not True, "subset"),
        ("of", of != "subset", "subset"),
        ("matrix", matrix is not None, "transition"),
    ):
        if given and kind != owner:
            raise ValueError(f"{name}= is an argument of kind={owner!r}; the kind is {kind!r}")
        if not given and kind == owner and name in ("classes", "matrix"):
            raise ValueError(f"kind={kind!r} needs {name}=")


def _checked_classes(classes, num_classes: int, label_names, within: bool) -> np.ndarray:
    several = isinstance(classes, Iterable) and not isinstance(classes, str | bytes)
    if np.ndim(classes := list(classes) if several else classes) != 1:
        raise ValueError(f"classes are {classes!r}; expected a sequence of classes")
    if label_names is not None:
        classes = _numbers_of(_plain(classes, "classes"), num_classes, label_names)
    classes = np.unique(classes)
    if not len(classes) or not np.issubdtype(classes.dtype, np.integer):
        raise ValueError(f"classes are {classes.tolist()}; expected at least one integer")
    classes = classes.astype(np.int64)
    if not 0 <= classes[0] <= classes[-1] < num_classes:
        raise ValueError(
            f"classes span {classes[0]} to {classes[-1]}; expected 0 to {num_classes - 1}"
        )
    if within and len(classes) < 2:
        raise ValueError("a subset of one class has no wrong class within; expected two or more")
    return classes


def _checked_matrix(matrix, num_classes: int) -> np.ndarray:
    transition = np.array(matrix, np.float64)
    if transition.shape != (num_classes, num_classes):
        raise ValueError(
            f"matrix has shape {transition.shape}; expected {(num_classes, num_classes)}"
        )
    # `not >=` rather than `<`, so that NaN is refused too.
    if not (transition >= 0).all():
        raise ValueError("matrix has a negative or NaN entry; expected probabilities")
    off = np.abs(transition.sum(axis=1) - 1)
    if not (off <= 1e-6).all():
        row = int(np.argmax(off))
        raise ValueError(f"matrix row {row} sums to {transition[row].sum():.6g}; expected 1")
    return transition
