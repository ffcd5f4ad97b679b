"""What a config asks for, built: data with its noise, model and loss, optimiser, fresh state."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from ml_collections import ConfigDict

from noisy_fm import config as config_lib
from noisy_fm import data as data_lib
from noisy_fm import models, noise, optim, sharding, tasks
from noisy_fm.data import augment, loader
from noisy_fm.data.storage.labels import appearance
from noisy_fm.train import writers
from noisy_fm.train.state import StatePlan, TrainState, init_state, plan_state


class Setup(NamedTuple):
    """A run made from a config, ready for `fit`; `state` is fresh, `manifest` is its noise."""

    task: tasks.Task
    tx: optax.GradientTransformation
    state: TrainState
    mesh: jax.sharding.Mesh
    source: Any
    eval_source: Any
    manifest: noise.Manifest
    labels: np.ndarray
    steps: int


def setup(config: ConfigDict) -> Setup:
    """Builds data, noise, model, optimiser and state; raises one clear line for what cannot be."""
    config_lib.check_train(config)
    writers.check(config.writers)
    mesh = sharding.make_mesh(**config.mesh)
    sharding.check_batch(config.batch_size // config.microbatches, mesh)
    source, eval_source = (load_split(config, s) for s in (config.split, config.eval_split))
    check_splits(config, source, eval_source)
    if hasattr(source, "crops") and config.augment.name != "imagenet":
        raise ValueError(
            f"config.augment.name is {config.augment.name!r}; images on disk come as crops to be "
            "resized, so expected 'imagenet' (start from configs/pretrain/folder.py)"
        )
    labels, manifest = corrupted(config, source)
    task = make_task(config, source.num_classes)
    example = loader.example(eval_source)
    plan = plan_training(config, task, example, mesh=mesh, num_examples=len(source))
    steps, _ = config_lib.num_steps(config, len(source))
    if config.profile and config.profile[1] > steps:
        raise ValueError(f"config.profile is {config.profile}; training has {steps} steps")
    state = init_state(plan)
    return Setup(task, plan.tx, state, mesh, source, eval_source, manifest, labels, steps)


def check_splits(config: ConfigDict, source, eval_source) -> None:
    """Raises ValueError unless both have the same two classes or more, and no image in common.

    What it cannot be sure of (a class with no image in one of them), it says.
    """
    where = f"config.split {config.split!r}", f"config.eval_split {config.eval_split!r}"
    ours, theirs = source.label_names, eval_source.label_names
    if config.split == config.eval_split:
        raise ValueError(
            f"config.split and config.eval_split are both {config.split!r}; expected two splits, "
            "as training images cannot validate (config.evaluators.memorised measures them)"
        )
    if ours != theirs:
        here, there = next(pair for pair in zip_longest(ours, theirs) if len({*pair}) > 1)
        what = f"config.split has {len(ours)} classes, config.eval_split has {len(theirs)}"
        if len(ours) == len(theirs):
            what = f"config.split and config.eval_split have different classes ({len(ours)} each)"
        raise ValueError(
            f"{what}; expected the same in both, in the same order"
            + (
                _alone(where[0], ours, theirs) + _alone(where[1], theirs, ours)
                or f"; the first that differs is {here} in one, {there} in the other"
            )
        )
    if len(ours) < 2:
        raise ValueError(
            f"{where[0]} has one class only, {ours[0]!r}; expected two or more to tell apart"
        )
    if both := data_lib.shared(source, eval_source):
        name = source.name(both[0]) if hasattr(source, "name") else f"id {source.ids[both[0]]}"
        raise ValueError(
            f"{where[0]} and {where[1]} have images in common ({len(both)} found, as {name}); "
            "expected two splits without"
        )
    for place, one in zip(where, (source, eval_source), strict=True):
        counts = np.bincount(one.labels, minlength=len(ours))
        empty = [name for name, count in zip(ours, counts, strict=True) if not count]
        if empty:
            logging.warning(
                "%s: %d of %d classes have no image, as %s",
                *(place, len(empty), len(ours), empty[0]),
            )


def _alone(place: str, names: Sequence[str], others: Sequence[str]) -> str:
    """What only one side has, for the end of a message; letter by letter where it looks alike."""
    only = sorted(set(names) - set(others))
    if not only:
        return ""
    looks = {appearance(name) for name in others}
    shown = [ascii(name) if appearance(name) in looks else name for name in only[:3]]
    alike = " (composed or decomposed letters)" if shown != only[:3] else ""
    return f"; only {place} has {', '.join(shown)}{alike}"


def plan_training(
    config: ConfigDict, task: tasks.Task, example: Mapping, *, mesh, num_examples: int
) -> StatePlan:
    """The state's shapes and layout, and the optimiser, for training on so many examples.

    Nothing is computed; `mesh` may be of devices that are not there.
    """
    steps, steps_per_epoch = config_lib.num_steps(config, num_examples)
    rate = optim.schedule(config, steps=steps, steps_per_epoch=steps_per_epoch)
    return plan_state(
        task,
        lambda multipliers: optim.optimizer(config, rate, multipliers=multipliers),
        example,
        mesh=mesh,
        trainable=config.trainable,
        rules=config.sharding,
        seeds=config.seeds,
        ema=config.ema > 0,
    )


def load_split(config: ConfigDict, split: str):
    """The source of `config.data` restricted to `split`; empty strings mean "not given"."""
    arguments = {key: value or None for key, value in config.data.items() if key != "name"}
    try:
        return data_lib.load(config.data.name, split=split, **arguments)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"config.data: {error}") from None
    except ValueError as error:
        raise ValueError(f"config.data: {error}") from None


def corrupted(config: ConfigDict, source) -> tuple[np.ndarray, noise.Manifest]:
    """(labels, manifest) of `source` under `config.noise`."""
    arguments = dict(config.noise)
    rate = arguments.pop("rate")
    given = ("labels", "num_classes", "ids", "seed")
    config_lib.check_arguments(noise.flip_labels, arguments, where="config.noise", given=given)
    chosen = np.ravel(arguments.get("classes") or ())
    if chosen.dtype.kind == "i" and chosen.max() >= source.num_classes:
        raise ValueError(
            f"config.noise.classes go up to {chosen.max()}, and the data have {source.num_classes} "
            "classes; expected some of theirs (those of noise_kind=subset are ImageNet-1K's)"
        )
    try:
        labels, manifest = noise.flip_labels(
            source.labels,
            source.num_classes,
            rate,
            ids=source.ids,
            seed=config.seeds.noise,
            **arguments,
        )
    except (ValueError, TypeError) as error:
        raise type(error)(f"config.noise: {error}") from None
    if rate and not manifest.base:
        raise ValueError(
            f"config.noise.rate {rate} flips no label: no example is of config.noise.classes"
        )
    return labels, manifest


def make_task(config: ConfigDict, num_classes: int) -> tasks.Task:
    """The config's model and loss as a Task; modules without a trainable parameter are frozen."""
    arguments = dict(config.model)
    if {"dtype", "num_classes"} & set(arguments):
        raise ValueError("config.model sets dtype or num_classes; use config.precision and data")
    model = models.create(
        arguments.pop("name"), num_classes, dtype=jnp.dtype(config.precision), **arguments
    )
    arguments = dict(config.augment)
    make_augment = augment.AUGMENTATIONS[arguments.pop("name")]
    config_lib.check_arguments(make_augment, arguments, where="config.augment", given=("size",))
    if config.augment.name == "imagenet":
        arguments["size"] = config.data.size
    return tasks.classify(
        model,
        num_classes,
        loss=config.loss.name,
        label_smoothing=config.loss.label_smoothing,
        augment=make_augment(**arguments),
        mix=config.mix,
        normalize=config.normalize,
        frozen=lambda module: optim.frozen(f"{module}/scale", config.trainable),
    )


def train_batches(
    config: ConfigDict,
    made: Setup,
    *,
    start: int,
    stop: int,
    unreadable: Mapping[str, str] | None = None,
):
    """This host's rows of the global batches `start … stop − 1`, with the wrong labels.

    `unreadable` is what `damage.record` of earlier batches said.
    """
    return loader.train_batches(
        made.source,
        batch_size=config.batch_size,
        seed=config.seeds.order,
        start=start,
        stop=stop,
        corrupt=loader.relabel(made.source.ids, made.labels),
        rows=sharding.host_rows(made.mesh, config.batch_size),
        repeats=config.repeats,
        workers=config.loader.workers,
        threads=config.loader.threads or None,
        buffer=config.loader.buffer,
        damage=loader.Damage(config.loader.max_bad, unreadable),
    )
