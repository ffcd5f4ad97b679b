"""Training: the state and its step, the one loop, and a run made from a config.

`run(config, workdir)` does all of it; `python -m noisy_fm.train` is its command line.
"""

from noisy_fm.train.build import (
    Setup,
    corrupted,
    load_split,
    make_task,
    plan_training,
    setup,
    train_batches,
)
from noisy_fm.train.job import Run, run
from noisy_fm.train.loop import fit
from noisy_fm.train.state import TrainState, abstract, init_state, make_step, plan_state

__all__ = [
    "Run",
    "Setup",
    "TrainState",
    "abstract",
    "corrupted",
    "fit",
    "init_state",
    "load_split",
    "make_step",
    "make_task",
    "plan_state",
    "plan_training",
    "run",
    "setup",
    "train_batches",
]
