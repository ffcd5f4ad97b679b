"""Single arguments of any type as what they print as, or refused in one line."""

import numbers

import numpy as np


def plain(value):
    """A NumPy scalar or 0-d array as Python's: np.float32(0.1) is 0.1; all else as it is.

    Scalars in lists and tuples, and the entries of an array, are read alike. Raises ValueError for
    a masked value.
    """
    if value is np.ma.masked or (isinstance(value, np.ma.MaskedArray) and value.mask.any()):
        raise ValueError("a masked value is no number: fill it or leave it out")
    if type(value) in (list, tuple):
        return type(value)(e if getattr(e, "ndim", 0) else plain(e) for e in value)
    if isinstance(value, np.ndarray) and value.ndim:
        return [plain(entry) for entry in value]
    if not isinstance(value, (np.generic, np.ndarray)):
        return value
    scalar = value[()] if isinstance(value, np.ndarray) else value  # a text has no [()]
    if isinstance(scalar, np.generic) and "float" in scalar.dtype.name:  # bfloat16 among them
        return float(str(scalar))
    return scalar.item() if isinstance(scalar, np.generic) else scalar


def as_flag(name: str, value) -> bool:
    """`value` as True or False; ValueError for what is neither (and not 0 or 1)."""
    flag = plain(value)
    if not isinstance(flag, numbers.Integral) or flag not in (0, 1):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return bool(flag)


def as_whole(name: str, value, least: int) -> int:
    """`value` as an int; ValueError for what is no whole number of at least `least`."""
    whole = plain(value)
    if not isinstance(whole, numbers.Integral) or isinstance(whole, bool) or whole < least:
        raise ValueError(f"{name} must be a whole number ≥ {least}, got {value!r}")
    return int(whole)


def as_share(name: str, value) -> float:
    """`value` as a float; ValueError for what is no number between 0 and 1."""
    share = plain(value)
    if not isinstance(share, numbers.Real) or not 0 < float(share) < 1:
        raise ValueError(f"{name} must lie between 0 and 1 (0.95 for 95 %), got {value!r}")
    return float(share)
