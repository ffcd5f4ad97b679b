"""Streaming second moments of a feature matrix, and every singular value from them.

A float64 Gram matrix costs half a QR factorisation but squares the condition number: singular
values under 1e-8 σ₁ drown, and a rank-deficient matrix shows a whole tail of false ones. So the
Gram matrix is kept only while a Cholesky factorisation certifies that it is well conditioned;
where a block of rows spoils that, the sum so far, still accurate, becomes its triangular factor R
(RᵀR = FᵀF) and the block is folded in by QR, whose error is eps·σ₁ on every singular value. Rows
are kept until their block is certified, so nothing is lost by finding out late.
"""

import dataclasses
import threading
from typing import Any

import numpy as np

from noisy_fm.scalars import as_flag, as_whole
from noisy_fm.spectrum.arrays import (
    as_features,
    as_mask,
    blocks_of,
    require_finite,
)
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
    if not isinstance(center, str):
        center = "columns" if as_flag("center, if not 'columns' or 'samples',", center) else False
    if center not in CENTERS:
        raise ValueError(f"center must be False, 'columns' (or True) or 'samples', got {center!r}")
    normalize = as_flag("normalize", normalize)
    if convention is None:
        return {"center": center if center is False else str(center), "normalize": normalize}
    if convention not in CONVENTIONS:
        raise ValueError(f"unknown convention {convention!r}: one of {', '.join(CONVENTIONS)}")
    if center or normalize:
        raise ValueError("give either convention= or center=/normalize=, not both")
    return {**CONVENTIONS[convention]}  # type: ignore[dict-item]


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


