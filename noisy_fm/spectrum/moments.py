"""Streaming second moments of a feature matrix, and every singular value from them.

A float64 Gram matrix costs half a QR factorisation but squares the condition number: singular
values under 1e-8 σ₁ drown, and a rank-deficient matrix shows a whole tail of false ones. So the
Gram matrix is kept only while a Cholesky factorisation certifies that it is well conditioned;
the first block of rows that spoils it turns the state, still accurate, into its triangular
factor R (RᵀR = FᵀF), and from then on rows are folded in by QR, whose error is eps·σ₁ on every
singular value. Blocks are kept until they are certified, so nothing is lost by finding out late.
"""

import copy

import numpy as np

CONVENTIONS = {
    # eq. 2–3 as they read: the uncentred, un-normalised matrix.
    "paper": {"center": False, "normalize": False},
    # The released code: unit rows, then each *sample's* mean over its features subtracted.
    "release": {"center": "samples", "normalize": True},
}
CENTERS = (False, "columns", "samples")
# Least reciprocal condition of FᵀF under which its eigenvalues are trusted (cond F ≤ 1e5: an error
# of at most ~1e-11 σ₁ on any singular value, and SVE right to 1e-7 even with all σ but one there).
TRUSTED = 1e-10


def resolve(center, normalize, convention) -> dict:
    """`center` and `normalize` as settings, or those of a named convention."""
    if convention is not None:
        if convention not in CONVENTIONS:
            raise ValueError(f"unknown convention {convention!r}: one of {', '.join(CONVENTIONS)}")
        if center is not False or normalize is not False:
            raise ValueError("give either convention= or center=/normalize=, not both")
        return dict(CONVENTIONS[convention])
    center = "columns" if center is True else center
    if center not in CENTERS:
        raise ValueError(f"center must be False, 'columns' (or True) or 'samples', got {center!r}")
    return {"center": center, "normalize": bool(normalize)}


def as_features(x, *, where: str = "features") -> np.ndarray:
    """`x` as a real [n d] array, not copied; one clear line if it is not one."""
    x = np.asarray(x)
    if x.ndim != 2:
        raise ValueError(f"{where} must be 2-D [n, d], got shape {x.shape}")
    if x.shape[1] == 0:
        raise ValueError(f"{where} have no columns: shape {x.shape}")
    # numpy sees ml_dtypes' bfloat16 and float8 as void types; they convert all the same.
    if x.dtype.kind not in "fiub" and "float" not in x.dtype.name:
        raise TypeError(f"{where} must be real numbers, got dtype {x.dtype}")
    return x


def require_finite(x: np.ndarray, *, first_row: int = 0, where: str = "features") -> None:
    """ValueError that counts the rows with NaN or infinity and names the first."""
    bad = np.flatnonzero(~np.isfinite(x.astype(np.float64)).all(axis=1))
    if bad.size:
        raise ValueError(
            f"{where} have NaN or infinite values in {bad.size} of {len(x)} rows, "
            f"the first at row {first_row + bad[0]}"
        )


def prepare(x: np.ndarray, *, center, normalize) -> np.ndarray:
    """Rows as float64, unit length if `normalize`, minus their own mean if `center="samples"`."""
    x = x.astype(np.float64)  # before any square: float16 overflows at 256²
    if normalize:
        largest = np.abs(x).max(axis=1, keepdims=True)
        x /= np.where(largest > 0, largest, 1)  # so that norms neither overflow nor underflow
        norm = np.sqrt(np.einsum("nd,nd->n", x, x))[:, None]
        x /= np.where(norm > 0, norm, 1)
    if center == "samples":
        x -= x.mean(axis=1, keepdims=True)
    return x


