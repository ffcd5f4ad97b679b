"""Trains one model from a config: what learns what from which data, and the command line.

    python -m noisy_fm.train --config=configs/pretrain/emoji.py:noise_rate=0.1 --workdir=runs/a

The same line on every host; run it again to resume. Keys are overridden with --config.KEY=VALUE.
"""

import functools
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import parameter_overview
from ml_collections import ConfigDict

from noisy_fm import (
    app,
    checkpoint,
    evaluators,
    features,
    flops,
    hosts,
    loop,
    models,
    noise,
    optim,
    pictures,
    sharding,
    tasks,
    writers,
)
from noisy_fm import config as config_lib
from noisy_fm import data as data_lib
from noisy_fm.data import augment, loader
from noisy_fm.state import StatePlan, TrainState, abstract, init_state, make_step, plan_state

PREVIEW = 32  # augmented training examples shown in the log


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
    if source.label_names != eval_source.label_names:
        raise ValueError(
            f"config.split {config.split!r} has {len(source.label_names)} classes and config."
            f"eval_split {config.eval_split!r} has {len(eval_source.label_names)}, or others; "
            "expected the same classes in both"
        )
    if hasattr(source, "crops") and config.augment.name != "imagenet":
        raise ValueError(
            f"config.augment.name is {config.augment.name!r}; images on disk come as crops to be "
            "resized, so expected 'imagenet' (start from a config in configs/pretrain/*_in1k.py)"
        )
    labels, manifest = corrupted(config, source)
    task = make_task(config, source.num_classes)
    example = eval_source.take(np.zeros(1, int))
    plan = plan_training(config, task, example, mesh=mesh, num_examples=len(source))
    steps, _ = config_lib.num_steps(config, len(source))
    state = init_state(plan)
    return Setup(task, plan.tx, state, mesh, source, eval_source, manifest, labels, steps)


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
    return data_lib.load(config.data.name, split=split, **arguments)


def corrupted(config: ConfigDict, source) -> tuple[np.ndarray, noise.Manifest]:
    """(labels, manifest) of `source` under `config.noise`."""
    arguments = dict(config.noise)
    rate = arguments.pop("rate")
    given = ("labels", "num_classes", "ids", "seed")
    config_lib.check_arguments(noise.flip_labels, arguments, where="config.noise", given=given)
    return noise.flip_labels(
        source.labels,
        source.num_classes,
        rate,
        ids=source.ids,
        seed=config.seeds.noise,
        **arguments,
    )


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


def train_batches(config: ConfigDict, made: Setup, *, start: int, stop: int):
    """This host's rows of the global batches `start … stop − 1`, with the wrong labels."""
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
        damage=loader.Damage(config.loader.max_bad),
    )


def make_evaluators(config: ConfigDict, made: Setup) -> dict[str, evaluators.Evaluator]:
    """The evaluators that `config.evaluators` asks for, by name; "" has the validation metrics."""
    layout = {"mesh": made.mesh, "batch_size": config.batch_size}
    wanted = config.evaluators
    chosen = {"": evaluators.validation(made.task, made.eval_source, **layout)}
    most = wanted.examples
    if wanted.memorised:
        chosen["noise"] = evaluators.memorised(
            made.task, made.source, made.labels, most=most, **layout
        )
    if wanted.spectrum:
        chosen["spectrum"] = features.spectrum_tracker(
            made.task,
            made.eval_source,
            wanted.spectrum,
            variables=made.state.variables,
            rows=most,
            **layout,
        )
    if wanted.probe:
        features.check_names(
            made.task,
            made.state.variables,
            made.eval_source,
            [wanted.probe],
            where="config.evaluators.probe",
        )
        chosen["probe"] = evaluators.probe(
            made.task, made.source, made.eval_source, feature=wanted.probe, most=most, **layout
        )
    return chosen


