"""Pairs of image and caption: listed once, kept in a file beside the data, and opened from there.

27 million captions as Python's texts would take 4 GB in every process. They lie in one Arrow file
instead, with where each image is, and the ids in another; a process maps both and holds neither.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

from noisy_fm import files
from noisy_fm.data.pairs.table import Cells, Table
from noisy_fm.data.pairs.texts import TWICE, LeftOut
from noisy_fm.data.storage.listing import Listing, stem
from noisy_fm.messages import warn
from noisy_fm.noise import text_ids

VERSION = 1
ROWS, BYTES = 2**16, 2**26  # of one record batch, at most


class Pair(NamedTuple):
    """One image and its caption, and where the image is: what `file` and the numbers mean is the
    storage's own. `folder` tells apart files of one name."""

    name: str
    folder: str
    file: int
    offset: int
    size: int
    caption: str


class Pairs:
    """A storage (see `storage.Storage`) of images that have captions, and no labels.

    `ids` int64 [n] and `captions` are columns on disk. A subclass calls `_open` and has `_pairs`,
    which lists what is there, and `read`.
    """

    where: str
    hint = ""  # what more to say if there is no pair

    def _open(self, folder: Path, spec: Sequence[str], stats: Sequence) -> None:
        """Opens the index of `spec` for files of these `stats`, made first if there is none."""
        self.index = _found(folder, spec, stats) or self._made(folder, spec, stats)
        self._map()
        if left_out := LeftOut(files.read_json(self.index / "left_out.json")):
            warn(f"{self.where}: {len(self.ids):,} pairs of image and caption; left out {left_out}")

    def _map(self) -> None:
        self.table = Table(self.index / "pairs.arrow")
        self.ids = np.load(self.index / "ids.npy", mmap_mode="r")
        self.captions = Cells(self.table, "caption")
        names = Cells(self.table, "name")
        self.listing = Listing(names, np.zeros(0, np.int32), (), False)  # type: ignore[arg-type]

    def __getstate__(self):
        own = ("table", "ids", "captions", "listing")
        return {key: value for key, value in self.__dict__.items() if key not in own}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._map()

    def _made(self, folder: Path, spec: Sequence[str], stats: Sequence) -> Path:
        left_out = LeftOut()
        for number, home in enumerate(_homes(folder)):
            index = home / _name(spec, stats)
            try:
                with files.written_whole(index) as part:
                    part.mkdir()
                    count = write(part, self._pairs(left_out), left_out)
                    if not count:
                        raise ValueError(
                            f"{self.where}: there is no pair of image and caption"
                            f"{self.hint and '; '}{self.hint}{left_out and '; '}{left_out or ''}; "
                            "expected images with a caption each"
                        )
                break
            except OSError as error:
                if number or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                    raise
                logging.warning("captions are listed elsewhere than beside their images: %s", error)
        if index.parent == folder:  # elsewhere there may be those of other data
            _drop_older(index, spec)
        return index

    def _pairs(self, left_out: LeftOut) -> Iterator[Pair]:
        raise NotImplementedError

    def read(self, index: int) -> bytes:
        """The image file's bytes; raises OSError if they cannot be had."""
        raise NotImplementedError

    def _cell(self, name: str, index: int):
        return self.table.take(name, np.array([index]))[0]


def write(folder: Path, pairs: Iterable[Pair], left_out: LeftOut) -> int:
    """Writes pairs.arrow, ids.npy and left_out.json to `folder`; returns how many pairs there are.

    An id is that of the image's stem, or, where files in several folders share one, of
    FOLDER/stem for all. Of pairs with one id the first stays.
    """
    plain, placed, folders = [], [], set[str]()
    file = folder / "pairs.arrow"
    with _Writer(file) as writer:
        for some in _in_parts(pairs):
            stems = [stem(os.fsencode(pair.name)) for pair in some]
            plain.append(text_ids(stems))
            folders.update(pair.folder for pair in some)
            placed.append(
                text_ids(f"{pair.folder}/{one}" for pair, one in zip(some, stems, strict=True))
            )
            writer.write(some)
    none = np.zeros(0, np.int64)
    ids, kept = np.concatenate([none, *plain]), np.zeros(0, bool)
    kept = first_of_each(ids)
    if not kept.all() and len(folders) > 1:
        ids_placed = np.concatenate([none, *placed])
        kept_placed = first_of_each(ids_placed)
        if kept_placed.sum() > kept.sum():
            ids, kept = ids_placed, kept_placed
    if not kept.all():
        again = np.flatnonzero(~kept)
        name = os.fsdecode(Table(file).take("name", again[:1])[0])
        left_out.add(TWICE, name, len(again))
        _filter(file, kept)
    np.save(folder / "ids.npy", ids[kept])
    files.write_json(folder / "left_out.json", left_out.kinds)
    return int(kept.sum())


