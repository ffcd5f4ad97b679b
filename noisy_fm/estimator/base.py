"""What the estimators share: fitting, predicting, going on with new examples."""

import copy
import functools
import warnings

import numpy as np
from scipy.special import expit, log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from noisy_fm.estimator import files, rows, training, weighting
from noisy_fm.estimator.check import (
    require_finite,
    require_labels,
    seed_of,
    single,
    warn_scale,
)
from noisy_fm.estimator.tables import features_of, precisions_of, require_real
from noisy_fm.models import heads
from noisy_fm.probe.check import warn_constant
from noisy_fm.probe.head import Head
from noisy_fm.probe.plan import subset
from noisy_fm.probe.step import cosine
from noisy_fm.progress import Progress
from noisy_fm.scalars import as_flag, as_share, as_whole, plain
from noisy_fm.spectrum.arrays import refuse_masked

WORSE = 10  # times the loss of a start or a guess, which no training ends at that learns


def whole(method):
    """Runs a fitting method on a copy, which takes the estimator's place if all goes well.

    Whatever ends it before (a refusal, a loss that diverges, Ctrl-C) leaves the estimator as it
    was; its fitted attributes are those of one call.
    """

    @functools.wraps(method)
    def run(self, *args, **kwargs):
        trial = copy.copy(self)
        method(trial, *args, **kwargs)
        self.__dict__ = trial.__dict__
        return self

    return run


