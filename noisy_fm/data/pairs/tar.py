"""Pairs in tar shards, as WebDataset and img2dataset write them: KEY.jpg, KEY.txt, KEY.json."""

import collections
import itertools
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from noisy_fm.data.pairs import texts
from noisy_fm.data.pairs.base import Pair, Pairs, stats_of
from noisy_fm.data.pairs.members import CutShortError, NoTarError, members
from noisy_fm.data.pairs.texts import LeftOut, cleaned, few
from noisy_fm.data.storage.listing import IMAGE_SUFFIXES
from noisy_fm.data.storage.litter import is_litter
from noisy_fm.data.storage.shards import base_of, find_shards, read_at
from noisy_fm.progress import Progress

AT_ONCE = 8  # shards


class TarPairs(Pairs):
    """Uncompressed *.tar at `path` (see `find_shards`), of `split` if given.

    `captions` is the text member's extension ("txt"), or EXTENSION:KEY of a JSON member
    ("json:caption").
    """

    def __init__(self, path: str, split: str | None, captions: str):
        extension, colon, self.key = captions.partition(":")
        self.extension = "." + extension.removeprefix(".").lower()
        unclear = self.extension in (".", *IMAGE_SUFFIXES) or (colon and not self.key)
        if unclear:
            raise ValueError(
                f"tar: captions are {captions!r}; expected a text member's extension (txt), or "
                "EXTENSION:KEY of a JSON member (json:caption)"
            )
        if self.extension == ".json" and not self.key:
            raise ValueError("tar: captions are 'json'; expected a key of it too, as json:caption")
        self.shards = find_shards(path, split, ".tar")
        self.where, self.base = str(path), base_of(path)
        self.seen: dict[str, None] = {}  # extensions, for who looks for another one
        self.keys: dict[str, None] = {}  # of a JSON member without `key`
        folder = self.shards[0].parent
        stats = stats_of(self.shards, folder)
        below = os.path.relpath(self.base, folder)  # what pairs' folders are told from
        self._open(folder, ["tar", captions, below, *(name for name, *_ in stats)], stats)

    def read(self, index: int) -> bytes:
        file, offset, size = (self._cell(name, index) for name in ("file", "offset", "size"))
        return read_at(self.shards[file], offset, size)

    @property
    def hint(self) -> str:  # type: ignore[override]
        seen = f"members are {few(sorted(self.seen))}" if self.seen else ""
        return seen + (f", and a JSON one has {few(self.keys)}" if self.keys else "")

    def _pairs(self, left_out: LeftOut) -> Iterator[Pair]:
        """Some shards are read at once, as those on a network are waited for more than read."""
        shards = enumerate(self.shards)
        begun: collections.deque = collections.deque()
        with (
            Progress("list captions", len(self.shards), unit="shard") as bar,
            ThreadPoolExecutor(AT_ONCE) as pool,
        ):
            for number, shard in itertools.chain(shards, [(-1, None)] * AT_ONCE):
                if shard is not None:
                    begun.append(pool.submit(self._shard, number, shard))
                if begun and (shard is None or len(begun) == AT_ONCE):
                    pairs, own = begun.popleft().result()
                    left_out.merge(own)
                    yield from pairs
                    bar.update()

    def _shard(self, number: int, shard: Path) -> tuple[list[Pair], LeftOut]:
        """The pairs of a shard, and what is left out of it."""
        left_out, pairs = LeftOut(), []
        images: dict[str, tuple[str, int, int]] = {}
        found: dict[str, tuple[str, str, str]] = {}  # of a key: member, caption, why it is none
        try:
            with shard.open("rb") as file:
                for name, offset, size in members(file, os.fstat(file.fileno()).st_size):
                    if is_litter(name):
                        continue
                    key, suffix = self._split(name)
                    self.seen.setdefault(suffix)
                    if suffix in IMAGE_SUFFIXES:
                        if key in images:
                            left_out.add(texts.SECOND, f"{shard.name}: {name}")
                        images.setdefault(key, (name, offset, size))
                    elif suffix == self.extension:
                        file.seek(offset)
                        if key in found:
                            left_out.add(texts.SECOND, f"{shard.name}: {name}")
                        found.setdefault(key, (name, *self._caption(file.read(size))))
            if not (images or found or self.seen):
                left_out.add(texts.NO_MEMBER, str(shard))
        except CutShortError:
            left_out.add(texts.CUT, str(shard))
        except NoTarError:
            left_out.add(texts.NO_TAR, str(shard))
        folder = os.path.relpath(shard.parent, self.base)
        for key, (name, offset, size) in images.items():
            member, caption, fault = found.pop(key, (name, "", texts.NO_CAPTION))
            if fault:
                left_out.add(fault, f"{shard.name}: {member}")
            else:
                pairs.append(Pair(name, folder, number, offset, size, caption))
        for member, _, _ in found.values():
            left_out.add(texts.NO_IMAGE, f"{shard.name}: {member}")
        return pairs, left_out

    def _split(self, name: str) -> tuple[str, str]:
        """(key, extension) of a member; the captions' own may have several dots."""
        if name.lower().endswith(self.extension):
            return name[: -len(self.extension)], self.extension
        key, dot, suffix = name.rpartition(".")
        return key, dot + suffix.lower()

    def _caption(self, content: bytes) -> tuple[str, str]:
        """(caption, "") of a member's content, or ("", why it is none)."""
        if not self.key:
            return cleaned(content)
        try:
            about = json.loads(content)
        except UnicodeDecodeError:
            return "", texts.NO_UTF8
        except (ValueError, RecursionError):
            return "", texts.NO_JSON
        if not isinstance(about, dict) or self.key not in about:
            self.keys = self.keys or dict.fromkeys(about if isinstance(about, dict) else ())
            return "", texts.NO_KEY
        return cleaned(about[self.key])
