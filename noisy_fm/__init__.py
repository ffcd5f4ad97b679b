"""Noisy model learning in JAX: what supervision noise does to a model, and NMTune against it.

    from noisy_fm import NMTuneClassifier, diagnose, spectrum

Names are imported when they are first used, so `import noisy_fm` is immediate.
"""

import importlib

__version__ = "0.1.0"

_MODULES = (
    *("data", "features", "figures", "losses", "models", "nmtune", "noise", "probe"),
    "spectrum",
)
_NAMES = {
    "LinearProbe": "estimator",
    "MLPTuneClassifier": "estimator",
    "NMTuneClassifier": "estimator",
    "NMTuneClassifierCV": "estimator",
    "NMTuneTransformer": "estimator",
    "diagnose": "estimator.diagnosis",
    "load_model": "model",
}
__all__ = [*_MODULES, *_NAMES]


def __getattr__(name: str):
    if name in _MODULES:
        return importlib.import_module(f"noisy_fm.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"noisy_fm.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'noisy_fm' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
