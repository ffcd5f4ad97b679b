"""Estimators in safetensors files: arrays as tensors, all else as JSON in the header."""

import json
import reprlib
from pathlib import Path

import numpy as np

from noisy_fm import __version__
from noisy_fm.files import written_whole
from noisy_fm.scalars import plain

FORMAT = 1
_SCALARS = ("n_features_in_", "n_iter_", "loss_curve_", "validation_scores_")


def save(estimator, path) -> None:
    """Writes a fitted estimator.

    Raises ValueError for an argument that JSON does not hold and OSError where nothing can be
    written, each in one line.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}; make it first")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; expected a file's name")
    tensors = {f"parameters/{k}": v for k, v in _flat(estimator._parameters).items()}
    tensors |= {f"statistics/{k}": v for k, v in _flat(estimator._statistics).items()}
    if estimator.mean_ is not None:
        tensors |= {"mean": estimator.mean_, "scale": estimator.scale_}
    arguments = {name: _stored(name, v) for name, v in estimator.get_params(deep=False).items()}
    classes = estimator.classes_
    if classes.dtype.kind in "mM":  # dates and durations: their counts since the epoch
        classes = classes.astype(np.int64)
    header = {
        "format": FORMAT,
        "version": __version__,
        "estimator": type(estimator).__name__,
        "arguments": arguments,
        "classes": classes.tolist(),
        "classes_dtype": str(estimator.classes_.dtype),
        "weighed": estimator._weighed,
        "fitted": {name: getattr(estimator, name) for name in _SCALARS},
        "search": {name: _packed(name, getattr(estimator, name)) for name in estimator._found},
    }
    if hasattr(estimator, "feature_names_in_"):
        header["feature_names"] = list(estimator.feature_names_in_)
    tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    try:
        with written_whole(path) as temporary:  # older versions of safetensors write in place
            save_file(tensors, temporary, metadata={"noisy_fm": json.dumps(header)})
    except (SafetensorError, OSError) as error:
        raise OSError(f"{path}: cannot be written ({error})") from None


def _stored(name: str, value):
    """A value as JSON holds it, a dict as its pairs; ValueError for one that it cannot."""
    if isinstance(value, dict):  # JSON would make texts of its keys
        return {"pairs": [[_stored(name, k), _stored(name, v)] for k, v in value.items()]}
    value = plain(value)
    try:
        json.dumps(value)
    except TypeError:
        shown = reprlib.repr(value).replace("\n", " ")
        raise ValueError(
            f"{name}={shown} cannot be stored: set a plain number, text or None first"
        ) from None
    return value


def _restored(value):
    """The argument that `_stored` stored (tuples come back as lists)."""
    return dict(value["pairs"]) if isinstance(value, dict) else value


def _packed(name: str, value):
    """A search's result as JSON: an array as {"array": list, "dtype": name}, others as they are."""
    if isinstance(value, dict):
        return {key: _packed(f"{name}[{key!r}]", entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_packed(name, entry) for entry in value]
    if isinstance(value, np.ndarray):
        return {"array": value.tolist(), "dtype": str(value.dtype)}
    return _stored(name, value)


def _unpacked(value):
    """What `_packed` packed (tuples come back as lists)."""
    if isinstance(value, list):
        return [_unpacked(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"array", "dtype"}:
        return np.array(value["array"], dtype=value["dtype"])
    return {key: _unpacked(entry) for key, entry in value.items()}


def load(cls, path):
    """The estimator of class `cls` in a file; ValueError in one line for any other file."""
    from safetensors import SafetensorError, safe_open

    if Path(path).is_dir():
        raise IsADirectoryError(f"{path} is a folder; expected what {cls.__name__}.save wrote")
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file; expected what {cls.__name__}.save wrote")
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {}).get("noisy_fm", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from None
    if header is None:
        raise ValueError(f"{path}: a safetensors file, but not one that an estimator wrote")
    if header["format"] != FORMAT:
        raise ValueError(
            f"{path}: format {header['format']} of noisy_fm {header['version']}, expected {FORMAT}"
        )
    if header["estimator"] != cls.__name__:
        raise ValueError(f"{path}: holds {header['estimator']}, expected {cls.__name__}")
    arguments = header["arguments"].items()
    estimator = cls(**{name: _restored(value) for name, value in arguments})
    for name, value in header["fitted"].items():
        setattr(estimator, name, value)
    for name, value in header.get("search", {}).items():
        setattr(estimator, name, _unpacked(value))
    estimator.classes_ = np.array(header["classes"], dtype=header["classes_dtype"])
    if "feature_names" in header:
        estimator.feature_names_in_ = np.array(header["feature_names"], dtype=object)
    estimator.mean_, estimator.scale_ = tensors.pop("mean", None), tensors.pop("scale", None)
    estimator._optimizer = None
    estimator._weighed = tuple(header.get("weighed") or ()) or None
    estimator._parameters = _tree(tensors, "parameters")
    estimator._statistics = _tree(tensors, "statistics")
    return estimator


def _flat(tree: dict, prefix: str = "") -> dict:
    """{"mlp": {"scale": a}} → {"mlp/scale": a}."""
    found: dict = {}
    for name, value in tree.items():
        nested = isinstance(value, dict)
        found |= _flat(value, f"{prefix}{name}/") if nested else {prefix + name: value}
    return found


def _tree(tensors: dict, root: str) -> dict:
    """The nested dict under `root`, from names of `_flat`."""
    tree: dict = {}
    for name, value in tensors.items():
        first, *path, last = name.split("/")
        if first == root:
            node = tree
            for part in path:
                node = node.setdefault(part, {})
            node[last] = value
    return tree
