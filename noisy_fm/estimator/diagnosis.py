"""Is NMTune worth it on these features? Their spectrum, and a fair comparison, in one call.

from noisy_fm import diagnose
found = diagnose(X, y)
print(found); found.plot().savefig("diagnosis.png"); found.table
"""

import dataclasses
import warnings

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.model_selection import RepeatedStratifiedKFold
from sklearn.utils import check_X_y
from sklearn.utils.multiclass import check_classification_targets

from noisy_fm import spectrum
from noisy_fm.estimator import folds
from noisy_fm.estimator.check import (
    require_labels,
    seed_of,
    single,
    warn_scale,
)
from noisy_fm.estimator.tables import features_of, precisions_of
from noisy_fm.probe.check import warn_constant
from noisy_fm.probe.heads import Head
from noisy_fm.scalars import as_flag, as_whole
from noisy_fm.spectrum.draw import COLOURS, FAINT, INK

METHODS = {"lp": "linear probe", "mlp": "MLP tuning", "nmtune": "NMTune"}


@dataclasses.dataclass
class Diagnosis:
    """What `diagnose` found.

    table         accuracy, low, high (95 %) of each method, a row a method
    comparisons   difference of accuracy, low, high, p of each pair of methods
    scores        accuracies of every fold, {method: [repeats · cv]}
    spectrum      `spectrum.summary` of X with labels; singular_values [min(n, d)]
    worthwhile    True: NMTune beats both the linear probe and MLP tuning beyond chance
    chance        accuracy of always naming the largest class
    """

    table: pd.DataFrame
    comparisons: pd.DataFrame
    scores: dict[str, np.ndarray]
    spectrum: dict[str, float]
    singular_values: np.ndarray
    chance: float
    shape: tuple[int, int, int]
    repeats: int
    cv: int

    @property
    def worthwhile(self) -> bool:
        over = ("NMTune - linear probe", "NMTune - MLP tuning")
        return bool((self.comparisons.loc[list(over), "low"] > 0).all())

    @property
    def verdict(self) -> str:
        """One sentence on NMTune against the linear probe, one on its terms."""
        over_lp = self.comparisons.loc["NMTune - linear probe"]
        over_mlp = self.comparisons.loc["NMTune - MLP tuning"]
        if self.worthwhile:
            first = f"NMTune is worth it here: {_points(over_lp)} over a linear probe."
        elif over_lp["low"] > 0:
            first = f"A nonlinear head is worth it here: NMTune has {_points(over_lp)} over LP."
        elif over_lp["high"] < 0:
            first = f"NMTune is not worth it here: {_points(over_lp)} against a linear probe."
        else:
            first = (
                f"No clear gain of NMTune here: {_points(over_lp)} over a linear probe, "
                "which is the cheaper choice."
            )
        if over_mlp["low"] > 0:
            return f"{first} Its three terms account for {_points(over_mlp)} over MLP tuning."
        if over_mlp["high"] < 0:
            return f"{first} Its three terms cost {_points(over_mlp)} against MLP tuning."
        return f"{first} Its three terms change nothing clear: {_points(over_mlp)} over MLP tuning."

    def __str__(self) -> str:
        n, d, c = self.shape
        most = min(n, d)
        say = self.spectrum
        # From 1 equal direction (nothing spread) to all of them, so that few features do both.
        share = (say["effective_rank"] - 1) / max(most - 1, 1)
        spread = "concentrated" if share < 0.25 else "spread out" if share > 0.75 else "moderate"
        directions = "direction" if round(say["effective_rank"]) == 1 else "equal directions"
        lines = [
            f"{n:,} examples, {d:,} features, {c} classes; the largest class holds "
            f"{self.chance:.1%}",
            "",
            "Spectrum (uncentred)",
            f"  SVE {say['sve']:.3f} of at most {np.log(most):.3f}: {spread}, the energy of "
            f"{say['effective_rank']:.0f} {directions} out of {most:,}",
            f"  LSVR {say['lsvr']:.3f}: the strongest direction holds {np.exp(-say['lsvr']):.1%} "
            "of the sum of singular values",
            f"  class alignment {say['class_alignment']:.2f}: share of the {c} leading directions' "
            "variance between classes, adjusted for chance",
            "",
            f"Accuracy, {self.repeats} x {self.cv}-fold cross-validation (95 % intervals)",
        ]
        for name, row in self.table.iterrows():
            lines.append(f"  {name:<13} {row.accuracy:6.1%}   {row.low:.1%} to {row.high:.1%}")
        return "\n".join([*lines, "", self.verdict])

    def print(self) -> None:
        print(self)

    def plot(self):
        """Draws the spectrum and the accuracies with their intervals; a matplotlib Figure."""
        from noisy_fm.spectrum.figure import Figure

        figure = Figure(figsize=(10, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        p = self.singular_values / self.singular_values.sum()
        index = np.arange(1, len(p) + 1)
        seen = p > p[0] * 1e-12
        left.plot(index[seen], p[seen], color=COLOURS[0], linewidth=1.8)
        left.axvline(self.spectrum["effective_rank"], color=INK, linewidth=0.8, linestyle=":")
        left.annotate(
            f"effective rank {self.spectrum['effective_rank']:.0f}",
            (self.spectrum["effective_rank"], p[0]),
            xytext=(-4, 0), textcoords="offset points", ha="right", va="top", fontsize=9,
        )  # fmt: skip
        left.set(
            xscale="log", yscale="log", xlabel="index $i$", ylabel="$\\sigma_i\\,/\\,\\sum\\sigma$"
        )
        text = f"SVE {self.spectrum['sve']:.2f}, LSVR {self.spectrum['lsvr']:.2f}"
        left.set_title(f"Normalised singular values: {text}", loc="left", fontsize=11)
        for y, (_, row) in enumerate(self.table.iterrows()):
            percent = 100 * row
            colour = COLOURS[y]
            right.plot([percent.low, percent.high], [y, y], color=colour, linewidth=2.5)
            right.plot(percent.accuracy, y, "o", color=colour, markersize=7)
            right.annotate(
                f"{percent.accuracy:.1f}", (percent.accuracy, y), xytext=(0, 7),
                textcoords="offset points", ha="center", fontsize=9, color=INK,
            )  # fmt: skip
        right.set_yticks(range(len(self.table)), self.table.index)
        right.set(ylim=(len(self.table) - 0.5, -0.6), xlabel="accuracy, %")
        right.set_title("Cross-validated accuracy, 95 % intervals", loc="left", fontsize=11)
        for axes in (left, right):
            axes.grid(color=FAINT, linewidth=0.6)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
        return figure


def diagnose(
    X,
    y,
    *,
    cv=5,
    repeats=2,
    preset="paper",
    weights=None,
    epochs=30,
    batch_size=64,
    min_steps=500,
    standardize=False,
    random_state=0,
    progress=False,
) -> Diagnosis:
    """Reads the spectrum of X [n d] and compares LP, MLP tuning and NMTune on labels y [n].

    Every method trains on the same `repeats` × `cv` stratified folds, all in one sweep, with the
    paper's recipes. Intervals and the paired differences use the corrected resampled t-test
    (Nadeau & Bengio 2003): variance s²(1/J + n_test/n_train) with J − 1 degrees of freedom, since
    the folds share training rows.

    Args:
      preset, weights: NMTune's (and the MLP's) preset, and λ; None for the preset's.
      epochs, batch_size, min_steps, standardize: as in the estimators.
      random_state: seed of the folds and of the heads.
      progress: show a progress bar.

    Raises:
      ValueError: NaN or infinity (or beyond float32), lengths that differ, one class, or a class
        with fewer rows than `cv`.
    """
    require_labels(y)
    X = features_of(X)
    X, y = check_X_y(X, y, dtype=precisions_of(X), ensure_all_finite=False)
    check_classification_targets(y)
    as_flag("standardize", standardize)
    classes, labels, counts = np.unique(y, return_inverse=True, return_counts=True)
    rows = single(X, exact=bool(standardize))
    _check_counts(classes, counts, cv, repeats)
    warn_constant(X, "features", stacklevel=3)
    warn_scale(X, linear=True, standardize=standardize, stacklevel=3)
    values = spectrum.singular_values(X)
    summary = spectrum.summary(X, labels=labels)
    seed = seed_of(random_state)
    shared = {"epochs": epochs, "batch_size": batch_size, "seed": seed}
    heads = [
        Head("lp", **shared),
        Head("mlp", preset, **shared),
        Head("nmtune", preset, weights=weights, **shared),
    ]
    splitter = RepeatedStratifiedKFold(n_splits=cv, n_repeats=repeats, random_state=seed)
    found = folds.accuracies(
        rows, labels, np.ones(len(rows)), list(splitter.split(rows, labels)), heads,
        classes=classes, standardize=standardize, min_steps=min_steps, progress=progress,
    )  # fmt: skip
    if (diverged := np.isnan(found)).any():
        names = [name for name, bad in zip(METHODS.values(), diverged, strict=True) if bad.any()]
        warnings.warn(
            f"training diverged in {diverged.sum()} of {found.size} fits, which count as accuracy "
            f"0: {', '.join(names)}; set standardize=True",
            RuntimeWarning,
            stacklevel=2,
        )
    scores = dict(zip(METHODS.values(), np.nan_to_num(found), strict=True))
    table, comparisons = _tables(scores, ratio=1 / (cv - 1))
    return Diagnosis(
        table=table,
        comparisons=comparisons,
        scores=scores,
        spectrum=summary,
        singular_values=values,
        chance=float(counts.max() / len(y)),
        shape=(*X.shape, len(classes)),
        repeats=repeats,
        cv=cv,
    )


def _check_counts(classes, counts, cv, repeats) -> None:
    as_whole("cv", cv, 2)
    as_whole("repeats", repeats, 1)
    if len(classes) < 2:
        raise ValueError(f"diagnose needs at least 2 classes, got 1 class: {classes.tolist()[0]!r}")
    least = counts.min()
    rare = classes.tolist()[counts.argmin()]
    if least < 2:
        raise ValueError(f"class {rare!r} has 1 row, every fold needs one: leave the class out")
    if least < cv:
        raise ValueError(
            f"class {rare!r} has {least} rows, fewer than cv={cv}: lower cv or leave it out"
        )


def _tables(scores: dict[str, np.ndarray], ratio: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Each method's accuracy, and the difference of each pair, with intervals (and p)."""
    columns = ["low", "high", "p"]
    table = {name: np.clip(_interval(values, ratio), 0, 1) for name, values in scores.items()}
    lp, mlp, nmtune = scores
    compared = {
        f"{a} - {b}": _interval(scores[a] - scores[b], ratio)
        for a, b in ((nmtune, lp), (nmtune, mlp), (mlp, lp))
    }
    made = [
        pd.DataFrame.from_dict(rows, orient="index", columns=[first, *columns])
        for rows, first in ((table, "accuracy"), (compared, "difference"))
    ]
    return made[0].drop(columns="p"), made[1]


def _interval(values: np.ndarray, ratio: float) -> tuple[float, float, float, float]:
    """Mean, low, high and p (two-sided, mean 0) by the corrected resampled t-test."""
    count = len(values)
    mean = values.mean()
    error = np.sqrt(values.var(ddof=1) * (1 / count + ratio))
    if error == 0:
        return mean, mean, mean, float(mean == 0)
    half = error * stats.t.ppf(0.975, count - 1)
    return mean, mean - half, mean + half, 2 * stats.t.sf(abs(mean) / error, count - 1)


def _points(row) -> str:
    return (
        f"{100 * row['difference']:+.1f} points "
        f"(95 % interval {100 * row['low']:+.1f} to {100 * row['high']:+.1f})"
    )
