"""Tar shards in the WebDataset layout: KEY.jpg beside KEY.cls or KEY.json."""

import json
import os
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from noisy_fm.data.storage.labels import is_missing, label_names_beside, number
from noisy_fm.data.storage.listing import IMAGE_SUFFIXES, make_listing
from noisy_fm.data.storage.litter import is_litter, left_out
from noisy_fm.data.storage.shards import base_of, cached_index, find_shards, read_at
from noisy_fm.messages import warn
from noisy_fm.progress import Progress

CLS = ".cls"
LABEL_KEYS = ("label", "cls", "class")  # of KEY.json, the first one there


class TarStorage:
    """Uncompressed *.tar at `path` (see `find_shards`), of `split` if given.

    A label is the number (or class name) in KEY.cls, or under "label", "cls" or "class" in
    KEY.json, which counts where both are there. Class names come from labels.txt beside the shards
    or in the folder `path`, one a line. Where each image begins is read once and kept beside the
    shards, so that any of them is one read away.
    """

    def __init__(self, path: str, split: str | None = None):
        self.shards = find_shards(path, split, ".tar")
        self.where = str(path)
        folder = self.shards[0].parent
        index = cached_index(folder, f"tar-{split or 'all'}", self.shards, self._build)
        self.shard, self.offsets, self.sizes = index["shard"], index["offsets"], index["sizes"]
        for notice in index["notices"].tolist():
            warn(f"{self.where}: {notice}")
        folders = dict.fromkeys([*(shard.parent for shard in self.shards), base_of(path)])
        names = label_names_beside(list(folders))
        if names is None:
            self._check_kind(index["labels"], index["names"])
        self.listing = make_listing(index["names"], index["labels"], names, self.where)

    def _build(self) -> dict[str, np.ndarray]:
        rows: list[tuple] = []
        litter: list[str] = []
        unused: list[str] = []
        twofold: list[str] = []
        under: dict[str, str] = {}
        with Progress("index", len(self.shards), unit="shard") as bar:
            for shard_number, shard in enumerate(self.shards):
                members = _members(shard)
                rows += [(shard_number, *row) for row in members.images]
                litter += members.litter
                unused += members.unused
                twofold += members.twofold
                under = members.under | under
                bar.update(1, shard.name)
        if not rows:
            ignored = f"; {left_out(litter)}" if litter else ""
            raise ValueError(
                f"{self.where}: there is no image in {len(self.shards)} tar shards{ignored}"
            )
        if len(under) > 1:
            places = " and ".join(f"{key!r} in {place}" for key, place in under.items())
            raise ValueError(f"{self.where}: labels are under {places}; expected one key in all")
        notices = [
            left_out(litter) if litter else "",
            f"{len(unused)} labels have no image, as {unused[0]}" if unused else "",
            f"{len(twofold)} images have another label in .json than in .cls; .json counts, as for "
            f"{twofold[0]}"
            if twofold
            else "",
        ]
        shards, names, offsets, sizes, labels = zip(*rows, strict=True)
        numbers = [number(label) for label in labels]
        return {
            "shard": np.array(shards, np.int32),
            "names": np.array(names, np.bytes_),
            "offsets": np.array(offsets, np.int64),
            "sizes": np.array(sizes, np.int64),
            "labels": np.array(labels, np.str_) if None in numbers else np.array(numbers),
            "notices": np.array([notice for notice in notices if notice], np.str_),
        }

    def _check_kind(self, labels: np.ndarray, names: np.ndarray) -> None:
        """Raises ValueError if some labels are numbers and others text, and no names tell which."""
        if labels.dtype.kind != "U":
            return
        numeric = np.array([number(label) is not None for label in labels.tolist()])
        if numeric.any():
            one, other = np.flatnonzero(numeric)[0], np.flatnonzero(~numeric)[0]
            raise ValueError(
                f"{self.where}: {numeric.sum()} labels are numbers, as {labels[one]} of "
                f"{self._place(one, names)}, and {(~numeric).sum()} are not, as "
                f"{str(labels[other])!r} of {self._place(other, names)}; expected one kind, or the "
                "classes' names in labels.txt"
            )

    def _place(self, index: int, names: np.ndarray) -> str:
        return f"{self.shards[self.shard[index]].name}: {os.fsdecode(names[index])}"

    def read(self, index: int) -> bytes:
        shard = self.shards[self.shard[index]]
        return read_at(shard, int(self.offsets[index]), int(self.sizes[index]))


