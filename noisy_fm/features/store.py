"""Feature stores: plain files in a folder, whole or absent, checked when they are opened.

A store is `features.npy` [n d] (or [n v d] for v views), `ids.npy`, `labels.npy` (or one
`labels.NAME.npy` a task) and `meta.json`, which says what made them.
"""

import io
import json
import os
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from noisy_fm import files
from noisy_fm.spectrum.arrays import refuse_masked
from noisy_fm.spectrum.files import STORE_VERSION, typed


class FeatureStore(NamedTuple):
    """An open store; arrays are memory-mapped and read-only."""

    path: Path
    features: np.ndarray
    ids: np.ndarray
    labels: np.ndarray | dict[str, np.ndarray] | None
    meta: dict


def write_store(path, *, features, ids, labels=None, meta: Mapping) -> None:
    """Writes a store, whole or not at all.

    `labels` is one array [n] or {task: [n]}; `meta` any JSON. Raises ValueError if lengths differ
    and TypeError for arrays of Python objects, which only a pickle could hold.
    """
    refuse_masked(features, where="features")
    arrays = {"features": np.asarray(features), "ids": np.asarray(ids)}
    if isinstance(labels, Mapping):
        arrays |= {f"labels.{name}": np.asarray(value) for name, value in labels.items()}
    elif labels is not None:
        arrays["labels"] = np.asarray(labels)
    lengths = {name: len(value) for name, value in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"a feature store's arrays must have one length; got {lengths}")
    for name, value in arrays.items():
        if value.dtype.hasobject:
            raise TypeError(f"a feature store holds plain arrays; {name} has dtype {value.dtype}")
    with files.written_whole(path) as folder:
        folder.mkdir()
        for name, value in arrays.items():
            np.save(folder / f"{name}.npy", value)
        contents = {name: _about(value) for name, value in arrays.items()}
        files.write_json(
            folder / "meta.json", {"store_version": STORE_VERSION, "files": contents, **meta}
        )


def open_store(path, *, verify: bool = True) -> FeatureStore:
    """Opens a store; `verify` reads every byte and compares it with the stored checksum.

    Raises FileNotFoundError for no store, ValueError for one that is damaged, cut short, or
    written by another version.
    """
    path = Path(path)
    if not (path / "meta.json").is_file():
        raise FileNotFoundError(f"{path} is not a feature store (it has no meta.json)")
    meta = files.read_json(path / "meta.json")
    if meta.get("store_version") != STORE_VERSION:
        raise ValueError(
            f"{path} is a store of version {meta.get('store_version')}; this noisy_fm reads "
            f"version {STORE_VERSION}: extract the features again"
        )
    arrays = {
        name: _open(path / f"{name}.npy", about, verify) for name, about in meta["files"].items()
    }
    labels = {n.removeprefix("labels."): v for n, v in arrays.items() if n.startswith("labels.")}
    return FeatureStore(
        path, arrays["features"], arrays["ids"], labels or arrays.get("labels"), meta
    )


