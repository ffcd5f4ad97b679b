"""Pairs of image files and a table of captions: CSV, TSV or JSON Lines."""

import csv
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from noisy_fm.data.pairs import texts
from noisy_fm.data.pairs.base import Pair, Pairs, stats_of
from noisy_fm.data.pairs.texts import LeftOut, cleaned, few
from noisy_fm.data.storage.listing import IMAGE_SUFFIXES, contents
from noisy_fm.data.storage.litter import is_litter
from noisy_fm.data.storage.shards import read_at, refuse_unreadable
from noisy_fm.messages import unknown
from noisy_fm.progress import Progress

DELIMITERS = {".csv": ",", ".tsv": "\t"}
LINES = (".jsonl", ".ndjson")
FILE_COLUMNS = ("filename", "file_name", "filepath", "file", "image", "image_path", "path")
ODD = "lines of another number of fields, or that are no JSON object"
ELSEWHERE = "captions of images in another split"
UNCLEAR = "captions whose file name several images have"
EXPECTED = (
    "expected TABLE:COLUMN, as captions.csv:title (a .csv, .tsv or .jsonl in the folder), or "
    "TABLE:COLUMN:FILES where it is not clear which column names the images"
)


class FolderPairs(Pairs):
    """The images anywhere below `path`[/`split`], with captions from a table there.

    `captions` is TABLE:COLUMN, and the images' files are in one of `FILE_COLUMNS`, or in the third
    part. A file is named from the table's folder or the images', or alone where only one has that
    name.
    """

    def __init__(self, path: str, split: str | None, captions: str):
        root = Path(path).expanduser()
        table, *columns = captions.split(":")
        if not (table and 1 <= len(columns) <= 2 and all(columns)):
            raise ValueError(f"folder: captions are {captions!r}; {EXPECTED}")
        self.column, self.file_column = columns[0], columns[1] if len(columns) == 2 else ""
        if not root.is_dir():
            raise FileNotFoundError(f"{path} is no folder; expected one of images and {table}")
        if split and not (root / split).is_dir():
            raise FileNotFoundError(
                f"{path} has no folder {split}/ (the split); it has {contents(root)}"
            )
        self.root = root / split if split else root
        self.where = str(self.root)
        self.file = _table(dict.fromkeys((self.root, root)), table)
        self.images = _images(self.root)
        if not self.images:
            raise ValueError(f"{self.where} has no image in {contents(self.root)}")
        names = hashlib.blake2b("\0".join(self.images).encode("utf-8", "surrogateescape"))
        stats = [*stats_of([self.file], self.root), names.hexdigest()]
        self._open(self.root, ["folder", captions], stats)
        self.images = []

    def read(self, index: int) -> bytes:
        return read_at(f"{self.where}/{os.fsdecode(self._cell('name', index))}")

    def _pairs(self, left_out: LeftOut) -> Iterator[Pair]:
        find, taken = _Finder(self.images, self.root, self.file.parent), set()
        with Progress("list captions", len(self.images), unit="caption") as bar:
            for where, name, given in self._rows(left_out):
                bar.update()
                image, fault = find(name)
                if fault == ELSEWHERE:
                    continue
                caption, fault = ("", fault) if fault else cleaned(given)
                if not fault and image in taken:
                    fault = texts.SECOND
                if image:
                    taken.add(image)
                if fault:
                    left_out.add(fault, where)
                else:
                    yield Pair(image, os.path.dirname(image), 0, 0, 0, caption)
        alone = [image for image in self.images if image not in taken]
        if alone:
            left_out.add(texts.NO_CAPTION, alone[0], len(alone))

    def _rows(self, left_out: LeftOut) -> Iterator[tuple[str, object, object]]:
        """(where it stands, a file's name, its caption) of the table's lines."""
        lines = self._objects if self.file.suffix.lower() in LINES else self._fields
        with self.file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as opened:
            yield from lines(opened, left_out)

    def _fields(self, opened: Iterable[str], left_out: LeftOut):
        # strict: a quote that is never closed would make one caption of all the lines after it
        rows = csv.reader(opened, delimiter=DELIMITERS[self.file.suffix.lower()], strict=True)
        csv.field_size_limit(2**31 - 1)  # long captions are cut where they are tokens
        try:
            header = next(rows, [])
            file, caption = (header.index(name) for name in self._columns(header))
            for row in rows:
                where = f"{self.file.name}: line {rows.line_num}"
                if len(row) == len(header):
                    yield where, row[file], row[caption]
                elif row:
                    left_out.add(ODD, where)
        except csv.Error as error:
            raise ValueError(
                f"{self.file}: line {rows.line_num}: {error}; expected quotes around a field, and "
                "doubled within it"
            ) from None

    def _objects(self, opened: Iterable[str], left_out: LeftOut):
        columns: tuple[str, str] | None = None
        for number, line in enumerate(opened, 1):
            where = f"{self.file.name}: line {number}"
            if not line.strip():
                continue
            try:
                about = json.loads(line)
            except (ValueError, RecursionError):
                about = None
            if not isinstance(about, dict):
                left_out.add(ODD, where)
                continue
            columns = columns or self._columns(list(about))
            yield where, about.get(columns[0]), about.get(columns[1])

    def _columns(self, header: list[str]) -> tuple[str, str]:
        """(the column of files, that of captions); raises ValueError if that is not clear."""
        if any(not name.isprintable() for name in header):  # UTF-16, as Excel writes it
            raise ValueError(f"{self.file} is no UTF-8 text; expected its columns' names first")
        wanted = [self.column, *([self.file_column] if self.file_column else [])]
        for name in wanted:
            if header.count(name) != 1:
                where = f"{self.file}: "
                raise ValueError(
                    where + (f"column {name!r} is there twice; expected one" if name in header else
                    unknown("column", name, header))
                )  # fmt: skip
        found = [name for name in header if name.lower() in FILE_COLUMNS and name != self.column]
        if not self.file_column and len(found) != 1:
            raise ValueError(
                f"{self.file}: images may be named in {few(found)}, of the columns {few(header)}; "
                f"expected one of {', '.join(FILE_COLUMNS)}, or captions "
                f"{self.file.name}:{self.column}:FILES with FILES the column"
            )
        return self.file_column or found[0], self.column


