"""Metrics of a classifier with intervals that respect clusters; tests of few differences."""

import math
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

LEVEL = 0.05


class Test(NamedTuple):
    """A mean, its 95 % interval, the two-sided p of no effect, and the degrees of freedom."""

    effect: float
    low: float
    high: float
    p: float
    df: float


def confusion_matrix(labels, predictions, num_classes: int) -> np.ndarray:
    """Counts [num_classes, num_classes]; rows are true classes, columns predicted ones.

    Raises ValueError for arrays of unequal length, empty ones, and classes out of range.
    """
    labels, predictions = (
        _classes(labels, "labels", num_classes),
        _classes(predictions, "predictions", num_classes),
    )
    if len(labels) != len(predictions):
        raise ValueError(f"{len(labels)} labels but {len(predictions)} predictions")
    cells = labels.astype(np.int64) * num_classes + predictions
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def classification_metrics(
    labels, predictions, num_classes: int, *, groups=None
) -> dict[str, float]:
    """Accuracy with a 95 % interval, balanced accuracy, macro-F1 and the number of examples.

    Balanced accuracy is the mean recall of the classes that have test examples. Macro-F1 is the
    mean over all `num_classes`: a class absent from the labels and the predictions scores 0. The
    interval ("low", "high") is Wilson's, or a bootstrap of whole clusters where `groups` [n] says
    which examples belong together (all renderings of one concept, all crops of one image).
    Values are shares between 0 and 1.
    """
    counts = confusion_matrix(labels, predictions, num_classes)
    true, predicted, hits = counts.sum(axis=1), counts.sum(axis=0), np.diag(counts)
    correct = np.asarray(labels) == np.asarray(predictions)
    if groups is None:
        low, high = wilson_interval(int(hits.sum()), int(true.sum()))
    else:
        low, high = cluster_bootstrap(correct, groups, bounds=(0.0, 1.0))
    present = true > 0
    return {
        "accuracy": float(hits.sum() / true.sum()),
        "low": low,
        "high": high,
        "balanced_accuracy": float(np.mean(hits[present] / true[present])),
        "macro_f1": float(np.mean(2 * hits / np.maximum(true + predicted, 1))),
        "n": int(true.sum()),
    }


