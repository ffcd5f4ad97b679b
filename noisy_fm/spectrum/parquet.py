"""Features in a .parquet file: one column of vectors, or else a table of plain columns."""

import json

import numpy as np


class UnfitError(Exception):
    """A readable file with the wrong thing in it."""


def read(path, key: str | None = None) -> np.ndarray:
    """The features [n d]: column `key`, the one of vectors, or all columns of floating point."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        vectors, floats, _ = columns(file.schema_arrow)
        if key is not None and key not in vectors:
            raise UnfitError(f"no column of lists {key!r}: it has {', '.join(vectors) or 'none'}")
        if key is None and len(vectors) > 1:
            raise UnfitError(
                f"expected one column of lists, or name one as FILE:NAME; it has "
                f"{', '.join(vectors)}"
            )
        if vectors:
            name = vectors[0] if key is None else key
            return _vectors(file.read(columns=[name])[name], name)
        if not floats:
            raise UnfitError("no column of lists of numbers and no floating-point columns")
        _refuse_nested(file.schema_arrow)
        table = file.read(columns=floats)
        return np.column_stack([table[name].to_numpy() for name in floats])


def taken(path) -> str:
    """Which plain columns of a file without vectors are the features, in a line; else ""."""
    import pyarrow.parquet as pq

    vectors, floats, others = columns(pq.read_schema(path))
    if vectors:
        return ""
    several = len(floats) > 1
    which = f"{floats[0]} … {floats[-1]}" if several else floats[0]
    left = f"; left out: {', '.join(others[:5])}{', …' * (len(others) > 5)}" if others else ""
    return (
        f"no column of lists; features are {'all ' * several}{len(floats)} floating-point "
        f"column{'s' * several} ({which}){left}"
    )


def columns(schema) -> tuple[list[str], list[str], list[str]]:
    """Names of the columns of vectors of numbers, of floating point, and of anything else.

    What pandas kept as the table's index is of the last kind.
    """
    import pyarrow as pa

    vectors = [field.name for field in schema if _holds_numbers(field.type)]
    kept = json.loads((schema.metadata or {}).get(b"pandas", b"{}")).get("index_columns", [])
    index = {name for name in kept if isinstance(name, str)}  # a range is described, not stored
    floats = [
        field.name
        for field in schema
        if pa.types.is_floating(field.type) and field.name not in index
    ]
    return vectors, floats, [name for name in schema.names if name not in {*vectors, *floats}]


def _holds_numbers(kind) -> bool:
    """Whether an Arrow type is of lists, of any kind and depth, or tensors, of numbers."""
    import pyarrow as pa

    kind, depth = _stored(kind), 0
    while _is_list(kind):
        kind, depth = _stored(kind.value_type), depth + 1
    numeric = pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind)
    return bool(depth and numeric)


def _stored(kind):
    return getattr(kind, "storage_type", kind)


def _is_list(kind) -> bool:
    import pyarrow as pa

    return any(
        getattr(pa.types, f"is_{name}")(kind)
        for name in ("list", "large_list", "fixed_size_list", "list_view", "large_list_view")
    )


def _refuse_nested(schema) -> None:
    """Plain columns beside one that may hold the embeddings are not taken in its stead."""
    import pyarrow as pa

    def may_hold_vectors(kind) -> bool:
        kinds = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
        return pa.types.is_nested(_stored(kind)) or any(is_kind(kind) for is_kind in kinds)

    other = [f"{field.name} ({field.type})" for field in schema if may_hold_vectors(field.type)]
    if other:
        raise UnfitError(
            f"no column of lists of numbers, and plain columns are not taken for features beside "
            f"{', '.join(other[:3])}{', …' * (len(other) > 3)}: leave out what is no feature"
        )


def _vectors(column, name: str) -> np.ndarray:
    """[n d] of n lists of d numbers, of any Arrow type of them and in any chunks."""
    if not len(column):
        raise UnfitError(f"column {name!r} has no rows")
    parts, first = [], 0
    if column.null_count:
        at = column.is_null().index(True).as_py()
        raise UnfitError(
            f"column {name!r} has no list (null) in {column.null_count} of {len(column)} rows, "
            f"the first at row {at}: leave those rows out"
        )
    for chunk in column.chunks:  # one by one: together they may exceed what offsets can count
        if len(chunk):
            parts.append(_matrix(chunk, name, first))
            first += len(chunk)
    if len({part.shape[1] for part in parts}) != 1:
        raise UnfitError(f"the lists in column {name!r} differ in length")
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _matrix(chunk, name: str, first: int) -> np.ndarray:
    """[n d] of one chunk, whose first row is row `first` of the column."""
    import pyarrow as pa

    values, rows, shape = getattr(chunk, "storage", chunk), len(chunk), []
    while _is_list(values.type):
        lengths = np.unique(values.value_lengths().to_numpy(zero_copy_only=False))
        if len(lengths) != 1:
            raise UnfitError(f"the lists in column {name!r} differ in length")
        shape.append(int(lengths[0]))
        values = values.flatten()
        values = getattr(values, "storage", values)
        if values.null_count:
            at = values.is_null().index(True).as_py() // (len(values) // rows)
            raise UnfitError(
                f"column {name!r} has lists with empty (null) entries, as at row {first + at}"
            )
    shape = list(getattr(chunk.type, "shape", shape))  # a tensor's, which it stores as one list
    if sum(size != 1 for size in shape) > 1:
        raise UnfitError(
            f"column {name!r} holds arrays {shape} a row, not vectors: average or flatten them"
        )
    if pa.types.is_decimal(values.type):
        values = values.cast(pa.float64())
    return values.to_numpy(zero_copy_only=False).reshape(rows, -1)