class _Finder:
    """Which image a table's name means: (its path below the root, ""), or ("", why none)."""

    def __init__(self, images: list[str], root: Path, folder: Path):
        self.images, self.root, self.folder = set(images), root.absolute(), folder.absolute()
        self.alone: dict[str, str] = {}
        for image in images:
            base = os.path.basename(image)
            self.alone[base] = "" if base in self.alone else image

    def __call__(self, name) -> tuple[str, str]:
        if not isinstance(name, str) or not name.strip():
            return "", texts.NO_IMAGE
        name = os.path.normpath(name.strip().replace("\\", "/"))
        for folder in (self.folder, self.root):
            image = os.path.relpath(os.path.join(folder, name), self.root)
            if image in self.images:
                return image, ""
            if image.startswith("../") and os.path.isfile(os.path.join(folder, name)):
                return "", ELSEWHERE
        if "/" in name or name not in self.alone:
            return "", texts.NO_IMAGE
        image = self.alone[name]
        return image, "" if image else UNCLEAR


def _table(folders: Iterable[Path], name: str) -> Path:
    if Path(name).suffix.lower() not in (*DELIMITERS, *LINES):
        raise ValueError(f"folder: captions are in {name!r}; {EXPECTED}")
    places = [folder / name for folder in folders]
    found = [place for place in places if place.is_file()]
    if not found:
        raise FileNotFoundError(f"there is no {' and no '.join(map(str, places))}; {EXPECTED}")
    return found[0]


def _images(root: Path) -> list[str]:
    """The images below `root`, as paths from there, sorted."""
    walk = os.walk(root, followlinks=True, onerror=refuse_unreadable)
    names = (os.path.relpath(os.path.join(at, name), root) for at, _, ns in walk for name in ns)
    suffixes = IMAGE_SUFFIXES
    return sorted(
        name
        for name in names
        if os.path.splitext(name)[1].lower() in suffixes and not is_litter(name)
    )
