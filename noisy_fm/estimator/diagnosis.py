"""Is NMTune worth it on these features? Their spectrum, and a fair comparison, in one call.

from noisy_fm import diagnose
found = diagnose(X, y)
print(found); found.plot().savefig("diagnosis.png"); found.table
"""

import dataclasses
import warnings

import numpy as np
import pandas as pd
from sklearn.model_selection import RepeatedStratifiedKFold, StratifiedGroupKFold
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
from noisy_fm.estimator.scores import METHODS, SCORINGS, Comparison, compare, score
from noisy_fm.estimator.tables import features_of, precisions_of
from noisy_fm.messages import unknown
from noisy_fm.probe.check import warn_constant
from noisy_fm.probe.head import Head
from noisy_fm.scalars import as_flag, as_whole
from noisy_fm.spectrum.metrics import as_labels


@dataclasses.dataclass
class Diagnosis(Comparison):
    """What `diagnose` found: a `Comparison` by cross-validation, and

    spectrum      `spectrum.summary` of X with labels; singular_values [min(n, d)]
    chance        score of always naming the largest class
    test          `Comparison` of the same fits on X_test, or None
    """

    spectrum: dict[str, float]
    singular_values: np.ndarray
    chance: float
    shape: tuple[int, int, int]
    repeats: int
    cv: int
    grouped: bool
    test: Comparison | None
    test_rows: int

    where = "here"

    def __str__(self) -> str:
        n, d, c = self.shape
        most = min(n, d)
        say = self.spectrum
        # From 1 equal direction (nothing spread) to all of them, so that few features do both.
        share = (say["effective_rank"] - 1) / max(most - 1, 1)
        name = SCORINGS[self.scoring][0].upper() + SCORINGS[self.scoring][1:]
        largest = "the largest class holds"
        if self.scoring != "accuracy":
            largest = f"always naming the largest has {SCORINGS[self.scoring]}"
        kept = ", groups kept together" * self.grouped
        spread = "concentrated" if share < 0.25 else "spread out" if share > 0.75 else "moderate"
        directions = "direction" if round(say["effective_rank"]) == 1 else "equal directions"
        lines = [
            f"{n:,} examples, {d:,} features, {c} classes; {largest} {self.chance:.1%}",
            "",
            "Spectrum (uncentred)",
            f"  SVE {say['sve']:.3f} of at most {np.log(most):.3f}: {spread}, the energy of "
            f"{say['effective_rank']:.0f} {directions} out of {most:,}",
            f"  LSVR {say['lsvr']:.3f}: the strongest direction holds {np.exp(-say['lsvr']):.1%} "
            "of the sum of singular values",
            f"  class alignment {say['class_alignment']:.2f}: share of the {c} leading directions' "
            "variance between classes, adjusted for chance",
            "",
            f"{name}, {self.repeats} x {self.cv}-fold cross-validation{kept} (95 % intervals)",
            *self.lines(),
            "",
            self.verdict,
        ]
        if self.test is not None:
            fits = f"by the same {self.repeats * self.cv} fits of each method"
            title = f"{name} on the {self.test_rows:,} rows of X_test, {fits} (95 % intervals)"
            lines += ["", title, *self.test.lines(), "", self.test.verdict]
        return "\n".join([*lines, *self.advice])

    @property
    def advice(self) -> list[str]:
        """What to try next where a nonlinear head is not above a linear one: a line, or none.

        It is what 27 kinds of heads did on 12 pre-trained models and two public encoders
        (experiments/heads/README.md).
        """
        if self.comparisons.loc["NMTune - linear probe", "low"] > 0:
            return []
        return [
            "Next, tune the penalty of a linear head (scikit-learn's LogisticRegressionCV): with "
            "few examples, or wrong labels among them, that has done more than any other head."
        ]

    def print(self) -> None:
        print(self)

    def plot(self):
        """Draws the spectrum and the accuracies with their intervals; a matplotlib Figure."""
        from noisy_fm.figures import COLOURS, INK, head, plain_logs, subplots

        figure, ((left, right),) = subplots(1, 2, (10, 3.8))
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
        left.set(xscale="log", yscale="log", xlabel="index i", ylabel="share of Σσ: σᵢ / Σσ")
        for axis in (left.xaxis, left.yaxis):
            plain_logs(axis)
        text = f"SVE {self.spectrum['sve']:.2f}, LSVR {self.spectrum['lsvr']:.2f}"
        head(left, f"Normalised singular values: {text}")
        drawn = [self, *filter(None, [self.test])]
        for each, lower, face in zip(drawn, (0, 0.35), (None, "white"), strict=False):
            for place, row in enumerate((100 * each.table).to_numpy()):
                y, colour = place + lower, COLOURS[place]
                right.plot(row[1:], [y, y], color=colour, linewidth=2.5)
                right.plot(row[0], y, "o", color=colour, markersize=7, markerfacecolor=face)
                right.annotate(
                    f"{row[0]:.1f}", (row[0], y), xytext=(0, 7),
                    textcoords="offset points", ha="center", fontsize=9, color=INK,
                )  # fmt: skip
        right.set_yticks(range(len(self.table)), self.table.index)
        right.set(ylim=(len(self.table) - 0.5, -0.6), xlabel=f"{SCORINGS[self.scoring]}, %")
        beside = "" if self.test is None else "; hollow: X_test"
        head(right, f"Cross-validated, 95 % intervals{beside}")
        return figure


