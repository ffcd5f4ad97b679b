"""Images with captions: where they lie, what no pair is, and the captions as a column on disk."""

from collections.abc import Callable

from noisy_fm.data.pairs.base import Pairs
from noisy_fm.data.pairs.folder import FolderPairs
from noisy_fm.data.pairs.parquet import ParquetPairs
from noisy_fm.data.pairs.tar import TarPairs

PAIRED: dict[str, Callable[[str, str | None, str], Pairs]] = {
    "folder": FolderPairs,
    "tar": TarPairs,
    "parquet": ParquetPairs,
}

__all__ = ["PAIRED", "Pairs", "open_pairs"]


def open_pairs(name: str, path: str, split: str | None, captions: str) -> Pairs:
    """The pairs in storage `name` at `path`; `captions` says where the texts are.

    Raises FileNotFoundError or ValueError, one line, if there is no pair, or no such storage.
    """
    if name not in PAIRED:
        raise ValueError(
            f"{name}: captions are {captions!r}, and images in {name} have none; expected captions "
            f"of {', '.join(PAIRED)} or emoji_domains"
        )
    return PAIRED[name](path, split, captions)
