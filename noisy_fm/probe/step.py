"""One training step of one head: eq. 7 on a batch, and AdamW on its gradient. Pure functions."""

import jax
import jax.numpy as jnp
import numpy as np

from noisy_fm import nmtune
from noisy_fm.models import heads
from noisy_fm.probe import fast
from noisy_fm.probe.head import TERMS


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
    z, statistics = heads.transform(params, statistics, rows, mask=mask, momentum=momentum)
    value = fast.cross_entropy(heads.scores(params, z), labels, mask)
    total = value
    if preset is not None:
        named = dict(zip(TERMS, weights, strict=True))
        total += nmtune.nmtune_loss(z, rows, preset, weights=named, mask=mask, views=views)
    return share * total, (statistics, share * value)


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
    read=lambda params: params,
):
    """One AdamW step of one head. `step` counts from 1; `preset` as in `loss`.

    state: {"params", "statistics", "mean", "square"}; `read` makes a head's parameters of what it
    holds. `weight_decay` is (on matrices, on vectors). Returns (state, cross-entropy).
    """

    def objective(params):
        batch = (f, labels, mask, share, momentum)
        return loss(read(params), state["statistics"], *batch, weights, preset=preset)

    gradient, (statistics, value) = jax.grad(objective, has_aux=True)(state["params"])
    moved = fast.adamw(state, gradient, learning_rate, weight_decay, step)
    return {**moved, "statistics": statistics}, value


def start_state(layout: str, seed: int, width: int, num_classes: int) -> dict:
    """Parameters, statistics and AdamW's two zero moments, before the first step."""
    params, statistics = heads.initialize(layout, seed, width, num_classes)
    zeros = jax.tree.map(jnp.zeros_like, params)
    return {"params": params, "statistics": statistics, "mean": zeros, "square": zeros}


def cosine(peak: float, steps: int) -> np.ndarray:
    """Learning rates of steps 0..steps−1: peak·(1 + cos(πt/T))/2, which would be 0 at step T."""
    return 0.5 * peak * (1 + np.cos(np.pi * np.arange(steps) / steps))
