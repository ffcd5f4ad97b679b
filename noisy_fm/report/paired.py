"""Paired tests for few, tied, blocked observations: p-value, interval, smallest possible p.

Each test also gives `attainable`, the p-value that perfectly consistent data of the same size
would have: a test whose `attainable` is above the level cannot tell anything, and the report
says so rather than "not seen".
"""

import itertools
from typing import NamedTuple

import numpy as np
from scipy import stats

MAX_EXACT_PAIRS = 200
MAX_LEVELS_ENUMERATED = 7
RANDOM_PERMUTATIONS = 20_000


class Test(NamedTuple):
    """An effect, its 95 % interval (NaN: none exists), two-sided p and the smallest such p."""

    effect: float
    low: float
    high: float
    p: float
    attainable: float
    n: int


def signed_rank(differences) -> Test:
    """Wilcoxon's signed-rank test with the Hodges–Lehmann effect and its interval.

    The effect is the median of the Walsh averages (d_i + d_j)/2, the interval their order
    statistics at the exact null distribution's 2.5 % points (Hollander & Wolfe, section 3.3).
    Zero differences carry no sign and are left out of the p-value, though not of the size that
    `attainable` speaks of: data of n pairs could have had none.
    """
    d = np.round(np.asarray(differences, float), 12)  # equal scores must tie in spite of rounding
    n = len(d)
    walsh = np.sort((d[:, None] + d)[np.triu_indices(n)] / 2)
    low = high = np.nan
    if 2 * 0.5**n <= 0.05:
        below = max(rank_sum_quantile(n), 1)
        low, high = walsh[below - 1], walsh[-below]
    p = float(stats.wilcoxon(d, zero_method="wilcox").pvalue) if d.any() else 1.0
    return Test(float(np.median(walsh)), float(low), float(high), p, min(1.0, 2 * 0.5**n), n)


def rank_sum_quantile(n: int) -> int:
    """The smallest w with P(W ≤ w) ≥ 2.5 %, exact up to n = 200, its normal limit above."""
    if n <= MAX_EXACT_PAIRS:
        return int(np.searchsorted(np.cumsum(rank_sum_distribution(n)), 0.025))
    return int(n * (n + 1) / 4 - 1.96 * np.sqrt(n * (n + 1) * (2 * n + 1) / 24))


def rank_sum_distribution(n: int) -> np.ndarray:
    """P(W = w) for w = 0 … n(n+1)/2, the signed-rank statistic of n untied differences."""
    distribution = np.zeros(n * (n + 1) // 2 + 1)
    distribution[0] = 1.0
    for rank in range(1, n + 1):
        with_rank = np.zeros_like(distribution)
        with_rank[rank:] = distribution[:-rank]
        distribution = (distribution + with_rank) / 2
    return distribution


def kendall_in_blocks(blocks) -> Test:
    """Kendall's S summed over blocks, tested by permuting y within each block.

    blocks: pairs (x, y) of 1-d arrays. The effect is τ = S over its largest possible value; its
    interval is Fieller, Hartley & Pearson's (1957), se(atanh τ) = √(0.437/(n − 4)), with n the
    number of observations less the blocks' extra degrees of freedom. The permutation
    distribution is enumerated up to 7 levels a block, drawn (20,000 times) above, and keeps ties.
    """
    total, largest, n = 0, 0, 1
    null, offset = np.ones(1), 0
    for x, y in blocks:
        signs = pair_signs(np.asarray(x, float))
        total += int(np.sum(signs * pair_signs(np.asarray(y, float))))
        permuted = np.sum(signs * pair_signs(permutations(np.asarray(y, float))), axis=-1)
        bound = int(np.abs(permuted).max(initial=0))
        counts = np.bincount((permuted + bound).astype(int), minlength=2 * bound + 1)
        null = np.convolve(null, counts / counts.sum())
        offset += bound
        largest += bound
        n += len(y) - 1
    size = np.abs(np.arange(len(null)) - offset)
    tau = total / largest if largest else 0.0
    low = high = np.nan
    if n > 4 and abs(tau) < 1:
        half = 1.96 * np.sqrt(0.437 / (n - 4))
        low, high = np.tanh(np.arctanh(tau) + np.array([-half, half]))
    p = min(1.0, float(null[size >= abs(total)].sum()))
    return Test(tau, float(low), float(high), p, min(1.0, float(null[size >= largest].sum())), n)


def pair_signs(x: np.ndarray) -> np.ndarray:
    """sign(x_j − x_i) for every i < j along the last axis."""
    i, j = np.triu_indices(x.shape[-1], 1)
    return np.sign(x[..., j] - x[..., i])


def permutations(y: np.ndarray) -> np.ndarray:
    """All orders of y, or many random ones and y itself when there are too many."""
    if len(y) <= MAX_LEVELS_ENUMERATED:
        return np.array(list(itertools.permutations(y)))
    rng = np.random.default_rng(0)
    return np.vstack([y, rng.permuted(np.tile(y, (RANDOM_PERMUTATIONS, 1)), axis=1)])


def p_of_interval(value: float, low: float, high: float) -> float:
    """Two-sided p of no effect that a 95 % interval implies, below 0.05 just where it excludes 0.

    The side of the interval that faces 0 is taken for 1.96 standard errors of a normal.
    """
    towards_zero = value - low if value > 0 else high - value
    if towards_zero <= 0:
        return float(value == 0)
    return float(2 * stats.norm.sf(stats.norm.isf(0.025) * abs(value) / towards_zero))


def holm(p_values) -> np.ndarray:
    """Holm's step-down adjustment of a family of p-values."""
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted
