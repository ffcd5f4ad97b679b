"""Data sets with stable ids, in memory or on disk, and the pipeline that batches them."""

from noisy_fm.data.emoji_domains import LABELS
from noisy_fm.data.images import ImageSource
from noisy_fm.data.source import ArraySource, Source, Stored
from noisy_fm.data.sources import load, load_split, shared

__all__ = [
    "LABELS",
    "ArraySource",
    "ImageSource",
    "Source",
    "Stored",
    "load",
    "load_split",
    "shared",
]
