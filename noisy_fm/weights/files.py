"""Files of named arrays: safetensors, .npz and PyTorch's, read as what they say.

state = read("model.safetensors")  # {name: array}; a folder of shards, .npz, .pth likewise
write("model.safetensors", state)  # whole or not at all, and compared with what was meant
"""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from noisy_fm.files import written_whole
from noisy_fm.messages import require_known, say
from noisy_fm.weights import torch_file

INDEX = ".safetensors.index.json"
PYTORCH = (".pth", ".pt", ".bin", ".ckpt", ".tar")
POINTER = b"version https://git-lfs"
SUFFIXES = (".safetensors", ".npz", *PYTORCH)
# What training wraps a network in; it comes off where all names have it.
PREFIXES = ("module.", "_orig_mod.")


def read(path, *, part: str = "") -> dict[str, np.ndarray]:
    """The arrays of a file by their names.

    path: .safetensors, the index of its shards, a folder with one of them, .npz, or what
    `torch.save` wrote. part: of a checkpoint with several dicts of arrays ("model", "model_ema"),
    which one. Prefixes "module." and "_orig_mod." that all names have come off.

    Raises FileNotFoundError, or ValueError in one line for a damaged file, a missing shard, and a
    checkpoint of which several parts may be meant.
    """
    path = located(path)
    if path.name.endswith(INDEX):
        found: Mapping = _read_shards(path)
    elif path.suffix == ".safetensors":
        found = _read_safetensors(path)
    elif path.suffix == ".npz":
        found = _read_npz(path)
    elif path.suffix in PYTORCH:
        found = _arrays_of(torch_file.read(path), part, where=str(path))
        part = ""
    else:
        raise ValueError(f"{path} is none of {', '.join(SUFFIXES)}")
    if part:
        raise ValueError(f"{path} has no parts; part is {part!r}, expected ''")
    if not found:
        raise ValueError(f"{path} has no arrays")
    return _plainly_named(found)


def write(
    path, arrays: Mapping[str, np.ndarray], *, about: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file, whole or not at all, and reads it back before it has its name.

    Arrays may lie in memory as they like, transposed or strided. Raises ValueError if what is read
    back is not what was given.
    """
    from safetensors.numpy import save_file

    # The library writes the bytes of an array that is not C-contiguous in their own order.
    given = {name: np.ascontiguousarray(value).reshape(np.shape(value)) for name, value in
             arrays.items()}  # fmt: skip
    with written_whole(path) as temporary:
        save_file(given, str(temporary), metadata=dict(about or {}))
        back = _read_safetensors(temporary)
        wrong = [
            name
            for name, value in arrays.items()
            if name not in back
            or back[name].dtype != np.asarray(value).dtype
            or back[name].shape != np.shape(value)
            or back[name].tobytes() != np.asarray(value).tobytes("C")
        ]
        if wrong or len(back) != len(given):
            raise ValueError(f"{path} does not hold what was meant: {wrong[:3]}")


def located(path) -> Path:
    """The file of weights that a path is, or that a folder has one of."""
    path = Path(path).expanduser()
    if path.is_dir():
        path = _in_folder(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    return path


def read_config(path: Path) -> dict:
    """The object that a JSON file holds."""
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}; expected an object")
    return found


def _in_folder(folder: Path) -> Path:
    for pattern in (f"*{INDEX}", "*.safetensors", "*.npz", *(f"*{end}" for end in PYTORCH)):
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            names = ", ".join(one.name for one in found[:4])
            raise ValueError(
                f"{folder} has several files of weights ({names}); expected one's path"
            )
        if found:
            return found[0]
    raise FileNotFoundError(f"{folder} has no file of weights ({', '.join(SUFFIXES)})")


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, TypeError, ValueError, AttributeError) as error:
        with path.open("rb") as file:
            if file.read(len(POINTER)) == POINTER:
                raise ValueError(f"{path} is a pointer to a file of Git LFS; fetch that") from None
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from None


def _read_shards(index: Path) -> dict[str, np.ndarray]:
    try:
        places = json.loads(index.read_text())["weight_map"]
        files = sorted({str(file) for file in places.values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not an index of shards: {error!r}") from None
    outside = [file for file in files if Path(file).name != file]
    if outside:
        raise ValueError(f"{index} names {outside[0]!r}; expected files beside it")
    missing = [file for file in files if not (index.parent / file).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{index.parent} lacks {len(missing)} of {len(files)} shards, as {missing[0]}"
        )
    found: dict[str, np.ndarray] = {}
    for file in files:
        for name, value in _read_safetensors(index.parent / file).items():
            if places.get(name) != file:
                raise ValueError(f"{file} has {name}, which {index.name} says is elsewhere")
            found[name] = value
    if lacking := sorted(set(places) - set(found)):
        raise ValueError(f"the shards beside {index} lack {len(lacking)} arrays, as {lacking[0]}")
    return found


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as found:
            return dict(found)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a readable .npz file: {error}") from None


def _arrays_of(found, part: str, *, where: str) -> dict[str, np.ndarray]:
    """The dict of arrays in what a training script saved."""
    if not isinstance(found, Mapping):
        raise ValueError(f"{where} holds a {type(found).__name__}; expected a dict of arrays")
    parts = {}
    for name, one in found.items():
        held = [isinstance(x, np.ndarray) for x in one.values()] if isinstance(one, Mapping) else []
        if any(held) and not all(held):
            raise ValueError(f"{where}: {name} holds arrays and other things; expected arrays")
        if held and all(held):
            parts[str(name)] = {str(key): value for key, value in one.items()}
    arrays = {str(name): one for name, one in found.items() if isinstance(one, np.ndarray)}
    if part:
        return dict(parts[require_known("part", part, parts)])
    if arrays and not parts:
        rest = sorted(set(map(str, found)) - set(arrays))
        if rest:
            say(f"{where}: {', '.join(rest[:4])} are no arrays and were left out")
        return arrays
    if not parts:
        raise ValueError(f"{where} holds no dict of arrays")
    if len(parts) != 1 or arrays:
        known = ", ".join(sorted(parts)) or "none"
        raise ValueError(
            f"{where} has several parts of arrays ({known}); expected part to say which"
        )
    return dict(next(iter(parts.values())))


def _plainly_named(found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without the prefixes of wrappers that all names have, as often as they have them."""
    names = dict(found)
    while True:
        for prefix in PREFIXES:
            if all(name.startswith(prefix) for name in names):
                names = {name.removeprefix(prefix): value for name, value in names.items()}
                break
        else:
            return names
