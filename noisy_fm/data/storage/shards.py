"""Which files a path means, and what is known of them without reading them again."""

import glob
import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from absl import logging

from noisy_fm.data.storage.listing import contents
from noisy_fm.data.storage.litter import is_litter, left_out
from noisy_fm.messages import warn

INDEX_VERSION = 2
RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?|([A-Za-z])\.\.([A-Za-z])")
MAGIC = re.compile(r"[*?\[{]")


def find_shards(path: str | os.PathLike, split: str | None, suffix: str) -> list[Path]:
    """The files `*suffix` at `path`, sorted: a file, a folder and all below it, or a pattern.

    A pattern has `*`, `?`, `[…]` or braces (`train-{000..127}.tar`, `{train,val}-*.tar`), of which
    every file that the braces name must be there. With a `split`, the files are those that have it
    as a word of their path below the folder or the pattern's fixed part, or, if none has, all of
    them where that folder is the split's; else it is refused, lest one split be read as another.
    """
    root = Path(path).expanduser()
    files, litter = _files(root, suffix)
    base = base_of(path)
    if not files:
        if root.is_dir():
            raise FileNotFoundError(f"{path} has no *{suffix} in it; it has {contents(root)}")
        raise FileNotFoundError(
            f"{path} does not exist; expected *{suffix}: a file, a folder of some, or a pattern"
        )
    if litter:
        warn(f"{path}: {left_out(litter)}")
    if not split:
        return files
    word = re.compile(rf"(?<![a-z0-9]){re.escape(split)}(?![a-z0-9])", re.IGNORECASE)
    chosen = [file for file in files if word.search(file.relative_to(base).as_posix())]
    if not chosen and word.search(base.name):
        return files
    if not chosen:
        first = files[0].relative_to(base)
        if len(files) == 1 and not root.is_dir():
            raise FileNotFoundError(
                f"{path} does not say that it is of split {split!r}; expected a file with "
                f"{split!r} as a word of its name or its folder's, or a folder or pattern of such "
                "files for each split"
            )
        raise FileNotFoundError(
            f"{path} has no *{suffix} of split {split!r} (a word of its name); "
            f"it has {len(files)} others, as {first}"
        )
    return chosen


def expand_braces(pattern: str) -> list[str]:
    """The texts that `pattern` stands for, as bash and WebDataset write them.

    `{a,b}` and ranges (`{000..127}`, `{0..10..2}`, `{a..c}`), nested as one likes. Zeros before a
    range's end give all its numbers that width. Braces of neither kind stay as they are.
    """
    start = pattern.find("{")
    while start >= 0:
        end, parts = _group(pattern, start)
        if len(parts) > 1 or (parts and RANGE.fullmatch(parts[0])):
            head = pattern[:start]
            options = parts if len(parts) > 1 else _range(parts[0])
            bodies = [body for option in options for body in expand_braces(option)]
            tails = expand_braces(pattern[end + 1 :])
            return [head + body + tail for body in bodies for tail in tails]
        start = pattern.find("{", start + 1)
    return [pattern]


def _group(text: str, start: int) -> tuple[int, list[str]]:
    """Where the brace at `start` closes (−1: nowhere) and what stands between its commas."""
    depth, parts, begin = 0, [], start + 1
    for at in range(start, len(text)):
        depth += (text[at] == "{") - (text[at] == "}")
        if depth == 0 or (depth == 1 and text[at] == ","):
            parts.append(text[begin:at])
            begin = at + 1
        if depth == 0:
            return at, parts
    return -1, []


def _range(text: str) -> list[str]:
    first, last, step, letter, end = RANGE.fullmatch(text).groups()  # type: ignore[union-attr]
    if letter:
        low, high = ord(letter), ord(end)
        return [chr(n) for n in _steps(low, high, 1)]
    padded = any(re.match(r"-?0\d", number) for number in (first, last))
    width = max(len(first), len(last)) if padded else 0
    return [f"{n:0{width}d}" for n in _steps(int(first), int(last), abs(int(step or 1)) or 1)]


def _steps(first: int, last: int, step: int) -> range:
    return range(first, last + 1, step) if first <= last else range(first, last - 1, -step)


def _files(root: Path, suffix: str) -> tuple[list[Path], list[str]]:
    """(the files at `root`, sorted; the litter of that suffix)."""
    if root.is_file():
        return [root], []
    if root.is_dir():
        walk = os.walk(root, followlinks=True, onerror=refuse_unreadable)
        there = [Path(folder, name) for folder, _, names in walk for name in names]
        there = sorted(file for file in there if file.name.endswith(suffix))
        litter = [str(file) for file in there if is_litter(file.relative_to(root))]
        return [file for file in there if not is_litter(file.relative_to(root))], litter
    matches = {pattern: _matches(pattern) for pattern in expand_braces(str(root))}
    missing = [pattern for pattern, paths in matches.items() if not paths]
    if 0 < len(missing) < len(matches):
        raise FileNotFoundError(
            f"{root} stands for {len(matches)} files, of which {len(missing)} "
            f"do not exist, as {missing[0]}"
        )
    parts = [_files(Path(path), suffix) for paths in matches.values() for path in paths]
    found = {file for files, _ in parts for file in files}
    return sorted(found), [name for _, litter in parts for name in litter]


def _matches(pattern: str) -> list[str]:
    return [pattern] if os.path.exists(pattern) else glob.glob(pattern, recursive=True)


def _fixed_part(pattern: Path) -> Path:
    """The folder above the first part of a pattern that stands for several (of a file: its own)."""
    folder = pattern.parent
    while MAGIC.search(str(folder)) and not folder.is_dir():
        folder = folder.parent
    return folder


def base_of(path: str | os.PathLike) -> Path:
    """The folder that `find_shards` looks at or below."""
    root = Path(path).expanduser()
    return root if root.is_dir() else _fixed_part(root)


def refuse_unreadable(error: OSError) -> None:
    """For os.walk, which would pass over a folder that cannot be read."""
    raise ValueError(f"the folder {error.filename} cannot be read: {error.strerror}") from None


def read_at(path: str | os.PathLike, offset: int = 0, size: int | None = None) -> bytes:
    """`size` bytes (None: all) of a file from `offset` on; fewer if it ends before."""
    file = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(file).st_size if size is None else size
        data = os.pread(file, size, offset)
        while len(data) < size and (more := os.pread(file, size - len(data), offset + len(data))):
            data += more  # some network file systems give less than asked for
        return data
    finally:
        os.close(file)


def cached_index(
    folder: Path, name: str, shards: Sequence[Path], build: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """`build()`, or what it gave when the shards were the same (by place, size and time).

    It is kept in `folder`/.noisy_fm-NAME.npz; where that cannot be written, in memory only.
    """
    stats = [
        (os.path.relpath(shard, folder), shard.stat().st_size, shard.stat().st_mtime_ns)
        for shard in shards
    ]
    key = hashlib.blake2b(json.dumps([INDEX_VERSION, stats]).encode(), digest_size=16).hexdigest()
    file = folder / f".noisy_fm-{name}.npz"
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            if arrays["key"] == key:
                return {name: arrays[name] for name in arrays.files if name != "key"}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        pass  # none, or not a whole one
    index = build()
    temporary = folder / f".noisy_fm-{name}.{os.getpid()}.tmp.npz"
    try:
        np.savez(temporary, **{"key": np.array(key), **index})  # type: ignore[arg-type]
        os.replace(temporary, file)
    except OSError as error:
        logging.warning("the index of %s is not kept, so it is built each time: %s", folder, error)
    return index
