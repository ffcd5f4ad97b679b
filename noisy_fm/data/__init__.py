"""Data sets with stable ids, in memory or on disk, and the pipeline that batches them."""

from noisy_fm.data.images import ImageSource
from noisy_fm.data.sources import TASKS, ArraySource, load, shared

__all__ = ["TASKS", "ArraySource", "ImageSource", "load", "shared"]
