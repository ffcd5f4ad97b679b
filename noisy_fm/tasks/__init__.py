"""The tasks by name; each is a module with four functions.

`defaults()` are its keys of `config.task`, and `check(config)` raises one line for what cannot be,
with no data at hand. For data of which `info` is known (`Source.info`), `network(config, info)` is
the model and `make(config, info)` the `Task`.
"""

from types import ModuleType

from noisy_fm.tasks import classify
from noisy_fm.tasks.task import Task

TASKS: dict[str, ModuleType] = {"classify": classify}

__all__ = ["TASKS", "Task"]
