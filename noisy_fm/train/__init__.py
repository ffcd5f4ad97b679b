"""Training: the state and its step, the one loop, and a run made from a config.

`run(config, workdir)` does all of it; `python -m noisy_fm.train` is its command line. From the
inside out: `state` (what is trained, and its step), `loop` (the one loop, `fit`), `build` (a config
made data, task, optimiser and state), `job` (a run in its folder: resume, checkpoints, log).
`writers`, `pictures` and `flops` are what a run says, and where.
"""

from noisy_fm.train.build import (
    corrupted,
    make_task,
    plan_training,
    setup,
    train_batches,
)
from noisy_fm.train.job import Run, make_evaluators, run
from noisy_fm.train.loop import fit
from noisy_fm.train.state import abstract, make_step

__all__ = [
    "Run",
    "abstract",
    "corrupted",
    "fit",
    "make_evaluators",
    "make_step",
    "make_task",
    "plan_training",
    "run",
    "setup",
    "train_batches",
]
