"""What a head is: its recipe, its parameters, one training step. Pure functions of one head."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
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
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
NORM_EPSILON, NORM_MOMENTUM = 1e-5, 0.1


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


def initialize(layout: str, seed: int, width: int, num_classes: int) -> tuple[dict, dict]:
    """Parameters and BatchNorm statistics of one head, a function of the seed alone.

    The classifier is Kaiming-uniform, U(±√(6/D)), with zero bias; the MLP's two layers have
    PyTorch's default, U(±1/√fan_in), for weights and biases; BatchNorm and s start at 1 and 0.
    """
    keys = jax.random.split(jax.random.key(seed), 5)

    def uniform(key, bound, *shape):
        return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

    bound = math.sqrt(6 / width)
    params = {
        "kernel": uniform(keys[0], bound, width, num_classes),
        "bias": jnp.zeros(num_classes),
    }
    if layout == "linear":
        return params, {}
    hidden, narrow, wide = 4 * width, 1 / math.sqrt(width), 1 / math.sqrt(4 * width)
    params["mlp"] = {
        "kernel_in": uniform(keys[1], narrow, width, hidden),
        "bias_in": uniform(keys[2], narrow, hidden),
        "norm_scale": jnp.ones(hidden),
        "norm_bias": jnp.zeros(hidden),
        "kernel_out": uniform(keys[3], wide, hidden, width),
        "bias_out": uniform(keys[4], wide, width),
    }
    if layout == "residual":
        params["mlp"]["scale"] = jnp.ones(width)
    return params, {"mean": jnp.zeros(hidden), "var": jnp.ones(hidden)}


def transform(params: dict, statistics: dict, f, *, mask=None, momentum=NORM_MOMENTUM):
    """Z [m d] of F [m d], and the statistics; `mask` [m] trains (see `_batch_moments`).

    Without a mask BatchNorm reads the running statistics, as at evaluation.
    """
    if "mlp" not in params:
        return f, statistics
    p = params["mlp"]
    hidden = f @ p["kernel_in"] + p["bias_in"]
    if mask is None:
        mean, var = statistics["mean"], statistics["var"]
    else:
        mean, var, statistics = _batch_moments(hidden, mask, momentum, statistics)
    hidden = (hidden - mean) * (jax.lax.rsqrt(var + NORM_EPSILON) * p["norm_scale"])
    z = jax.nn.relu(hidden + p["norm_bias"]) @ p["kernel_out"] + p["bias_out"]
    return (f + p["scale"] * z if "scale" in p else z), statistics


def _batch_moments(hidden, mask, momentum, statistics):
    """Moments that hidden [m h] is normalised with, and the running ones moved by `momentum`.

    Rows of equal mask have the batch's moments; the running variance takes the unbiased one, as
    PyTorch's. Where weights leave few effective rows of those that there are, a batch's moments
    say little (a row alone would be normalised to 0), and the running moments take over by the
    share that is lost: 1 − (Σw)²/(m Σw²).
    """
    rows = mask.sum()
    even = rows / (mask != 0).sum()
    own = (hidden * mask[:, None]).sum(0) / rows
    mean = even * own + (1 - even) * statistics["mean"]
    var = (jnp.square(hidden - mean) * mask[:, None]).sum(0) / rows
    # E[var] is σ² (1 − (2e − e²)/rows) around a mean of which the share e is the batch's own.
    unbiased = var * (rows / jnp.maximum(rows - even * (2 - even), 0.25))
    new = {"mean": own, "var": unbiased}
    var = even * var + (1 - even) * statistics["var"]
    moved = {k: (1 - momentum) * statistics[k] + momentum * new[k] for k in new}
    return mean, var, jax.lax.stop_gradient(moved)


def logits(params: dict, statistics: dict, f):
    """Class scores [m c] of features [m d] at evaluation."""
    z, _ = transform(params, statistics, f.astype(jnp.float32))
    return z @ params["kernel"] + params["bias"]


def loss(params, statistics, f, labels, mask, share, momentum, weights, *, preset: str | None):
    """Eq. 7 on one batch: cross-entropy, plus the three terms where `preset` is given.

    f [b v d] with v views, labels [b], mask [b] (weights of real rows), weights [3]. All views
    enter the cross-entropy, L_COV and L_SVD; consistency compares the last view's z with the first
    view's f. Every term weighs rows by the mask, and the sum is times `share`, the batch's part of
    all weight: rows whose weight tends to 0 are left out of each. `momentum` is BatchNorm's.
    Returns (loss, (statistics, cross-entropy · share)).
    """
    views = f.shape[1]
    rows = jnp.swapaxes(f, 0, 1).reshape(-1, f.shape[2])
    mask, labels = jnp.tile(mask, views), jnp.tile(labels, views)
    z, statistics = transform(params, statistics, rows, mask=mask, momentum=momentum)
    value = cross_entropy(z @ params["kernel"] + params["bias"], labels, mask)
    total = value
    if preset is not None:
        named = dict(zip(TERMS, weights, strict=True))
        total += nmtune.nmtune_loss(z, rows, preset, weights=named, mask=mask, views=views)
    return share * total, (statistics, share * value)


@jax.custom_vjp
def cross_entropy(scores, labels, mask):
    """Σ mask·(−log softmax(scores)[label]) / Σ mask of scores [m c], labels [m], mask [m].

    Its gradient, mask·(softmax − one-hot)/Σ mask, is written out: two passes over [m c] less, and
    no gather, whose gradient is a scatter, slow on a CPU.
    """
    return _cross_entropy(scores, labels, mask)[0]


def _cross_entropy(scores, labels, mask):
    scores = scores - scores.max(axis=1, keepdims=True)
    powers = jnp.exp(scores)
    totals = powers.sum(axis=1, keepdims=True)
    chosen = labels[:, None] == jnp.arange(scores.shape[1])
    weights = mask / mask.sum()
    losses = jnp.log(totals[:, 0]) - jnp.where(chosen, scores, 0).sum(axis=1)
    return (weights * losses).sum(), (powers, totals, chosen, weights)


def _cross_entropy_gradient(kept, cotangent):
    powers, totals, chosen, weights = kept
    weights = cotangent * weights[:, None]
    return powers * (weights / totals) - jnp.where(chosen, weights, 0), None, None


cross_entropy.defvjp(_cross_entropy, _cross_entropy_gradient)


def transposed(params: dict) -> dict:
    """The parameters with the narrowing matrices (D → C, 4D → D) transposed, [out, in]."""

    def turn(path, a):
        return a.T if path[-1].key in ("kernel", "kernel_out") else a

    return jax.tree_util.tree_map_with_path(turn, params)


def train_step(
    state,
    f,
    labels,
    mask,
    share,
    momentum,
    weights,
    weight_decay,
    learning_rate,
    step,
    *,
    preset,
    flipped=False,
):
    """One AdamW step of one head. `step` counts from 1; `preset` as in `loss`.

    `flipped` states hold `transposed` parameters and moments, which is faster on a CPU: there the
    gradient of a kernel is then a product whose long side lies along the memory.

    state: {"params", "statistics", "mean", "square"}. Decay is decoupled (as `optax.adamw`) and
    `weight_decay` is (on matrices, on vectors). Returns (state, cross-entropy).
    """

    def objective(params):
        params = transposed(params) if flipped else params
        batch = (f, labels, mask, share, momentum)
        return loss(params, state["statistics"], *batch, weights, preset=preset)

    grads, (statistics, value) = jax.grad(objective, has_aux=True)(state["params"])
    size = learning_rate / (1 - BETA1**step)
    correction = 1 / (1 - BETA2**step)
    tree = jax.tree.map
    mean = tree(lambda m, g: BETA1 * m + (1 - BETA1) * g, state["mean"], grads)
    square = tree(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, state["square"], grads)
    params = tree(
        lambda p, m, v: (
            p * (1 - learning_rate * weight_decay[0 if p.ndim > 1 else 1])
            - size * m / (jnp.sqrt(v * correction) + EPSILON)
        ),
        state["params"],
        mean,
        square,
    )
    return {"params": params, "statistics": statistics, "mean": mean, "square": square}, value


def start_state(layout: str, seed: int, width: int, num_classes: int) -> dict:
    """Parameters, statistics and AdamW's two zero moments, before the first step."""
    params, statistics = initialize(layout, seed, width, num_classes)
    zeros = jax.tree.map(jnp.zeros_like, params)
    return {"params": params, "statistics": statistics, "mean": zeros, "square": zeros}


def cosine(peak: float, steps: int) -> np.ndarray:
    """Learning rates of steps 0..steps−1: peak·(1 + cos(πt/T))/2, which would be 0 at step T."""
    return 0.5 * peak * (1 + np.cos(np.pi * np.arange(steps) / steps))


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