def first_of_each(ids: np.ndarray) -> np.ndarray:
    """bool [n]: where an id is there for the first time."""
    order = np.argsort(ids, kind="stable")
    again = np.zeros(len(ids), bool)
    again[order[1:]] = ids[order[1:]] == ids[order[:-1]]
    return ~again


class _Writer:
    """Record batches to an Arrow file."""

    def __init__(self, path: Path):
        import pyarrow as pa

        self.schema = pa.schema(
            {
                "name": pa.binary(),
                "file": pa.int32(),
                "offset": pa.int64(),
                "size": pa.int64(),
                "caption": pa.string(),
            }
        )
        self.writer = pa.ipc.new_file(str(path), self.schema)

    def __enter__(self):
        return self

    def __exit__(self, kind, value, traceback):
        self.writer.close()

    def write(self, pairs: Sequence[Pair]) -> None:
        import pyarrow as pa

        columns = [[os.fsencode(p.name) for p in pairs], *zip(*(p[2:] for p in pairs), strict=True)]
        arrays = [pa.array(c, f.type) for c, f in zip(columns, self.schema, strict=True)]
        self.writer.write_batch(pa.record_batch(arrays, schema=self.schema))


def _in_parts(pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
    some: list[Pair] = []
    size = 0
    for pair in pairs:
        some.append(pair)
        size += len(pair.caption)
        if len(some) == ROWS or size > BYTES:
            yield some
            some, size = [], 0
    if some:
        yield some


def _filter(file: Path, kept: np.ndarray) -> None:
    """Keeps some rows of an Arrow file."""
    import pyarrow as pa

    other, start = file.with_suffix(".kept"), 0
    batches = Table(file).batches
    with pa.ipc.new_file(str(other), batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch.filter(pa.array(kept[start : start + batch.num_rows])))
            start += batch.num_rows
    os.replace(other, file)


def stats_of(paths: Iterable[Path], folder: Path) -> list:
    """What tells that files are as they were: place, size and time."""
    stats = ((path, path.stat()) for path in paths)
    return [(os.path.relpath(p, folder), s.st_size, s.st_mtime_ns) for p, s in stats]


def _name(spec: Sequence[str], stats: Sequence) -> str:
    return f".noisy_fm-captions-{_digest(list(spec))}-{_digest([VERSION, list(stats)])}"


def _digest(value) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=8).hexdigest()


def _homes(folder: Path) -> tuple[Path, Path]:
    """Where an index may be kept: beside the data, or at home if nothing can be written there."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return folder, Path(home) / "noisy_fm" / "captions"


def _found(folder: Path, spec: Sequence[str], stats: Sequence) -> Path | None:
    """The whole index that there is, if there is one."""
    import pyarrow as pa

    for home in _homes(folder):
        index = home / _name(spec, stats)
        try:
            ids = np.load(index / "ids.npy", mmap_mode="r")
            files.read_json(index / "left_out.json")
            if len(ids) == len(Table(index / "pairs.arrow")) > 0:
                return index
        except (OSError, ValueError, EOFError, pa.ArrowException):
            continue
    return None


def _drop_older(index: Path, spec: Sequence[str]) -> None:
    """Removes what was listed of the same files before they changed."""
    for other in index.parent.glob(f".noisy_fm-captions-{_digest(list(spec))}-*"):
        if other != index and other.is_dir():
            shutil.rmtree(other, ignore_errors=True)
