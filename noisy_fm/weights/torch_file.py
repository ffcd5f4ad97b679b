"""Reads what PyTorch saved, without PyTorch and without running what a pickle may hold.

Both layouts of `torch.save`: the zip archive (since version 1.6: data.pkl beside one file a
storage), and the older five pickles in a row (magic number, protocol, machine, object, storage
keys) with the storages behind.
"""

import math
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
DTYPES: dict[str, Any] = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    length: int


class _Tensor(NamedTuple):
    """What torch._utils._rebuild_tensor_v2 is called with; strides and offset count elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    requires_grad: bool = False
    hooks: Any = None


def _parameter(tensor, requires_grad, hooks) -> _Tensor:
    return tensor


NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "Size"): tuple,
    **{("torch", name): np.dtype(kind) for name, kind in DTYPES.items()},
}


class _Unpickler(pickle.Unpickler):
    """Knows the names of `NAMES`; any other is refused, so that nothing in the file can run."""

    def find_class(self, module, name):
        if (module, name) not in NAMES:
            raise pickle.UnpicklingError(
                f"it names {module}.{name}, which is no tensor of numbers; save the part with the "
                "tensors alone, where PyTorch is"
            )
        return NAMES[module, name]

    def persistent_load(self, identity):
        kind, dtype, key, _, length, *view = identity
        if kind != "storage" or not isinstance(dtype, np.dtype) or any(view):
            raise pickle.UnpicklingError(f"it has a persistent object {identity!r}")
        return _Storage(key, dtype, length)


# All that unpickling damaged bytes can raise.
DAMAGED = (
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    NotImplementedError,
    UnicodeDecodeError,
    ImportError,
    RecursionError,
    MemoryError,
)


def read(path) -> Any:
    """What was saved: dicts, lists, numbers and texts, with an array for each tensor.

    Raises FileNotFoundError, or ValueError in one line for a file that is truncated, of another
    layout, or names anything but tensors; nothing in it is run.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        if zipfile.is_zipfile(path):
            return _read_archive(path)
        with path.open("rb") as file:
            return _read_in_a_row(file)
    except DAMAGED as error:
        raise ValueError(f"{path} is not a readable PyTorch file: {error}") from error


def _read_archive(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        pickled = next((name for name in names if name.endswith("/data.pkl")), "data.pkl")
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
            raise ValueError("it is big-endian")
        with archive.open(pickled) as file:
            found = _Unpickler(file).load()
        kept: dict[str, np.ndarray] = {}

        def values(storage: _Storage) -> np.ndarray:
            if storage.key not in kept:
                entry = archive.getinfo(f"{folder}data/{storage.key}")
                if entry.file_size != storage.length * storage.dtype.itemsize:
                    raise ValueError(f"storage {storage.key} has {entry.file_size:,} bytes")
                if entry.compress_type != zipfile.ZIP_STORED:  # torch.save never does it
                    raise ValueError(f"storage {storage.key} is compressed")
                payload = archive.read(entry)
                kept[storage.key] = np.frombuffer(payload, storage.dtype)
            return kept[storage.key]

        return _with_arrays(found, values)


def _read_in_a_row(file) -> Any:
    magic, protocol, machine = (_Unpickler(file).load() for _ in range(3))
    if magic != MAGIC or protocol != PROTOCOL or not machine["little_endian"]:
        raise ValueError("its header is not that of a little-endian torch.save")
    found, keys = (_Unpickler(file).load() for _ in range(2))
    size = os.fstat(file.fileno()).st_size
    storages: dict[str, _Storage] = {}
    _with_arrays(found, lambda one: storages.setdefault(one.key, one) and np.zeros(0), view=False)
    payloads = {}
    for key in keys:
        dtype, length = storages[key].dtype, struct.unpack("<q", file.read(8))[0]
        if length != storages[key].length:
            raise ValueError(f"it ends in the middle of storage {key}, or says another length")
        payload = file.read(min(length * dtype.itemsize, size))
        if len(payload) != length * dtype.itemsize:
            raise ValueError(f"it ends in the middle of storage {key}")
        payloads[key] = np.frombuffer(payload, dtype)
    return _with_arrays(found, lambda one: payloads[one.key])


def _with_arrays(found: Any, values: Callable[[_Storage], np.ndarray], *, view: bool = True) -> Any:
    """The object with an array in place of each tensor."""
    if isinstance(found, _Tensor):
        stored = values(found.storage)
        return _view(found, stored) if view else None
    if isinstance(found, Mapping):
        return {key: _with_arrays(one, values, view=view) for key, one in found.items()}
    if isinstance(found, list | tuple):
        return [_with_arrays(one, values, view=view) for one in found]
    return found


def _view(tensor: _Tensor, values: np.ndarray) -> np.ndarray:
    """The tensor as a contiguous copy; a view that would leave its storage is refused."""
    offset, shape, strides = tensor.offset, tensor.shape, tensor.strides
    reach = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if min((offset, *shape, *strides)) < 0 or (0 not in shape and reach >= len(values)):
        raise ValueError(f"a tensor of shape {shape} reaches outside its storage")
    if math.prod(shape) > max(len(values), 1):  # a view that repeats it, as large as it likes
        raise ValueError(f"a tensor of shape {shape} is larger than its storage")
    size = values.itemsize
    return np.lib.stride_tricks.as_strided(
        values[offset:], shape, [stride * size for stride in strides]
    ).copy()
