"""What the weights of examples and of classes mean, whatever their scale."""

import reprlib

import numpy as np

from noisy_fm.messages import unknown

FARTHEST = 900  # powers of two from 1 that a sum of many float64 weights stands


def exponent(weights) -> int:
    """e such that the largest of weights [n] ≥ 0 lies in [2^(e−1), 2^e)."""
    return int(np.frexp(np.max(weights))[1])


def scaled(weights, power: int) -> np.ndarray:
    """weights [n] · 2^−power, exactly; what is above 0 stays above 0, and sums stay finite."""
    moved = np.ldexp(weights, -power).clip(2.0**-FARTHEST, 2.0**FARTHEST)
    return np.where(weights > 0, moved, 0.0)


def of_classes(class_weight, classes, labels, weights) -> np.ndarray:
    """float64 [c], scikit-learn's `class_weight` of `classes` [c] on labels 0…c−1 [n].

    "balanced": Σw / (c · Σw of the class), with weights [n]; a dict: its values, and 1 for a class
    that it leaves out; None: 1. Raises ValueError for anything else, for a weight below 0 or not
    finite, for no class above 0, and, as scikit-learn does, for a name that is no class while a
    class goes without.
    """
    if class_weight is None:
        return np.ones(len(classes))
    if isinstance(class_weight, str) and class_weight == "balanced":
        counts = np.bincount(labels, weights, minlength=len(classes))
        present = counts > 0
        shares = np.where(present, counts, 1) * np.sum(present)
        return np.where(present, counts.sum() / shares, 1.0)
    if not isinstance(class_weight, dict):
        raise ValueError(
            f"class_weight must be None, 'balanced' or a dict of class: weight, "
            f"got {class_weight!r}"
        )
    names = classes.tolist()
    given = {k.item() if isinstance(k, np.generic) else k: v for k, v in class_weight.items()}
    strangers = [name for name in given if name not in names]
    if strangers and not all(name in given for name in names):
        raise ValueError(_no_class(strangers[0], names))
    for name, value in given.items():
        if not isinstance(value, (int, float, np.number)) or not 0 <= value < np.inf:
            raise ValueError(f"class_weight[{name!r}] must be a number ≥ 0, got {value!r}")
    found = np.array([given.get(name, 1.0) for name in names], np.float64)
    if not found.any():
        raise ValueError("class_weight is 0 for every class: at least one must be positive")
    return found


def _no_class(name, names: list) -> str:
    """One line for a name that is none of the classes `names`: a guess at a text, or the types."""
    if isinstance(name, str) and isinstance(names[0], str):
        return unknown("class in class_weight", name, names)
    kind = type(names[0]).__name__
    return (
        f"class_weight names {name!r} ({type(name).__name__}), which is none of the "
        f"{len(names)} classes ({kind}): {reprlib.repr(names)}"
    )
