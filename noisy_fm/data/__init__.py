"""Data sets as arrays with stable ids, and the pipeline that batches them."""

from noisy_fm.data.sources import TASKS, ArraySource, load

__all__ = ["TASKS", "ArraySource", "load"]
