"""Single numbers of any type as what they print as."""

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
    scalar = value[()]
    if isinstance(scalar, np.generic) and "float" in scalar.dtype.name:  # bfloat16 among them
        return float(str(scalar))
    return scalar.item() if isinstance(scalar, np.generic) else scalar
