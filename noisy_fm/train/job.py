"""A run: one config trained in one folder, resumed where it was left."""

import contextlib
import functools
import operator
import time
from collections.abc import Mapping

import jax
import numpy as np
from clu import parameter_overview
from ml_collections import ConfigDict

from noisy_fm import checkpoint, data, evaluators, files, hosts, lease, optim, sharding
from noisy_fm import config as config_lib
from noisy_fm.data import loader
from noisy_fm.messages import say
from noisy_fm.train import flops, loop, pictures, writers
from noisy_fm.train.build import Setup, setup, train_batches
from noisy_fm.train.state import TrainState, abstract, init_state, make_step

PREVIEW = 32  # augmented training examples shown in the log
HISTORY = 100  # rows of the log, about, that the result and the checkpoints keep


def make_evaluators(
    config: ConfigDict, made: Setup, left_out: dict[str, str] | None = None
) -> dict[str, evaluators.Evaluator]:
    """What `config.evaluators` asks for; images that none of them can read go to `left_out`."""
    layout = {
        "mesh": made.mesh,
        "batch_size": config.batch_size,
        "threads": config.loader.threads * max(config.loader.workers, 1) or None,
        "buffer": config.loader.buffer,
        "max_bad": config.loader.max_bad,
        "left_out": left_out,
    }
    given = evaluators.Given(
        made.task, made.plan.shapes.variables, made.clean, made.source, made.eval_source,
        made.clean, made.clean.info, layout,
    )  # fmt: skip
    return evaluators.make(config, given)


def united(record: dict[str, str]) -> dict[str, str]:
    """What all hosts' records hold."""
    return functools.reduce(operator.or_, hosts.gather(record))


