"""What every storage tells before an image is read: names and labels."""

import os
import re
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from noisy_fm.data.storage.labels import check_names, numbers_or_texts
from noisy_fm.noise import text_ids

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff"))
# The Hugging Face copy of ImageNet appends each file's synset to its stem.
APPENDED_SYNSET = re.compile(r"(?<=.)_n\d{8}$")
MOST_UNNAMED = 100_000  # classes that labels without names may stand for, if there are fewer images


class Listing(NamedTuple):
    """The examples of a storage, in its order."""

    names: np.ndarray  # bytes [n], the files' names as stored
    labels: np.ndarray  # int32 [n]
    label_names: tuple[str, ...]
    named: bool = True  # the classes; else `label_names` are but their numbers


class Storage(Protocol):
    """Random access to encoded images; safe to share between threads and to pickle."""

    where: str
    listing: Listing

    def read(self, index: int) -> bytes:
        """The image file's bytes; raises OSError if they cannot be had."""


def stem(name: bytes) -> str:
    """A file's name without folders, extension and appended synset."""
    base = os.fsdecode(name).replace("\\", "/").rsplit("/", 1)[-1]
    return APPENDED_SYNSET.sub("", base.rpartition(".")[0] or base)


def ids_of(listing: Listing, where: str) -> np.ndarray:
    """int64 [n] in [0, 2⁶³): BLAKE2b of each example's name, so that it is the same in any storage.

    The name is the file's stem; where two files share one (cat/1.jpg and dog/1.jpg), it is
    CLASS/stem for all of them, so that one such file more changes all ids. Raises ValueError if two
    files of one class share a stem, or two of classes that have no name.
    """
    texts = [stem(name) for name in listing.names]
    if len(set(texts)) < len(texts):
        labels = listing.labels.tolist()
        texts = [f"{listing.label_names[k]}/{text}" for k, text in zip(labels, texts, strict=True)]
    ids = text_ids(texts)
    order = np.argsort(ids, kind="stable")
    same = np.flatnonzero(np.diff(ids[order]) == 0)
    if len(same):
        first, second = (os.fsdecode(listing.names[order[same[0] + i]]) for i in (0, 1))
        raise ValueError(
            f"{where}: {len(same)} examples share name and class with another, as {first} and "
            f"{second}; expected other names (folders and extension do not count) within a class"
        )
    if len(set(map(stem, listing.names))) < len(ids) and not listing.named:
        raise ValueError(
            f"{where}: files of several classes share a name and the classes have none to tell "
            "them apart; expected names of the classes (labels.txt beside tar shards, a line each; "
            "a ClassLabel or text column in parquet)"
        )
    return ids


def make_listing(
    names: Sequence[bytes] | np.ndarray,
    labels: Sequence | np.ndarray,
    label_names: Sequence[str] | None,
    where: str,
) -> Listing:
    """A checked listing; labels are numbers, or texts, which are numbered in sorted order.

    Raises ValueError for what `labels.numbers_or_texts` and `check_names` refuse, and for labels
    that `label_names` lack.
    """
    if not len(names):
        raise ValueError(f"{where}: there is no image")
    found = numbers_or_texts(labels, names, where)
    named = label_names is not None or not isinstance(found, np.ndarray)
    if not isinstance(found, np.ndarray):
        label_names = sorted(set(found)) if label_names is None else label_names
        number = {name: i for i, name in enumerate(label_names)}
        unlisted = sorted(set(found) - set(number))
        if unlisted:
            raise ValueError(f"{where}: label {unlisted[0]!r} is not among the label names")
        found = np.array([number[text] for text in found])
    if label_names is None:
        count = int(found.max()) + 1
        if count > max(MOST_UNNAMED, len(found)):
            raise ValueError(
                f"{where}: label {count - 1} would make {count:,} classes of {len(found):,} "
                "images; expected classes numbered from 0"
            )
        label_names = [str(i) for i in range(count)]
    check_names(label_names, where)
    bad = np.flatnonzero((found < 0) | (found >= len(label_names)))
    if len(bad):
        raise ValueError(
            f"{where}: {len(bad)} labels are outside 0 … {len(label_names) - 1}, as "
            f"{found[bad[0]]} of {os.fsdecode(names[bad[0]])}; expected a labelled split"
        )
    return Listing(np.array(names, np.bytes_), found.astype(np.int32), tuple(label_names), named)


def contents(folder) -> str:
    """What a reader of a message may recognise a folder by."""
    names = sorted(f"{f.name}/" if f.is_dir() else f.name for f in folder.iterdir())
    shown = [name for name in names if name[0] != "."]
    return ", ".join(shown[:8] + ["…"] * (len(shown) > 8)) or "nothing"