class GrowingStore:
    """A store that is written block by block; killed, it goes on from where it was.

    It grows in the folder PATH.part: rows are appended to its features.npy, and progress.json says
    which of them are safe, from how many images they are (`read`), and which images were left
    out. `finish` makes it the store at PATH. What is written does not depend on interruptions.
    `made_from` (JSON) says what the features are of; a store begun or finished there that is of
    something else is refused with ValueError, in one line. Use it as a context manager.
    """

    SAVE_SECONDS = 10.0
    FILES = ("features.npy", "ids.npy", "labels.npy", "progress.json", "meta.json")

    def __init__(self, path, *, made_from: Mapping):
        self.path = Path(path).expanduser().absolute()
        self.folder = self.path.with_name(f"{self.path.name}.part")
        self.made_from = json.loads(json.dumps(made_from))
        self._safe = {"made_from": self.made_from, "read": 0, "rows": 0, "crc32": 0, "left_out": {}}
        self.saved = time.monotonic()
        self.finished = not self.folder.exists() and self._check_target()
        if self.finished:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in self.folder.iterdir() if not path.name.startswith(".")}
        if others := sorted(names.difference(self.FILES)):
            raise ValueError(
                f"{self.folder} is where a store would grow, and has {others[0]}; move that away, "
                "or choose another name"
            )
        self._file = (self.folder / "features.npy").open("a+b")  # neither begins anew nor ends it
        try:
            self._lock()
            self.finished = self._check_target()
            if self.finished:
                self._file.close()
            else:
                self._resume()
        except BaseException:
            self._file.close()
            raise

    @property
    def read(self) -> int:
        """How many images have been gone through."""
        return self._safe["read"]

    @property
    def left_out(self) -> dict[str, str]:
        """{id: why} of the images gone through that have no row."""
        return self._safe["left_out"]

    def append(self, features: np.ndarray, *, read: int, left_out: Mapping[str, str]) -> None:
        """Adds rows [k d], which are of the next `read` images but those `left_out` (id: why)."""
        now, block = self._safe, np.ascontiguousarray(features).tobytes()
        if not self.read:
            now |= {"width": features.shape[1], "dtype": features.dtype.str}
            self._file.write(_header(0, now["width"], now["dtype"]))
        self._file.write(block)
        now |= {
            "read": now["read"] + read,
            "rows": now["rows"] + len(features),
            "crc32": zlib.crc32(block, now["crc32"]),
            "left_out": {**now["left_out"], **left_out},
        }
        if time.monotonic() - self.saved > self.SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Makes the rows so far safe."""
        self._file.flush()
        os.fsync(self._file.fileno())
        files.write_json(self.folder / "progress.json", self._safe)
        self.saved = time.monotonic()

    def finish(self, *, ids: np.ndarray, labels: np.ndarray | None, meta: Mapping) -> None:
        """Makes it a store: `ids` and `labels` [n] are of the rows, `meta` is JSON."""
        self.save()
        now = self._safe
        header = _header(now["rows"], now["width"], now["dtype"])
        with (self.folder / "features.npy").open("r+b") as file:  # the header, now with its rows
            file.write(header)
            os.fsync(file.fileno())
        arrays = {"ids": ids} | ({} if labels is None else {"labels": labels})
        lengths = {name: len(value) for name, value in arrays.items()} | {"features": now["rows"]}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"a feature store's arrays must have one length; got {lengths}")
        for name, value in arrays.items():
            np.save(self.folder / f"{name}.npy", value)
        contents = {
            "features": {
                "shape": [now["rows"], now["width"]],
                "dtype": np.dtype(now["dtype"]).name,
                "crc32": now["crc32"],
            },
            **{name: _about(value) for name, value in arrays.items()},
        }
        about = {**self.made_from, "left_out": self.left_out, **meta}
        files.write_json(
            self.folder / "meta.json",
            {"store_version": STORE_VERSION, "files": contents, **about},
        )
        self._move()
        self._file.close()

    def __enter__(self):
        return self

    def __exit__(self, kind, value, traceback):
        if not self.finished:
            if self.read:
                self.save()
            self._file.close()

    def _check_target(self) -> bool:
        """Whether the store is there already; raises ValueError if what is there is not it."""
        if (self.folder / "meta.json").exists():  # killed at the very end
            self._check_same(files.read_json(self.folder / "meta.json"), self.folder)
            self._move()
        if (self.path / "meta.json").exists():
            meta = files.read_json(self.path / "meta.json")
            self._check_same(meta, self.path)
            self._safe["left_out"] = meta["left_out"]
            return True
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise ValueError(f"{self.path} exists and is no feature store; choose another name")
        return False

    def _check_same(self, found: Mapping, where: Path) -> None:
        for name, value in self.made_from.items():
            if found.get(name) != value:
                raise ValueError(
                    f"{where} has features of something else ({name} {found.get(name)!r}, now "
                    f"{value!r}); delete it, or choose another name"
                )

    def _resume(self) -> None:
        progress = self.folder / "progress.json"
        if progress.exists():
            self._safe = files.read_json(progress)
            self._check_same(self._safe["made_from"], self.folder)
        self._rewind()

    def _lock(self) -> None:
        """Keeps another process out; gone with this one, however it ends."""
        try:
            import fcntl
        except ImportError:  # Windows
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = os.fstat(self._file.fileno()).st_ino
            if (self.folder / "features.npy").stat().st_ino == ours:  # it was not moved meanwhile
                return
        except OSError:
            pass
        raise ValueError(f"{self.folder} is being written by another process")

    def _rewind(self) -> None:
        """Drops what was written after the last save; raises ValueError if that is damaged."""
        end = 0
        if self.read:
            start = len(_header(0, self._safe["width"], self._safe["dtype"]))
            row = self._safe["width"] * np.dtype(self._safe["dtype"]).itemsize
            end, crc = start + self._safe["rows"] * row, 0
            self._file.seek(start)
            while block := self._file.read(min(2**24, end - self._file.tell())):
                crc = zlib.crc32(block, crc)
            if crc != self._safe["crc32"]:
                raise ValueError(
                    f"{self.folder / 'features.npy'} is damaged; delete {self.folder} to begin anew"
                )
        self._file.truncate(end)

    def _move(self) -> None:
        (self.folder / "progress.json").unlink(missing_ok=True)
        os.replace(self.folder, self.path)
        self.finished = True


def _header(rows: int, width: int, dtype: str) -> bytes:
    """That of a .npy file; as long for any number of rows, as NumPy leaves room for it to grow."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": dtype, "fortran_order": False, "shape": (rows, width)}
    )
    return header.getvalue()


def _about(array: np.ndarray) -> dict:
    """What meta.json says of an array."""
    return {"shape": list(array.shape), "dtype": str(array.dtype), "crc32": _crc(array)}


def _open(file: Path, about: dict, verify: bool) -> np.ndarray:
    try:
        array = typed(np.load(file, mmap_mode="r", allow_pickle=False), about["dtype"])
    except (OSError, ValueError, EOFError) as error:
        reason = "missing" if not file.exists() else f"damaged ({error})"
        raise ValueError(
            f"{file} is {reason}; delete {file.parent} to have it made again"
        ) from None
    same = list(array.shape) == about["shape"] and str(array.dtype) == about["dtype"]
    if not same or (verify and _crc(array) != about["crc32"]):
        raise ValueError(
            f"{file} is damaged (its content is not what meta.json says); "
            f"delete {file.parent} to have it made again"
        )
    return array


def _crc(array: np.ndarray) -> int:
    crc, block = 0, 2**16
    for first in range(0, len(array), block):
        crc = zlib.crc32(np.ascontiguousarray(array[first : first + block]).tobytes(), crc)
    return crc