class Run:
    """One run's folder: what it wrote before, and what it writes from now on.

    config.json, noise.npz, parameters.txt, checkpoints/, the writers' files and, when done,
    result.json (validation metrics, the log's course, durations, hashes).
    """

    def __init__(self, config: ConfigDict, made: Setup, workdir: str, mine: lease.Lease, measures):
        self.lease, (self.evaluators, self.left_out) = mine, measures
        self.config, self.made, self.folder = config, made, files.absolute(workdir)
        plain = config_lib.plain(config)
        checkpoint.claim(self.folder, "config.json", plain, differences=config_lib.run_differences)
        self.meta = {
            "config": plain,
            "config_hash": config_lib.hash_of(config),
            "manifest_hash": made.manifest.hash,
            "data_hash": data.identity(made.clean, made.eval_source, columns=made.task.columns),
            "info": made.clean.info,
            **checkpoint.provenance(),
        }
        if len(hashes := set(hosts.gather(self.meta["data_hash"]))) > 1:
            raise ValueError(f"hosts read different data (data_hash {', '.join(sorted(hashes))})")
        self.saver = checkpoint.Checkpointer(
            self.folder / "checkpoints", keep=config.keep_checkpoints, best=config.keep_best
        )
        found = self.saver.restore(made.plan.shapes)
        self.state: TrainState
        self.state, before = found or (init_state(made.plan), self.meta)
        for key in ("manifest_hash", "data_hash"):
            if before.get(key, self.meta[key]) != self.meta[key]:
                raise ValueError(
                    f"{workdir} was trained on other data ({key} {before[key]}, now "
                    f"{self.meta[key]}); choose another --workdir"
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
        self.batches = train_batches(
            config,
            made,
            start=self.start,
            stop=made.steps,
            unreadable=before.get("unreadable"),
        )
        self.history = [row for row in before.get("history", []) if row["step"] <= self.start]
        self.metrics: dict[str, float] = {}
        self.measured_at = -1
        self.flops = self._flops_a_step()

    def _flops_a_step(self) -> int:
        """Three times the forward pass of a batch (see `flops.count`)."""
        task = self.made.task
        example = loader.example(self.made.eval_source, task.columns, task.collate)
        predict = functools.partial(task.predict_fn, batch=example)
        one = flops.count(lambda v: predict(*v), abstract(self.state.variables))
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
        self._remember(step, values)

    def _remember(self, step: int, values: Mapping[str, float]) -> None:
        """Keeps about `HISTORY` of the log's rows for the checkpoints and the result."""
        steps, every = self.made.steps, self.config.log_every
        every = config_lib.often(every, steps=steps, steps_per_epoch=self.made.steps_per_epoch)
        apart = every * max(1, steps // (every * HISTORY))
        if step % apart == 0 or step == steps:
            names = self.made.task.metrics.__annotations__
            found = {k: v for k, v in values.items() if k in names and np.isfinite(v)}
            self.history.append({"step": step, **found})

    def evaluate(self, step: int, state: TrainState) -> tuple[str, bool]:
        """Runs every evaluator; the values go to the writers, the checkpoint and the result.

        Returns what to show of them, and whether they are the best so far by config.keep_best.
        """
        self.metrics, self.measured_at = {}, step
        for entry, evaluator in self.evaluators.items():
            found = evaluator.measure(state.variables)
            self.metrics |= {evaluators.title(entry, name): v for name, v in found.items()}
        self.writers.scalars(step, {f"eval/{k}": v for k, v in self.metrics.items()})
        shown = {k: v for k, v in self.metrics.items() if "/" not in k and k != "loss"}
        note = "  ".join(f"eval {key} {value:.4f}" for key, value in shown.items())
        return note, self.saver.would_be_best(self.metrics)

    def save(self, step: int, state: TrainState) -> None:
        """Starts a checkpoint; it can be the best one if it has just been evaluated."""
        self._check_lease()
        seconds = time.perf_counter() - self.began
        meta = {**self.meta, "seconds": seconds, "unreadable": self.unreadable()}
        meta["history"] = self.history
        metrics = self.metrics if self.measured_at == step else None
        self.saver.save(step, state, meta, metrics)

    def _check_lease(self) -> None:
        """Raises on every host if another process has taken the folder over."""
        lost = ""
        if hosts.first():
            try:
                self.lease.check()
            except lease.TakenOverError as error:
                lost = str(error)
        if lost := hosts.gather(lost)[0]:
            raise lease.TakenOverError(lost)

    def unreadable(self) -> dict[str, str]:
        """{id: "file: reason"} of the training images that no host could read so far."""
        return united(self.batches.damage.record)

    def keep_batch(self, step: int, batch: Mapping[str, np.ndarray]) -> str:
        """Writes this host's share of a batch whose loss was not finite; returns its file."""
        path = self.folder / f"skipped_step{step}_host{jax.process_index()}.npz"
        files.write_arrays(path, batch)
        return str(path)

    def preview(self) -> None:
        """Shows the writers some augmented examples with the labels they are trained with."""
        config, made = self.config, self.made
        if not (config.writers and jax.process_count() == 1):
            return
        batches = train_batches(config, made, start=self.start, stop=self.start + 1)
        batch = next(batches)
        batches.close()
        with jax.set_mesh(made.mesh):  # all of it, as examples are mixed with any others
            whole = sharding.to_global(batch, made.mesh)
            prepared = jax.jit(made.task.prepare_fn)(whole, jax.random.key(config.seeds.dropout))
        prepared = jax.device_get(prepared)
        batch, prepared = ({k: v[:PREVIEW] for k, v in b.items()} for b in (batch, prepared))
        true = made.clean.supervision(made.clean.rows_of(batch["id"]), made.task.columns)
        pixels, captions = made.task.preview_fn(batch, prepared, true)
        sheet = pictures.contact_sheet(np.asarray(pixels), captions)
        self.writers.image(self.start, "train/examples", sheet)

    def result(self, state: TrainState) -> dict:
        """What result.json says of the finished run."""
        return {
            **self.meta,
            "steps": self.made.steps,
            "num_params": optim.count(state.params) + optim.count(state.frozen),
            "eval": {k: v if np.isfinite(v) else None for k, v in self.metrics.items()},
            "history": self.history,
            "skipped": int(state.skipped),
            "unreadable": self.unreadable(),
            "unreadable_eval": united(self.left_out),
            "duration_s": round(time.perf_counter() - self.began, 2),
            "resumed_at": self.start,
        }

    def close(self) -> None:
        """Waits until the last checkpoint, also an interrupted run's, is on disk."""
        with contextlib.ExitStack() as each:  # also if one of them fails
            each.callback(self.writers.close)
            each.callback(self.saver.close)
            each.callback(self.batches.close)


def tell(text: str) -> None:
    """Says it once, whatever the number of hosts."""
    if hosts.first():
        say(text)


def run(config: ConfigDict, workdir: str, *, name: str = "train") -> tuple[TrainState, Setup, dict]:
    """Trains `config` in `workdir` (resuming what is there) and returns (state, setup, result)."""
    made = setup(config)
    left_out: dict[str, str] = {}
    found = make_evaluators(config, made, left_out)  # or a mistake, before anything is written
    with lease.held(workdir) as mine:
        return _run(config, made, Run(config, made, workdir, mine, (found, left_out)), name)


def _run(config: ConfigDict, made: Setup, here: Run, name: str) -> tuple[TrainState, Setup, dict]:
    state = here.state
    stored = here.folder / "result.json"
    done = files.read_json(stored) if stored.exists() else {}
    if here.start >= made.steps == done.get("steps"):  # there is nothing left to do
        here.close()
        tell(f"{name}: all {made.steps} steps were done before")
        return state, made, done
    at = f"resumed at step {here.start} of" if here.start else "fresh start of"
    noise = f"{made.manifest.realised:.1%} noise ({config.noise.kind})"
    tell(f"{name}: {at} {made.steps} steps, {noise}")
    if hosts.first():  # what may change on resume may have
        files.write_json(here.folder / "config.json", here.meta["config"])
    often = functools.partial(
        config_lib.often, steps=made.steps, steps_per_epoch=made.steps_per_epoch
    )
    profile = None
    if config.profile:
        profile = loop.Profile(here.folder / "profile", *config.profile)
    try:
        if here.start < made.steps:
            here.preview()
            state = loop.fit(
                make_step(
                    made.task,
                    made.plan.tx,
                    state,
                    microbatches=config.microbatches,
                    ema=config.ema,
                ),
                state,
                here.batches,
                steps=made.steps,
                mesh=made.mesh,
                log_every=often(config.log_every),
                on_log=here.log,
                save=here.save,
                save_every=config.checkpoint_every,
                save_minutes=config.checkpoint_minutes,
                evaluate=here.evaluate,
                eval_every=0 if config.eval_every < 0 else often(config.eval_every),
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
        files.write_json(here.folder / "result.json", result)
    return state, made, result
