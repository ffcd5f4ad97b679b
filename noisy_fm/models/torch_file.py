"""Reads tensors that PyTorch saved, without PyTorch and without running what a pickle may hold.

Only the layout that `torch.save` wrote before version 1.6: five pickles in a row (magic number,
protocol, machine, state dict, storage keys), then each storage's length and raw values.
"""

import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
DTYPES = {"FloatStorage": "<f4", "DoubleStorage": "<f8", "LongStorage": "<i8", "IntStorage": "<i4"}


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
    requires_grad: bool
    hooks: OrderedDict


class _Unpickler(pickle.Unpickler):
    """Knows four kinds of names; any other is refused, so that nothing in the file can run."""

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Tensor
        if module == "torch" and name in DTYPES:
            return np.dtype(DTYPES[name])
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is not a tensor of numbers")

    def persistent_load(self, identity):
        kind, dtype, key, _, length, view = identity
        if kind != "storage" or not isinstance(dtype, np.dtype) or view is not None:
            raise pickle.UnpicklingError(f"it has a persistent object {identity!r}")
        return _Storage(key, dtype, length)


def read_state_dict(path) -> dict[str, np.ndarray]:
    """{name: array} of a state dict saved in PyTorch's legacy (not zip) layout.

    Raises FileNotFoundError, or ValueError in one line for a file that is truncated, of another
    layout, or holds anything but named tensors of float32, float64, int32 or int64.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with path.open("rb") as file:
        if file.read(4) == b"PK\x03\x04":
            raise ValueError(
                f"{path} is in PyTorch's zip layout; expected the legacy one: save it again with "
                "torch.save(…, _use_new_zipfile_serialization=False)"
            )
        file.seek(0)
        try:
            return _read(file)
        except (
            pickle.UnpicklingError,
            struct.error,
            EOFError,
            ValueError,
            TypeError,
            KeyError,
            IndexError,
            AttributeError,
            OverflowError,
            UnicodeDecodeError,
            ImportError,
        ) as error:  # all that unpickling damaged bytes can raise
            raise ValueError(f"{path} is not a readable PyTorch state dict: {error}") from error


def _read(file) -> dict[str, np.ndarray]:
    magic, protocol, machine = (_Unpickler(file).load() for _ in range(3))
    if magic != MAGIC or protocol != PROTOCOL or not machine["little_endian"]:
        raise ValueError("its header is not that of a little-endian torch.save")
    tensors, keys = (_Unpickler(file).load() for _ in range(2))
    for name, tensor in tensors.items():
        if not isinstance(tensor, _Tensor):
            raise ValueError(f"its entry {name!r} is not a tensor")
    storages = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    values = {}
    for key in keys:
        dtype, length = storages[key].dtype, struct.unpack("<q", file.read(8))[0]
        payload = file.read(length * dtype.itemsize)
        if length != storages[key].length or len(payload) != length * dtype.itemsize:
            raise ValueError(f"it ends in the middle of storage {key}")
        values[key] = np.frombuffer(payload, dtype)
    return {name: _view(tensor, values[tensor.storage.key]) for name, tensor in tensors.items()}


def _view(tensor: _Tensor, values: np.ndarray) -> np.ndarray:
    """The tensor as a contiguous copy; a view that would leave its storage is refused."""
    _, offset, shape, strides, _, _ = tensor
    reach = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if min((offset, *shape, *strides)) < 0 or (0 not in shape and reach >= len(values)):
        raise ValueError(f"a tensor of shape {shape} reaches outside its storage")
    size = values.itemsize
    return np.lib.stride_tricks.as_strided(
        values[offset:], shape, [stride * size for stride in strides]
    ).copy()
