"""Tar shards in the WebDataset layout: KEY.jpg beside KEY.cls or KEY.json."""

import json
import os
import tarfile
from pathlib import Path

import numpy as np

from noisy_fm.data.storage.listing import (
    IMAGE_SUFFIXES,
    cached_index,
    find_shards,
    label_names_beside,
    make_listing,
    read_at,
)
from noisy_fm.progress import Progress

LABEL_KEYS = ("label", "cls", "class")  # of KEY.json, the first one there


class TarStorage:
    """Uncompressed *.tar at `path`, of `split` if given.

    A label is the number (or class name) in KEY.cls, or under "label", "cls" or "class" in
    KEY.json. Class names come from labels.txt beside the shards, one a line. Where each image
    begins is read once and kept beside the shards, so that any of them is one read away.
    """

    def __init__(self, path: str, split: str | None = None):
        self.shards = find_shards(path, split, ".tar")
        self.where = str(path)
        folder = self.shards[0].parent
        index = cached_index(folder, f"tar-{split or 'all'}", self.shards, self._build)
        self.shard, self.offsets, self.sizes = index["shard"], index["offsets"], index["sizes"]
        names = label_names_beside(folder)
        self.listing = make_listing(index["names"], index["labels"], names, self.where)

    def _build(self) -> dict[str, np.ndarray]:
        rows: list[tuple] = []
        with Progress("index", len(self.shards), unit="shard") as bar:
            for number, shard in enumerate(self.shards):
                rows += [(number, *row) for row in _members(shard)]
                bar.update(1, shard.name)
        if not rows:
            raise ValueError(f"{self.where}: there is no image in {len(self.shards)} tar shards")
        shards, names, offsets, sizes, labels = zip(*rows, strict=True)
        numeric = all(label.lstrip("-").isdigit() for label in labels)
        return {
            "shard": np.array(shards, np.int32),
            "names": np.array(names, np.bytes_),
            "offsets": np.array(offsets, np.int64),
            "sizes": np.array(sizes, np.int64),
            "labels": np.array(labels, int) if numeric else np.array(labels, np.str_),
        }

    def read(self, index: int) -> bytes:
        shard = self.shards[self.shard[index]]
        return read_at(shard, int(self.offsets[index]), int(self.sizes[index]))


def _members(shard: Path) -> list[tuple[bytes, int, int, str]]:
    """(name, offset, size, label) of each image."""
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, str] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                key, dot, suffix = member.name.rpartition(".")
                suffix = dot + suffix.lower()
                if suffix in IMAGE_SUFFIXES:
                    if key in images:
                        raise ValueError(f"{shard}: {key} has two images, {suffix} and another")
                    images[key] = (member.name, member.offset_data, member.size)
                elif suffix in (".cls", ".json"):
                    label = _label(archive.extractfile(member).read(), suffix)  # type: ignore[union-attr]
                    if label is not None:
                        labels[key] = label
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{shard} is no whole uncompressed tar file: {error}") from None
    missing = [key for key in images if key not in labels]
    if missing:
        raise ValueError(
            f"{shard}: {len(missing)} images have no label, as {images[missing[0]][0]}; "
            f"expected {missing[0]}.cls, or {missing[0]}.json with {' or '.join(LABEL_KEYS)}"
        )
    return [
        (os.fsencode(name), offset, size, labels[key])
        for key, (name, offset, size) in images.items()
    ]


def _label(content: bytes, suffix: str) -> str | None:
    if suffix == ".cls":
        return content.decode(errors="replace").strip()
    try:
        about = json.loads(content)
    except ValueError:
        return None
    found = [str(about[key]) for key in LABEL_KEYS if isinstance(about, dict) and key in about]
    return found[0] if found else None