def directions_of(moments: Moments, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The leading `count` singular values [k] and right singular vectors [d k] of moments."""
    if moments.gram is not None:
        energy, vectors = np.linalg.eigh(moments.gram)
        return np.sqrt(np.maximum(energy[::-1], 0)), vectors[:, ::-1]
    _, values, transposed = np.linalg.svd(moments.as_factor(), full_matrices=False)
    return values[:count], transposed[:count].T


def _capacity(d: int) -> int:
    """Rows taken at a time: O(D), and enough for BLAS to run at speed."""
    return max(8192, 2 * d)


@dataclasses.dataclass(frozen=True)
class Seen:
    """All that a spectrum knows at one moment; never changed, only replaced by the next."""

    n: int = 0
    d: int = 0  # until the first rows
    moments: Moments | None = None  # once there are rows that are not pending
    pending: tuple[np.ndarray, ...] = ()  # prepared rows not yet in the moments
    noise: float | None = None  # σ/σ₁ of the rounding of what came from a device


class Spectrum:
    """Singular values of all rows seen, exactly, in O(D²) memory; mergeable.

    `update` with batches [m d] in any order, `merge` what other hosts or shards saw, then read
    `singular_values()`, `directions()` or `summary()` (at any time; reading changes nothing).
    Threads may share one: each update or merge counts once and whole, and is read so.

    Args:
      center: False (uncentred, as eq. 2–3 read), "columns" or True (the column means of all rows
        seen; batches are combined by Chan's update, so large means do not cancel) or "samples"
        (each row's own mean).
      normalize: rows to unit length first; a zero row stays zero.
      convention: a name from `CONVENTIONS` instead of the two: "paper" or "release".
    """

    def __init__(self, *, center=False, normalize=False, convention: str | None = None):
        self.settings = resolve(center, normalize, convention)
        self.seen = Seen()
        self._lock = threading.Lock()  # held to replace `seen`; reading takes it as it is

    def __getstate__(self) -> dict:
        return {"settings": self.settings, "seen": self.seen}

    def __setstate__(self, state: dict) -> None:
        if state.keys() != {"settings", "seen"}:
            raise ValueError("a Spectrum pickled by another version of noisy_fm; make it anew")
        vars(self).update(state, _lock=threading.Lock())

    @property
    def n(self) -> int:
        """Rows seen."""
        return self.seen.n

    @property
    def d(self) -> int:
        """Features of a row; 0 until the first."""
        return self.seen.d

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
        d = batch.shape[1]
        self._require_width(d)
        capacity = _capacity(d)
        chunks = [batch[i : i + capacity] for i in range(0, len(batch), capacity)]
        for rows in chunks:  # all of them before any is counted
            with np.errstate(over="ignore", invalid="ignore"):
                finite = np.isfinite(rows.sum(axis=0, dtype=np.float64)).all()
            if not finite:
                require_finite(batch, first_row=self.n)
        full = [rows for rows in chunks if len(rows) == capacity]
        rest = tuple(prepare(rows, **self.settings) for rows in chunks[len(full) :])
        total = self._total(full)
        with self._lock:
            self._require_width(d)
            seen = self.seen
            moments = self._joined(seen.moments, total, full)
            self.seen = self._bounded(
                Seen(seen.n + len(batch), d, moments, seen.pending + rest, seen.noise)
            )
        return self

    def _require_width(self, d: int) -> None:
        if d != (self.d or d):
            raise ValueError(f"batch has {d} features, the rows so far {self.d}")

    def _total(self, chunks: list[np.ndarray]) -> Moments | None:
        """The uncertified moments of large chunks of raw rows, if their Gram matrix may be used."""
        moments, total = self.seen.moments, None
        if moments is None or moments.gram is not None:
            for rows in chunks:
                total = combine(total, self._block(prepare(rows, **self.settings)), certify=False)
        return total

    def _joined(self, moments, total, chunks) -> Moments | None:
        """`moments` with large chunks: their sum is certified once, or else each chunk in turn."""
        if total is not None and (moments is None or moments.gram is not None):
            joined = total if moments is None else combine(moments, total, certify=False)
            if certified(joined.gram):
                return joined
        for rows in chunks:
            moments = combine(moments, self._block(prepare(rows, **self.settings)))
        return moments

    def _block(self, rows: np.ndarray) -> Moments:
        return moments_of(rows, center_columns=self.settings["center"] == "columns")

    def _bounded(self, seen: Seen) -> Seen:
        """`seen` with its pending rows in the moments, where they are many."""
        if sum(map(len, seen.pending)) < _capacity(seen.d):
            return seen
        return dataclasses.replace(seen, moments=self._fold(seen), pending=())

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
        theirs = other.seen
        if theirs.n == 0:
            return self
        with self._lock:
            seen = self.seen
            if theirs.d != (seen.d or theirs.d):
                raise ValueError(
                    f"cannot merge a spectrum of {theirs.d} features into one of {seen.d}"
                )
            moments = seen.moments
            if theirs.moments is not None:
                moments = combine(moments, theirs.moments)
            noise = max(seen.noise or 0, theirs.noise or 0) or None
            n, pending = seen.n + theirs.n, seen.pending + theirs.pending
            self.seen = self._bounded(Seen(n, theirs.d, moments, pending, noise))
        return self

    def _fold(self, seen: Seen) -> Moments:
        """All rows of `seen` as one block."""
        if not seen.pending:
            return seen.moments  # type: ignore[return-value]
        rows = seen.pending[0] if len(seen.pending) == 1 else np.concatenate(seen.pending)
        return combine(seen.moments, self._block(rows))

    def _read(self, seen: Seen) -> Moments:
        if seen.n < 2:
            raise ValueError(f"a spectrum needs at least 2 rows, got {seen.n}")
        return self._fold(seen)

    def singular_values(self) -> np.ndarray:
        """All min(n, d) singular values, descending, float64.

        Raises:
          ValueError: fewer than two rows so far.
        """
        return self._values(self.seen)

    def _values(self, seen: Seen) -> np.ndarray:
        moments = self._read(seen)
        count = min(seen.n, seen.d)
        if moments.gram is not None:
            values = np.sqrt(np.maximum(np.linalg.eigvalsh(moments.gram)[::-1], 0))
        else:
            values = values_of(moments.as_factor())
        values = np.pad(values, (0, max(0, count - len(values))))
        if moments.mean is not None:  # constant columns: only the rounding of their mean is left
            largest = np.sqrt(seen.n) * np.linalg.norm(moments.mean)
            values[values <= np.finfo(np.float64).eps * largest] = 0
        return values[:count]

    def directions(self) -> tuple[np.ndarray, np.ndarray]:
        """Singular values σ [k] and right singular vectors V [d k] as columns, k = min(n, d)."""
        seen = self.seen
        return directions_of(self._read(seen), min(seen.n, seen.d))

    def left_vectors(self, x, *, top_k: int) -> np.ndarray:
        """Leading left singular vectors [n k] at rows x [n d]: those seen, or new ones."""
        x, top_k, seen = as_features(x), as_whole("top_k", top_k, 1), self.seen
        self._require_width(x.shape[1])
        moments = self._read(seen)
        values, vectors = directions_of(moments, min(seen.n, seen.d))
        count = min(top_k, int((values > values[0] * max(1e-7, seen.noise or 0)).sum()))
        scaled = vectors[:, :count] / values[:count]
        shift = 0.0 if moments.mean is None else moments.mean
        parts = [(prepare(rows, **self.settings) - shift) @ scaled for _, rows in blocks_of(x)]
        return np.concatenate([np.zeros((0, count)), *parts])

    def summary(self) -> dict:
        """Every label-free metric of `METRICS`, with n, d and the settings."""
        seen = self.seen
        metrics = from_singular_values(self._values(seen), n=seen.n, d=seen.d, noise=seen.noise)
        return {**metrics, "n": seen.n, "d": seen.d, **self.settings}
