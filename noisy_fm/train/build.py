"""What a config asks for, planned: data with its noise, task, optimiser, the state's layout."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from noisy_fm import config as config_lib
from noisy_fm import data as data_lib
from noisy_fm import evaluators, noise, optim, sharding, tasks
from noisy_fm.corruptions import CORRUPTIONS
from noisy_fm.data import loader
from noisy_fm.data.damage import Damage
from noisy_fm.messages import require_known
from noisy_fm.train import writers
from noisy_fm.train.state import StatePlan, plan_state


class Setup(NamedTuple):
    """What a run will be, planned: nothing is computed, and nothing held but the examples' columns.

    `source` is trained on: `clean` with what `manifest` says made wrong. `plan` has the shapes and
    layout of the state, the function that makes it, and its optimiser.
    """

    task: tasks.Task
    plan: StatePlan
    mesh: jax.sharding.Mesh
    clean: data_lib.Source
    source: data_lib.Source
    eval_source: data_lib.Source
    manifest: noise.Manifest
    steps: int
    steps_per_epoch: int


def setup(config: ConfigDict) -> Setup:
    """Plans data, noise, task and state; raises one clear line for what cannot be."""
    config_lib.check_train(config)
    evaluators.check(config.evaluators)
    writers.check(config.writers)
    mesh = sharding.make_mesh(**config.mesh)
    sharding.check_batch(config.batch_size // config.microbatches, mesh)
    splits = config.split, config.eval_split
    clean, eval_source = (data_lib.load_split(config.data, split) for split in splits)
    check_splits(config, clean, eval_source)
    task = make_task(config, clean.info)
    source, manifest = corrupted(config, clean, task)
    example = loader.example(eval_source, task.columns, task.collate)
    plan = plan_training(config, task, example, mesh=mesh, num_examples=len(source))
    steps, steps_per_epoch = config_lib.num_steps(config, len(source))
    if config.profile and config.profile[1] > steps:
        raise ValueError(f"config.profile is {config.profile}; training has {steps} steps")
    return Setup(task, plan, mesh, clean, source, eval_source, manifest, steps, steps_per_epoch)


def check_splits(config: ConfigDict, source, eval_source) -> None:
    """Raises ValueError unless the task can have both, and no image is in common."""
    where = f"config.split {config.split!r}", f"config.eval_split {config.eval_split!r}"
    if config.split == config.eval_split:
        raise ValueError(
            f"config.split and config.eval_split are both {config.split!r}; expected two splits, "
            "as training images cannot validate (config.evaluators.memorised measures them)"
        )
    tasks.TASKS[config.task.name].check_data(source, eval_source, where=where)
    if both := data_lib.shared(source, eval_source):
        raise ValueError(
            f"{where[0]} and {where[1]} have images in common ({len(both)} found, as "
            f"{source.name(both[0])}); expected two splits without"
        )


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


def corrupted(
    config: ConfigDict, source: data_lib.Source, task: tasks.Task
) -> tuple[data_lib.Source, noise.Manifest]:
    """(`source` under `config.noise`, what it changed).

    Raises ValueError, one line, for noise that cannot be, or that changes nothing that is learned.
    """
    arguments = dict(config.noise)
    kind, rate = arguments.pop("kind"), arguments.pop("rate")
    corrupt = CORRUPTIONS[require_known("config.noise.kind", kind, CORRUPTIONS)]
    given = ("source", "rate", "seed")
    config_lib.check_arguments(corrupt, arguments, where="config.noise", given=given)
    try:
        found, manifest = corrupt(source, rate, seed=config.seeds.noise, **arguments)
    except (ValueError, TypeError) as error:
        raise type(error)(f"config.noise: {error}") from None
    if all(found.columns[name] is source.columns[name] for name in task.columns):
        raise ValueError(
            f"config.noise.kind is {kind!r}, which leaves {' and '.join(task.columns)} alone, and "
            f"config.task.name {config.task.name!r} learns no other column"
        )
    return found, manifest


def make_task(config: ConfigDict, info: Mapping) -> tasks.Task:
    """The config's task, for data of which `info` is known."""
    task = tasks.TASKS[config.task.name].make(config, info)
    check_parts(config, task)
    return task


def check_parts(config: ConfigDict, task: tasks.Task) -> None:
    """Raises ValueError if a batch is to be taken in parts and the task's loss cannot be."""
    if config.microbatches > 1 and not (task.splits or task.parts):
        raise ValueError(
            f"config.microbatches is {config.microbatches}; expected 1, as the loss of "
            f"config.task.name {config.task.name!r} compares all examples of a batch"
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
        columns=made.task.columns,
        collate=made.task.collate,
        rows=sharding.host_rows(made.mesh, config.batch_size),
        repeats=config.repeats,
        workers=config.loader.workers,
        threads=config.loader.threads or None,
        buffer=config.loader.buffer,
        damage=Damage(config.loader.max_bad, unreadable),
    )
