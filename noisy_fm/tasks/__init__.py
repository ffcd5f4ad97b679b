"""The tasks by name. Each is a module: `defaults()`, `check(config)`, `make(config, info)`.

`defaults()` are its keys of `config.task`; `check(config)` raises one line for what cannot be, with
no data at hand; `make(config, info)` builds the model and the `Task` for data of which `info` is
known (`Source.info`).
"""

from types import ModuleType

from noisy_fm.tasks import classify
from noisy_fm.tasks.task import Task

TASKS: dict[str, ModuleType] = {"classify": classify}

__all__ = ["TASKS", "Task"]
