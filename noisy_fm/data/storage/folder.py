"""An image folder: one subfolder a class."""

import os
from pathlib import Path

from absl import logging

from noisy_fm.data.storage.listing import IMAGE_SUFFIXES, contents, make_listing, read_at

SPLITS = frozenset(("train", "val", "valid", "validation", "test"))
LOOKED_FOR = f"looked for *{', *'.join(sorted(IMAGE_SUFFIXES))}"


def _is_image(file: str) -> bool:
    return os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES


class FolderStorage:
    """`path`[/`split`]/CLASS/…/image; classes are the subfolders' names, sorted."""

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
        classes = sorted(
            d.name for d in self.root.iterdir() if d.is_dir() and not d.name.startswith(".")
        )
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
        names: list[bytes] = []
        labels: list[int] = []
        others: list[str] = []
        for label, name in enumerate(classes):
            files = sorted(self._files(name))
            found = [file for file in files if _is_image(file)]
            names += map(os.fsencode, found)
            labels += [label] * len(found)
            others += [file for file in files if not _is_image(file)]
            if files and not found:
                logging.warning("%s: %s/ is a class without an image", self.where, name)
        if not names:
            raise ValueError(f"{self.where} has no image in {contents(self.root)}; {LOOKED_FOR}")
        if others:
            logging.warning(
                "%s: %d files are no images by their names and ignored, as %s",
                *(self.where, len(others), others[0]),
            )
        self.listing = make_listing(names, labels, classes, self.where)

    def _files(self, name: str):
        for folder, _, files in os.walk(self.root / name, followlinks=True):
            below = os.path.relpath(folder, self.root)
            yield from (f"{below}/{file}" for file in files if file[0] != ".")

    def read(self, index: int) -> bytes:
        return read_at(f"{self.where}/{os.fsdecode(self.listing.names[index])}")
