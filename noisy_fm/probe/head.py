"""What a head is, as data: its method and its recipe, checked."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from noisy_fm import nmtune
from noisy_fm.messages import unknown
from noisy_fm.scalars import as_whole, plain

# Learning rate, weight decay and epochs as the paper's recipes give them; for "ridge" and
# "logreg" the weight decay is the L2 penalty (closed form and L-BFGS take no other setting).
DEFAULTS = {
    "lp": {"learning_rate": 0.01, "weight_decay": 0.0, "epochs": 30},
    "mlp": {"learning_rate": 1e-3, "weight_decay": 1e-4, "epochs": 30},
    "nmtune": {"learning_rate": 1e-3, "weight_decay": 1e-4, "epochs": 30},
    "ridge": {"learning_rate": 0.0, "weight_decay": 1.0, "epochs": 0},
    "logreg": {"learning_rate": 0.0, "weight_decay": 1e-4, "epochs": 0},
    "knn": {"learning_rate": 0.0, "weight_decay": 0.0, "epochs": 0},
}
TRAINED = ("lp", "mlp", "nmtune")
PRESETS = ("paper", "release")
TERMS = ("mse", "cov", "svd")


@dataclasses.dataclass(frozen=True)
class Head:
    """One head to fit, as data; what is left None takes the method's recipe from the paper.

    method         "lp" (linear), "mlp", "nmtune"; reference points "ridge", "logreg", "knn"
    preset         "paper": z = MLP(f), first view only, decay on matrices only;
                   "release": z = s ⊙ MLP(f) + f, all stored views, decay on every parameter
    seed           of the subset, the label noise, the initialisation and the order of examples
    weights        λ on the three terms of eq. 7: one number, or (MSE, COV, SVD); NMTune's only
    fraction       share of each class's training examples, at least one; nested for one seed
    label_noise    η, share of the labels flipped after subsetting
    neighbors      k of "knn"

    Raises ValueError for an unknown method or preset and for a value out of range.
    """

    method: str = "nmtune"
    preset: str = "paper"
    seed: int = 0
    # None stands for the recipe, which __post_init__ fills in; weights become a triple there.
    learning_rate: float = None  # type: ignore[assignment]
    weight_decay: float = None  # type: ignore[assignment]
    weights: float | Sequence[float] = None  # type: ignore[assignment]
    fraction: float = 1.0
    label_noise: float = 0.0
    epochs: int = None  # type: ignore[assignment]
    batch_size: int = 64
    neighbors: int = 20

    def __post_init__(self):
        for field in dataclasses.fields(self):  # NumPy's scalars as what they print as
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))
        _choice("method", self.method, DEFAULTS)
        _choice("preset", self.preset, PRESETS)
        for name, value in DEFAULTS[self.method].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        object.__setattr__(self, "weights", self._three_weights())
        trained = self.method in TRAINED
        _between("learning_rate", self.learning_rate, 0, math.inf, above=trained)
        _between("weight_decay", self.weight_decay, 0, math.inf)
        _between("fraction", self.fraction, 0, 1, above=True)
        _between("label_noise", self.label_noise, 0, 1, below=True)
        as_whole("seed", self.seed, 0)
        _between("seed", self.seed, 0, 2**32 - 1)
        as_whole("epochs", self.epochs, int(trained))
        as_whole("batch_size", self.batch_size, 1)
        if self.batch_size < 2 and self.layout != "linear":
            raise ValueError(f"batch_size must be at least 2 for BatchNorm, got {self.batch_size}")
        as_whole("neighbors", self.neighbors, 1)

    def _three_weights(self) -> tuple[float, ...]:
        if self.method != "nmtune":
            if self.weights is not None and np.any(np.asarray(self.weights) != 0):
                raise ValueError(f"weights belong to method 'nmtune', not to {self.method!r}")
            return (0.0, 0.0, 0.0)
        recipe: dict = nmtune.PRESETS[self.preset]["weights"]  # type: ignore[assignment]
        default = tuple(recipe[name] for name in TERMS)
        try:
            weights = np.asarray(default if self.weights is None else self.weights, float)
        except (ValueError, TypeError):  # text, or lists of several lengths
            weights = np.zeros(0)
        if weights.shape not in ((), (3,)):
            raise ValueError(
                f"weights must be one number or three ({', '.join(TERMS)}), got {self.weights!r}"
            )
        values = tuple(float(w) for w in np.broadcast_to(weights, 3))
        for value in values:
            _between("weights", value, 0, math.inf)
        return values

    @property
    def layout(self) -> str:
        """The architecture: "linear", "plain" (MLP) or "residual" (MLP with learned scale)."""
        if self.method not in ("mlp", "nmtune"):
            return "linear"
        return "plain" if self.preset == "paper" else "residual"

    @property
    def regularized(self) -> bool:
        return bool(np.any(self.weights))


def _choice(name: str, value, options) -> None:
    if value not in options:
        raise ValueError(unknown(name, value, options))


def _between(name: str, value: Any, low, high, *, above=False, below=False) -> None:
    inside = np.isscalar(value) and not isinstance(value, str) and math.isfinite(value)  # type: ignore[arg-type]
    if inside:
        inside = (low < value if above else low <= value) and (
            value < high if below else value <= high
        )
    if not inside:
        left, right = "(" if above else "[", ")" if below or math.isinf(high) else "]"
        raise ValueError(f"{name} must lie in {left}{low}, {high}{right}, got {value!r}")
