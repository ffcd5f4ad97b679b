"""How sure a spectrum is: delete-a-block jackknife and block bootstrap of every metric.

Rows are drawn at random into blocks (whole groups, where rows come in groups), each block's
second moments are computed once, and a replicate is the spectrum of a weighted sum of blocks: one
eigendecomposition of min(n, d)² numbers and no pass over the rows.

What the intervals are about: the metric's expected value over feature sets of *this* size n
drawn from the same population, the quantity that compares two models on equally many examples. It
is not the limit n → ∞: with d near n the sample spectrum is wider than the population's, and SVE
lower. For the same reason a resample, which repeats some rows and misses 37 % of them, has a
lower rank than the sample itself, so percentiles of bootstrap replicates would sit below the
value they are for; only the replicates' *deviations from their own mean* are used here.
"""

import dataclasses
import itertools
from typing import Any, NamedTuple

import numpy as np

from noisy_fm.scalars import as_flag, as_share, as_whole
from noisy_fm.spectrum.arrays import (
    BLOCK_BYTES,
    as_features,
    blocks_of,
    require_finite,
)
from noisy_fm.spectrum.metrics import as_labels, from_singular_values
from noisy_fm.spectrum.moments import prepare, resolve


class Interval(NamedTuple):
    """A metric of all rows, the bounds of its interval, and its standard error."""

    value: float
    low: float
    high: float
    error: float


def jackknife(
    x, *, groups=None, blocks=20, level=0.95, seed=0, center=False, normalize=False, convention=None
) -> dict[str, Interval]:
    """Delete-a-block jackknife intervals of every metric: value ± t_{B−1} · standard error.

    error² = (B−1)/B Σ_b (θ₍₋b₎ − θ̄)² over B blocks. Deterministic but for the draw of blocks,
    and the one to prefer: a replicate misses only 1/B of the rows.

    Args:
      x: features [n d].
      groups: [n], rows of one group (pictures of one concept) are correlated and stay together.
      blocks: B, at most the number of rows or groups.
      level: coverage of the interval.

    Raises:
      ValueError: as `summary`; fewer than three blocks; groups of another length, or missing
        (NaN, None) in some rows; a level that is no share.
    """
    level = as_share("level", level)
    settings = resolve(center, normalize, convention)
    return intervals_of(replicate(x, groups, blocks, seed, settings), level)


def band(
    x, *, groups=None, blocks=20, level=0.95, seed=0, center=False, normalize=False, convention=None
) -> np.ndarray:
    """Jackknife bounds [2 k] of every normalised singular value pᵢ = σᵢ/Σσ, on its log scale.

    Pointwise, for `plot(bands=…)`; arguments and errors as in `jackknife`. Values that vanish
    when a block is left out (rank, or n ≤ d) have no bounds: k counts those before them.
    """
    level = as_share("level", level)
    settings = resolve(center, normalize, convention)
    return band_of(replicate(x, groups, blocks, seed, settings), level)


def difference(
    x,
    y,
    *,
    paired: bool,
    groups=None,
    blocks=20,
    level=0.95,
    seed=0,
    center=False,
    normalize=False,
    convention=None,
) -> dict[str, Interval]:
    """Jackknife intervals of metric(y) − metric(x), for every metric.

    Paired, row i of both is of the same example, and the same examples are left out of both: what
    makes both spectra wide or narrow cancels. (Pairs that have nothing in common cost nothing: the
    interval is then as wide as the unpaired one.) Else the two errors add in squares, with
    Satterthwaite's degrees of freedom (1946).

    Args:
      x, y: features [n d] and [m e]. The values compare models only where n = m and d = e.
      paired: whether rows are the same examples in the same order.
      groups: [n], of the rows of both if paired; else a pair, of the rows of each, or None.
      blocks, level, seed, center, normalize, convention: as in `jackknife`.

    Raises:
      ValueError: as `jackknife`; paired features of different n.
    """
    level, settings = as_share("level", level), resolve(center, normalize, convention)
    both = (groups, groups) if paired or groups is None else groups
    first, second = (
        replicate(rows, own, blocks, seed, settings) for rows, own in zip((x, y), both, strict=True)
    )
    return difference_of(first, second, level, paired=as_flag("paired", paired))


class Replicates(NamedTuple):
    """Singular values of all rows [k], without each block [k] a block, and every row's block."""

    whole: np.ndarray
    without: list[np.ndarray]
    block: np.ndarray


