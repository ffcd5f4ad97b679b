"""What people hold features in: tables, columns of embeddings and masked arrays, read alike."""

import numpy as np

from noisy_fm.spectrum import as_array
from noisy_fm.spectrum.arrays import is_real, raw_advice, refuse_masked


def features_of(X):
    """X as scikit-learn validates it, a column of lists or arrays stacked to [n d].

    Tables of several columns stay tables, whose names are then checked. Raises TypeError or
    ValueError in one line for a lazy table, for masked values, for rows of several lengths and for
    what `require_real` refuses.
    """
    X = _matrix_of(X)
    require_real(X, where="X")
    return X


def _matrix_of(X):
    refuse_masked(X, where="X")
    if hasattr(X, "collect") and hasattr(X, "lazy"):
        raise TypeError(f"X must be an array or a table, got a {type(X).__name__}: X.collect()")
    if hasattr(X, "column_names") and hasattr(X, "to_pandas"):  # pyarrow's
        X = X.to_pandas()
    if hasattr(X, "columns") and getattr(X, "shape", (0, 0))[1] == 1:
        column = X.iloc[:, 0] if hasattr(X, "iloc") else X[X.columns[0]]
        return _stacked(column, X)
    return _stacked(X, X)


def _stacked(column, otherwise):
    """[n d] of a column or list of n lists or arrays, else the second argument."""
    if isinstance(column, list):
        nested = any(getattr(row, "ndim", 0) for row in column)
        return as_array(column, where="X") if nested else otherwise
    if len(getattr(column, "shape", ())) != 1:
        return otherwise
    values = np.asarray(column)
    if values.ndim > 1:  # polars' arrays of one length
        return values
    nested = values.dtype == object and any(
        isinstance(row, list | tuple | np.ndarray) for row in values
    )
    return as_array(values, where="X") if nested else otherwise


def require_real(values, *, where: str) -> None:
    """TypeError for texts, dates and other things that are no numbers, ValueError for complex ones.

    NumPy would take the number that a text spells, or count a date's seconds.
    """
    if hasattr(values, "columns"):
        for name in values.columns:
            require_real(values[name], where=f"{where}, in column {name!r},")
        return
    dtype = getattr(values, "dtype", None)
    if hasattr(values, "nnz") or getattr(dtype, "kind", "O") in "fiub":
        return
    dtype = (values := np.asarray(values)).dtype
    if dtype.kind == "c":  # scikit-learn's words, which its checks look for
        raise ValueError(f"Complex data not supported: {where} must be real numbers, got {dtype}")
    if dtype.kind == "O":
        text = next((entry for entry in values.flat if isinstance(entry, str | bytes)), None)
        if text is not None:
            raise TypeError(
                f"{where} must be real numbers, got the text {text!r}: convert them first"
            )
    elif not is_real(dtype):
        raise TypeError(
            f"{where} must be real numbers, got dtype {dtype}"
            + (raw_advice(dtype) or ": convert them first")
        )


def precisions_of(X) -> tuple[type, type]:
    """float32 and float64, first the one that holds the numbers of X as they are."""
    small = getattr(X, "dtype", None) in (np.float16, np.int8, np.uint8, np.int16, np.uint16, bool)
    return (np.float32, np.float64) if small else (np.float64, np.float32)