class Run:
    """One run's folder: what it wrote before, and what it writes from now on.

    config.json, noise.npz, parameters.txt, checkpoints/, the writers' files and, when done,
    result.json (validation metrics, durations, hashes).
    """

    def __init__(self, config: ConfigDict, made: Setup, workdir: str):
        self.config, self.made, self.folder = config, made, checkpoint.absolute(workdir)
        self.evaluators = make_evaluators(config, made)  # may find a mistake
        plain = config_lib.plain(config)
        checkpoint.claim(self.folder, "config.json", plain, differences=config_lib.differences)
        self.meta = {
            "config": plain,
            "config_hash": config_lib.hash_of(config),
            "manifest_hash": made.manifest.hash,
            **checkpoint.provenance(),
        }
        self.saver = checkpoint.Checkpointer(
            self.folder / "checkpoints", keep=config.keep_checkpoints, best=config.keep_best
        )
        target = abstract(made.state)
        if self.saver.steps:  # there may be no room for two states
            jax.tree.map(lambda leaf: leaf.delete(), made.state)
        found = self.saver.restore(target)
        self.state: TrainState
        self.state, before = found or (made.state, self.meta)
        if before["manifest_hash"] != made.manifest.hash:
            raise ValueError(
                f"{workdir} was trained under other noise (manifest {before['manifest_hash']}, now "
                f"{made.manifest.hash}): the data changed; choose another --workdir"
            )
        if hosts.first():
            made.manifest.save(self.folder / "noise.npz")
            # No values: this process may hold but a part of them.
            overview = parameter_overview.get_parameter_overview(
                self.state.variables[0], include_stats="sharding"
            )
            (self.folder / "parameters.txt").write_text(f"{overview}\n")
        self.start = int(self.state.step)
        self.began = time.perf_counter() - before.get("seconds", 0.0)
        self.writers = writers.Writers(config.writers, self.folder, start=self.start, config=plain)
        self.batches = train_batches(config, made, start=self.start, stop=made.steps)
        self.metrics: dict[str, float] = {}
        self.measured_at = -1
        self.flops = self._flops_a_step()

    def _flops_a_step(self) -> int:
        """Three times the forward pass of a batch (see `flops.count`)."""
        example = self.made.eval_source.take(np.zeros(1, int))
        predict = functools.partial(self.made.task.predict_fn, batch=example)
        one = flops.count(lambda v: predict(*v)["logits"], abstract(self.state.variables))
        return 3 * one * self.config.batch_size

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Means since the last log line, with what they cost."""
        rate = self.flops * values["steps_per_second"]
        speed = {
            "examples_per_second": values["steps_per_second"] * self.config.batch_size,
            "model_tflops_per_second": rate / 1e12,
        }
        if peak := flops.peak(jax.devices()[0]):
            speed["mfu"] = rate / (peak * jax.device_count())
        speed["unreadable"] = self.batches.damage.count
        self.writers.scalars(step, {f"train/{k}": v for k, v in {**values, **speed}.items()})

    def evaluate(self, step: int, state: TrainState) -> str:
        """Runs every evaluator; the values go to the writers, the checkpoint and the result."""
        self.metrics, self.measured_at = {}, step
        for name, evaluate in self.evaluators.items():
            found = evaluate(step, state)
            self.metrics |= {
                f"{name}/{k}" if name == "spectrum" else k: v for k, v in found.items()
            }
        self.writers.scalars(step, {f"eval/{k}": v for k, v in self.metrics.items()})
        shown = {k: v for k, v in self.metrics.items() if "/" not in k and k != "loss"}
        return "  ".join(f"eval {key} {value:.4f}" for key, value in shown.items())

    def save(self, step: int, state: TrainState) -> None:
        """Starts a checkpoint; it can be the best one if it has just been evaluated."""
        meta = {**self.meta, "seconds": time.perf_counter() - self.began}
        self.saver.save(step, state, meta, self.metrics if self.measured_at == step else None)

    def keep_batch(self, step: int, batch: Mapping[str, np.ndarray]) -> str:
        """Writes this host's share of a batch whose loss was not finite; returns its file."""
        path = self.folder / f"skipped_step{step}_host{jax.process_index()}.npz"
        checkpoint.write_arrays(path, batch)
        return str(path)

    def preview(self) -> None:
        """Shows the writers some augmented examples with the labels they are trained with."""
        config, made = self.config, self.made
        if not (config.writers and jax.process_count() == 1):
            return
        batches = train_batches(config, made, start=self.start, stop=self.start + 1)
        batch = next(batches)
        batches.close()
        batch = {name: value[:PREVIEW] for name, value in batch.items()}
        shown = jax.jit(made.task.prepare_fn)(batch, jax.random.key(config.seeds.dropout))["image"]
        truth = loader.relabel(made.source.ids, made.source.labels)(batch)["label"]
        names = made.source.label_names
        captions = [
            (names[given],) if given == true else (names[given], f"is {names[true]}")
            for given, true in zip(batch["label"], truth, strict=True)
        ]
        self.writers.image(
            self.start, "train/examples", pictures.contact_sheet(np.asarray(shown), captions)
        )

    def result(self, state: TrainState) -> dict:
        """What result.json says of the finished run."""
        return {
            **self.meta,
            "steps": self.made.steps,
            "num_params": optim.count(state.params) + optim.count(state.frozen),
            "eval": {k: v if np.isfinite(v) else None for k, v in self.metrics.items()},
            "skipped": int(state.skipped),
            "unreadable": self.batches.damage.ids,
            "duration_s": round(time.perf_counter() - self.began, 2),
            "resumed_at": self.start,
        }

    def close(self) -> None:
        """Waits until the last checkpoint, also an interrupted run's, is on disk."""
        self.batches.close()
        self.saver.close()
        self.writers.close()


