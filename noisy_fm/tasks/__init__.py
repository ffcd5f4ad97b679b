"""The tasks by name; each is a module with five functions.

`defaults()` are its keys of `config.task`. `check(config)` raises one line for what cannot be, with
no data at hand, and `check_data(source, eval_source, where=…)` for data that are not for it. For
data of which `info` is known (`Source.info`), `network(config, info)` is the model and
`make(config, info)` the `Task`.
"""

from types import ModuleType

from noisy_fm.tasks import classify, contrast
from noisy_fm.tasks.task import Parts, Task

TASKS: dict[str, ModuleType] = {"classify": classify, "contrast": contrast}

__all__ = ["TASKS", "Parts", "Task"]
