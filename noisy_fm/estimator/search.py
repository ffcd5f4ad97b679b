"""NMTune with λ and the learning rate chosen by cross-validation."""

import itertools
from collections.abc import Collection

import numpy as np
from scipy.stats import rankdata
from sklearn.model_selection import check_cv

from noisy_fm.estimator import folds
from noisy_fm.estimator.base import HeadClassifier
from noisy_fm.estimator.check import check_whole


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
        splitter, or (training rows, validation rows) pairs.
      others: as in `LinearProbe`.

    Fitted attributes, besides `LinearProbe`'s: best_params_, best_score_ (mean accuracy over the
    folds), best_index_, n_splits_, cv_results_ (as `GridSearchCV`'s; `pandas.DataFrame` takes it).
    """

    _method = "nmtune"
    _found = ("best_params_", "best_score_", "best_index_", "n_splits_", "cv_results_")
    early_stopping = False
    validation_fraction = 0.1
    n_iter_no_change = 1

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

    def fit(self, X, y, sample_weight=None):
        """Tries every candidate on every fold, then fits the best on all rows.

        `sample_weight` [n] weighs training and the folds' accuracies alike, `class_weight`
        training alone, "balanced" by the training rows of each fold. Among equals the first
        candidate wins.
        """
        X, labels, weights = self._examples(X, y, sample_weight)
        candidates, splitter = self._candidates(), self._splitter(labels)
        seeded = self._head(weights=None)
        heads = [self._head(seed=seeded.seed, **candidate) for candidate in candidates]
        splits = [(np.asarray(a), np.asarray(b)) for a, b in splitter.split(X, labels)]
        scores = folds.accuracies(
            X, labels, weights, splits, heads,
            classes=self.classes_, class_weight=self.class_weight,
            standardize=self.standardize, min_steps=self.min_steps, progress=bool(self.verbose),
        )  # fmt: skip
        mean = scores.mean(axis=1)
        self.best_index_ = int(np.flatnonzero(mean >= mean.max() - 1e-9)[0])
        self.best_params_ = candidates[self.best_index_]
        self.best_score_ = float(mean[self.best_index_])
        self.n_splits_ = len(splits)
        self.cv_results_ = {
            "params": candidates,
            **{f"param_{name}": [c[name] for c in candidates] for name in candidates[0]},
            **{f"split{i}_test_score": scores[:, i] for i in range(len(splits))},
            "mean_test_score": mean,
            "std_test_score": scores.std(axis=1),
            "rank_test_score": rankdata(-mean.round(9), method="min").astype(np.int32),
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

    def _splitter(self, labels):
        cv = self.cv
        if isinstance(cv, (int, np.integer)):
            check_whole("cv", cv, 2)
            cv = max(2, min(cv, np.bincount(labels).min()))
        return check_cv(cv, labels, classifier=True)
