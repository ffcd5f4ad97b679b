"""Frozen model in, features out: extraction, and the feature stores they are kept in."""

from noisy_fm.features.prediction import check_names, predict, predictor, stream
from noisy_fm.features.store import FeatureStore, GrowingStore, open_store, write_store

__all__ = [
    "FeatureStore",
    "GrowingStore",
    "check_names",
    "open_store",
    "predict",
    "predictor",
    "stream",
    "write_store",
]
