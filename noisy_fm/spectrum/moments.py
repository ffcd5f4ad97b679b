"""Streaming second moments of a feature matrix, and every singular value from them.

A float64 Gram matrix costs half a QR factorisation but squares the condition number: singular
values under 1e-8 σ₁ drown, and a rank-deficient matrix shows a whole tail of false ones. So the
Gram matrix is kept only while a Cholesky factorisation certifies that it is well conditioned;
where a block of rows spoils that, the sum so far, still accurate, becomes its triangular factor R
(RᵀR = FᵀF) and the block is folded in by QR, whose error is eps·σ₁ on every singular value. Rows
are kept until their block is certified, so nothing is lost by finding out late.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from noisy_fm.spectrum.metrics import from_singular_values

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
        return {**CONVENTIONS[convention]}  # type: ignore[dict-item]
    center = "columns" if center is True else center
    if center not in CENTERS:
        raise ValueError(f"center must be False, 'columns' (or True) or 'samples', got {center!r}")
    return {"center": center, "normalize": bool(normalize)}


def as_features(x, *, where: str = "features") -> np.ndarray:
    """`x` as a real [n d] array, not copied; one clear line if it is not one.

    A vector of n lists or arrays (a table's column of embeddings) is stacked.
    """
    x = as_array(x, where=where)
    if x.ndim != 2:
        raise ValueError(f"{where} must be 2-D [n, d], got shape {x.shape}")
    if x.shape[1] == 0:
        raise ValueError(f"{where} have no columns: shape {x.shape}")
    # numpy sees ml_dtypes' bfloat16 and float8 as void types; they convert all the same.
    if x.dtype.kind not in "fiub" and "float" not in x.dtype.name:
        raise TypeError(f"{where} must be real numbers, got dtype {x.dtype}")
    return x


def as_array(x, *, where: str = "features") -> np.ndarray:
    """`x` as an array of any shape; one line for what people give that NumPy would misread."""
    if isinstance(x, str | Path):
        raise TypeError(
            f"{where} must be an array [n, d], got the path {str(x)!r}: read it with "
            "spectrum.load_features"
        )
    if hasattr(x, "nnz") and hasattr(x, "toarray"):
        raise TypeError(f"{where} must be dense, got a sparse {type(x).__name__}: x.toarray()")
    if hasattr(x, "columns") and hasattr(x, "iloc"):  # a pandas table, which this never imports
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
    x = np.asarray(x)
    if x.dtype == object and x.ndim == 1 and len(x):
        sizes = [np.size(row) if np.ndim(row) == 1 else -1 for row in x]
        if min(sizes) >= 0 and len({*sizes}) == 1:
            return np.stack([np.asarray(row) for row in x])
        first = next((i for i, size in enumerate(sizes) if size != sizes[0] or size < 0))
        raise ValueError(
            f"{where} must be rows of one length, got {type(x[first]).__name__} at row {first}"
            + f" of length {sizes[first]}, not {sizes[0]}" * (sizes[first] >= 0)
        )
    return x


def as_mask(mask, rows: int) -> np.ndarray:
    """`mask` as truth values [rows]; ValueError for another shape."""
    mask = np.asarray(mask).astype(bool)
    if mask.shape != (rows,):
        raise ValueError(f"mask must be [{rows}], one a row, got {mask.shape}")
    return mask


def require_finite(x: np.ndarray, *, first_row: int = 0, where: str = "features") -> None:
    """ValueError that counts the rows with NaN or infinity and names the first."""
    bad = np.flatnonzero(~np.isfinite(x.astype(np.float64)).all(axis=1))
    if bad.size:
        overflow = bool(x.dtype == np.float16 and np.isinf(x[bad]).any())
        raise ValueError(
            f"{where} have NaN or infinite values in {bad.size} of {len(x)} rows, "
            f"the first at row {first_row + bad[0]}" + " (an overflow of float16?)" * overflow
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
        largest = np.abs(x).max(axis=1, keepdims=True)
        x -= x.mean(axis=1, keepdims=True)
        x[np.abs(x) <= 4 * np.finfo(np.float64).eps * largest] = 0  # the mean's own rounding
    return x


@dataclasses.dataclass(frozen=True)
class Moments:
    """n rows as their mean (None if not centred) and either FᵀF or a matrix R with RᵀR = FᵀF."""

    n: int
    mean: Any  # np.ndarray [d] or None
    gram: Any  # np.ndarray [d d] or None, if factor is given
    factor: Any  # np.ndarray [k d] or None, if gram is given

    @property
    def d(self) -> int:
        return (self.gram if self.factor is None else self.factor).shape[1]

    def as_gram(self) -> np.ndarray:
        return self.factor.T @ self.factor if self.gram is None else self.gram

    def as_factor(self) -> np.ndarray:
        return np.linalg.cholesky(self.gram).T if self.factor is None else self.factor


def certified(gram: np.ndarray) -> bool:
    """Whether every eigenvalue of a float64 Gram matrix stands well above its rounding.

    λ_min > τ λ₁ exactly if G − τλ₁·1 is positive definite, so one Cholesky factorisation tells
    (with the largest column sum, which is at least λ₁).
    """
    diagonal = np.diagonal(gram)
    if not (np.isfinite(diagonal).all() and diagonal.min() > TRUSTED * diagonal.max()):
        return False
    shifted = gram.copy()
    np.fill_diagonal(shifted, diagonal - TRUSTED * np.abs(gram).sum(axis=0).max())
    try:
        np.linalg.cholesky(shifted)
    except np.linalg.LinAlgError:
        return False
    return True


def moments_of(rows: np.ndarray, *, center_columns: bool) -> Moments:
    """The moments of raw rows [n d], not yet reduced: `combine` reduces them."""
    mean = None
    if center_columns:
        mean = rows.mean(axis=0)
        rows = rows - mean
        # The mean's own rounding, of which n rows would make a false direction.
        correction = rows.mean(axis=0)
        mean, rows = mean + correction, rows - correction
    return Moments(len(rows), mean, None, rows)


def joined(a: Moments, b: Moments) -> tuple[int, np.ndarray | None, np.ndarray]:
    """n and mean of two blocks together, and the row that joins them.

    Chan's update: the distance of the two means counts as one more centred row [1, d] (none if
    the moments are not centred, [0, d]).
    """
    n = a.n + b.n
    if a.mean is None:
        return n, None, np.zeros((0, a.d))
    step = b.mean - a.mean
    return n, a.mean + step * (b.n / n), np.sqrt(a.n * (b.n / n)) * step[None]


def combine(a: Moments | None, b: Moments, *, certify: bool = True) -> Moments:
    """The moments of two blocks of rows together: as a Gram matrix if certified, else by QR.

    `certify=False` adds Gram matrices untested, for a caller who tests their sum.
    """
    a = a or Moments(0, b.mean, None, np.zeros((0, b.d)))
    n, mean, joint = joined(a, b)
    # An R factor means that these rows were refused before: the rows to come seldom mend that.
    refused = any(block.gram is None and len(block.factor) == block.d for block in (a, b))
    if n >= b.d and not (certify and refused):
        with np.errstate(over="ignore", invalid="ignore"):
            gram = a.as_gram() + b.as_gram() + joint.T @ joint
        if not certify or certified(gram):
            return Moments(n, mean, gram, None)
    factor = np.concatenate([a.as_factor(), b.as_factor(), joint])
    return Moments(n, mean, None, np.linalg.qr(factor, mode="r") if len(factor) > b.d else factor)


def values_of(matrix: np.ndarray) -> np.ndarray:
    """Singular values of a matrix, through its smaller Gram matrix where that is certified."""
    if len(matrix) < matrix.shape[1]:
        with np.errstate(over="ignore", invalid="ignore"):
            gram = matrix @ matrix.T
        if certified(gram):
            return np.sqrt(np.linalg.eigvalsh(gram)[::-1])
    return np.linalg.svd(matrix, compute_uv=False)


def _capacity(d: int) -> int:
    """Rows taken at a time: O(D), and enough for BLAS to run at speed."""
    return max(8192, 2 * d)


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
        self.d = 0  # until the first rows
        self._moments: Any = None  # Moments, once there are rows
        self._pending: list[np.ndarray] = []  # prepared rows not yet in the moments
        self._noise: float | None = None  # σ/σ₁ of the rounding of what came from a device

    def __repr__(self) -> str:
        how = ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
        return f"Spectrum({self.n} rows, d={self.d}, {how})"

    def update(self, batch, *, mask=None) -> "Spectrum":
        """Adds the rows of `batch` [m d], of any real dtype, and returns itself.

        Rows where `mask` [m] is 0 (padding) do not count, whatever is in them.

        Raises:
          ValueError: not 2-D, another d, NaN or infinite values (how many rows, and the first).
          TypeError: not real numbers.
        """
        batch = as_features(batch)
        if mask is not None:
            batch = batch[as_mask(mask, len(batch))]
        if batch.shape[1] != (self.d or batch.shape[1]):
            raise ValueError(f"batch has {batch.shape[1]} features, the rows so far {self.d}")
        capacity = _capacity(batch.shape[1])
        chunks = [batch[i : i + capacity] for i in range(0, len(batch), capacity)]
        for rows in chunks:  # all of them before any is counted
            with np.errstate(over="ignore", invalid="ignore"):
                finite = np.isfinite(rows.sum(axis=0, dtype=np.float64)).all()
            if not finite:
                require_finite(batch, first_row=self.n)
        self.d = batch.shape[1]
        full = [rows for rows in chunks if len(rows) == capacity]
        if full:
            self._moments = self._add_chunks(full)
        self._pending = self._pending + [prepare(r, **self.settings) for r in chunks[len(full) :]]
        self.n += len(batch)
        self._bound_pending()
        return self

    def _add_chunks(self, chunks: list[np.ndarray]) -> Moments:
        """Large chunks of raw rows: their sum is certified once, or else each chunk in turn."""
        if len(chunks) > 1 and (self._moments is None or self._moments.gram is not None):
            total = self._moments
            for rows in chunks:
                total = combine(total, self._block(prepare(rows, **self.settings)), certify=False)
            if certified(total.gram):
                return total
        total = self._moments
        for rows in chunks:
            total = combine(total, self._block(prepare(rows, **self.settings)))
        return total

    def _block(self, rows: np.ndarray) -> Moments:
        return moments_of(rows, center_columns=self.settings["center"] == "columns")

    def _bound_pending(self) -> None:
        if sum(map(len, self._pending)) >= _capacity(self.d):
            self._moments, self._pending = self._fold(), []

    def merge(self, other: "Spectrum") -> "Spectrum":
        """Adds what `other` saw, as if its rows had been given here; `other` is unchanged.

        Raises:
          ValueError: other settings or another d. TypeError: not a Spectrum.
        """
        if not isinstance(other, Spectrum):
            raise TypeError(
                f"merge takes a Spectrum, got {type(other).__name__}: give rows to update"
            )
        if other.settings != self.settings:
            raise ValueError(f"cannot merge a spectrum with {other.settings} into {self.settings}")
        if other.n == 0:
            return self
        if other.d != (self.d or other.d):
            raise ValueError(f"cannot merge a spectrum of {other.d} features into one of {self.d}")
        self.d = other.d
        if other._moments is not None:
            self._moments = combine(self._moments, other._moments)
        self._pending = self._pending + other._pending
        self._noise = max(self._noise or 0, other._noise or 0) or None
        self.n += other.n
        self._bound_pending()
        return self

    def _fold(self) -> Moments:
        """All rows so far as one block; the state itself stays as it is."""
        if not self._pending:
            return self._moments
        rows = self._pending[0] if len(self._pending) == 1 else np.concatenate(self._pending)
        return combine(self._moments, self._block(rows))

    def _read(self) -> Moments:
        if self.n < 2:
            raise ValueError(f"a spectrum needs at least 2 rows, got {self.n}")
        return self._fold()

    def singular_values(self) -> np.ndarray:
        """All min(n, d) singular values, descending, float64.

        Raises:
          ValueError: fewer than two rows so far.
        """
        moments = self._read()
        if moments.gram is not None:
            values = np.sqrt(np.maximum(np.linalg.eigvalsh(moments.gram)[::-1], 0))
        else:
            values = values_of(moments.as_factor())
        values = np.pad(values, (0, max(0, min(self.n, self.d) - len(values))))
        if moments.mean is not None:  # constant columns: only the rounding of their mean is left
            largest = np.sqrt(self.n) * np.linalg.norm(moments.mean)
            values[values <= np.finfo(np.float64).eps * largest] = 0
        return values[: min(self.n, self.d)]

    def directions(self) -> tuple[np.ndarray, np.ndarray]:
        """Singular values σ [k] and right singular vectors V [d k] as columns, k = min(n, d)."""
        moments = self._read()
        if moments.gram is not None:
            energy, vectors = np.linalg.eigh(moments.gram)
            return np.sqrt(np.maximum(energy[::-1], 0)), vectors[:, ::-1]
        _, values, transposed = np.linalg.svd(moments.as_factor(), full_matrices=False)
        count = min(self.n, self.d)
        return values[:count], transposed[:count].T

    def left_vectors(self, x, *, top_k: int) -> np.ndarray:
        """Leading left singular vectors [n k] at rows x [n d]: those seen, or new ones."""
        values, vectors = self.directions()
        count = min(top_k, int((values > values[0] * max(1e-7, self._noise or 0)).sum()))
        rows = prepare(as_features(x), **self.settings)
        if self.settings["center"] == "columns":
            rows -= self._read().mean
        return rows @ (vectors[:, :count] / values[:count])

    def summary(self) -> dict:
        """Every label-free metric of `METRICS`, with n, d and the settings."""
        values = self.singular_values()
        metrics = from_singular_values(values, n=self.n, d=self.d, noise=self._noise)
        return {**metrics, "n": self.n, "d": self.d, **self.settings}
