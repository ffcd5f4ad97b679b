"""scikit-learn's face of the probes: LP, MLP tuning and NMTune on a matrix of frozen features.

    from noisy_fm import NMTuneClassifier
    model = NMTuneClassifier(random_state=0).fit(X, y)
    model.predict_proba(X_new); model.save("head.safetensors")

They follow scikit-learn's conventions in full: pipelines, searches, cross-validation, pandas.
"""

from noisy_fm.estimator.heads import (
    LinearProbe,
    MLPTuneClassifier,
    NMTuneClassifier,
    NMTuneTransformer,
)
from noisy_fm.estimator.search import NMTuneClassifierCV

__all__ = [
    "LinearProbe",
    "MLPTuneClassifier",
    "NMTuneClassifier",
    "NMTuneClassifierCV",
    "NMTuneTransformer",
]
