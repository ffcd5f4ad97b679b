"""Who is corrupted, and how: exact, nested label and caption noise, recorded in a manifest.

Noise is a pure function of the seed and the *set* of example ids. Each id is hashed to 64 bits
(SplitMix64's finaliser, so distinct ids never tie); the ⌊γN⌉ ids with the smallest hashes are
corrupted, and a second hash of the id draws the wrong supervision. So the order, host or shard in
which examples arrive changes nothing, and for one seed the examples corrupted at 5 % are among
those at 10 %, with the same wrong labels. A host that holds a shard applies the manifest made of
all ids: `manifest.apply(labels, ids)`.

⌊γN⌉ rounds half up, with γ read as the decimal it prints as (0.29 of 50 is 14.5, hence 15).
"""

import math
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import numpy as np

from noisy_fm.manifest import (
    Manifest,
    classes_of,
    names_of,
    numbers_of,
    plain_array,
    text_ids,
    unique_ids,
    whole,
)
from noisy_fm.messages import unknown

KINDS = ("symmetric", "subset", "transition")
__all__ = ["KINDS", "Manifest", "flip_labels", "splitmix64", "swap_captions", "text_ids"]
_SELECT, _REPLACE, _PARTNER = 1, 2, 3  # streams of the hash: who, what with, and with whom


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
    given = plain_array(labels, "labels")
    num_classes, label_names = classes_of(given, num_classes)
    labels = numbers_of(given, num_classes, label_names)
    if np.iinfo(labels.dtype).max < num_classes - 1:
        raise ValueError(f"labels are {labels.dtype}, which cannot hold class {num_classes - 1}")
    names = len(labels) if ids is None else ids
    ids = unique_ids(names, like=labels)
    seed = whole("seed", seed, least=0)
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
    options |= names_of(names, chosen)
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
        n_or_ids = whole("n", n_or_ids, least=0)
    ids = unique_ids(n_or_ids)  # texts too, as in `flip_labels`
    seed = whole("seed", seed, least=0)
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
    options = {"pair_swaps": bool(pair_swaps), **names_of(n_or_ids, moved)}
    return permutation, Manifest(
        "captions", seed, rate, n, n, None, ids[moved], ids[moved], ids[source], options
    )


# Hashing and drawing -------------------------------------------------------------------------


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


def _random_pair_swaps(n: int, count: int, seed: int) -> np.ndarray:
    """`count` swaps of two distinct random entries of 0 … n − 1, one after another."""
    permutation = np.arange(n)
    if n < 2:
        return permutation
    entries = memoryview(
        permutation.data
    )  # as fast as a list for one entry, and a quarter of its size
    for start in range(0, count, 2**20):
        steps = np.arange(start, min(start + 2**20, count))
        first = _below(_hash(seed, _SELECT, steps), n)
        second = _below(_hash(seed, _PARTNER, steps), n - 1)
        second += second >= first
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            entries[a], entries[b] = entries[b], entries[a]
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
        classes = numbers_of(plain_array(classes, "classes"), num_classes, label_names)
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