def diagnose(
    X,
    y,
    *,
    scoring="accuracy",
    X_test=None,
    y_test=None,
    groups=None,
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
      scoring: "accuracy", "balanced_accuracy" or "f1_macro".
      X_test, y_test: rows of another domain, say. The folds' fits are compared on them too; to the
        variance comes that of these rows, taken to be independent, by a bootstrap.
      groups: [n], rows of one group (one patient, one concept) stay in one fold.
      preset, weights: NMTune's (and the MLP's) preset, and λ; None for the preset's.
      epochs, batch_size, min_steps, standardize: as in the estimators.
      random_state: seed of the folds and of the heads.
      progress: show a progress bar.

    Raises:
      ValueError: NaN or infinity (or beyond float32), lengths that differ, one class, a class
        with fewer rows than `cv` or in one group alone, or a class of y_test that y lacks.
    """
    if scoring not in SCORINGS:
        raise ValueError(unknown("scoring", scoring, SCORINGS))
    as_flag("standardize", standardize)
    given, (X, y) = X, _examples(X, y, "y")
    classes, labels, counts = np.unique(y, return_inverse=True, return_counts=True)
    rows = single(X, exact=bool(standardize))
    _check_counts(classes, counts, cv, repeats)
    seed = seed_of(random_state)
    splits = _splits(labels, classes, groups, cv, repeats, seed)
    unseen, truth = _test_set(X_test, y_test, given, rows, classes)
    warn_constant(X, "features", stacklevel=3)
    warn_scale(X, linear=True, standardize=standardize, stacklevel=3)
    shared = {"epochs": epochs, "batch_size": batch_size, "seed": seed}
    heads = [
        Head("lp", **shared),
        Head("mlp", preset, **shared),
        Head("nmtune", preset, weights=weights, **shared),
    ]
    crossed, tested = _predictions(
        rows, labels, splits, heads, unseen, truth,
        classes=classes, standardize=standardize, min_steps=min_steps, progress=progress,
    )  # fmt: skip
    ratio, test = 1 / (cv - 1), None
    if len(unseen):
        truths = [truth] * len(splits)
        test = Comparison(**compare(scoring, truths, tested, ratio=ratio, fixed=True))
    return Diagnosis(
        **compare(scoring, [labels[rest] for _, rest in splits], crossed, ratio=ratio),
        spectrum=spectrum.summary(X, labels=labels),
        singular_values=spectrum.singular_values(X),
        chance=score(scoring, labels, np.full_like(labels, counts.argmax())),
        shape=(*X.shape, len(classes)),
        repeats=repeats,
        cv=cv,
        grouped=groups is not None,
        test=test,
        test_rows=len(unseen),
    )


def _examples(X, y, name: str):
    """X [n d] and y [n] as arrays of the same length, y of classes."""
    require_labels(y, name=name)
    X = features_of(X)
    X, y = check_X_y(X, y, dtype=precisions_of(X), ensure_all_finite=False)
    check_classification_targets(y)
    return X, y


def _test_set(X_test, y_test, given, rows, classes) -> tuple[np.ndarray, np.ndarray]:
    """X_test [m d] in the precision of the rows, and the numbers [m] of its classes."""
    if X_test is None and y_test is None:
        return rows[:0], np.zeros(0, int)
    if X_test is None or y_test is None:
        raise ValueError("X_test and y_test are given together, one of them is missing")
    names = [list(getattr(table, "columns", [])) for table in (given, X_test)]
    if all(names) and names[0] != names[1]:
        raise ValueError("X_test must have the columns of X, in their order")
    X_test, y_test = _examples(X_test, y_test, "y_test")
    if X_test.shape[1] != rows.shape[1]:
        raise ValueError(f"X_test has {X_test.shape[1]} features, X has {rows.shape[1]}")
    truth = pd.Index(classes).get_indexer(y_test)
    if len(other := np.flatnonzero(truth < 0)):
        raise ValueError(
            f"y_test has {len(other)} rows of classes that y lacks, the first is "
            f"{y_test.tolist()[other[0]]!r} at row {other[0]}: leave them out"
        )
    return single(X_test, name="X_test", exact=rows.dtype == np.float64).astype(rows.dtype), truth


def _splits(labels, classes, groups, cv, repeats, seed) -> list:
    """(training rows, validation rows) of every fold."""
    if groups is None:
        splitter = RepeatedStratifiedKFold(n_splits=cv, n_repeats=repeats, random_state=seed)
        return list(splitter.split(labels, labels))
    groups = as_labels(groups, where="groups")
    if groups.shape != labels.shape:
        raise ValueError(f"groups must be [{len(labels)}], one a row, got shape {groups.shape}")
    _, groups = np.unique(groups, return_inverse=True)
    if groups.max() + 1 < cv:
        raise ValueError(f"cv={cv} folds need {cv} groups at least, got {groups.max() + 1}")
    spread = np.bincount(np.unique(np.stack([labels, groups]), axis=1)[0])
    if spread.min() < 2:
        raise ValueError(
            f"class {classes.tolist()[spread.argmin()]!r} lies in 1 group, so that no fold can "
            "train on it and test on it: leave the class out"
        )
    folded = (
        StratifiedGroupKFold(cv, shuffle=True, random_state=(seed + repeat) % 2**32)
        for repeat in range(repeats)
    )
    return [pair for splitter in folded for pair in splitter.split(labels, labels, groups)]


def _predictions(rows, labels, splits, heads, unseen, truth, **settings):
    """Predictions [methods][folds] of the folds' validation rows, and of the unseen rows."""
    beyond = np.arange(len(rows), len(rows) + len(unseen))
    if len(unseen):
        rows, labels = np.concatenate([rows, unseen]), np.concatenate([labels, truth])
    pairs = [(train, np.concatenate([test, beyond])) for train, test in splits]
    found = folds.predictions(rows, labels, np.ones(len(rows)), pairs, heads, **settings)
    bad = {
        name: sum(fit.min() < 0 for fit in fits)
        for name, fits in zip(METHODS.values(), found, strict=True)
    }
    if any(bad.values()):
        names = [name for name, count in bad.items() if count]
        warnings.warn(
            f"training diverged in {sum(bad.values())} of {len(heads) * len(splits)} fits, which "
            f"score 0: {', '.join(names)}; set standardize=True",
            RuntimeWarning,
            stacklevel=3,
        )
    sizes = [len(test) for _, test in splits]
    crossed = [[f[:k] for f, k in zip(fits, sizes, strict=True)] for fits in found]
    return crossed, [[f[k:] for f, k in zip(fits, sizes, strict=True)] for fits in found]


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
