"""Mistakes in features and arguments, each told in one line before anything is compiled."""

import warnings

import numpy as np
from sklearn.utils import check_random_state

from noisy_fm.scalars import plain
from noisy_fm.spectrum.arrays import blocks_of, refuse_masked
from noisy_fm.spectrum.metrics import as_labels

# Offset over spread. Between 30 and 300 a linear probe falls to chance, behind BatchNorm a head
# does from 10⁴ on, and beyond 10⁷ float32 has no digits left for the spread. Embeddings whose
# cosines are 0.99 throughout have 10.
FAR, FAR_WITH_NORM, LOST = 200, 3e3, 1e7
# Spread, √Σσ². Below, weights cannot grow large enough; above, squares overflow.
FAINT, HUGE = 1e-3, 1e17
SAMPLE = 4096


def single(X: np.ndarray, *, name: str = "X", exact: bool = False) -> np.ndarray:
    """X [n d] in float32, or as it is where `exact`.

    ValueError for NaN, infinity, and what float32 cannot hold.
    """
    require_finite(X, name=name)
    if X.dtype == np.float32:
        return X
    for first, block in blocks_of(X):
        if (large := np.abs(block) > np.finfo(np.float32).max).any():
            row, column = np.argwhere(large)[0]
            raise ValueError(
                f"{name} must fit float32 (at most 3.4e38), got {block[row, column]} "
                f"at row {first + row}, column {column}"
            )
    return X if exact else X.astype(np.float32)


def require_finite(X: np.ndarray, *, name: str = "X") -> None:
    """ValueError that counts the rows of X [n d] with NaN or infinity and names the first."""
    rows = [first + np.flatnonzero(~np.isfinite(b).all(axis=1)) for first, b in blocks_of(X)]
    bad = np.concatenate([np.empty(0, int), *rows])
    if len(bad):
        row = bad[0]
        column = np.flatnonzero(~np.isfinite(X[row]))[0]
        raise ValueError(
            f"{name} must be finite: {len(bad)} of {len(X)} rows have NaN or inf, "
            f"the first is {X[row, column]} at row {row}, column {column}"
        )


def warn_scale(X: np.ndarray, *, linear: bool, standardize: bool, stacklevel: int = 4) -> None:
    """Warns of features [n d], as they came, whose offset or scale leaves nothing to train on.

    Offset ‖μ‖ and spread √Σσ² are those of some thousand rows; equal ones are `warn_constant`'s.
    """
    rows = X[:: -(-len(X) // SAMPLE)].astype(np.float64)
    if (rows == rows[0]).all():
        return
    offset, spread = np.linalg.norm(rows.mean(axis=0)), np.sqrt(rows.var(axis=0).sum())
    far = offset > (FAR if linear else FAR_WITH_NORM) * spread
    digits = np.finfo(np.float32).eps / np.finfo(X.dtype).eps  # more of them than float32 has
    if offset > LOST * spread * (digits if standardize else 1):
        first = "subtract their mean before they are rounded"
        centred = "set standardize=True" if digits > 1 and not standardize else first
        advice = f"{'float32' if not standardize else X.dtype} rounds that away, {centred}"
    elif not standardize and (far or not FAINT <= spread <= HUGE):
        advice = "heads learn little or nothing from such, set standardize=True"
    else:
        return
    warnings.warn(
        f"features lie {offset:.1e} from 0 and spread over {spread:.1e}: {advice}",
        stacklevel=stacklevel,
    )


def require_labels(y, *, name: str = "y") -> None:
    """ValueError for labels that are missing (NaN, None) or of types without an order."""
    refuse_masked(y, where=name)
    if getattr(y, "nnz", None) is None and y is not None:  # a sparse y is scikit-learn's to refuse
        try:
            given = np.asarray(y)
        except ValueError:  # lists of several lengths
            given = np.empty(1, object)
            given[0] = []
        if given.dtype == object and any(
            isinstance(e, list | tuple | np.ndarray) for e in given.flat
        ):
            raise ValueError(f"{name} must be one label a row [n], got lists of several")
        as_labels(y, where=name)


def seed_of(random_state) -> int:
    """The seed itself where it is one (as `probe.Head`'s), else one drawn from the generator."""
    random_state = plain(random_state)
    if isinstance(random_state, int) and 0 <= random_state < 2**32:
        return int(random_state)
    try:
        return int(check_random_state(random_state).randint(2**31 - 1))
    except ValueError:
        raise ValueError(
            f"random_state must be None, a whole number below 2³² or a numpy.random.RandomState, "
            f"got {random_state!r}"
        ) from None
