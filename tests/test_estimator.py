"""Estimators against scikit-learn's own checks and models."""

from sklearn.utils.estimator_checks import parametrize_with_checks

from noisy_fm import LinearProbe, MLPTuneClassifier, NMTuneClassifier, NMTuneTransformer


@parametrize_with_checks(
    [LinearProbe(), MLPTuneClassifier(), NMTuneClassifier(), NMTuneTransformer()]
)
def test_scikit_learn_checks(estimator, check):
    check(estimator)
