"""What a label may be: a class's number or its name. One that is missing is never a class."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from noisy_fm.messages import warn

NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?", re.ASCII)
# What a conversion to text makes of a missing value; a class may be called so all the same.
MISSING_WORDS = frozenset(("nan", "none", "null", "<na>", "n/a"))


def number(text: str) -> int | float | None:
    """The number that a text is, whole ("1.0" too) as an int; None if it is none."""
    if not NUMBER.fullmatch(text):
        return None
    value = int(text) if text.lstrip("+-").isdigit() else float(text)
    if abs(value) >= 2**63:
        return None
    return int(value) if value == int(value) else value


def numbers_or_texts(values: Sequence | np.ndarray, names, where: str) -> np.ndarray | list[str]:
    """The labels of files `names` (bytes, [n]) as numbers, int [n], or as texts [n].

    Whole floats are numbers. Raises ValueError, with a count and the first file, for labels that
    are missing (None, NaN, blank), fractions, several for an image, or of two kinds.
    """
    if isinstance(values, np.ndarray) and values.dtype.kind in "iu":
        return values
    values = [value.item() if isinstance(value, np.generic) else value for value in values]

    def refuse(bad: Sequence[int], what: str):
        if bad:
            raise ValueError(
                f"{where}: {len(bad)} of {len(values)} labels {what.format(values[bad[0]])}, as "
                f"that of {os.fsdecode(names[bad[0]])}; expected one class an image, "
                "its number or its name"
            )

    def where_is(test) -> list[int]:
        return [i for i, value in enumerate(values) if test(value)]

    refuse(where_is(is_missing), "are missing")
    refuse(where_is(lambda v: not isinstance(v, int | float | str | bytes)), "are no label ({!r})")
    numeric = where_is(lambda v: isinstance(v, int | float) and not isinstance(v, bool))
    if len(numeric) == len(values):
        refuse(where_is(lambda v: not float(v).is_integer()), "are no whole numbers ({!r})")
        return np.array([int(value) for value in values], np.int64)
    refuse(numeric, "are numbers ({!r}) where others are text")
    texts = [os.fsdecode(v) if isinstance(v, bytes) else str(v) for v in values]
    words = Counter(text for text in texts if text.strip().lower() in MISSING_WORDS)
    for word, count in words.items():
        warn(f"{where}: {word!r} is taken for the class of {count} images")
    return texts


def is_missing(value) -> bool:
    """Whether this is what stands where there is no label: None, NaN, or nothing but blanks."""
    return value is None or value != value or (isinstance(value, str | bytes) and not value.strip())


def check_names(label_names: Sequence[str], where: str) -> None:
    """Raises ValueError for a class without a name, or two whose names look the same."""
    blank = [i for i, name in enumerate(label_names) if not name.strip()]
    if blank:
        raise ValueError(f"{where}: class {blank[0]} has a blank name; expected one for each class")
    looks: dict[str, str] = {}
    for name in label_names:
        other = looks.setdefault(appearance(name), name)
        if other != name:
            raise ValueError(
                f"{where}: two classes look the same: {other!a} and {name!a} "
                "(composed or decomposed letters, or blanks); expected one name a class"
            )


def appearance(name: str) -> str:
    """What a reader sees of a name: its letters composed (NFC), its blanks as one."""
    return " ".join(unicodedata.normalize("NFC", name).split())


def label_names_beside(folders: Sequence[Path]) -> list[str] | None:
    """The lines of labels.txt in these folders, if there is one; several must be the same."""
    files = [folder / "labels.txt" for folder in folders if (folder / "labels.txt").is_file()]
    read = [_lines(file) for file in files]
    for file, lines in zip(files, read, strict=True):
        if lines != read[0]:
            raise ValueError(f"{files[0]} and {file} name the classes differently; expected one")
    return read[0] if read else None


def _lines(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8-sig").rstrip().split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no UTF-8 text: {error}") from None
    lines = [line.strip() for line in lines]
    if "" in lines:
        raise ValueError(
            f"{file}: line {lines.index('') + 1} is blank; expected a class's name in each line"
        )
    twice = [name for name, count in Counter(lines).items() if count > 1]
    if twice:
        warn(f"{file}: {len(twice)} classes share their name with another: {twice}")
    return lines
