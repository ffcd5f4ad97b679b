"""What a format is: how it is written, read again by its own library, and explained."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

Outputs = dict[str, np.ndarray]


class Target(NamedTuple):
    """One model in one format; what cannot be was refused when this was made.

    write(folder): writes the files into a folder that is there.
    load(folder) → (pixels uint8 [n s s 3] → outputs and features by our names), by the target.
    see(folder) → (a PIL image → normalised [s s 3]), by the target's own preprocessing, if it has
      some; `exact` says whether that is the model's.
    libraries: modules that reading needs; install: the line that brings them.
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


def missing(libraries: Sequence[str]) -> list[str]:
    """Those that are not installed."""
    return [name for name in libraries if importlib.util.find_spec(name) is None]


def require(libraries: Sequence[str], install: str, why: str) -> None:
    """Raises ValueError with the line to install what is not there."""
    if lacking := missing(libraries):
        raise ValueError(f"{why} needs {', '.join(lacking)}: {install}")
