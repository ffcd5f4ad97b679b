"""What noise did, as a record: which ids were changed, from what, to what.

And what labels and ids may be given as: numbers, or texts that are numbered.
"""

import dataclasses
import functools
import hashlib
import io
import json
import os
import zipfile
from typing import Any

import numpy as np
from etils import epath

from noisy_fm import files
from noisy_fm.scalars import plain


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
        return self._find(unique_ids(ids))[1]

    def apply(self, labels, ids=None) -> np.ndarray:
        """The labels [m] of examples `ids` [m] (default 0 … n − 1), corrupted as recorded.

        Any shard, order or subset will do. Raises ValueError if a label to be corrupted is not
        the one that the manifest was made from.
        """
        given, label_names = plain_array(labels, "labels"), self.options.get("label_names")
        labels = numbers_of(given, self.num_classes, label_names)
        if ids is None and len(labels) != self.n:
            raise ValueError(
                f"got {len(labels)} labels without ids, the manifest is of {self.n} examples; "
                "expected ids= for a part of them"
            )
        where, hit = self._find(unique_ids(len(labels) if ids is None else ids, like=labels))
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
        """Writes one .npz file (a JSON header and plain arrays), whole or not at all.

        Of captions `old` is `ids`, and `new` is written as `place`: where in `ids` each is.
        """
        header = json.dumps({**self._header(), "hash": self.hash}).encode()
        file = io.BytesIO()
        np.savez_compressed(file, header=np.frombuffer(header, np.uint8), **self._kept())
        files.write_bytes(path, file.getvalue())

    @classmethod
    def load(cls, path) -> "Manifest":
        """Reads what `save` wrote. Raises ValueError for a file that is not whole."""
        try:
            content = io.BytesIO(epath.Path(path).read_bytes())
            with np.load(content, allow_pickle=False) as file:
                arrays = dict(file)
            header = json.loads(bytes(arrays.pop("header")))
            digest = header.pop("hash")
            if "place" in arrays:
                arrays["old"] = arrays["ids"]
                arrays["new"] = arrays["ids"][arrays.pop("place")]
            fields = {name: arrays.pop(name) for name in ("ids", "old", "new")}
            fields["options"] = {**header.pop("options"), **arrays}
            manifest = cls(**header, **fields)
        except FileNotFoundError:
            raise FileNotFoundError(f"no noise manifest at {path}") from None
        except (ValueError, LookupError, TypeError, EOFError, OSError, zipfile.BadZipFile) as error:
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

    def _kept(self) -> dict[str, Any]:
        """What a file holds: less than half of `_arrays` where captions were swapped."""
        arrays = self._arrays()
        if self.kind != "captions" or not np.array_equal(self.ids, self.old):
            return arrays
        order = np.argsort(self.new)
        if not np.array_equal(self.new[order], self.ids):  # not by `swap_captions`
            return arrays
        del arrays["old"], arrays["new"]
        place = np.empty(len(order), np.uint32 if len(order) < 2**32 else np.int64)
        place[order] = np.arange(len(order))
        return {**arrays, "place": place}

    def _find(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each id its place in `self.ids`, and whether it really is there."""
        if not len(self.ids):
            return np.zeros(len(ids), np.int64), np.zeros(len(ids), bool)
        where = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return where, self.ids[where] == ids


def text_ids(texts) -> np.ndarray:
    """int64 [n] in [0, 2⁶³): the upper 63 bits of the 64-bit BLAKE2b of each text.

    A folder's ids are those of its files' stems, so both have the same noise.
    """
    digests = b"".join(hashlib.blake2b(os.fsencode(t), digest_size=8).digest() for t in texts)
    return (np.frombuffer(digests, "<u8") >> np.uint64(1)).astype(np.int64)


def whole(name: str, value: Any, *, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} is {value!r}; expected a whole number")
    if not least <= value < 2**63:
        raise ValueError(f"{name} is {value}; expected at least {least} and below 2^63")
    return int(value)


def plain_array(values, what: str) -> np.ndarray:
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
    if not len(array) and array.dtype.kind == "f":  # NumPy's type of an empty list
        raise ValueError(f"there are no {what}")
    if array.dtype.kind not in "iuUSb" or array.ndim != 1:
        raise TypeError(f"{what} are {array.dtype}; expected integers, or texts")
    return array


def classes_of(labels: np.ndarray, num_classes: int | None) -> tuple[int, np.ndarray | None]:
    """How many classes there are and, unless the labels are their numbers, their names [C]."""
    if num_classes is not None:
        num_classes = whole("num_classes", num_classes, least=2)
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


def numbers_of(labels: np.ndarray, num_classes: int | None, names: np.ndarray | None):
    """The numbers [n] of the labels' classes: the labels themselves where classes have no names."""
    if names is None:
        return checked_labels(labels, num_classes)
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


def checked_labels(labels: np.ndarray, num_classes: int | None) -> np.ndarray:
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


def unique_ids(ids, like: np.ndarray | None = None) -> np.ndarray:
    if isinstance(ids, int | np.integer):
        return np.arange(int(ids))
    given = plain_array(ids, "ids") if len(ids) else np.zeros(0, np.int64)
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


def names_of(ids, chosen: np.ndarray) -> dict[str, np.ndarray]:
    """{"names": those chosen of ids that are texts}; of others nothing."""
    if isinstance(ids, int | np.integer) or not len(ids):
        return {}
    given = plain_array(ids, "ids")
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