def run(config: ConfigDict, workdir: str, *, name: str = "train") -> tuple[TrainState, Setup, dict]:
    """Trains `config` in `workdir` (resuming what is there) and returns (state, setup, result)."""
    made = setup(config)
    here = Run(config, made, workdir)
    state = here.state
    stored = here.folder / "result.json"
    if here.start >= made.steps and stored.exists():  # there is nothing left to do
        here.close()
        return state, made, checkpoint.read_json(stored)
    profile = None
    if config.profile:
        profile = loop.Profile(here.folder / "profile", *config.profile)
    try:
        if here.start < made.steps:
            here.preview()
            state = loop.fit(
                make_step(
                    made.task,
                    made.tx,
                    state,
                    microbatches=config.microbatches,
                    ema=config.ema,
                ),
                state,
                here.batches,
                steps=made.steps,
                mesh=made.mesh,
                log_every=config.log_every,
                on_log=here.log,
                save=here.save,
                save_every=config.checkpoint_every,
                save_minutes=config.checkpoint_minutes,
                evaluate=here.evaluate,
                eval_every=config.eval_every,
                max_skipped=config.max_skipped,
                on_skip=here.keep_batch,
                stall_seconds=config.stall_seconds,
                profile=profile,
                name=name,
            )
        else:
            here.evaluate(here.start, state)
    finally:
        here.close()
    result = here.result(state)
    if hosts.first():
        checkpoint.write_json(here.folder / "result.json", result)
    return state, made, result


def main(config: ConfigDict, workdir: str) -> None:
    config_lib.cache_compilations()
    _, made, result = run(config, workdir)
    if not hosts.first():
        return
    print(
        f"{result['num_params']:,} parameters, {made.steps} steps, "
        f"noise {made.manifest.realised:.1%} ({config.noise.kind}), "
        f"eval accuracy {result['eval']['accuracy']:.4f}; results in {workdir}"
    )


if __name__ == "__main__":
    app.run_app(main)
