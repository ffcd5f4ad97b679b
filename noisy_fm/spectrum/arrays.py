"""What people give as features and arguments: read as what it says, or refused in one line."""

from pathlib import Path
from typing import Any

import numpy as np

BLOCK_BYTES = 2**23  # of float64, taken at a time where any number of rows will do


class Rows:
    """Some rows of features [n d], read when they are sliced: a mapped file stays on the disk."""

    ndim = 2

    def __init__(self, x: np.ndarray, rows: np.ndarray):
        self.x, self.rows = x, rows
        self.shape, self.dtype = (len(rows), x.shape[1]), x.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> np.ndarray:
        return self.x[self.rows[part]]


def as_features(x) -> Any:
    """`x` as a real [n d] array, not copied; one clear line if it is not one.

    A vector of n lists or arrays (a table's column of embeddings) is stacked. A masked array is
    taken where nothing is masked, and refused else. `Rows` are of what was checked before.
    """
    if isinstance(x, Rows):
        return x
    x = as_array(x)
    if x.ndim != 2:
        raise ValueError(f"features must be 2-D [n, d], got shape {x.shape}")
    if x.shape[1] == 0:
        raise ValueError(f"features have no columns: shape {x.shape}")
    if not is_real(x.dtype):
        raise TypeError(f"features must be real numbers, got dtype {x.dtype}{raw_advice(x.dtype)}")
    return x


def is_real(dtype: np.dtype) -> bool:
    """Whether a dtype is of real numbers, bfloat16 and float8 included."""
    # numpy sees ml_dtypes' numbers as void types; they convert all the same.
    return dtype.kind in "fiub" or dtype.name.startswith(("bfloat", "float", "int", "uint"))


def raw_advice(dtype: np.dtype) -> str:
    """What to do about the bytes without a type that np.save makes of a bfloat16 or float8."""
    if dtype.kind != "V" or dtype.names or dtype.subdtype or is_real(dtype):
        return ""
    return (
        ": bytes without a type, which is what np.save makes of bfloat16 and float8; "
        "save x.astype(np.float32), or .safetensors"
    )


def as_array(x, *, where: str = "features") -> np.ndarray:
    """`x` as an array of any shape; one line for what people give that NumPy would misread."""
    if isinstance(x, str | Path):
        raise TypeError(
            f"{where} must be an array [n, d], got the path {str(x)!r}: read it with "
            "spectrum.load_features"
        )
    if hasattr(x, "nnz") and hasattr(x, "toarray"):
        raise TypeError(f"{where} must be dense, got a sparse {type(x).__name__}: x.toarray()")
    if hasattr(x, "collect") and hasattr(x, "lazy"):  # polars, which this never imports
        raise TypeError(f"{where} must be an array, got a {type(x).__name__}: x.collect()")
    if hasattr(x, "columns") and hasattr(x, "iloc"):  # a pandas table, neither
        others = [
            str(name)
            for name, dtype in zip(x.columns, x.dtypes, strict=True)
            if dtype.kind not in "fiub"
        ]
        if others:
            raise TypeError(
                f"{where} must be real numbers, not so in column{'s' * (len(others) > 1)} "
                f"{', '.join(others[:5])}{', …' * (len(others) > 5)}: leave out what is no number; "
                "of a column of lists give that column alone"
            )
        if any(type(dtype).__module__.startswith("pandas") for dtype in x.dtypes):
            return x.to_numpy(np.float64, na_value=np.nan)
    if isinstance(x, list | tuple) and any(getattr(part, "ndim", 0) == 2 for part in x):
        raise ValueError(
            f"{where} must be one matrix, got a {type(x).__name__} of {len(x)}: give them one by "
            'one, or by name where several are taken, as in {"a": X, "b": Y}'
        )
    refuse_masked(x, where=where)
    x = np.asarray(x)
    if x.dtype == object and x.ndim == 1 and len(x):
        sizes = [np.size(row) if np.ndim(row) == 1 else -1 for row in x]
        if min(sizes) >= 0 and len({*sizes}) == 1:
            refuse_masked(list(x), where=where)
            return np.stack([np.asarray(row) for row in x])
        first = next((i for i, size in enumerate(sizes) if size != sizes[0] or size < 0))
        raise ValueError(
            f"{where} must be rows of one length, got {type(x[first]).__name__} at row {first}"
            + f" of length {sizes[first]}, not {sizes[0]}" * (sizes[first] >= 0)
        )
    return x


def refuse_masked(x, *, where: str) -> None:
    """ValueError where entries of a masked array, or of a list of such rows, are masked.

    NumPy's conversion would take what lies hidden under the mask for values.
    """
    if isinstance(x, np.ma.MaskedArray):
        hidden: Any = np.ma.getmaskarray(x)
    elif isinstance(x, list | tuple) and any(isinstance(part, np.ma.MaskedArray) for part in x):
        hidden = np.array([np.ma.getmaskarray(part).any() for part in x])
    else:
        return
    hidden = np.array(hidden, ndmin=1)
    rows = hidden.any(axis=tuple(range(1, hidden.ndim)))
    if rows.any():
        raise ValueError(
            f"{where} are masked in {rows.sum()} of {len(rows)} rows, the first at row "
            f"{rows.argmax()}: leave those rows out, or fill them with x.filled(…)"
        )


def as_mask(mask, rows: int) -> np.ndarray:
    """`mask` as truth values [rows]; ValueError for another shape, or other than 0 and 1."""
    refuse_masked(mask, where="the entries of mask")
    mask = np.asarray(mask)
    if mask.shape != (rows,):
        raise ValueError(f"mask must be [{rows}], one a row, got {mask.shape}")
    if not is_real(mask.dtype) or not ((mask == 0) | (mask == 1)).all():
        raise ValueError("mask must hold 0 (a row that does not count) and 1 only")
    return mask.astype(bool)


def require_finite(x: np.ndarray, *, first_row: int = 0) -> None:
    """ValueError that counts the rows with NaN or infinity and names the first."""
    count, first, overflow = 0, 0, False
    for start, block in blocks_of(x):
        bad = np.flatnonzero(~np.isfinite(block.astype(np.float64)).all(axis=1))
        if bad.size:
            first = first if count else first_row + start + int(bad[0])
            count += bad.size
            overflow |= bool(x.dtype == np.float16 and np.isinf(block[bad]).any())
    if count:
        raise ValueError(
            f"features have NaN or infinite values in {count} of {len(x)} rows, "
            f"the first at row {first}" + " (an overflow of float16?)" * overflow
        )


def blocks_of(x: np.ndarray, size: int = BLOCK_BYTES):
    """Yields (first row, rows) of x [n d] in turn, `size` bytes of float64 each at most."""
    step = max(1, size // (8 * x.shape[1]))
    for start in range(0, len(x), step):
        yield start, x[start : start + step]
