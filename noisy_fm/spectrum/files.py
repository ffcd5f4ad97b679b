"""Features from what people keep them in; every fault of a file is one clear line."""

import json
import os
from pathlib import Path

import numpy as np

from noisy_fm.spectrum import csv, parquet
from noisy_fm.spectrum.arrays import as_features, raw_advice
from noisy_fm.spectrum.parquet import UnfitError

STORE_VERSION = 1  # of a feature store's folder, as `features.write_store` makes it
MAGIC = b"\x93NUMPY"
PICKLED = ", but pickled Python objects: save the array itself with np.save"
OBJECTS = (
    "holds Python objects, not numbers: save it again from a plain array, "
    "as in np.save(FILE, np.asarray(rows, np.float32))"
)
RAW = (
    "holds bytes without a type, which is what np.save makes of bfloat16 and float8: save it as "
    "np.save(FILE, x.astype(np.float32)), or as .safetensors"
)
COPY = {"gs": "gcloud storage cp", "s3": "aws s3 cp", "hf": "hf download", "https": "curl -O"}
# How a .safetensors file spells NumPy's types, and those that ml_dtypes adds to them.
TENSORS = {
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    "BOOL": "bool",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
}
SUFFIXES = (".npy", ".npz", ".parquet", ".safetensors", ".csv")


def load_features(source: str | Path) -> np.ndarray:
    """The [n d] features in a file or feature-store folder; memory-mapped where the format allows.

    `.npy`; `.npz` and `.safetensors`: their one 2-D array, or the one named after a colon
    (`file.npz:train`), and nothing else of them is read; `.parquet`: its one column of lists or
    tensors of numbers ([d], or [1 d] a row), or the one named after a colon, or else, in a table
    of plain columns, all of floating point but pandas' index; `.csv`: all its columns but an index,
    or those named after a colon (`file.csv:a,b` or `file.csv:emb_*`); a folder with `features.npy`
    and `meta.json` (of [n v d] views, the first).

    Raises:
      FileNotFoundError: no such file. ValueError: not of these, unreadable, truncated, or no
      (single) 2-D array of real numbers in it; a URL.
    """
    scheme, colon, _ = str(source).partition("://")
    if colon:
        how = f", as with `{COPY[scheme]}`" if scheme in COPY else ""
        raise ValueError(f"{source}: spectra read local files: copy it here first{how}")
    path, key = split_key(str(source))
    if not path.exists():
        raise FileNotFoundError(f"no such features: {path}")
    try:
        return _checked(_reader(path)(path, key))
    except UnfitError as fault:
        raise ValueError(f"{path}: {fault}") from None
    except Exception as error:  # each reader has its own zoo: zip, Arrow, EOF, header errors
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: unreadable or truncated ({why})") from None


def _reader(path: Path):
    readers = {
        ".npy": _read_npy,
        ".npz": _read_npz,
        ".parquet": parquet.read,
        ".safetensors": _read_safetensors,
        ".csv": csv.read,
    }
    if path.is_dir():
        return _read_store
    if path.suffix not in readers:
        raise UnfitError(f"expected {', '.join(SUFFIXES)} or a feature-store folder")
    return readers[path.suffix]


def _checked(array: np.ndarray) -> np.ndarray:
    if raw_advice(array.dtype):
        raise UnfitError(RAW)
    try:
        as_features(array)
    except (TypeError, ValueError) as error:
        raise UnfitError(str(error)) from None
    return array


def split_key(source: str) -> tuple[Path, str | None]:
    """(FILE, KEY) of FILE:KEY, for the formats that have keys; `~` is the home folder."""
    source = os.path.expanduser(source)
    path, colon, key = source.rpartition(":")
    if colon and Path(path).suffix in SUFFIXES[1:]:
        return Path(path), key
    return Path(source), None


def _read_npy(path, key=None):
    with path.open("rb") as file:
        start = file.read(len(MAGIC))
    if start != MAGIC[: len(start)]:
        raise UnfitError("not a .npy file" + PICKLED * start.startswith(b"\x80"))
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise _reworded(error, "") from None


def _reworded(error: ValueError, what: str) -> Exception:
    """NumPy's error, or ours where it refused to unpickle (and advises to do so) or is unclear."""
    if "allow_pickle" in str(error) or "Python objects" in str(error):
        return UnfitError(f"{what}{OBJECTS}")
    if "dtype descriptor" in str(error):  # one of ml_dtypes' types is saved as a float of one byte
        return UnfitError(f"{what}{RAW}")
    return error


