"""Scores of predictions, and comparisons of the three heads by them, with intervals."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

METHODS = {"lp": "linear probe", "mlp": "MLP tuning", "nmtune": "NMTune"}
# What `scoring` may be, and how a text calls it.
SCORINGS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "f1_macro": "macro-F1",
}
RESAMPLES = 300  # by which a standard error is known to some 4 %


def score(scoring: str, labels, predictions, weights=None) -> float:
    """A score of `SCORINGS`, scikit-learn's of that name, of classes 0 … C − 1 [n].

    Rows count `weights` [n] times. A fit that diverged, which predicts −1 somewhere, scores 0.
    """
    if predictions.min() < 0:
        return 0.0
    hit = labels == predictions
    weights = np.ones(len(labels)) if weights is None else weights
    if scoring == "accuracy":
        return float(np.average(hit, weights=weights))
    count = int(max(labels.max(), predictions.max())) + 1
    true, hits, predicted = (
        np.bincount(which, each, minlength=count)
        for which, each in ((labels, weights), (labels, weights * hit), (predictions, weights))
    )
    if scoring == "balanced_accuracy":  # over classes that the labels have
        return float(np.mean(hits[true > 0] / true[true > 0]))
    total = true + predicted  # over classes that either has
    return float(np.mean(2 * hits[total > 0] / total[total > 0]))


@dataclasses.dataclass
class Comparison:
    """What the three methods reach, and how they differ.

    table         the score, low, high (95 %) of each method, a row a method
    comparisons   difference of the score, low, high, p of each pair of methods
    scores        scores of every fold's fit, {method: [repeats · cv]}
    scoring       the score's name
    worthwhile    True: NMTune beats both the linear probe and MLP tuning beyond chance
    """

    table: pd.DataFrame
    comparisons: pd.DataFrame
    scores: dict[str, np.ndarray]
    scoring: str

    where = "on X_test"

    @property
    def worthwhile(self) -> bool:
        over = ("NMTune - linear probe", "NMTune - MLP tuning")
        return bool((self.comparisons.loc[list(over), "low"] > 0).all())

    @property
    def verdict(self) -> str:
        """One sentence on NMTune against the linear probe, one on its terms."""
        over_lp = self.comparisons.loc["NMTune - linear probe"]
        over_mlp = self.comparisons.loc["NMTune - MLP tuning"]
        where = self.where
        if self.worthwhile:
            first = f"NMTune is worth it {where}: {_points(over_lp)} over a linear probe."
        elif over_lp["low"] > 0:
            first = f"A nonlinear head is worth it {where}: NMTune has {_points(over_lp)} over LP."
        elif over_lp["high"] < 0:
            first = f"NMTune is not worth it {where}: {_points(over_lp)} against a linear probe."
        else:
            first = (
                f"No clear gain of NMTune {where}: {_points(over_lp)} over a linear probe, "
                "which is the cheaper choice."
            )
        if over_mlp["low"] > 0:
            return f"{first} Its three terms account for {_points(over_mlp)} over MLP tuning."
        if over_mlp["high"] < 0:
            return f"{first} Its three terms cost {_points(over_mlp)} against MLP tuning."
        return f"{first} Its three terms change nothing clear: {_points(over_mlp)} over MLP tuning."

    def lines(self) -> list[str]:
        """The table as text, a line a method."""
        return [
            f"  {name:<13} {row[self.scoring]:6.1%}   {row.low:.1%} to {row.high:.1%}"
            for name, row in self.table.iterrows()
        ]


def compare(
    scoring: str, labels: Sequence, predictions: Sequence, *, ratio: float, fixed: bool = False
) -> dict[str, Any]:
    """The fields of a `Comparison`, of labels [fits][n] and their predictions [methods][fits][n].

    `ratio` is n_test / n_train of a fold. `fixed`: the rows tested on are the same for all fits,
    and that they are a sample is added to the variance, by a bootstrap of them.
    """
    scores = {
        name: np.array([score(scoring, *pair) for pair in zip(labels, fits, strict=True)])
        for name, fits in zip(METHODS.values(), predictions, strict=True)
    }
    means = _resampled(scoring, labels[0], predictions) if fixed else np.zeros((len(scores), 1))
    drawn = dict(zip(scores, means, strict=True))
    table = {
        name: np.clip(_interval(values, ratio, drawn[name].var()), 0, 1)
        for name, values in scores.items()
    }
    lp, mlp, nmtune = scores
    compared = {
        f"{a} - {b}": _interval(scores[a] - scores[b], ratio, (drawn[a] - drawn[b]).var())
        for a, b in ((nmtune, lp), (nmtune, mlp), (mlp, lp))
    }
    frames = [
        pd.DataFrame.from_dict(rows, orient="index", columns=[first, "low", "high", "p"])
        for rows, first in ((table, scoring), (compared, "difference"))
    ]
    return {
        "table": frames[0].drop(columns="p"),
        "comparisons": frames[1],
        "scores": scores,
        "scoring": scoring,
    }


def _resampled(scoring: str, labels, predictions) -> np.ndarray:
    """[methods, resamples]: the mean score of each method's fits on rows drawn again."""
    random = np.random.default_rng(0)
    n = len(labels)
    means = np.empty((len(predictions), RESAMPLES))
    for b in range(RESAMPLES):
        weights = np.bincount(random.integers(n, size=n), minlength=n)
        for m, fits in enumerate(predictions):
            means[m, b] = np.mean([score(scoring, labels, fit, weights) for fit in fits])
    return means


def _interval(values: np.ndarray, ratio: float, variance: float):
    """Mean, low, high and p (two-sided, mean 0) by the corrected resampled t-test.

    `variance` of the mean is what the rows tested on add, where they are the same in all folds.
    """
    count = len(values)
    mean = values.mean()
    error = np.sqrt(values.var(ddof=1) * (1 / count + ratio) + variance)
    if error == 0:
        return mean, mean, mean, float(mean == 0)
    half = error * stats.t.ppf(0.975, count - 1)
    return mean, mean - half, mean + half, 2 * stats.t.sf(abs(mean) / error, count - 1)


def _points(row) -> str:
    return (
        f"{100 * row['difference']:+.1f} points "
        f"(95 % interval {100 * row['low']:+.1f} to {100 * row['high']:+.1f})"
    )