def metric_intervals(
    labels, predictions, num_classes: int, *, groups=None, seed: int = 0, resamples: int = 1000
) -> dict[str, dict[str, float]]:
    """Accuracy, balanced accuracy and macro-F1, each {"value", "low", "high", "n"}.

    The 95 % intervals are percentiles of `resamples` bootstraps of whole `groups` [n] (of single
    examples without them); a resample's metrics are taken from its own confusion counts. Where all
    are right, or none is, they are `unseen`.
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    whole = classification_metrics(labels, predictions, num_classes)
    groups = np.arange(len(labels)) if groups is None else np.asarray(groups)
    if groups.shape != labels.shape:
        raise ValueError(f"groups {groups.shape} must be [{len(labels)}], one an example")
    _, cluster = np.unique(groups, return_inverse=True)
    num_clusters = int(cluster.max()) + 1

    def by_cluster(classes, weights=None):
        cells = cluster * num_classes + classes
        counts = np.bincount(cells, weights, minlength=num_clusters * num_classes)
        return counts.reshape(num_clusters, num_classes).astype(np.float64)

    random = np.random.default_rng(seed)
    share = np.full(num_clusters, 1 / num_clusters)
    draws = random.multinomial(num_clusters, share, size=resamples).astype(np.float64)
    true, predicted = draws @ by_cluster(labels), draws @ by_cluster(predictions)
    hits = draws @ by_cluster(labels, labels == predictions)
    present = true > 0
    recall = np.divide(hits, true, out=np.zeros_like(hits), where=present)
    samples = {
        "accuracy": hits.sum(axis=1) / true.sum(axis=1),
        "balanced_accuracy": recall.sum(axis=1) / present.sum(axis=1),
        "macro_f1": np.mean(2 * hits / np.maximum(true + predicted, 1), axis=1),
    }
    if np.unique(labels == predictions).size == 1:  # all right or all wrong: nothing to resample
        bounds = {name: unseen(whole[name], num_clusters, (0.0, 1.0)) for name in samples}
    else:
        bounds = {n: np.quantile(values, [0.025, 0.975]).tolist() for n, values in samples.items()}
    return {
        name: {"value": whole[name], "low": low, "high": high, "n": whole["n"]}
        for name, (low, high) in bounds.items()
    }


def wilson_interval(successes: int, trials: int):
    """Wilson's 95 % score interval of a proportion, (low, high)."""
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials is no proportion")
    share, z = successes / trials, 1.959963984540054
    scale = 1 + z**2 / trials
    centre = (share + z**2 / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    # At 0 and all successes the bound is exact; rounding must not push it past.
    return (
        0.0 if successes == 0 else centre - half,
        1.0 if successes == trials else centre + half,
    )


def cluster_bootstrap(
    values,
    groups,
    *,
    bounds: tuple[float, float] | None = None,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of mean(values) when clusters, not examples, are drawn at random.

    `values` [n] are numbers or booleans, `groups` [n] the cluster of each. A resample draws as
    many clusters as there are, with replacement, and takes the mean over their examples. Values
    that are all equal leave nothing to resample; what other clusters may then hide within `bounds`
    is `unseen`.
    """
    values, groups = np.asarray(values, np.float64), np.asarray(groups)
    if values.shape != groups.shape or values.ndim != 1 or not len(values):
        raise ValueError(f"values {values.shape} and groups {groups.shape} must be [n], n ≥ 1")
    _, cluster = np.unique(groups, return_inverse=True)
    if bounds is not None and np.all(values == values[0]):
        return unseen(float(values[0]), int(cluster.max()) + 1, bounds, level=level)
    sums, sizes = np.bincount(cluster, weights=values), np.bincount(cluster)
    random = np.random.default_rng(seed)
    draws = random.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=resamples)
    low, high = np.quantile((draws @ sums) / (draws @ sizes), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def unseen(
    value: float, clusters: int, bounds: tuple[float, float], *, level: float = 0.95
) -> tuple[float, float]:
    """Interval of a mean within `bounds` where all of so many clusters have the same `value`.

    A share p of clusters that differ is missed by all with probability (1 − p)^clusters, and they
    may differ as far as the bounds. Of a proportion of 0 or 1 it is Clopper and Pearson's (1934).
    """
    share = 1 - ((1 - level) / 2) ** (1 / clusters)
    return value - (value - bounds[0]) * share, value + (bounds[1] - value) * share


def t_test(values) -> Test:
    """Student's t over independent numbers [n], n ≥ 2: their mean against 0.

    Numbers that are all equal leave no spread to judge by: p is then 0, or 1 where they are 0.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(f"values must be at least two finite numbers [n], got {values.shape}")
    return _student(values.mean(), values.var(ddof=1) / len(values), len(values) - 1)


def max_t(table) -> list[Test]:
    """Student's t of each column of a table [n k] against 0, for all k of them at once.

    p is that of any of the k being as far out, were all of them 0, and the intervals hold all k
    means in 95 % of cases. From `SIGNS` rows on both are those of the largest |t| of the columns
    when whole rows change their signs (all 2ⁿ ways, or 10,000 drawn ones): that takes rows to be
    independent and symmetric, and columns to depend on one another as they do. With fewer rows
    there are too few signs, and both are Bonferroni's.
    """
    table = np.asarray(table, np.float64)
    if table.ndim != 2 or len(table) < 2 or not table.size or not np.isfinite(table).all():
        raise ValueError(f"table must be finite [n k] with n ≥ 2, got {table.shape}")
    n, k = table.shape
    alone = [t_test(column) for column in table.T]
    if k == 1 or n < SIGNS:
        far = float(stats.t.isf(LEVEL / 2 / k, n - 1))
        p_values = [min(1.0, k * test.p) for test in alone]
    else:
        largest = _largest_t(table - table.mean(axis=0))
        far = float(np.quantile(largest, 1 - LEVEL, method="higher"))
        largest, observed = _largest_t(table), np.abs(_t_values(table))
        counts = [np.sum(largest >= t * (1 - 1e-9)) for t in observed]
        p_values = [max(1.0, float(count)) / len(largest) for count in counts]  # the signs as found
    errors = np.sqrt(table.var(axis=0, ddof=1) / n)
    return [
        test._replace(low=test.effect - far * error, high=test.effect + far * error, p=p)
        for test, error, p in zip(alone, errors.tolist(), p_values, strict=True)
    ]


SIGNS = 10  # rows from which on signs are enough: p can then be as small as 2/2¹⁰


def _largest_t(table: np.ndarray) -> np.ndarray:
    """The largest |t| of the columns of [n k] under changes of the rows' signs."""
    n = len(table)
    if n <= 13:  # the first row may keep its sign, as |t| does not tell
        half = np.arange(2 ** (n - 1))
        signs = 1.0 - 2 * (half[:, None] >> np.arange(n) & 1)
    else:
        signs = np.random.default_rng(0).choice([-1.0, 1.0], (10_000, n))
        signs[0] = 1.0
    means = signs @ table / n
    spread = np.sqrt(np.maximum((table**2).mean(axis=0) - means**2, 0) / (n - 1))
    t = np.divide(means, spread, out=np.full_like(means, np.inf), where=spread > 0)
    return np.abs(np.where(means == 0, 0, t)).max(axis=1)


def _t_values(table: np.ndarray) -> np.ndarray:
    """Student's t of each column of [n k]."""
    mean, error = table.mean(axis=0), table.std(axis=0, ddof=1) / math.sqrt(len(table))
    t = np.divide(mean, error, out=np.full_like(mean, np.inf), where=error > 0)
    return np.where(mean == 0, 0, t)


def _student(mean: float, variance: float, df: float) -> Test:
    """The test of a mean whose estimated variance has `df` degrees of freedom."""
    error = math.sqrt(variance)
    half = float(stats.t.isf(LEVEL / 2, df)) * error
    p = 2 * stats.t.sf(abs(mean) / error, df) if error else float(mean == 0)
    return Test(float(mean), float(mean - half), float(mean + half), float(p), float(df))


def smallest_effect(spread: float, n: int, *, questions: int = 1) -> float:
    """The mean that a t test over n numbers of this standard deviation finds 4 times of 5.

    Two-sided, at 5 %; with several `questions` at 5 % divided by them (Bonferroni).
    """
    critical = float(stats.t.isf(LEVEL / 2 / questions, n - 1))
    shift = optimize.brentq(lambda s: stats.nct.sf(critical, n - 1, s) - 0.8, 0.0, 2 * critical)
    return float(shift * spread / math.sqrt(n))


def slope(x, y) -> np.ndarray:
    """Least-squares slopes [n] of the rows of y [n k] over x [k]."""
    x = np.asarray(x, np.float64) - np.mean(x)
    return np.asarray(y, np.float64) @ x / (x @ x)


def correlations(x, y) -> np.ndarray:
    """Pearson's r [n] between the rows of x [n k] and y [n k]; NaN where a row is constant."""
    x, y = (np.asarray(v, np.float64) for v in (x, y))
    x, y = (v - v.mean(axis=1, keepdims=True) for v in (x, y))
    size = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    return np.divide((x * y).sum(axis=1), size, out=np.full(len(x), np.nan), where=size > 0)


def holm(p_values) -> np.ndarray:
    """Holm's step-down adjustment of a family of p-values."""
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def _classes(values, name: str, num_classes: int) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 1 or not len(values) or values.dtype.kind not in "iu":
        raise ValueError(f"{name} must be whole numbers [n], got {values.dtype} {values.shape}")
    if values.min() < 0 or values.max() >= num_classes:
        raise ValueError(
            f"{name} must lie in 0..{num_classes - 1}, got {values.min()}..{values.max()}"
        )
    return values
