"""What every storage tells before an image is read: names, labels, and where its shards are."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol
from zipfile import BadZipFile

import numpy as np
from absl import logging

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff"))
# The Hugging Face copy of ImageNet appends each file's synset to its stem.
APPENDED_SYNSET = re.compile(r"(?<=.)_n\d{8}$")
INDEX_VERSION = 1


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
    digests = b"".join(hashlib.blake2b(os.fsencode(t), digest_size=8).digest() for t in texts)
    ids = (np.frombuffer(digests, "<u8") >> np.uint64(1)).astype(np.int64)
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
    """A checked listing; labels are numbers, or texts, which are numbered in sorted order."""
    if not len(names):
        raise ValueError(f"{where}: there is no image")
    array = np.asarray(labels)
    if array.dtype.kind not in "iu":
        texts = [str(label) for label in labels]
        label_names = sorted(set(texts)) if label_names is None else label_names
        number = {name: i for i, name in enumerate(label_names)}
        unlisted = sorted(set(texts) - set(number))
        if unlisted:
            raise ValueError(f"{where}: label {unlisted[0]!r} is not among the label names")
        array = np.array([number[text] for text in texts])
    named = label_names is not None
    if label_names is None:
        label_names = [str(i) for i in range(int(array.max()) + 1)]
    bad = np.flatnonzero((array < 0) | (array >= len(label_names)))
    if len(bad):
        raise ValueError(
            f"{where}: {len(bad)} labels are outside 0 … {len(label_names) - 1}, as "
            f"{array[bad[0]]} of {os.fsdecode(names[bad[0]])}; expected a labelled split"
        )
    return Listing(np.array(names, np.bytes_), array.astype(np.int32), tuple(label_names), named)


def find_shards(path: str | os.PathLike, split: str | None, suffix: str) -> list[Path]:
    """The files `*suffix` at `path` (a file, a folder and all below it, or a glob), sorted.

    With a `split`, those that have it as a word of their path below the folder.
    """
    root = Path(path).expanduser()
    if root.is_file():
        return [root]
    if not root.is_dir():
        found = sorted(root.parent.glob(root.name)) if "*" in root.name else []
        if not found:
            raise FileNotFoundError(
                f"{path} does not exist; expected *{suffix}: a file, a folder of some, or a pattern"
            )
        return found
    files = sorted(root.rglob(f"*{suffix}"))
    if not files:
        raise FileNotFoundError(f"{path} has no *{suffix} in it; it has {contents(root)}")
    if not split:
        return files
    word = re.compile(rf"(?<![a-z0-9]){re.escape(split)}(?![a-z0-9])", re.IGNORECASE)
    chosen = [file for file in files if word.search(file.relative_to(root).as_posix())]
    if not chosen:
        raise FileNotFoundError(
            f"{path} has no *{suffix} of split {split!r} (a word of its name); "
            f"it has {len(files)} others, as {files[0].relative_to(root)}"
        )
    return chosen


def contents(folder) -> str:
    """What a reader of a message may recognise a folder by."""
    names = sorted(f"{f.name}/" if f.is_dir() else f.name for f in folder.iterdir())
    shown = [name for name in names if name[0] != "."]
    return ", ".join(shown[:8] + ["…"] * (len(shown) > 8)) or "nothing"


def label_names_beside(folder: Path) -> list[str] | None:
    """The lines of labels.txt in `folder`, if there is one."""
    file = folder / "labels.txt"
    return file.read_text().splitlines() if file.is_file() else None


def read_at(path: str | os.PathLike, offset: int = 0, size: int | None = None) -> bytes:
    """`size` bytes (None: all) of a file from `offset` on; fewer if it ends before."""
    file = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(file).st_size if size is None else size
        data = os.pread(file, size, offset)
        while len(data) < size and (more := os.pread(file, size - len(data), offset + len(data))):
            data += more  # some network file systems give less than asked for
        return data
    finally:
        os.close(file)


def cached_index(
    folder: Path, name: str, shards: Sequence[Path], build: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """`build()`, or what it gave when the shards were the same (by name, size and time).

    It is kept in `folder`/.noisy_fm-NAME.npz; where that cannot be written, in memory only.
    """
    stats = [(shard.name, shard.stat().st_size, shard.stat().st_mtime_ns) for shard in shards]
    key = hashlib.blake2b(json.dumps([INDEX_VERSION, stats]).encode(), digest_size=16).hexdigest()
    file = folder / f".noisy_fm-{name}.npz"
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            if arrays["key"] == key:
                return {name: arrays[name] for name in arrays.files if name != "key"}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        pass  # none, or not a whole one
    index = build()
    temporary = folder / f".noisy_fm-{name}.{os.getpid()}.tmp.npz"
    try:
        np.savez(temporary, **{"key": np.array(key), **index})  # type: ignore[arg-type]
        os.replace(temporary, file)
    except OSError as error:
        logging.warning("the index of %s is not kept, so it is built each time: %s", folder, error)
    return index