class Spectrum:
    """Singular values of all rows seen, exactly, in O(D²) memory; mergeable.

    `update` with batches [m d] in any order, `merge` what other hosts or shards saw, then read
    `singular_values()`, `directions()` or `summary()` (at any time; reading changes nothing).

    Args:
      center: False (uncentred, as eq. 2–3 read), "columns" or True (the column means of all rows
        seen; batches are combined by Chan's update, so large means do not cancel) or "samples"
        (each row's own mean).
      normalize: rows to unit length first; a zero row stays zero.
      convention: a name from `CONVENTIONS` instead of the two: "paper" or "release".
    """

    def __init__(self, *, center=False, normalize=False, convention: str | None = None):
        self.settings = resolve(center, normalize, convention)
        self.n = 0
        self.d: int | None = None
        self._pending: list[np.ndarray] = []  # prepared rows not yet folded in
        self._folded = 0
        self._mean: np.ndarray | None = None  # of the folded rows; None unless center="columns"
        self._gram: np.ndarray | None = None
        self._factor: np.ndarray | None = None

    @property
    def capacity(self) -> int:
        """Rows held before they are folded: enough for BLAS to run at speed, O(D) of them."""
        return max(8192, 2 * self.d)

    def update(self, batch, *, mask=None) -> "Spectrum":
        """Adds the rows of `batch` [m d], of any real dtype; rows where `mask` [m] is 0 do not count.

        Raises:
          ValueError: not 2-D, another d, NaN or infinite values (how many rows, and the first).
        """
        batch = as_features(batch)
        if mask is not None:
            mask = np.asarray(mask).astype(bool)
            if mask.shape != batch.shape[:1]:
                raise ValueError(f"mask must be [{len(batch)}], one a row, got {mask.shape}")
            batch = batch[mask]
        if self.d is None:
            self.d = batch.shape[1]
        if batch.shape[1] != self.d:
            raise ValueError(f"batch has {batch.shape[1]} features, the rows so far {self.d}")
        ready = []
        start = 0
        while start < len(batch):
            room = self.capacity - sum(map(len, self._pending)) - sum(map(len, ready[1:]))
            rows = batch[start : start + room]
            start += len(rows)
            self._check(rows, batch, start - len(rows))
            self._pending.append(prepare(rows, **self.settings))
            self.n += len(rows)
            if len(rows) == room:
                self._flush()
        return self

    def _check(self, rows, batch, start):
        with np.errstate(over="ignore", invalid="ignore"):
            finite = np.isfinite(rows.sum(axis=0, dtype=np.float64)).all()
        if not finite:
            require_finite(batch[start:], first_row=self.n)

    def merge(self, other: "Spectrum") -> "Spectrum":
        """Adds what `other` saw, as if its rows had been given to this one; `other` is unchanged.

        Raises:
          ValueError: other settings or another d.
        """
        if other.settings != self.settings:
            raise ValueError(f"cannot merge spectra of {other.settings} into one of {self.settings}")
        if other.n == 0:
            return self
        if self.d is not None and other.d != self.d:
            raise ValueError(f"cannot merge a spectrum of {other.d} features into one of {self.d}")
        self.d = other.d
        self.n += other.n
        if other._folded:
            self._combine(other._folded, other._mean, other._gram, other._factor)
        self._pending.extend(other._pending)
        if sum(map(len, self._pending)) >= self.capacity:
            self._flush()
        return self

    def _flush(self) -> None:
        if not self._pending:
            return
        rows = self._pending[0] if len(self._pending) == 1 else np.concatenate(self._pending)
        self._pending = []
        mean = None
        if self.settings["center"] == "columns":
            mean = rows.mean(axis=0)
            rows = rows - mean
            # The mean's own rounding, of which n rows would make a false direction.
            correction = rows.mean(axis=0)
            mean, rows = mean + correction, rows - correction
        self._combine(len(rows), mean, None, rows)

    def _combine(self, n, mean, gram, rows) -> None:
        """Folds in n rows given as a Gram matrix or as rows (or an R factor) with their mean."""
        between = self._between(n, mean)
        total = self._folded + n
        if mean is not None and self._mean is not None:
            mean = self._mean + (mean - self._mean) * (n / total)
        empty = self._folded == 0
        self._folded, self._mean = total, mean
        if self._factor is None:
            with np.errstate(over="ignore", invalid="ignore"):
                added = gram if gram is not None else rows.T @ rows
                merged = added + between.T @ between
                merged = merged if empty else merged + self._gram
            if certified(merged):
                self._gram = merged
                return
        mine = self._factor if self._factor is not None else self._gram
        parts = [factor_of(part) for part in (mine, gram) if part is not None]
        parts += [part for part in (rows, between) if part is not None]
        if self._factor is not None:
            parts[0] = self._factor
        self._gram, self._factor = None, np.linalg.qr(np.concatenate(parts), mode="r")

    def _between(self, n, mean) -> np.ndarray:
        """The row that Chan's update adds for the distance between two means, [0 or 1, d]."""
        if mean is None or self._mean is None:
            return np.zeros((0, self.d))
        weight = np.sqrt(self._folded * (n / (self._folded + n)))
        return weight * (mean - self._mean)[None]

    def _read(self) -> "Spectrum":
        """This state with nothing pending; the state itself stays as it is."""
        if self.n < 2:
            raise ValueError(f"a spectrum needs at least 2 rows, got {self.n}")
        state = copy.copy(self)
        state._flush()
        return state

    def singular_values(self) -> np.ndarray:
        """All min(n, d) singular values, descending, float64."""
        state = self._read()
        if state._gram is not None:
            values = np.sqrt(np.maximum(np.linalg.eigvalsh(state._gram)[::-1], 0))
        else:
            values = np.linalg.svd(state._factor, compute_uv=False)
        return values[: min(self.n, self.d)]