class _Members(NamedTuple):
    """What a shard holds: images with labels, and the names of what is not taken at its word."""

    images: list[tuple[bytes, int, int, str]]  # name, offset, size, label
    litter: list[str]
    unused: list[str]  # labels without an image
    twofold: list[str]  # images whose .cls and .json give different labels
    under: dict[str, str]  # the keys of .json files that labels are from, and the first such file


def _members(shard: Path) -> _Members:
    images: dict[str, tuple[str, int, int]] = {}  # name, offset, size
    labels: dict[str, dict[str, Any]] = {}  # of a key: what .cls and .json say
    litter = []
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                if is_litter(member.name):
                    litter.append(member.name)
                    continue
                if not member.isfile():
                    continue
                key, dot, suffix = member.name.rpartition(".")
                suffix = dot + suffix.lower()
                if suffix in IMAGE_SUFFIXES:
                    if key in images:
                        raise ValueError(f"{shard}: {key} has two images, {suffix} and another")
                    images[key] = (member.name, member.offset_data, member.size)
                elif suffix in (CLS, ".json"):
                    content = archive.extractfile(member).read()  # type: ignore[union-attr]
                    label = _label(content, suffix, f"{shard}: {member.name}")
                    labels.setdefault(key, {}).update(label)
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{shard} is no whole uncompressed tar file: {error}") from None
    chosen = {key: _choose(labels.get(key, {})) for key in images}
    missing = [key for key, (_, label) in chosen.items() if is_missing(label)]
    if missing:
        raise ValueError(
            f"{shard}: {len(missing)} of {len(images)} images have no label, as "
            f"{images[missing[0]][0]}; expected it in {missing[0]}.cls, or in "
            f"{missing[0]}.json under {' or '.join(LABEL_KEYS)}"
        )
    several = [key for key, (_, label) in chosen.items() if isinstance(label, list | dict)]
    if several:
        raise ValueError(
            f"{shard}: {len(several)} of {len(images)} images have no single label, as "
            f"{images[several[0]][0]} with {chosen[several[0]][1]!r}; expected one class an image, "
            "its number or its name"
        )
    rows = [
        (os.fsencode(name), offset, size, str(chosen[key][1]).strip())
        for key, (name, offset, size) in images.items()
    ]
    unused = [f"{shard.name}: {key}" for key, said in labels.items() if said and key not in images]
    twofold = [images[key][0] for key in images if len(set(map(str, labels[key].values()))) > 1]
    first = ((chosen[key][0], f"{shard.name}: {key}.json") for key in reversed(images))
    under = {place: file for place, file in first if place != CLS}
    return _Members(rows, litter, unused, twofold, under)


def _choose(said: dict[str, Any]) -> tuple[str, Any]:
    """(where the label stands, the label): of two, .json's, if it is a class."""
    found = sorted(said.items(), key=lambda item: item[0] == CLS)
    usable = [
        item for item in found if not is_missing(item[1]) and isinstance(item[1], int | float | str)
    ]
    return (usable or found or [(CLS, None)])[0]


def _label(content: bytes, suffix: str, where: str) -> dict[str, Any]:
    """{where it stands: the label}, or nothing for a .json about other things."""
    if suffix == CLS:
        try:
            return {CLS: content.decode("utf-8-sig").strip()}
        except UnicodeDecodeError as error:
            raise ValueError(f"{where} is no UTF-8 text: {error}") from None
    try:
        about = json.loads(content)
    except ValueError:
        return {}
    found = {key: about[key] for key in LABEL_KEYS if isinstance(about, dict) and key in about}
    return dict(list(found.items())[:1])
