"""Data sets with stable ids, in memory or on disk, and the pipeline that batches them."""

from noisy_fm.data.emoji_domains import LABELS, SIZES
from noisy_fm.data.images import ImageSource
from noisy_fm.data.source import ArraySource, Source, Stored
from noisy_fm.data.sources import IN_MEMORY, identity, load, load_split, shared

__all__ = [
    "IN_MEMORY",
    "LABELS",
    "SIZES",
    "ArraySource",
    "ImageSource",
    "Source",
    "Stored",
    "identity",
    "load",
    "load_split",
    "shared",
]
