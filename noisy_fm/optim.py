"""Schedules and optimisers from the config, microbatches, averages, and what trains at all."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from ml_collections import ConfigDict

from noisy_fm import config as config_lib
from noisy_fm.messages import unknown


def lamb(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    *,
    weight_decay: float = 0.0,
    mask: Any = None,
    trust_clip: bool = False,
    always_adapt: bool = False,
) -> optax.GradientTransformation:
    """LAMB (You et al., ICLR 2020): Adam's step u, scaled by ‖p‖/‖u‖ for each parameter p.

    p ← p − η · ‖p‖/‖u‖ · u with u = m̂/(√v̂ + eps) + weight_decay · p, the ratio being 1 where a
    norm is 0. `mask` (a tree of booleans, or a function of the parameters) says what is decayed;
    the others (biases, norms) take Adam's plain step, or a scaled one too if `always_adapt`.
    trust_clip: the ratio is at most 1 (LAMBC). The gradient's global norm is not clipped here.

    `optax.lamb` scales what is not decayed too, which timm's and NVIDIA's do not; the recipes'
    learning rates are for theirs.
    """

    def ratio(param, update):
        p, u = (jnp.sqrt(jnp.sum(jnp.square(x))) for x in (param, update))
        defined = (p > 0) & (u > 0)
        value = jnp.where(defined, p / jnp.where(defined, u, 1.0), 1.0)
        return jnp.minimum(value, 1.0) if trust_clip else value

    trust = optax.stateless(
        lambda updates, params: jax.tree.map(lambda u, p: u * ratio(p, u), updates, params)
    )
    if not always_adapt:
        decayed = (True if mask is None else mask) if weight_decay else False
        trust = optax.masked(trust, decayed if callable(decayed) else lambda params: decayed)
    return optax.chain(
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.add_decayed_weights(weight_decay, mask=mask),
        trust,
        optax.scale_by_learning_rate(learning_rate),
    )


OPTIMIZERS = {"adamw": optax.adamw, "lamb": lamb, "sgd": optax.sgd}


def schedule(config: ConfigDict, *, steps: int, steps_per_epoch: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then cosine or linear to `min_rate`, or constant.

    The warm-up starts at `warmup_rate`. The decay spans the steps after it, or, without
    `warmup_prefix`, all steps, of which the warm-up replaces the first, as timm has it. `per_epoch`
    holds the rate of an epoch's first step throughout it.
    """
    group = config.schedule
    peak, last = config.optimizer.learning_rate, group.min_rate
    warmup = round(group.warmup_epochs * steps_per_epoch)
    rest = max(1, steps - warmup) if group.warmup_prefix else steps
    after = {
        "cosine": optax.cosine_decay_schedule(peak, rest, alpha=last / peak if peak else 0.0),
        "linear": optax.linear_schedule(peak, last, rest),
        "constant": optax.constant_schedule(peak),
    }
    if group.name not in after:
        raise ValueError(unknown("config.schedule.name", group.name, after))
    rate = after[group.name]
    if warmup:
        rise = optax.linear_schedule(group.warmup_rate, peak, warmup)
        decay, skipped = rate, 0 if group.warmup_prefix else warmup
        rate = optax.join_schedules([rise, lambda step: decay(step + skipped)], [warmup])
    if group.per_epoch:
        return lambda step: rate(step // steps_per_epoch * steps_per_epoch)
    return rate


def optimizer(
    config: ConfigDict, rate: optax.Schedule, *, multipliers: dict
) -> optax.GradientTransformation:
    """The config's optimiser over trainable parameters, kept flat as `{path: array}`.

    `multipliers` scales each parameter's schedule. Weight decay touches paths that match
    `config.decay`; it is decoupled, except for SGD, where it enters the momentum as in PyTorch.
    """
    arguments = dict(config.optimizer)
    name, decay = arguments.pop("name"), arguments.pop("weight_decay")
    if name not in OPTIMIZERS:
        raise ValueError(unknown("config.optimizer.name", name, OPTIMIZERS))
    make = OPTIMIZERS[name]
    config_lib.check_arguments(make, arguments, where="config.optimizer", given=("mask",))
    arguments["learning_rate"] = rate
    decayed = {path: bool(re.search(config.decay, path)) for path in multipliers}
    stages = []
    if config.clip:
        stages.append(optax.clip_by_global_norm(config.clip))
    if name == "sgd":
        stages.append(optax.add_decayed_weights(decay, mask=decayed))
        stages.append(make(**arguments))
    else:
        stages.append(make(**arguments, weight_decay=decay, mask=decayed))
    if any(value != 1.0 for value in multipliers.values()):
        stages.append(
            optax.stateless(
                lambda updates, _: {path: u * multipliers[path] for path, u in updates.items()}
            )
        )
    return optax.chain(*stages)


def split(params, rules: Sequence[tuple[str, float | None]]) -> tuple[dict, dict, dict]:
    """(trainable, frozen, multipliers), each flat `{path: …}`; every parameter must match a rule.

    Frozen parameters are split off before `grad`, so they have no gradient and no moments.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    trainable, fixed, multipliers = {}, {}, {}
    for path, value in flat.items():
        rule = _rule(path, rules)
        if rule is None:
            fixed[path] = value
        else:
            trainable[path], multipliers[path] = value, float(rule)
    if not trainable:
        raise ValueError("config.trainable freezes every parameter; expected one to train")
    return trainable, fixed, multipliers


def frozen(path: str, rules: Sequence[tuple[str, float | None]]) -> bool:
    """Whether the parameter at `path` does not train."""
    return _rule(path, rules) is None


def _rule(path: str, rules: Sequence[tuple[str, float | None]]) -> float | None:
    for regex, rate in rules:
        if re.search(regex, path):
            return rate
    raise ValueError(f"parameter {path} matches no rule of config.trainable")


def join(trainable: dict, frozen: dict):
    """The nested parameters that `split` took apart."""
    return traverse_util.unflatten_dict({**trainable, **frozen}, sep="/")


def count(params) -> int:
    """Number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def accumulate(
    loss_fn: Callable, params, model_state, batch: dict, key: jax.Array, *, microbatches: int = 1
):
    """((loss, (model_state, outputs)), gradient) of the whole batch, a part at a time.

    loss_fn(params, model_state, batch, key) → (loss, (model_state, outputs)), as a Task's, whose
    loss is a mean over the rows that `batch["mask"]` marks (all without it). The parts' losses and
    gradients are averaged with their number of such rows as weights, which makes them the whole
    batch's; outputs with a row each come back in the batch's order, scalars are averaged likewise.
    `model_state` passes from part to part: BatchNorm normalises by the part's statistics, and its
    running ones move once a part. Each part has its own key.

    Part i of k has the rows i, i + k, …: as many from each device, none of which has to move.
    Raises ValueError if the rows do not divide by `microbatches`.
    """
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    if microbatches == 1:
        return grad_fn(params, model_state, batch, key)
    rows, parts = len(jax.tree.leaves(batch)[0]), _parts(batch, microbatches)
    ones = jnp.ones((microbatches, rows // microbatches))
    weights = (parts["mask"] != 0 if "mask" in parts else ones).sum(1).astype(jnp.float32)
    weights = weights / jnp.maximum(weights.sum(), 1)

    def one_part(carry, inputs):
        model_state, total = carry
        part, weight, key = inputs
        (loss, (model_state, outputs)), grads = grad_fn(params, model_state, part, key)
        total = jax.tree.map(lambda sum_, new: sum_ + weight * new, total, (loss, grads))
        return (model_state, total), outputs

    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    keys = jax.random.split(key, microbatches)
    (model_state, (loss, grads)), outputs = jax.lax.scan(
        one_part, (model_state, zero), (parts, weights, keys)
    )
    outputs = jax.tree.map(lambda x: _joined(x) if x.ndim > 1 else weights @ x, outputs)
    return (loss, (model_state, outputs)), grads


def accumulate_embeddings(
    loss_fn: Callable,
    params,
    model_state,
    batch: dict,
    key: jax.Array,
    *,
    microbatches: int = 1,
    embed_fn: Callable,
    combine_fn: Callable,
):
    """What `accumulate` gives, of a loss that compares all rows (GradCache; Gao et al., 2021).

    `embed_fn` and `combine_fn` are a `tasks.Parts`. All parts are embedded, the loss of all
    embeddings and its gradient for them taken, and each part embedded again for the gradient of the
    parameters: memory is a part's, the result the whole batch's. BatchNorm normalises by the part.
    """
    if microbatches == 1:
        return jax.value_and_grad(loss_fn, has_aux=True)(params, model_state, batch, key)
    parts = _parts(batch, microbatches)
    keys = jax.random.split(key, microbatches)

    def embed(model_state, inputs):
        embeddings, model_state = embed_fn(params, model_state, *inputs)
        return model_state, embeddings

    new_state, embeddings = jax.lax.scan(embed, model_state, (parts, keys))
    together = jax.tree.map(_joined, embeddings)
    combine = jax.value_and_grad(combine_fn, argnums=(0, 1), has_aux=True)
    (loss, outputs), (grads, cotangents) = combine(params, together, batch)

    def one_part(carry, inputs):
        model_state, total = carry
        part, key, cotangent = inputs
        _, pull, model_state = jax.vjp(
            lambda p: embed_fn(p, model_state, part, key), params, has_aux=True
        )
        return (model_state, jax.tree.map(jnp.add, total, pull(cotangent)[0])), None

    (_, grads), _ = jax.lax.scan(
        one_part, (model_state, grads), (parts, keys, _parts(cotangents, microbatches))
    )
    return (loss, (new_state, outputs)), grads


def _parts(tree, count: int):
    """Rows i, i + count, … of every leaf [n …] as part i: [count n/count …]."""
    rows = len(jax.tree.leaves(tree)[0])
    if rows % count:
        raise ValueError(
            f"the batch has {rows} rows, config.microbatches is {count}; expected a divisor"
        )
    return jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(rows // count, count, *x.shape[1:]), 1, 0), tree
    )


def _joined(x):
    """The inverse of `_parts` for one leaf."""
    return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])


def ema_update(average, values, decay: float, step, *, warmup: bool = False):
    """The exponential moving average after one more step: decay · average + (1 − decay) · values.

    `values` is any tree: parameters, BatchNorm statistics; whole numbers in it are copied. `step`
    counts the updates made, this one included: the first (1) copies, so that the random start
    leaves no trace. `warmup` keeps the decay at most 1 − step^(−2/3), so that a short run is
    averaged too. As timm's ModelEmaV3 computes both.
    """
    step = jnp.asarray(step, jnp.float32)
    rate = jnp.maximum(1 - decay, step ** (-2 / 3)) if warmup else 1 - decay
    rate = jnp.where(step > 1, rate, 1.0)

    def update(old, new):
        if not jnp.issubdtype(new.dtype, jnp.floating):
            return new
        return (old + rate * (new - old)).astype(old.dtype)

    return jax.tree.map(update, average, values)
