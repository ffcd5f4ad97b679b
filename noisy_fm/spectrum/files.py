"""Features from what people keep them in; every fault of a file is one clear line."""

import json
from pathlib import Path

import numpy as np

STORE_VERSION = 1  # of a feature store's folder, as `features.write_store` makes it
MAGIC = b"\x93NUMPY"
PICKLED = ", but pickled Python objects: save the array itself with np.save"
OBJECTS = (
    "holds Python objects, not numbers: save it again from a plain array, "
    "as in np.save(FILE, np.asarray(rows, np.float32))"
)
SUFFIXES = (".npy", ".npz", ".parquet", ".safetensors")


def load_features(source: str | Path) -> np.ndarray:
    """The [n d] features in a file or feature-store folder; memory-mapped where the format allows.

    `.npy`; `.npz` and `.safetensors`: their one 2-D array, or the one named after a colon
    (`file.npz:train`); `.parquet`: its one column of lists of numbers, or the one named after a
    colon, or else all columns of floating point; a folder with `features.npy` and `meta.json`
    (of [n v d] views, the first).

    Raises:
      FileNotFoundError: no such file. ValueError: not of these, unreadable, truncated, or no
      (single) 2-D array in it.
    """
    path, key = split_key(str(source))
    if not path.exists():
        raise FileNotFoundError(f"no such features: {path}")
    try:
        if path.is_dir():
            return _read_store(path)
        reader = {
            ".npy": _read_npy,
            ".npz": _read_npz,
            ".parquet": _read_parquet,
            ".safetensors": _read_safetensors,
        }.get(path.suffix)
        if reader is None:
            raise _FormatError(f"expected {', '.join(SUFFIXES)} or a feature-store folder")
        return reader(path, key)
    except _FormatError as fault:
        raise ValueError(f"{path}: {fault}") from None
    except Exception as error:  # each reader has its own zoo: zip, Arrow, EOF, header errors
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: unreadable or truncated ({why})") from None


class _FormatError(Exception):
    """A readable file with the wrong thing in it."""


def split_key(source: str) -> tuple[Path, str | None]:
    """(FILE, KEY) of FILE:KEY, for the formats that have keys."""
    path, colon, key = source.rpartition(":")
    if colon and Path(path).suffix in (".npz", ".parquet", ".safetensors"):
        return Path(path), key
    return Path(source), None


def _read_npy(path, key=None):
    with path.open("rb") as file:
        start = file.read(len(MAGIC))
    if start != MAGIC[: len(start)]:
        raise _FormatError("not a .npy file" + PICKLED * start.startswith(b"\x80"))
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise _reworded(error, "") from None


def _reworded(error: ValueError, what: str) -> Exception:
    """NumPy's error, or ours where it refused to unpickle an array (and advises to do so)."""
    refused = "allow_pickle" in str(error) or "Python objects" in str(error)
    return _FormatError(f"{what}{OBJECTS}") if refused else error


def _read_store(path):
    features = path / "features.npy"
    if not features.exists():
        raise _FormatError("not a feature store (no features.npy in the folder)")
    if (path / "meta.json").exists():
        version = json.loads((path / "meta.json").read_text()).get("store_version", STORE_VERSION)
        if version != STORE_VERSION:
            raise _FormatError(
                f"a store of version {version}; this noisy_fm reads version {STORE_VERSION}: "
                "extract the features again"
            )
    array = _read_npy(features)
    return array[:, 0] if array.ndim == 3 else array


def _read_npz(path, key):
    # Opened here: NumPy leaves its own handle open on a truncated archive.
    with path.open("rb") as file, _archive(file) as archive:
        return _pick(archive, list(archive.files), key)


def _archive(file):
    try:
        archive = np.load(file, allow_pickle=False)
    except ValueError:  # neither an archive nor an array: NumPy would now advise to unpickle it
        raise _FormatError("not an .npz file") from None
    if not hasattr(archive, "files"):
        raise _FormatError("not an .npz file, but a single array: rename it to .npy")
    return archive


def _read_safetensors(path, key):
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as archive:
        names = list(archive.keys())
        return _pick({name: archive.get_tensor(name) for name in names}, names, key)


def _pick(arrays, names, key):
    if key is not None:
        if key not in names:
            raise _FormatError(f"no array {key!r}: it has {', '.join(names)}")
        return _numbers(arrays, key)
    found = {name: _numbers(arrays, name) for name in names}
    matrices = {name: array for name, array in found.items() if array.ndim == 2}
    if len(matrices) != 1:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in found.items())
        raise _FormatError(f"expected one 2-D array, or name one as FILE:NAME; it has {shapes}")
    return next(iter(matrices.values()))


def _numbers(arrays, name) -> np.ndarray:
    try:
        return arrays[name]
    except ValueError as error:
        raise _reworded(error, f"array {name!r} ") from None


def _read_parquet(path, key=None):
    import pyarrow.parquet as pq

    lists, floats, _ = _columns(pq.read_schema(path))
    if key is not None and key not in lists:
        raise _FormatError(f"no column of lists {key!r}: it has {', '.join(lists) or 'none'}")
    if key is None and len(lists) > 1:
        raise _FormatError(
            f"expected one column of lists, or name one as FILE:NAME; it has {', '.join(lists)}"
        )
    if lists:
        name = lists[0] if key is None else key
        return _list_column(pq.read_table(path, columns=[name])[name].combine_chunks(), name)
    if not floats:
        raise _FormatError("no column of lists of numbers and no floating-point columns")
    table = pq.read_table(path, columns=floats)
    return np.column_stack([table[name].to_numpy() for name in floats])


def _columns(schema) -> tuple[list[str], list[str], list[str]]:
    """Names of the columns of lists of numbers, of floating point, and of anything else."""
    import pyarrow as pa

    def of_numbers(kind) -> bool:
        types = pa.types
        lists = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
        if not (lists or types.is_list_view(kind) or types.is_large_list_view(kind)):
            return False
        return pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)

    lists = [field.name for field in schema if of_numbers(field.type)]
    floats = [field.name for field in schema if pa.types.is_floating(field.type)]
    return lists, floats, [name for name in schema.names if name not in {*lists, *floats}]


def _list_column(column, name: str) -> np.ndarray:
    """[n d] of n lists of d numbers, an Arrow array."""
    if column.null_count:
        first = column.is_null().index(True).as_py()
        raise _FormatError(
            f"column {name!r} has no list (null) in {column.null_count} of {len(column)} rows, "
            f"the first at row {first}: leave those rows out"
        )
    if not len(column):
        raise _FormatError(f"column {name!r} has no rows")
    if len({*column.value_lengths().to_pylist()}) != 1:
        raise _FormatError(f"the lists in column {name!r} differ in length")
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)


def columns_taken(source: str | Path) -> str:
    """Which columns of a .parquet without lists are the features, in a line; "" for all else."""
    path, key = split_key(str(source))
    if path.suffix != ".parquet" or key is not None:
        return ""
    import pyarrow.parquet as pq

    lists, floats, others = _columns(pq.read_schema(path))
    if lists:
        return ""
    several = len(floats) > 1
    which = f"{floats[0]} … {floats[-1]}" if several else floats[0]
    left = f"; left out: {', '.join(others[:5])}{', …' * (len(others) > 5)}" if others else ""
    return (
        f"no column of lists; features are {'all ' * several}{len(floats)} floating-point "
        f"column{'s' * several} ({which}){left}"
    )
