"""What people hold features in: tables, columns of embeddings and masked arrays, read alike."""

import numpy as np

from noisy_fm.probe.check import refuse_masked
from noisy_fm.spectrum import as_array


def features_of(X):
    """X as scikit-learn validates it, a column of lists or arrays stacked to [n d].

    Tables of several columns stay tables, whose names are then checked. Raises TypeError or
    ValueError in one line for a lazy table, for masked values and for rows of several lengths.
    """
    refuse_masked(X, "X")
    if hasattr(X, "collect") and hasattr(X, "lazy"):
        raise TypeError(f"X must be an array or a table, got a {type(X).__name__}: X.collect()")
    if hasattr(X, "column_names") and hasattr(X, "to_pandas"):  # pyarrow's
        X = X.to_pandas()
    if hasattr(X, "columns") and getattr(X, "shape", (0, 0))[1] == 1:
        column = X.iloc[:, 0] if hasattr(X, "iloc") else X[X.columns[0]]
        return _stacked(column, X)
    return _stacked(X, X)


def _stacked(column, otherwise):
    """[n d] of a column of n lists or arrays, else the second argument."""
    if isinstance(column, list) or getattr(column, "ndim", None) == 1 or hasattr(column, "to_list"):
        # Of polars' lists NumPy would make arrays of its own, of pandas' it keeps the objects.
        first = column[0] if isinstance(column, list) and column else None
        if isinstance(column, list) and not hasattr(first, "shape"):
            return otherwise
        values = column if isinstance(column, list) else np.asarray(column)
        if isinstance(values, list) or values.ndim > 1:
            return values if not isinstance(values, list) else as_array(values, where="X")
        if values.dtype == object and len(values) and np.ndim(values[0]) == 1:
            return as_array(values, where="X")
    return otherwise


def precisions_of(X) -> tuple[type, type]:
    """float32 and float64, first the one that holds the numbers of X as they are."""
    small = getattr(X, "dtype", None) in (np.float16, np.int8, np.uint8, np.int16, np.uint16, bool)
    return (np.float32, np.float64) if small else (np.float64, np.float32)