def replicate(x, groups, blocks, seed, settings) -> Replicates:
    """The jackknife's replicates, of which intervals, band and differences are made."""
    moments = _block_moments(x, groups, blocks, seed, settings)
    kept = 1.0 - np.eye(moments.count)
    whole = moments.values(np.ones(moments.count))
    return Replicates(whole, [moments.values(weights) for weights in kept], moments.block)


def intervals_of(found: Replicates, level: float = 0.95) -> dict[str, Interval]:
    """`jackknife` of replicates."""
    value, thetas = _metrics(found.whole), _stack([_metrics(v) for v in found.without])
    return {name: _interval(v, *_error(thetas[name]), level) for name, v in value.items()}


def difference_of(
    first: Replicates, second: Replicates, level: float = 0.95, *, paired: bool, scales=(1.0, 1.0)
) -> dict[str, Interval]:
    """`difference` of replicates, each times its scale: second − first."""
    both = (first, second)
    values = [_metrics(found.whole) for found in both]
    thetas = [_stack([_metrics(v) for v in found.without]) for found in both]
    if paired and not np.array_equal(first.block, second.block):
        raise ValueError(
            f"paired features need the same rows, got {len(first.block)} and {len(second.block)}, "
            "or groups that differ"
        )
    intervals = {}
    for name in values[0]:
        a, b = (scale * theta[name] for scale, theta in zip(scales, thetas, strict=True))
        error, df = _error(b - a) if paired else _sum_of_errors(_error(a), _error(b))
        value = scales[1] * values[1][name] - scales[0] * values[0][name]
        intervals[name] = _interval(value, error, df, level)
    return intervals


def band_of(found: Replicates, level: float = 0.95) -> np.ndarray:
    """`band` of replicates."""
    from scipy.stats import t

    count, values = len(found.without), found.whole
    k = min(int((left > 0).sum()) for left in found.without)
    if k == 0:
        raise ValueError("features are all zero: there is nothing to bound")
    logs = np.log([left[:k] / left.sum() for left in found.without])
    error = np.sqrt((count - 1) * logs.var(axis=0))
    half = t.ppf((1 + level) / 2, count - 1) * error
    return values[:k] / values.sum() * np.exp([-half, half])


def _error(theta: np.ndarray) -> tuple[float, float]:
    """Standard error of a metric by its replicates [B], and its degrees of freedom."""
    count = len(theta)
    error = np.sqrt((count - 1) / count * ((theta - theta.mean()) ** 2).sum())
    return float(error), count - 1