class HeadEstimator(BaseEstimator):
    """What all of them share: a `probe.Head`, trained on frozen features as the paper does."""

    _method: str
    _found: tuple[str, ...] = ()  # attributes of a search, which a file keeps too
    # Rows trained on, the sum of their weights · 2^−power, and the power: what `partial_fit`
    # weighs the next rows against.
    _weighed: tuple[int, float, int] | None = None

    @whole
    def fit(self, X, y, sample_weight=None):
        """Trains from a fresh start on features X [n d] and labels y [n] of any type.

        `sample_weight` [n], of any scale, weighs the loss (its regularisers too), BatchNorm's
        moments, `standardize` and the accuracy of early stopping; a batch counts by its weight
        against that of all rows. A weight of 0 is the row left out and a weight of 2 the row given
        twice, exactly. The order of rows is of no consequence. Raises ValueError for NaN,
        infinity, values beyond float32, fewer than two classes, and training that diverges.
        """
        X, labels, weights = self._examples(X, y, sample_weight)
        head = self._head()
        self._fit_rows(head, X, labels, weights)
        return self

    def save(self, path) -> None:
        """Writes parameters, arguments and classes to a safetensors file."""
        check_is_fitted(self)
        files.save(self, path)

    @classmethod
    def load(cls, path):
        """The estimator that `save` wrote; raises ValueError for another kind of file."""
        return files.load(cls, path)

    def _head(self, **changes) -> Head:
        """The recipe as data; raises ValueError for an argument out of range."""
        names = ("preset", "weights", "learning_rate", "weight_decay", "epochs", "batch_size")
        values = self.get_params(deep=False)
        chosen = {name: values[name] for name in names if name in values}
        chosen |= {"method": self._method, "seed": seed_of(self.random_state)} | changes
        head = Head(**chosen)
        as_share("validation_fraction", self.validation_fraction)
        as_flag("standardize", self.standardize)
        as_flag("early_stopping", self.early_stopping)
        if not isinstance(plain(self.verbose), bool):
            as_whole("verbose", self.verbose, 0)
        as_whole("min_steps", self.min_steps, 0)
        if "n_iter_no_change" in values:
            as_whole("n_iter_no_change", values["n_iter_no_change"], 1)
        return head

    def _examples(self, X, y, sample_weight, *, classes=None):
        """Checked X, labels 0…C−1 and weights over a power of two; sets `classes_`.

        X is float32, or float64 as it came where it is yet to be centred.
        """
        require_labels(y)
        refuse_masked(sample_weight, where="sample_weight")
        require_real(1.0 if sample_weight is None else sample_weight, where="sample_weight")
        X = features_of(X)
        X, y = validate_data(
            self, X, y, dtype=precisions_of(X), reset=classes is None, ensure_all_finite=False
        )
        centred = bool(self.standardize) if classes is None else self.mean_ is not None
        given, X = X, single(X, exact=centred)
        weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        if not weights.any():
            raise ValueError("all sample weights are zero: at least one must be positive")
        if classes is None or self._weighed is None:
            self._weighed = 0, 0.0, weighting.exponent(weights)
        weights = weighting.scaled(weights, self._weighed[2])
        check_classification_targets(y)
        if classes is None:
            self.classes_ = np.unique(y[weights > 0])
        if len(self.classes_) < 2:
            raise ValueError(
                f"{type(self).__name__} needs examples of at least 2 classes, got 1 class: "
                f"{self.classes_.tolist()[0]!r}"
            )
        labels = np.searchsorted(self.classes_, y).clip(max=len(self.classes_) - 1)
        unknown = (self.classes_[labels] != y) & (weights > 0)
        if unknown.any():
            stranger = y[unknown].tolist()[0]
            raise ValueError(f"y has {stranger!r}, which is not among the classes given first")
        if classes is None:
            given = given if weights.all() else given[weights > 0]
            warn_constant(given, "features", stacklevel=5)
            linear, standardize = self._method == "lp", bool(self.standardize)
            warn_scale(given, linear=linear, standardize=standardize, stacklevel=5)
        return X, labels, weights

    def _fit_rows(self, head: Head, X, labels, weights) -> None:
        """Sets all fitted attributes from X, labels 0…C−1 and weights."""
        kept, weights = rows.merge(X, labels, weights)
        labels = labels[kept]
        train = held = np.arange(len(kept))
        if self.early_stopping:
            train, held = _holdout(labels, self.validation_fraction, head.seed)
        weighed = self._weighed or (0, 0.0, 0)
        emphasis = weighting.of_classes(self.class_weight, self.classes_, labels, weights)
        train = train[emphasis[labels[train]] > 0]
        if not len(train):
            raise ValueError("class_weight leaves no row to train on")
        strength = (weights * emphasis[labels])[train]
        self._weighed = len(train), float(strength.sum()), weighed[2]
        self.mean_, self.scale_ = None, None
        if self.standardize:  # by what is trained on: rows held out have no say
            self.mean_, self.scale_ = rows.scaling(X, weights[train], kept[train])
        plan = training.plan_of(head, labels[train], strength)
        plan = training.stretched(plan, self.min_steps)
        with Progress(type(self).__name__, plan.steps, show=bool(self.verbose)) as bar:
            examples = X, kept, labels, weights
            self._train(plan, plan.steps // head.epochs, examples, (train, held), bar)
        self.n_iter_ = len(self.loss_curve_)

    def _train(self, plan, epoch: int, examples, split, bar) -> None:
        """Trains on the first part of the split; early stopping scores the second every `epoch`."""
        (X, kept, labels, weights), (train, held) = examples, split
        self.loss_curve_, self._optimizer = [], None
        scores: list[float] = []
        self.validation_scores_ = scores if self.early_stopping else None
        fresh = training.State.fresh(plan.head, X.shape[1], len(self.classes_))
        rates = cosine(plan.head.learning_rate, plan.steps)
        stride = epoch if self.early_stopping else plan.steps
        best, waited = -1.0, 0
        scale = None if self.mean_ is None else (self.mean_, self.scale_)
        features = training.resident(X, kept[train], scale)
        held_out = rows.gathered(X, kept[held], scale) if self.early_stopping else None
        steps = training.run(fresh, plan, features, rates=rates, stride=stride, bar=bar)
        start = np.nan
        for state, losses in steps:
            start = float(losses[0]) if np.isnan(start) else start
            passes = plan.epoch_losses(losses)
            self.loss_curve_ += passes.reshape(-1, epoch // plan.steps_per_epoch).mean(1).tolist()
            parameters, statistics = self._parameters, self._statistics = _applied(state, plan.head)
            if not self.early_stopping:
                found = parameters, statistics
                break
            right = self._logits(held_out).argmax(1) == labels[held]
            scores.append(float(np.average(right, weights=weights[held])))
            waited += 1
            if scores[-1] > best:
                best, waited, found = scores[-1], 0, (parameters, statistics)
            if waited >= self.n_iter_no_change:
                break
        self._parameters, self._statistics = found
        chance = float(np.log(len(self.classes_)))
        if min(self.loss_curve_) > WORSE * max(start, chance):
            warnings.warn(
                f"the training loss rose from {start:.3g} to {self.loss_curve_[-1]:.3g}, and is "
                f"{chance:.3g} for a guess: lower learning_rate={plan.head.learning_rate}",
                stacklevel=5,
            )

    def _scaled(self, X):
        return X if self.mean_ is None else rows.scaled(X, self.mean_, self.scale_)

    def _logits(self, X):
        return heads.numpy_logits(self._parameters, self._statistics, X)

    def _checked(self, X):
        """X as the trained head takes it, in float32 or float64 as it came."""
        check_is_fitted(self)
        X = features_of(X)
        X = validate_data(self, X, dtype=precisions_of(X), reset=False, ensure_all_finite=False)
        require_finite(X)
        return self._scaled(X)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_parameters")


class HeadClassifier(ClassifierMixin, HeadEstimator):
    """Predictions, for the classifiers."""

    def decision_function(self, X):
        """Logits [n c]; for two classes their difference [n], positive for `classes_[1]`."""
        logits = self._logits(self._checked(X))
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X):
        """Class probabilities [n c], the softmax of the logits, columns as `classes_`."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            return np.stack([expit(-scores), expit(scores)], axis=1)
        return softmax(scores, axis=1)

    def predict_log_proba(self, X):
        """Logarithms of `predict_proba`, without its underflow."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            scores = np.stack([np.zeros_like(scores), scores], axis=1)
        return log_softmax(scores, axis=1)

    def predict(self, X):
        """The likeliest class [n]."""
        scores = self.decision_function(X)
        found = (scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)
        return self.classes_[found]


class OnlineClassifier(HeadClassifier):
    """`partial_fit`, for the classifiers that take examples as they come."""

    @whole
    def partial_fit(self, X, y, classes=None, sample_weight=None):
        """One epoch over X [n d], y [n] at a constant learning rate, from where it stands.

        `classes` names all classes and is needed at the first call, unless `fit` came before.
        Weights are relative to the mean weight of all rows seen so far, in `fit` too, so that a
        call whose weights are small changes little. `class_weight` may be a dict.
        AdamW's moments stay between calls; after `fit` they start anew. The scale that `fit`
        found with `standardize` stays too, whatever the argument says since.
        """
        first = not self.__sklearn_is_fitted__()
        if self.early_stopping:
            raise ValueError("partial_fit cannot stop early: set early_stopping=False, or call fit")
        if self.standardize and (first or self.mean_ is None):
            raise ValueError(
                "partial_fit cannot standardize: use a StandardScaler with partial_fit before it"
            )
        if isinstance(self.class_weight, str):
            raise ValueError(
                f"partial_fit cannot take class_weight={self.class_weight!r}, it does not see all "
                f"rows: give a dict, as of sklearn.utils.class_weight.compute_class_weight"
            )
        if first:
            if classes is None:
                raise ValueError("the first call of partial_fit needs classes=, all of them")
            X = features_of(X)
            validate_data(self, X, dtype=precisions_of(X))
            self.classes_ = np.unique(classes)
            self.mean_ = self.scale_ = self.validation_scores_ = self._optimizer = None
            self.loss_curve_, self._weighed = [], None
        elif classes is not None and not np.array_equal(np.unique(classes), self.classes_):
            raise ValueError(f"classes differ from those of the first call, {self.classes_}")
        if not first and self._weighed is None:
            self._go_on_unweighed(sample_weight)
        X, labels, weights = self._examples(X, y, sample_weight, classes=self.classes_)
        emphasis = weighting.of_classes(self.class_weight, self.classes_, labels, weights)
        weights = weights * emphasis[labels]
        kept = weights > 0
        X, labels, weights = X[kept], labels[kept], weights[kept]
        if not len(X):
            raise ValueError("class_weight leaves no row to train on")
        if self._method != "lp" and len(X) < 2:
            raise ValueError("partial_fit needs at least two rows a call for BatchNorm, got one")
        head = self._head()
        state = self._resume(head, X.shape[1])
        before, total, power = self._weighed
        count, total = before + len(X), total + float(weights.sum())
        plan = training.plan_of(head, labels, weights, total / count)
        epoch, past = plan.steps_per_epoch, len(self.loss_curve_)
        rates = np.full(epoch, head.learning_rate)
        scale = None if self.mean_ is None else (self.mean_, self.scale_)
        features = training.resident(X, np.arange(len(X)), scale)
        ((state, losses),) = training.run(
            state, plan, features, rates=rates, first=past * epoch, stride=epoch
        )
        self.loss_curve_ = [*self.loss_curve_, *plan.epoch_losses(losses).tolist()]
        self.n_iter_, self._weighed = past + 1, (count, total, power)
        self._parameters, self._statistics = _applied(state, head)
        self._optimizer = {n: training.copy(state.tree[n]) for n in ("mean", "square")}, state.steps
        return self

    def _go_on_unweighed(self, sample_weight) -> None:
        """Counts from the next rows on, since a file of an older version has no past weights.

        Warns, and raises ValueError where the next rows are weighed against them.
        """
        lacks = "this head comes from a version that did not keep the weights of its rows"
        if sample_weight is not None or self.class_weight is not None:
            raise ValueError(
                f"{lacks}: go on without sample_weight and class_weight, or call fit anew"
            )
        warnings.warn(f"{lacks}: only rows from here on are counted", stacklevel=4)

    def _resume(self, head: Head, width: int) -> training.State:
        fresh = training.State.fresh(head, width, len(self.classes_))
        if not self.__sklearn_is_fitted__():
            return fresh
        names, fitted = (p.get("mlp", {}).keys() for p in (fresh.tree["params"], self._parameters))
        if names != fitted:
            raise ValueError(
                f"partial_fit goes on with the network it has, which is not that of "
                f"preset={self.preset!r}: set the preset back, or call fit"
            )
        fresh.tree |= {"params": self._parameters, "statistics": self._statistics}
        if self._optimizer is not None:
            moments, fresh.steps = self._optimizer
            fresh.tree |= moments
        return fresh


def _applied(state: training.State, head: Head) -> tuple[dict, dict]:
    """Parameters and statistics to predict with; ValueError where training overflowed."""
    training.require_finite(state, head)
    return training.copy(state.tree["params"]), training.copy(state.tree["statistics"])


def _holdout(labels, fraction: float, seed: int):
    """(training rows, validation rows), stratified; every class keeps a training row."""
    kept = subset(labels, 1 - plain(fraction), seed=seed)
    held = np.setdiff1d(np.arange(len(labels)), kept)
    if not len(held):
        raise ValueError(
            f"early stopping has no validation rows: {len(labels)} distinct rows at "
            f"validation_fraction={fraction}"
        )
    return np.sort(kept), held
