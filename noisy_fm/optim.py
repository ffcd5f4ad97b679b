"""Schedules and optimisers from the config, and which parameters train at all."""

import re
from collections.abc import Sequence

import jax
import optax
from flax import traverse_util
from ml_collections import ConfigDict

from noisy_fm import config as config_lib
from noisy_fm.messages import unknown

OPTIMIZERS = {"adamw": optax.adamw, "lamb": optax.lamb, "sgd": optax.sgd}


def schedule(config: ConfigDict, *, steps: int, steps_per_epoch: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then cosine or linear to 0, or constant."""
    peak = config.optimizer.learning_rate
    warmup = round(config.schedule.warmup_epochs * steps_per_epoch)
    rest = max(1, steps - warmup)
    after = {
        "cosine": optax.cosine_decay_schedule(peak, rest),
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "constant": optax.constant_schedule(peak),
    }
    if config.schedule.name not in after:
        raise ValueError(unknown("config.schedule.name", config.schedule.name, after))
    decay = after[config.schedule.name]
    if not warmup:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), decay], [warmup])


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
