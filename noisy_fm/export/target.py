"""What a format is: how it is written, read again by its own library, and explained."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from noisy_fm import files

Outputs = dict[str, np.ndarray]
OTHERS = "expected one of saved_npz, stablehlo, onnx"  # formats that have every network


class Target(NamedTuple):
    """One model in one format; what cannot be was refused when this was made.

    write(folder): writes the files into a folder that is there.
    load(folder) → (pixels uint8 [n s s 3] → outputs and features by our names), by the target;
      "text/normalized" is of `network.TEXTS`.
    see(folder) → (a PIL image → normalised [s s 3]), by the target's own preprocessing, if it has
      some; `exact` says whether that is the model's, `aside` that crops may begin a pixel before.
    libraries: modules that reading needs; install: the line that brings them.
    extra: outputs that it has besides the network's, of our features.
    loading: Python that loads the folder `FOLDER`; files: what each file is.
    """

    write: Callable[[Path], None]
    load: Callable[[Path], Callable[[np.ndarray], Outputs]]
    libraries: Sequence[str]
    install: str
    loading: str
    files: Mapping[str, str]
    see: Callable[[Path], Callable] | None = None
    exact: bool = True
    aside: bool = False
    extra: Callable[[Outputs], Outputs] | None = None


def missing(libraries: Sequence[str]) -> list[str]:
    """Those that are not installed."""
    return [name for name in libraries if importlib.util.find_spec(name) is None]


def require(libraries: Sequence[str], install: str, why: str) -> None:
    """Raises ValueError with the line to install what is not there."""
    if lacking := missing(libraries):
        raise ValueError(f"{why} needs {', '.join(lacking)}: {install}")


def place(out) -> Path:
    """The folder to write; ValueError for one that holds anything but an export."""
    if "://" in str(out):
        raise ValueError(f"out is {out}; expected a local folder")
    out = Path(out).expanduser().absolute()
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        strange = _strange(out)
        if strange:
            raise ValueError(f"{out} has {strange}, which no export wrote; expected a new folder")
    return out


def _strange(folder: Path) -> str:
    """What stands in a folder besides the files of the export that it says it is."""
    if not (folder / "noisy_fm.json").is_file():
        return "no noisy_fm.json"
    own = {
        "noisy_fm.json",
        "README.md",
        *files.read_json(folder / "noisy_fm.json").get("files", ()),
    }
    return next((one.name for one in sorted(folder.iterdir()) if one.name not in own), "")