def _read_store(path, key=None):
    features = path / "features.npy"
    if not features.exists():
        raise UnfitError("not a feature store (no features.npy in the folder)")
    meta = {}
    if (path / "meta.json").exists():
        meta = json.loads((path / "meta.json").read_text())
        version = meta.get("store_version", STORE_VERSION)
        if version != STORE_VERSION:
            raise UnfitError(
                f"a store of version {version}; this noisy_fm reads version {STORE_VERSION}: "
                "extract the features again"
            )
    about = meta.get("files", {}).get("features", {})
    array = typed(_read_npy(features), about.get("dtype", ""))
    return array[:, 0] if array.ndim == 3 else array


def typed(array: np.ndarray, dtype: str) -> np.ndarray:
    """A store's array with the type that its meta.json names: np.save keeps no bfloat16."""
    if array.dtype.kind == "V" and dtype.startswith(("bfloat", "float")):
        import ml_dtypes

        found = getattr(ml_dtypes, dtype, None)
        if found is not None and np.dtype(found).itemsize == array.dtype.itemsize:
            return array.view(found)
    return array


def _read_npz(path, key):
    # Opened here: NumPy leaves its own handle open on a truncated archive.
    with path.open("rb") as file, _archive(file) as archive:
        names = list(archive.files)
        return _numbers(archive, _picked(names, lambda name: _npz_shape(archive, name), key))


def _archive(file):
    try:
        archive = np.load(file, allow_pickle=False)
    except ValueError:  # neither an archive nor an array: NumPy would now advise to unpickle it
        raise UnfitError("not an .npz file") from None
    if not hasattr(archive, "files"):
        raise UnfitError("not an .npz file, but a single array: rename it to .npy")
    return archive


def _npz_shape(archive, name: str) -> tuple[int, ...]:
    """The shape of an array by its header alone, whatever it holds."""
    with archive.zip.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        first = version == (1, 0)
        read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        try:
            return read(member)[0]
        except ValueError as error:
            raise _reworded(error, f"array {name!r} ") from None


def _numbers(archive, name) -> np.ndarray:
    try:
        return archive[name]
    except ValueError as error:
        raise _reworded(error, f"array {name!r} ") from None


def _read_safetensors(path, key):
    import ml_dtypes
    from safetensors import safe_open

    with safe_open(path, framework="numpy"):  # which checks that all is there
        pass
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    name = _picked(list(header), lambda name: tuple(header[name]["shape"]), key)
    about = header[name]
    spelled = TENSORS.get(about["dtype"])
    if spelled is None:
        raise UnfitError(
            f"array {name!r} is of {about['dtype']}, expected one of {', '.join(TENSORS)}"
        )
    dtype = np.dtype(getattr(ml_dtypes, spelled, spelled))
    first, last = about["data_offsets"]
    if first == last:
        return np.zeros(about["shape"], dtype)
    return np.memmap(path, dtype, "r", offset=8 + size + first, shape=tuple(about["shape"]))


def _picked(names: list[str], shape_of, key: str | None) -> str:
    """`key`, or the name of the one 2-D array; nothing but shapes is read."""
    if key is not None:
        if key not in names:
            raise UnfitError(f"no array {key!r}: it has {', '.join(names)}")
        return key
    shapes = {name: shape_of(name) for name in names}
    matrices = [name for name, shape in shapes.items() if len(shape) == 2]
    if len(matrices) != 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise UnfitError(f"expected one 2-D array, or name one as FILE:NAME; it has {listed}")
    return matrices[0]


def columns_taken(source: str | Path) -> str:
    """Which plain columns of a .parquet or .csv are the features, in a line; "" for all else."""
    path, key = split_key(str(source))
    tables = {".parquet": parquet.taken, ".csv": csv.taken}
    return tables[path.suffix](path) if path.suffix in tables and key is None else ""


def row_ids(source: str | Path) -> np.ndarray | None:
    """Which example each row is of [n], as a feature-store folder records it; else None."""
    path = Path(os.path.expanduser(source)) / "ids.npy"
    return _read_npy(path) if path.is_file() else None