def _sum_of_errors(first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
    squares, df = np.square([first[0], second[0]]), np.array([first[1], second[1]])
    spread = (squares**2 / df).sum()
    return float(np.sqrt(squares.sum())), float(squares.sum() ** 2 / spread) if spread else min(df)


def _interval(value: float, error: float, df: float, level: float) -> Interval:
    from scipy.stats import t

    half = float(t.ppf((1 + level) / 2, df)) * error
    return Interval(value, value - half, value + half, error)


def bootstrap(
    x,
    *,
    groups=None,
    blocks=None,
    replicates=200,
    level=0.95,
    seed=0,
    center=False,
    normalize=False,
    convention=None,
) -> dict[str, Interval]:
    """Block-bootstrap intervals: B blocks drawn with replacement, `replicates` times.

    Bounds are value − quantiles of (θ* − θ̄*)·√(B/(B−1)): the "basic" interval, about the value
    itself and not about the replicates' shifted mean (see this module's head). Asymmetric where
    the metric's distribution is. Near its maximum (an isotropic spectrum, or d near n) SVE is
    quadratic in the noise, which a resample doubles: the interval is then up to 3 times too wide,
    where `jackknife` is right to a half. `blocks` is 200 by default or as many as 256 MiB hold
    (20 at least), other arguments and errors as there.
    """
    level, replicates = as_share("level", level), as_whole("replicates", replicates, 2)
    if blocks is None:
        n, d = as_features(x).shape
        blocks = 200 if n < d else max(20, min(200, 2**28 // (8 * d * d)))
    moments = _block_moments(x, groups, blocks, seed, resolve(center, normalize, convention))
    count = moments.count
    value = moments.metrics(np.ones(count))
    draws = np.random.default_rng([seed, 1]).multinomial(count, [1 / count] * count, replicates)
    thetas = _stack([moments.metrics(weights) for weights in draws])
    intervals = {}
    for name, theta in thetas.items():
        deviation = (theta - theta.mean()) * np.sqrt(count / (count - 1))
        low, high = np.quantile(deviation, [(1 - level) / 2, (1 + level) / 2])
        v = value[name]
        intervals[name] = Interval(v, float(v - high), float(v - low), float(deviation.std(ddof=1)))
    return intervals


def _metrics(values: np.ndarray) -> dict[str, float]:
    metrics = from_singular_values(values)
    del metrics["numerical_rank"]  # an integer of the data's exactness, not a statistic
    return metrics


def _stack(rows: list[dict]) -> dict[str, np.ndarray]:
    return {name: np.array([row[name] for row in rows], np.float64) for name in rows[0]}


@dataclasses.dataclass(frozen=True)
class _BlockMoments:
    """Per block: rows, sums (of rows centred on the whole) and Gram matrices [b d d]."""

    sizes: np.ndarray
    sums: np.ndarray | None
    grams: Any  # np.ndarray, or None where there is a kernel
    kernel: np.ndarray | None  # instead of grams where n < d: FFᵀ [n n]
    block: np.ndarray

    @property
    def count(self) -> int:
        return len(self.sizes)

    def values(self, weights) -> np.ndarray:
        """Singular values of the rows with every block counted `weights[b]` times."""
        n = weights @ self.sizes
        if self.kernel is not None:
            gram = self._weighted_kernel(weights)
        else:
            gram = np.tensordot(weights, self.grams, 1)
            if self.sums is not None:
                mean = weights @ self.sums / n
                gram -= n * np.outer(mean, mean)
        energy = np.linalg.eigvalsh(gram)[::-1]
        return np.sqrt(np.where(energy > energy[0] * 1e-14, energy, 0))

    def metrics(self, weights) -> dict[str, float]:
        """Label-free metrics of those singular values."""
        return _metrics(self.values(weights))

    def _weighted_kernel(self, weights) -> np.ndarray:
        weight = np.asarray(weights, np.float64)[self.block]
        root = np.sqrt(weight)
        kernel = self.kernel
        if self.sums is not None:  # double centring about the weighted mean of the rows
            share = weight / weight.sum()
            column = kernel @ share
            kernel = kernel - column - column[:, None] + share @ column
        return (root[:, None] * kernel * root)[np.ix_(root > 0, root > 0)]


def _block_moments(x, groups, blocks, seed, settings) -> _BlockMoments:
    x = as_features(x)
    if len(x) < 2:
        raise ValueError(f"a spectrum needs at least 2 rows, got {len(x)}")
    block = _draw_blocks(len(x), groups, blocks, seed)
    require_finite(x)
    count = int(block.max()) + 1
    centred = settings["center"] == "columns"
    sizes = np.bincount(block, minlength=count)
    n, d = x.shape
    if n < d:
        rows = prepare(x[:], **settings)
        if centred:
            rows -= rows.mean(axis=0)
        rows /= np.abs(rows).max() or 1.0
        return _BlockMoments(sizes, np.zeros(0) if centred else None, None, rows @ rows.T, block)

    # Converted piece by piece: no copy of the rows outgrows the Gram matrices, or some megabytes.
    def pieces():
        for first, part in blocks_of(x, max(BLOCK_BYTES, 8 * count * d * d)):
            yield block[first : first + len(part)], prepare(part, **settings)

    largest = max(float(np.abs(rows).max()) for _, rows in pieces()) or 1.0
    mean = np.zeros(d)
    if centred:
        mean = sum((rows / largest).sum(axis=0) for _, rows in pieces()) / n
    grams = np.zeros((count, d, d))
    sums = np.zeros((count, d))
    for owner, rows in pieces():
        rows /= largest
        rows -= mean
        order = np.argsort(owner, kind="stable")
        bounds = np.searchsorted(owner[order], np.arange(count + 1))
        for b, (low, high) in enumerate(itertools.pairwise(bounds)):
            part = rows[order[low:high]]
            grams[b] += part.T @ part
            sums[b] += part.sum(axis=0)
    return _BlockMoments(sizes, sums if centred else None, grams, None, block)


def _draw_blocks(n, groups, blocks, seed) -> np.ndarray:
    """Block of every row [n]: rows, or whole groups, dealt out at random in equal numbers."""
    index = np.arange(n)
    if groups is not None:
        groups = as_labels(groups, where="groups")
        if groups.shape != (n,):
            raise ValueError(f"groups must be [{n}], one a row of the features, got {groups.shape}")
        index = np.unique(groups, return_inverse=True)[1]
    units = int(index.max()) + 1
    count = min(as_whole("blocks", blocks, 1), units)
    if count < 3:
        raise ValueError(
            f"intervals need at least 3 blocks: {blocks} asked of {units} rows or groups"
        )
    return (np.random.default_rng([as_whole("seed", seed, 0), 0]).permutation(units) % count)[index]
