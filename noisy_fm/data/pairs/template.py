"""Captions made of an example's other columns."""

import re
import string
from collections.abc import Mapping

import numpy as np

from noisy_fm.messages import unknown

NONE = "none"  # what a column holds where there is nothing to say


def filled(template: str, fields: Mapping[str, np.ndarray], where: str) -> np.ndarray:
    """Texts [n]: `template`, as "{name}, {category}", with each example's `fields` [n].

    Of a field that is "none", the part between two commas is left out; where the template has no
    commas, the field alone. Raises ValueError, one line, for a template without fields or with
    unknown ones, and for examples of which nothing is left.
    """
    parts = [_parsed(part, template, where) for part in template.split(",")]
    names = [name for part in parts for _, name in part if name]
    for name in names:
        if name not in fields:
            raise ValueError(f"{where}: captions: {unknown('field', name, fields)}")
    if not names:
        raise ValueError(
            f"{where}: captions are {template!r}, the same for every example; expected a field of "
            f"{', '.join(f'{{{name}}}' for name in fields)}"
        )
    columns = [fields[name].tolist() for name in dict.fromkeys(names)]
    rows = (dict(zip(dict.fromkeys(names), row, strict=True)) for row in zip(*columns, strict=True))
    texts = np.array([_text(parts, row) for row in rows])
    if empty := int(np.sum(texts == "")):
        raise ValueError(
            f"{where}: captions {template!r} leave nothing of {empty} of {len(texts)} examples, "
            'whose fields are all "none"; expected a field that each has, as {name}'
        )
    return texts


def _parsed(part: str, template: str, where: str) -> list[tuple[str, str | None]]:
    """(text, field behind it) … of a part of the template."""
    try:
        found = list(string.Formatter().parse(part))
    except ValueError as error:
        raise ValueError(f"{where}: captions are {template!r}: {error}") from None
    if odd := [name for _, name, spec, how in found if name is not None and (spec or how)]:
        raise ValueError(f"{where}: captions have more than a field's name in {{{odd[0]}…}}")
    return [(text, name) for text, name, _, _ in found]


def _text(parts: list[list[tuple[str, str | None]]], row: Mapping[str, str]) -> str:
    kept = []
    for part in parts:
        nothing = any(name and row[name] == NONE for _, name in part)
        if nothing and len(parts) > 1:
            continue
        values = (text + (_value(row, name) if name else "") for text, name in part)
        text = re.sub(r"\s+", " ", "".join(values)).strip()
        if text:
            kept.append(text)
    return ", ".join(kept)


def _value(row: Mapping[str, str], name: str) -> str:
    return "" if row[name] == NONE else row[name]
