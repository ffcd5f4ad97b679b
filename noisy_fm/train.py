"""Trains one model: the one loop, and the command line.

    python -m noisy_fm.train --config=configs/pretrain/emoji.py:noise_rate=0.1 --workdir=runs/a

The same line on every host; run it again to resume. Keys are overridden with --config.KEY=VALUE.
"""

import collections
import signal
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import metrics as clu_metrics
from etils import epath
from ml_collections import ConfigDict
from tensorboardX import SummaryWriter

from noisy_fm import checkpoint, features, models, noise, optim, sharding, tasks
from noisy_fm import config as config_lib
from noisy_fm import data as data_lib
from noisy_fm.data import loader
from noisy_fm.progress import Progress

IN_FLIGHT = 2  # steps handed to the device before the host waits for the oldest


class TrainState(flax.struct.PyTreeNode):
    """All that a training step changes, and so all that a checkpoint must hold.

    `params` and `frozen` are flat {path: array}; `metrics` accumulates since the last log line.
    """

    step: jax.Array
    key: jax.Array
    params: dict[str, jax.Array]
    frozen: dict[str, jax.Array]
    model_state: Any
    opt_state: Any
    metrics: clu_metrics.Collection

    @property
    def variables(self) -> tuple[Any, Any]:
        """(nested params, model_state), as a Task's functions take them."""
        return optim.join(self.params, self.frozen), self.model_state


def init_state(
    task: tasks.Task, make_tx: Callable, example: dict, *, mesh, trainable, rules, seeds
) -> tuple[TrainState, optax.GradientTransformation]:
    """A fresh state, laid out on `mesh` by `rules`, and the optimiser made for its parameters.

    `make_tx(multipliers)` gives the optimiser for the trainable `{path: multiplier}`; `example` is
    a batch of one. The initial values do not depend on the layout.
    """
    init_key, step_key = jax.random.key(seeds.init), jax.random.key(seeds.dropout)
    shapes, _ = jax.eval_shape(task.init_fn, init_key, example)
    tx = make_tx(optim.split(shapes, trainable)[2])

    def init(init_key, step_key):
        params, model_state = task.init_fn(init_key, example)
        learned, frozen, _ = optim.split(params, trainable)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            key=step_key,
            params=learned,
            frozen=frozen,
            model_state=model_state,
            opt_state=tx.init(learned),
            metrics=task.metrics.empty(),
        )

    shardings = sharding.infer(jax.eval_shape(init, init_key, step_key), mesh, rules)
    return jax.jit(init, out_shardings=shardings)(init_key, step_key), tx


def make_step(task: tasks.Task, tx: optax.GradientTransformation, state: TrainState) -> Callable:
    """The jitted (state, batch) → (state, loss), laid out like `state`, whose memory it reuses.

    The loss is NaN if the update is not finite, so that it tells of the new state's health too.
    """

    def step(state: TrainState, batch: dict) -> tuple[TrainState, jax.Array]:
        key = jax.random.fold_in(state.key, state.step)

        def loss_fn(params):
            return task.loss_fn(optim.join(params, state.frozen), state.model_state, batch, key)

        (loss, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        model_state, outputs = aux
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        healthy = jnp.isfinite(optax.tree.norm(updates))
        new = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            model_state=model_state,
            opt_state=opt_state,
            metrics=state.metrics.merge(task.metrics.single_from_model_output(**outputs)),
        )
        return new, jnp.where(healthy, loss, jnp.nan)

    return jax.jit(step, donate_argnums=0, out_shardings=(_shardings(state), None))


