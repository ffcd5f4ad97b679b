"""NMTune with λ and the learning rate chosen by cross-validation."""

import itertools
import warnings
from collections.abc import Collection, Iterator

import numpy as np
from scipy.stats import rankdata
from sklearn.model_selection import PredefinedSplit, StratifiedGroupKFold, StratifiedKFold

from noisy_fm.estimator import folds
from noisy_fm.estimator.base import HeadClassifier, whole
from noisy_fm.scalars import as_whole, plain
from noisy_fm.spectrum.arrays import refuse_masked
from noisy_fm.spectrum.metrics import as_labels


class NMTuneClassifierCV(HeadClassifier):
    """NMTune (eq. 7) whose λ and learning rate win on cross-validation folds, then fitted on all.

    Every candidate on every fold is a head of one sweep, trained together; the refit is
    `NMTuneClassifier`'s with the winning arguments.

    Args:
      preset: "paper" or "release".
      weights: candidates for λ, each a number, (MSE, COV, SVD) or None for the preset's; 0 is
        MLP tuning.
      learning_rates: candidates for AdamW's learning rate.
      cv: number of stratified folds, at least 2 (fewer where the smallest class has fewer rows), a
        splitter, or (training rows, validation rows) pairs. Rows of weight 0 are in none of the
        folds; pairs count the rows as given.
      others: as in `LinearProbe`.

    Fitted attributes, besides `LinearProbe`'s: best_params_, best_score_ (mean accuracy over the
    folds), best_index_, n_splits_, cv_results_ (as `GridSearchCV`'s; `pandas.DataFrame` takes it).
    """

    _method = "nmtune"
    _found = ("best_params_", "best_score_", "best_index_", "n_splits_", "cv_results_")
    early_stopping = False
    validation_fraction = 0.1

    def __init__(
        self,
        preset="paper",
        weights=(0.0, 0.001, 0.01, 0.1),
        learning_rates=(1e-3,),
        *,
        cv=5,
        weight_decay=1e-4,
        epochs=30,
        batch_size=64,
        min_steps=500,
        class_weight=None,
        standardize=False,
        random_state=None,
        verbose=0,
    ):
        self.preset = preset
        self.weights = weights
        self.learning_rates = learning_rates
        self.cv = cv
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.batch_size = batch_size
        self.min_steps = min_steps
        self.class_weight = class_weight
        self.standardize = standardize
        self.random_state = random_state
        self.verbose = verbose

    @whole
    def fit(self, X, y, sample_weight=None, groups=None):
        """Tries every candidate on every fold, then fits the best on all rows.

        `sample_weight` [n] weighs training and the folds' accuracies alike, `class_weight`
        training alone, "balanced" by the training rows of each fold. `groups` [n] keep rows of
        one group in one fold, for a number of folds or a `cv` like GroupKFold. Among equals the
        first candidate wins; one that diverges scores NaN and comes last. Raises ValueError where
        all diverge.
        """
        X, labels, weights = self._examples(X, y, sample_weight)
        candidates, cv = self._candidates(), self._cv()
        seeded = self._head(weights=None)
        heads = [self._head(seed=seeded.seed, **candidate) for candidate in candidates]
        if not isinstance(cv, Collection):
            used, groups = weights > 0, _groups(groups, weights)
            if not used.all():
                X, labels, weights = X[used], labels[used], weights[used]
            splitter = self._stratified(cv, labels, groups) if isinstance(cv, int) else cv
            cv = splitter.split(X, labels, groups)
        splits = [_split(number, pair, len(X)) for number, pair in enumerate(cv)]
        scores = folds.accuracies(
            X, labels, weights, splits, heads,
            classes=self.classes_, class_weight=self.class_weight,
            standardize=self.standardize, min_steps=self.min_steps, progress=bool(self.verbose),
        )  # fmt: skip
        mean = scores.mean(axis=1)
        _say_diverged(candidates, np.isnan(mean))
        order = np.nan_to_num(mean, nan=-1.0)  # last
        self.best_index_ = int(np.flatnonzero(order >= order.max() - 1e-9)[0])
        self.best_params_ = candidates[self.best_index_]
        self.best_score_ = float(mean[self.best_index_])
        self.n_splits_ = len(splits)
        self.cv_results_ = {
            "params": candidates,
            **{f"param_{name}": [c[name] for c in candidates] for name in candidates[0]},
            **{f"split{i}_test_score": scores[:, i] for i in range(len(splits))},
            "mean_test_score": mean,
            "std_test_score": scores.std(axis=1),
            "rank_test_score": rankdata(-order.round(9), method="min").astype(np.int32),
        }
        self._fit_rows(heads[self.best_index_], X, labels, weights)
        return self

    def _candidates(self) -> list[dict]:
        """Every λ with every learning rate; ValueError where there is none."""
        for name in ("weights", "learning_rates"):
            values = getattr(self, name)
            if isinstance(values, str) or not isinstance(values, Collection) or not len(values):
                raise ValueError(
                    f"{name} must be a sequence of one candidate or more, got {values!r}"
                )
        return [
            {"weights": weight, "learning_rate": rate}
            for rate, weight in itertools.product(self.learning_rates, self.weights)
        ]

    def _cv(self):
        """A number of folds, a splitter, or pairs of positions among the rows as given."""
        if isinstance(self.cv, Iterator):  # or it would be used up after one fit
            self.cv = list(self.cv)
        cv = self.cv if isinstance(self.cv, list | tuple) else plain(self.cv)
        if isinstance(cv, PredefinedSplit):
            return list(cv.split())
        if isinstance(cv, Collection) and not isinstance(cv, str):
            if not len(cv):
                raise ValueError("cv has no folds: a generator gives them once, give list(…) of it")
            return cv
        if isinstance(cv, str) or not hasattr(cv, "split"):
            return as_whole("cv", 5 if cv is None else cv, 2)
        return cv

    def _stratified(self, cv: int, labels, groups):
        """The splitter of `cv` folds, of fewer where the smallest class has fewer rows."""
        counts = np.bincount(labels)
        if counts.min() < 2:
            raise ValueError(
                f"class {self.classes_.tolist()[counts.argmin()]!r} has 1 row (of positive "
                f"weight), folds need 2 of each class: leave the class out"
            )
        cv = min(cv, int(counts.min()))
        if groups is None:
            return StratifiedKFold(cv)
        if (found := len(np.unique(groups))) < cv:
            raise ValueError(f"{cv} folds need {cv} groups at least, got {found}: lower cv")
        return StratifiedGroupKFold(cv)


