"""An image folder: one subfolder a class."""

import os
from pathlib import Path

from noisy_fm.data.storage.listing import IMAGE_SUFFIXES, contents, make_listing, read_at


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
        names: list[bytes] = []
        labels: list[int] = []
        for label, name in enumerate(classes):
            found = sorted(self._images(name))
            names += found
            labels += [label] * len(found)
        if not names:
            raise ValueError(
                f"{self.where} has no image in {contents(self.root)}; "
                f"looked for *{', *'.join(sorted(IMAGE_SUFFIXES))}"
            )
        self.listing = make_listing(names, labels, classes, self.where)

    def _images(self, name: str):
        for folder, _, files in os.walk(self.root / name, followlinks=True):
            below = os.path.relpath(folder, self.root)
            for file in files:
                if os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES and file[0] != ".":
                    yield os.fsencode(f"{below}/{file}")

    def read(self, index: int) -> bytes:
        return read_at(f"{self.where}/{os.fsdecode(self.listing.names[index])}")