class StopSignals:
    """Holds back Ctrl-C and SIGTERM until the loop asks, so that no step is torn apart.

    A second signal is not held back. Outside the main thread it does nothing.
    """

    def __enter__(self):
        self.caught = None
        self.main = threading.current_thread() is threading.main_thread()
        if self.main:
            self.old = {n: signal.signal(n, self._catch) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        if self.main:
            for number, handler in self.old.items():
                signal.signal(number, handler)

    def _catch(self, number, frame):
        if self.caught is not None:
            raise self.error()
        self.caught = number

    def error(self) -> BaseException:
        return KeyboardInterrupt() if self.caught == signal.SIGINT else config_lib.Terminated()


def fit(
    task: tasks.Task,
    tx: optax.GradientTransformation,
    state: TrainState,
    batches: Iterable[dict[str, np.ndarray]],
    *,
    steps: int,
    mesh: jax.sharding.Mesh,
    log_every: int = 50,
    on_log: Callable[[int, dict[str, float]], None] = lambda step, values: None,
    save: Callable[[int, TrainState], None] = lambda step, state: None,
    save_every: int = 500,
    evaluate: Callable[[int, TrainState], str] = lambda step, state: "",
    eval_every: int = 0,
    name: str = "train",
) -> TrainState:
    """Trains from `state.step` to `steps` and returns the state.

    `batches` starts at `state.step` and holds this host's share of each global batch. `on_log`
    gets the means since the last log; `save` is called every `save_every` steps, at the end, and
    when Ctrl-C or SIGTERM asks to stop (which then raises); `evaluate` returns a note to show.
    Raises FloatingPointError, without saving, once a loss or an update is not finite.
    """
    start = int(state.step)
    step_fn = make_step(task, tx, state)
    in_flight: collections.deque = collections.deque()
    clock = Clock()
    show = jax.process_index() == 0
    batches = iter(batches)
    with (
        jax.set_mesh(mesh),
        StopSignals() as signals,
        Progress(name, steps, start=start, show=show) as bar,
    ):
        for step in range(start + 1, steps + 1):
            with clock:
                batch = sharding.to_global(next(batches), mesh)
            state, loss = step_fn(state, batch)
            in_flight.append((step, loss))
            last = step == steps
            stop = last or signals.caught is not None
            sync = stop or not step % log_every or not step % save_every
            while in_flight and (sync or len(in_flight) > IN_FLIGHT):
                check_finite(*in_flight.popleft())
            note = ""
            if not step % log_every or last:
                values = {k: float(v) for k, v in state.metrics.compute().items()}
                empty = jax.device_put(task.metrics.empty(), _shardings(state.metrics))
                state = state.replace(metrics=empty)
                on_log(step, {**values, **clock.lap(step - start)})
                note = "  ".join(f"{key} {value:.4g}" for key, value in values.items())
            if not step % save_every or stop:
                save(step, state)
            if last or (eval_every and not step % eval_every):
                note = f"{note}  {evaluate(step, state)}"
            bar.update(1, note)
            if signals.caught is not None:
                raise signals.error()
    return state


def _shardings(tree):
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def check_finite(step: int, loss: jax.Array) -> None:
    """Raises if the loss of `step` is NaN or infinite."""
    value = float(loss)
    if not np.isfinite(value):
        raise FloatingPointError(
            f"the loss or the update is {value} at step {step}; expected a finite number (a lower "
            "learning_rate, clip, or float32 precision usually helps); nothing was saved from it on"
        )


class Clock:
    """Steps a second and the share of time spent waiting for data, since the last lap."""

    def __init__(self):
        self.began, self.waited, self.steps = time.perf_counter(), 0.0, 0

    def __enter__(self):
        self.entered = time.perf_counter()

    def __exit__(self, *_):
        self.waited += time.perf_counter() - self.entered

    def lap(self, steps: int) -> dict[str, float]:
        now = time.perf_counter()
        seconds = max(now - self.began, 1e-9)
        rates = {
            "steps_per_second": (steps - self.steps) / seconds,
            "data_wait_share": self.waited / seconds,
        }
        self.began, self.waited, self.steps = now, 0.0, steps
        return rates


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
    mesh = sharding.make_mesh(**config.mesh)
    sharding.check_batch(config.batch_size, mesh)
    source, eval_source = (load_split(config, s) for s in (config.split, config.eval_split))
    labels, manifest = corrupted(config, source)
    steps, steps_per_epoch = config_lib.num_steps(config, len(source))
    task = make_task(config, source.num_classes)
    rate = optim.schedule(config, steps=steps, steps_per_epoch=steps_per_epoch)
    state, tx = init_state(
        task,
        lambda multipliers: optim.optimizer(config, rate, multipliers=multipliers),
        source.take(np.zeros(1, int)),
        mesh=mesh,
        trainable=config.trainable,
        rules=config.sharding,
        seeds=config.seeds,
    )
    return Setup(task, tx, state, mesh, source, eval_source, manifest, labels, steps)


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
    return tasks.classify(
        model,
        loss=config.loss.name,
        label_smoothing=config.loss.label_smoothing,
        augment=config.augment,
        frozen=lambda module: optim.frozen(f"{module}/scale", config.trainable),
    )


def run(config: ConfigDict, workdir: str, *, name: str = "train") -> tuple[TrainState, Setup, dict]:
    """Trains `config` in `workdir` (resuming what is there) and returns (state, setup, result).

    Leaves there config.json, noise.npz, checkpoints/, tensorboard/ and, when done, result.json
    (validation metrics, durations, hashes).
    """
    made = setup(config)
    folder = epath.Path(workdir).absolute()
    plain = config_lib.plain(config)
    checkpoint.claim(folder, "config.json", plain, differences=config_lib.differences)
    if jax.process_index() == 0:
        made.manifest.save(folder / "noise.npz")
    meta = {
        "config": plain,
        "config_hash": config_lib.hash_of(config),
        "manifest_hash": made.manifest.hash,
        **checkpoint.provenance(),
    }
    saver = checkpoint.Checkpointer(folder / "checkpoints", keep=config.keep_checkpoints)
    found = saver.restore(abstract(made.state))
    state, before = found or (made.state, meta)
    if before["manifest_hash"] != made.manifest.hash:
        raise ValueError(
            f"{workdir} was trained under other noise (manifest {before['manifest_hash']}, now "
            f"{made.manifest.hash}): the data changed; choose another --workdir"
        )
    start = int(state.step)
    began = time.perf_counter() - before.get("seconds", 0.0)
    writer = Scalars(folder / "tensorboard", start)
    accuracy: dict[str, float] = {}

    def evaluate(step, state):
        accuracy.update(validate(made, state, batch_size=config.batch_size))
        writer(step, {f"eval/{key}": value for key, value in accuracy.items()})
        return f"eval accuracy {accuracy['accuracy']:.4f}"

    def save(step, state):
        saver.save(step, state, {**meta, "seconds": time.perf_counter() - began})

    try:
        if start < made.steps:
            state = fit(
                made.task,
                made.tx,
                state,
                loader.train_batches(
                    made.source,
                    batch_size=config.batch_size,
                    seed=config.seeds.order,
                    start=start,
                    stop=made.steps,
                    corrupt=loader.relabel(made.source.ids, made.labels),
                    process=(jax.process_index(), jax.process_count()),
                ),
                steps=made.steps,
                mesh=made.mesh,
                log_every=config.log_every,
                on_log=lambda step, values: writer(
                    step, {f"train/{k}": v for k, v in values.items()}
                ),
                save=save,
                save_every=config.checkpoint_every,
                evaluate=evaluate,
                eval_every=config.eval_every,
                name=name,
            )
        else:
            evaluate(start, state)
    finally:  # an interrupted run's last checkpoint is still being written
        saver.close()
        writer.close()
    result = {
        **meta,
        "steps": made.steps,
        "num_params": optim.count(state.params) + optim.count(state.frozen),
        "eval": accuracy,
        "duration_s": round(time.perf_counter() - began, 2),
        "resumed_at": start,
    }
    if jax.process_index() == 0:
        checkpoint.write_json(folder / "result.json", result)
    return state, made, result


def abstract(tree):
    """Shapes, dtypes and shardings of a tree of arrays, as a restore target."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree
    )


def validate(made: Setup, state: TrainState, *, batch_size: int) -> dict[str, float]:
    """Mean loss and accuracy of `state` over the whole evaluation source."""
    out = features.predict(
        made.task,
        state.variables,
        made.eval_source,
        keep=("loss", "correct"),
        batch_size=batch_size,
        mesh=made.mesh,
    )
    return {"loss": float(out["loss"].mean()), "accuracy": float(out["correct"].mean())}


class Scalars:
    """TensorBoard scalars on host 0; on resume, what was written past `start` is dropped."""

    def __init__(self, folder, start: int):
        show = jax.process_index() == 0
        self.writer = SummaryWriter(str(folder), purge_step=start) if show else None

    def __call__(self, step: int, values: dict[str, float]) -> None:
        if self.writer:
            for key, value in values.items():
                self.writer.add_scalar(key, value, step)

    def close(self) -> None:
        if self.writer:
            self.writer.close()


def main(config: ConfigDict, workdir: str) -> None:
    _, made, result = run(config, workdir)
    print(
        f"{result['num_params']:,} parameters, {made.steps} steps, "
        f"noise {made.manifest.realised:.1%} ({config.noise.kind}), "
        f"eval accuracy {result['eval']['accuracy']:.4f}; results in {workdir}"
    )


if __name__ == "__main__":
    config_lib.run_app(main)