def _groups(groups, weights):
    """Groups [n], of rows of positive weight; ValueError for other shapes and missing ones."""
    if groups is None:
        return None
    refuse_masked(groups, where="groups")
    groups = np.asarray(groups)
    if groups.shape != weights.shape:
        raise ValueError(f"groups must be [{len(weights)}], one a row, got shape {groups.shape}")
    return as_labels(groups[weights > 0], where="groups")


def _say_diverged(candidates, diverged) -> None:
    """Warns of candidates that diverged, by their arguments; ValueError where all did."""
    if not diverged.any():
        return
    first = candidates[int(diverged.argmax())]
    shown = ", ".join(f"{name}={value!r}" for name, value in first.items())
    said = (
        f"{diverged.sum()} of {len(candidates)} candidates diverged (loss or scores are not "
        f"finite), the first is {shown}: lower learning_rates or set standardize=True"
    )
    if diverged.all():
        raise ValueError(said)
    warnings.warn(said, RuntimeWarning, stacklevel=4)


def _split(number: int, pair, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """A fold's training and validation rows as positions; ValueError where they are no split."""
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise ValueError(f"cv: fold {number} must be a pair (training rows, validation rows)")
    found = []
    for what, given in zip(("training", "validation"), pair, strict=True):
        refuse_masked(given, where=f"cv: fold {number}'s {what} rows")
        chosen = np.asarray(given)
        if chosen.dtype == bool and chosen.shape == (rows,):
            chosen = np.flatnonzero(chosen)
        if chosen.ndim != 1 or not len(chosen):
            raise ValueError(f"cv: fold {number} has no {what} rows")
        if chosen.dtype.kind not in "iu" or chosen.min() < 0 or chosen.max() >= rows:
            raise ValueError(
                f"cv: fold {number}'s {what} rows must be positions 0..{rows - 1} or a mask "
                f"[{rows}], got {chosen.dtype} from {chosen.min()} to {chosen.max()}"
            )
        found.append(chosen.astype(np.int64))
    if len(shared := np.intersect1d(found[0], found[1])):
        raise ValueError(
            f"cv: fold {number} trains and validates on the same {len(shared)} rows, "
            f"the first is row {shared[0]}"
        )
    return found[0], found[1]
