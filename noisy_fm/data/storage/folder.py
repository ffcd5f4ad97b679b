"""An image folder: one subfolder a class."""

import os
from pathlib import Path

import numpy as np

from noisy_fm.data.storage.listing import IMAGE_SUFFIXES, contents, make_listing
from noisy_fm.data.storage.litter import is_litter, left_out
from noisy_fm.data.storage.shards import read_at, refuse_unreadable
from noisy_fm.messages import warn

SPLITS = frozenset(("train", "val", "valid", "validation", "test"))
LOOKED_FOR = f"looked for *{', *'.join(sorted(IMAGE_SUFFIXES))}"


def _is_image(file: str) -> bool:
    return os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES


class FolderStorage:
    """`path`[/`split`]/CLASS/…/image; classes are the subfolders' names, sorted.

    What is hidden or left by a desktop is no data; a class without an image, or a folder that
    cannot be read, is an error.
    """

    def __init__(self, path: str, split: str | None = None):
        root = Path(path).expanduser()
        expected = f"expected {split}/CLASS/IMAGE" if split else "expected CLASS/IMAGE"
        if not root.is_dir():
            raise FileNotFoundError(f"{path} is no folder; {expected} in one")
        if split and not (root / split).is_dir():
            raise FileNotFoundError(
                f"{path} has no folder {split}/ (the split); it has {contents(root)}; {expected}"
            )
        self.root = root / split if split else root
        self.where = str(self.root)
        self.litter: list[str] = []
        entries = sorted(self._kept(os.listdir(self.root), ""))
        classes = [name for name in entries if (self.root / name).is_dir()]
        if not classes:
            raise ValueError(
                f"{self.where} has no folders, and so no classes; it has {contents(self.root)}; "
                "expected a folder for each class with its images"
            )
        if not split and SPLITS.issuperset(classes):
            raise ValueError(
                f"{self.where} has {contents(self.root)}, which look like splits, not classes; "
                "expected one of them as the split"
            )
        files = {name: sorted(self._files(name)) for name in classes}
        found = {name: [file for file in files[name] if _is_image(file)] for name in classes}
        self._check(entries, found)
        others = [file for name in classes for file in files[name] if not _is_image(file)]
        if others:
            warn(
                f"{self.where}: {len(others)} files are no images by their names and ignored, as "
                f"{others[0]}"
            )
        if self.litter:
            warn(f"{self.where}: {left_out(self.litter)}")
        names = [os.fsencode(file) for name in classes for file in found[name]]
        labels = np.repeat(np.arange(len(classes)), [len(found[name]) for name in classes])
        self.listing = make_listing(names, labels, classes, self.where)

    def _check(self, entries: list[str], found: dict[str, list[str]]) -> None:
        """Raises ValueError for classes without an image; says what is in no class."""
        broken = [name for name in entries if not (self.root / name).exists()]
        if broken:
            raise ValueError(f"{self.where}: the link {broken[0]} leads nowhere; expected a folder")
        empty = [name for name, files in found.items() if not files]
        if len(empty) == len(found):
            raise ValueError(f"{self.where} has no image in {contents(self.root)}; {LOOKED_FOR}")
        if empty:
            raise ValueError(
                f"{self.where}: {len(empty)} of {len(found)} class folders have no image, as "
                f"{empty[0]}/; {LOOKED_FOR}; expected images in each, or no such folder"
            )
        beside = [name for name in entries if name not in found]
        if beside:
            warn(
                f"{self.where}: {len(beside)} files beside the class folders are in no class and "
                f"ignored, as {beside[0]}"
            )

    def _kept(self, names: list[str], below: str) -> list[str]:
        """`names` without the litter, which is noted."""
        self.litter += [f"{below}{name}" for name in sorted(names) if is_litter(name)]
        return [name for name in names if not is_litter(name)]

    def _files(self, name: str):
        for folder, folders, files in os.walk(
            self.root / name, followlinks=True, onerror=refuse_unreadable
        ):
            below = f"{os.path.relpath(folder, self.root)}/"
            folders[:] = sorted(self._kept(folders, below))
            yield from (f"{below}{file}" for file in self._kept(files, below))

    def read(self, index: int) -> bytes:
        return read_at(f"{self.where}/{os.fsdecode(self.listing.names[index])}")
