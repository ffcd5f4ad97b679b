"""Heads on features F [m d]: linear, and NMTune's MLP. Pure functions of dicts of arrays.

    "linear"    Z = F
    "plain"     Z = MLP(F), NMTune's preset "paper"
    "residual"  Z = s ⊙ MLP(F) + F, preset "release"

Class scores are Z W + b. MLP: D → 4D, BatchNorm, ReLU → D. `params` hold "kernel" W, "bias" b and,
where there is an MLP, "mlp"; `statistics` are BatchNorm's running ones, {} for a linear head.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

NORM_EPSILON, NORM_MOMENTUM = 1e-5, 0.1
BLOCK = 4096  # rows whose hidden layer NumPy holds at a time


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
    return _narrowed(p, f, jax.nn.relu(hidden + p["norm_bias"])), statistics


def scores(params: dict, z):
    """Class scores [m c] of Z [m d]."""
    return z @ params["kernel"] + params["bias"]


def logits(params: dict, statistics: dict, f):
    """Class scores [m c] of features [m d] at evaluation."""
    return scores(params, transform(params, statistics, f.astype(jnp.float32))[0])


def numpy_transform(params: dict, statistics: dict, f: np.ndarray) -> np.ndarray:
    """`transform` at evaluation in NumPy and F's precision, BatchNorm as one scale and one shift.

    There is nothing to compile, and rows do not depend on others.
    """
    if "mlp" not in params:
        return f
    p = {name: np.asarray(value, f.dtype) for name, value in params["mlp"].items()}
    scale = p["norm_scale"] / np.sqrt(np.asarray(statistics["var"], f.dtype) + NORM_EPSILON)
    shift = (p["bias_in"] - statistics["mean"]) * scale + p["norm_bias"]
    scale, shift = scale.astype(f.dtype), shift.astype(f.dtype)
    z = np.empty_like(f)
    for i in range(0, len(f), BLOCK):
        rows = f[i : i + BLOCK]
        z[i : i + BLOCK] = _narrowed(p, rows, np.maximum(rows @ p["kernel_in"] * scale + shift, 0))
    return z


def numpy_logits(params: dict, statistics: dict, f: np.ndarray) -> np.ndarray:
    """Class scores [n c] of F [n d] at evaluation, in NumPy and F's precision."""
    classifier = {name: np.asarray(params[name], f.dtype) for name in ("kernel", "bias")}
    return scores(classifier, numpy_transform(params, statistics, f))


def _narrowed(p: dict, f, active):
    """Z [m d] of the rectified hidden layer [m 4d]."""
    z = active @ p["kernel_out"] + p["bias_out"]
    return f + p["scale"] * z if "scale" in p else z


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
