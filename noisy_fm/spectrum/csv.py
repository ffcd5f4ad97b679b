"""Features in a .csv file: its columns of numbers."""

import csv
import fnmatch
import re

import numpy as np

from noisy_fm.spectrum.parquet import UnfitError

# What is seldom a feature; who means it so names it.
NO_FEATURE = ("id", "ids", "index", "label", "labels", "target")
INDEX = re.compile(r"Unnamed: \d+(\.\d+)?")  # what pandas calls an index that it read as a column


def read(path, key: str | None = None) -> np.ndarray:
    """The features float64 [n d]: all columns but an index, ids and labels, or what `key` names.

    `key` is names of columns with commas between, or patterns of them (`emb_*`).
    """
    from pyarrow import csv as arrow

    names, header, index = columns(path)
    places = [i for i in range(len(names)) if i not in index]
    chosen = places if key is None else _picked(names, key)
    if not chosen:
        raise UnfitError("no columns but an index, ids or labels")
    table = arrow.read_csv(
        path,
        arrow.ReadOptions(skip_rows=int(header), autogenerate_column_names=True),
        arrow.ParseOptions(newlines_in_values=True),
    )
    if table.num_columns != len(names):
        raise UnfitError(f"{table.num_columns} columns under a header of {len(names)}")
    _refuse_texts([(names[i], table.column(i)) for i in chosen], picked=key is not None)
    result = np.column_stack([table.column(i).to_numpy().astype(np.float64) for i in chosen])
    missing = np.isnan(result)
    if missing.any():
        row, place = np.argwhere(missing)[0]
        raise UnfitError(
            f"{missing.any(axis=1).sum()} of {len(result)} rows have missing values, the first is "
            f"at row {row}, column {names[chosen[place]]!r}: fill them or leave those rows out"
        )
    return result


def taken(path) -> str:
    """Which columns are the features, in a line."""
    names, header, index = columns(path)
    kept = [name for i, name in enumerate(names) if i not in index]
    several = len(kept) > 1
    which = f"{kept[0]} … {kept[-1]}" if several else kept[0]
    ours = [repr(name) for name in index.values() if name.lower() in NO_FEATURE]
    theirs = [repr(name) for name in index.values() if name.lower() not in NO_FEATURE]
    parts = [f"the index ({', '.join(theirs)})"] if theirs else []
    parts += [f"{', '.join(ours)}, no features by their names"] if ours else []
    left = f"; left out: {', and '.join(parts)}" if parts else ""
    return (
        f"{'a' if header else 'no'} header; features are {'all ' * several}{len(kept)} "
        f"column{'s' * several} of numbers ({which}){left}"
    )


def columns(path) -> tuple[list[str], bool, dict[int, str]]:
    """The columns' names (numbers, without a header), if there is a header, and {place: index}.

    A first row is a header unless all its entries are numbers, and also if they count 0, 1, 2, …,
    which pandas calls columns without names. Columns that pandas wrote its index in have no name;
    what is called one of `NO_FEATURE` is left out like them.
    """
    with open(path, newline="", encoding="utf-8-sig") as file:
        first = [entry.strip() for entry in next(csv.reader(file), [])]
    if not first:
        raise UnfitError("no first row")
    leading = next((i for i, entry in enumerate(first) if entry), len(first))
    named = first[leading:]
    counted = len(named) > 1 and named == [str(i) for i in range(len(named))]
    header = counted or not all(_is_number(entry) for entry in named if entry)
    if not header:
        return [str(i) for i in range(len(first))], False, {}
    if len(first) == 1 and re.search(r"[;\t]", first[0]):
        raise UnfitError(f"one column, {first[0]!r}; expected commas between columns")
    index = {
        i: e
        for i, e in enumerate(first)
        if i < leading or INDEX.fullmatch(e) or e.lower() in NO_FEATURE
    }
    return first, True, index


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _picked(names: list[str], key: str) -> list[int]:
    """Places of the columns that are named, or match a pattern, in the order of `key`."""
    places = []
    for wanted in key.split(","):
        found = [i for i, name in enumerate(names) if name == wanted] or [
            i for i, name in enumerate(names) if fnmatch.fnmatchcase(name, wanted)
        ]
        if not found:
            shown = ", ".join(names[:8]) + ", …" * (len(names) > 8)
            raise UnfitError(f"no column {wanted!r}: it has {shown}")
        places += [i for i in found if i not in places]
    return places


def _refuse_texts(table: list, *, picked: bool) -> None:
    import pyarrow as pa

    texts = []
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_null)
    for name, column in table:
        if not any(is_kind(column.type) for is_kind in kinds):
            entries = ["0" if entry is None else str(entry) for entry in column.to_pylist()]
            odd = next((i for i, entry in enumerate(entries) if not _is_number(entry)), 0)
            texts.append(f"{name!r} ({entries[odd]!r} at row {odd})")
    if texts:
        more = f" and {len(texts) - 3} more" * (len(texts) > 3)
        advice = "" if picked else ": name the features as FILE:COLUMN,COLUMN, or as FILE:emb_*"
        raise UnfitError(f"not of numbers: column {', '.join(texts[:3])}{more}{advice}")
