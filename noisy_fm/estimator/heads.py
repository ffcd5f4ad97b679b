"""The four estimators: their arguments, and what is theirs alone."""

import numpy as np
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from noisy_fm.estimator.base import HeadEstimator, OnlineClassifier
from noisy_fm.models.heads import numpy_transform


class LinearProbe(OnlineClassifier):
    """Linear probing (LP): a linear softmax classifier on frozen features, by the paper's recipe.

    AdamW with a cosine schedule to 0, no warm-up; deterministic for one `random_state`. Not the
    paper's: few rows get at least 500 steps (`min_steps`).

    Args:
      learning_rate, weight_decay: of AdamW (decay on the matrix only).
      epochs, batch_size: passes over the rows, distinct rows a step.
      min_steps: on few rows an epoch is several passes, so that there are at least so many steps
        (below 1,067 rows by default); 0 is the paper's recipe to the letter.
      class_weight: "balanced" or {class: weight}, as scikit-learn's: a factor on `sample_weight`
        in training; accuracies of early stopping do not have it. "balanced" counts by weight.
      standardize: subtract each feature's mean and divide by its standard deviation first.
      early_stopping: hold out `validation_fraction` of each class, stop once its accuracy has not
        risen for `n_iter_no_change` epochs, and keep the best epoch's parameters.
      random_state: seed of initialisation, order and hold-out.
      verbose: 1 shows the progress of `fit`, with the time left.

    Fitted attributes: classes_, n_features_in_, feature_names_in_, n_iter_ (epochs run),
    loss_curve_ (mean cross-entropy of each), validation_scores_, coef_ [c d] and intercept_ [c]
    (one row for two classes; of the features as given, also where `standardize` scales them).
    """

    _method = "lp"

    @property
    def coef_(self) -> np.ndarray:
        """float64 [c d], [1 d] for two classes: decision_function is X @ coef_.T + intercept_."""
        return self._affine()[0]

    @property
    def intercept_(self) -> np.ndarray:
        """float64 [c], [1] for two classes."""
        return self._affine()[1]

    def _affine(self):
        check_is_fitted(self)
        coef = self._parameters["kernel"].T.astype(np.float64)
        intercept = self._parameters["bias"].astype(np.float64)
        if self.mean_ is not None:
            coef = coef / self.scale_
            intercept = intercept - coef @ self.mean_
        if len(self.classes_) == 2:
            coef, intercept = np.diff(coef, axis=0), np.diff(intercept)
        return coef, intercept

    def __init__(
        self,
        learning_rate=0.01,
        weight_decay=0.0,
        *,
        epochs=30,
        batch_size=64,
        min_steps=500,
        class_weight=None,
        standardize=False,
        early_stopping=False,
        validation_fraction=0.1,
        n_iter_no_change=5,
        random_state=None,
        verbose=0,
    ):
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.batch_size = batch_size
        self.min_steps = min_steps
        self.class_weight = class_weight
        self.standardize = standardize
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.random_state = random_state
        self.verbose = verbose


class MLPTuneClassifier(OnlineClassifier):
    """MLP tuning: cross-entropy through z = MLP(f), the same network as NMTune without its terms.

    As in `LinearProbe`, few rows get at least 500 steps, which the paper's recipe would not give.

    Args:
      preset: "paper", z = MLP(f); "release", z = s ⊙ MLP(f) + f. MLP: D → 4D, BatchNorm, ReLU → D.
      others: as in `LinearProbe`.
    """

    _method = "mlp"

    def __init__(
        self,
        preset="paper",
        *,
        learning_rate=1e-3,
        weight_decay=1e-4,
        epochs=30,
        batch_size=64,
        min_steps=500,
        class_weight=None,
        standardize=False,
        early_stopping=False,
        validation_fraction=0.1,
        n_iter_no_change=5,
        random_state=None,
        verbose=0,
    ):
        self.preset = preset
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.batch_size = batch_size
        self.min_steps = min_steps
        self.class_weight = class_weight
        self.standardize = standardize
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.random_state = random_state
        self.verbose = verbose


class _NMTune:
    """The arguments of NMTune."""

    _method = "nmtune"

    def __init__(
        self,
        preset="paper",
        weights=None,
        *,
        learning_rate=1e-3,
        weight_decay=1e-4,
        epochs=30,
        batch_size=64,
        min_steps=500,
        class_weight=None,
        standardize=False,
        early_stopping=False,
        validation_fraction=0.1,
        n_iter_no_change=5,
        random_state=None,
        verbose=0,
    ):
        self.preset = preset
        self.weights = weights
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.batch_size = batch_size
        self.min_steps = min_steps
        self.class_weight = class_weight
        self.standardize = standardize
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.random_state = random_state
        self.verbose = verbose


class NMTuneClassifier(_NMTune, OnlineClassifier):
    """NMTune (eq. 7): L_CE + λ(L_MSE + L_COV + L_SVD) through an MLP on frozen features.

    As in `LinearProbe`, few rows get at least 500 steps, which the paper's recipe would not give.

    Args:
      preset: "paper" or "release", as in `MLPTuneClassifier`; also sets the default λ.
      weights: λ, one number or (MSE, COV, SVD); None for the preset's.
      others: as in `LinearProbe`.
    """


class NMTuneTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, _NMTune, HeadEstimator):
    """Learns NMTune's MLP from X [n d] and y [n]; `transform` gives Z [n d] for any classifier.

    Arguments as `NMTuneClassifier`. Z comes in the precision of X, float32 or float64.
    """

    def transform(self, X):
        """Z [n d] of features X [n d]."""
        return numpy_transform(self._parameters, self._statistics, self._checked(X))

    @property
    def _n_features_out(self) -> int:
        return self.n_features_in_

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.transformer_tags.preserves_dtype = ["float32", "float64"]
        return tags
