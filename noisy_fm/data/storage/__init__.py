"""Where encoded images lie: a class a format, each with `listing` and `read(index) -> bytes`."""

import re
from collections.abc import Callable

from noisy_fm.data.storage.folder import FolderStorage
from noisy_fm.data.storage.listing import Listing, Storage
from noisy_fm.data.storage.parquet import ParquetStorage
from noisy_fm.data.storage.records import RecordStorage
from noisy_fm.data.storage.tar import TarStorage
from noisy_fm.data.storage.tfds import TfdsStorage

FORMATS: dict[str, Callable[[str, str | None], Storage]] = {
    "folder": FolderStorage,
    "tar": TarStorage,
    "array_record": RecordStorage,
    "parquet": ParquetStorage,
}
TFDS = "tfds:"
SLICE = re.compile(r"\[.*:.*\]")  # train[:50%]

__all__ = ["FORMATS", "TFDS", "Listing", "Storage", "open_storage"]


def open_storage(name: str, path: str | None, split: str | None) -> Storage:
    """The storage `name`, a key of `FORMATS` or "tfds:NAME", at `path`.

    Raises FileNotFoundError or ValueError, one line, if nothing usable is there.
    """
    if name.startswith(TFDS):
        return TfdsStorage(name.removeprefix(TFDS), path, split)
    if not path:
        raise ValueError(f"{name}: path is missing; expected where the images lie")
    if split and SLICE.search(split):
        raise ValueError(
            f"{name}: split is {split!r}, and slices are of {TFDS}NAME only; expected a whole "
            f"split, as {split.partition('[')[0]!r}"
        )
    return FORMATS[name](path, split)
