"""The stages of a cell as values: each leaves one artifact, whole or not at all, and is done once.

A stage's key is the hash of what its own work depends on and of the keys of the stages it needs, so
a change runs again what follows from it and nothing else.
"""

import contextlib
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from noisy_fm import checkpoint, files, hosts, lease
from noisy_fm import config as config_lib
from noisy_fm.messages import say
from noisy_fm.study import analysis, pretraining
from noisy_fm.study.cells import Cell

ARRAYS = "arrays"  # of what a stage's work gives, what goes to NAME.npz beside NAME.json


class Stage(NamedTuple):
    """`work(cell, config)` gives NAME.json; `key(cell, config)` is what it depends on of its own.

    needs: the stages that it builds on
    intact: whether what the work leaves elsewhere is still there
    everywhere: all processes of a run do it together; the others are the first one's
    """

    name: str
    needs: tuple[str, ...]
    key: Callable[[Cell, ConfigDict], dict]
    work: Callable[[Cell, ConfigDict], dict]
    intact: Callable[[Cell, ConfigDict], bool] = lambda cell, config: True
    everywhere: bool = False


STAGES = (
    Stage("pretrain", (), pretraining.key, pretraining.work, everywhere=True),
    Stage(
        "features", ("pretrain",), analysis.features_key, analysis.extract,
        intact=analysis.all_stored, everywhere=True,
    ),
    Stage("spectra", ("features",), analysis.spectra_key, analysis.spectra),
    Stage("probes", ("features",), analysis.probes_key, analysis.probes),
)  # fmt: skip


def marks(cell: Cell, config: ConfigDict) -> dict[str, str]:
    """The key of each stage."""
    found: dict[str, str] = {}
    for stage in STAGES:
        needs = {name: found[name] for name in stage.needs}
        found[stage.name] = config_lib.hash_of({**stage.key(cell, config), "needs": needs})
    return found


def done(stage: Stage, cell: Cell, config: ConfigDict, mark: str) -> dict | None:
    """What the stage left in the cell's folder, if `mark` made it and all of it is there."""
    path = cell.folder / f"{stage.name}.json"
    made = files.read_json(path) if path.exists() else {}
    there = not made.get(ARRAYS) or path.with_suffix(".npz").exists()
    if made.get("key") == mark and there and stage.intact(cell, config):
        return made
    return None


def outputs(cell: Cell, config: ConfigDict) -> dict[str, dict | None]:
    """What each stage left; None where it is yet to be done."""
    keys = marks(cell, config)
    return {stage.name: done(stage, cell, config, keys[stage.name]) for stage in STAGES}


def arrays(cell: Cell, name: str) -> dict[str, np.ndarray]:
    """The arrays that a stage left."""
    path = cell.folder / f"{name}.npz"
    try:
        with np.load(path, allow_pickle=False) as found:
            return dict(found)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it to have it made again") from None


def run(cell: Cell, config: ConfigDict, *, patience: float = 0.0) -> None:
    """Does what is missing of the cell, on all processes of this run.

    Raises ValueError if another process is at it, and still is after `patience` seconds.
    """

    def lacking() -> list[str]:
        found = [name for name, made in outputs(cell, config).items() if made is None]
        return hosts.gather(found)[0]

    keys, missing = marks(cell, config), lacking()
    held = lease.held(cell.folder, patience=patience) if missing else contextlib.nullcontext()
    with held as mine:
        if mine and patience:  # who held it may have done some meanwhile
            missing = lacking()
        for stage in STAGES:
            note = "done before"
            if mine and stage.name in missing:
                began = time.perf_counter()
                perform(stage, cell, config, keys[stage.name], mine)
                note = f"{time.perf_counter() - began:.1f} s"
            if hosts.first():
                say(f"{cell.title}: {stage.name} {note}")


def perform(stage: Stage, cell: Cell, config: ConfigDict, mark: str, mine: lease.Lease) -> None:
    """Does the stage; it carries its duration, and the versions and commit that made it."""
    if not (hosts.first() or stage.everywhere):
        while done(stage, cell, config, mark) is None:  # a collective would not wait as long
            time.sleep(1)
        return
    began = time.perf_counter()
    made = {**stage.work(cell, config), "key": mark, **checkpoint.provenance()}
    made["duration_s"] = round(time.perf_counter() - began, 2)
    if hosts.first():
        mine.check()
        path: Path = cell.folder / f"{stage.name}.json"
        if found := made.get(ARRAYS):
            files.write_arrays(path.with_suffix(".npz"), found)
            made[ARRAYS] = sorted(found)
        files.write_json(path, made)
