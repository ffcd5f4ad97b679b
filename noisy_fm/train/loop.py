"""The one loop: it steps, logs, evaluates and saves, and notices what goes wrong meanwhile."""

import collections
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from noisy_fm import hosts, sharding
from noisy_fm.data import loader
from noisy_fm.messages import say
from noisy_fm.progress import Progress
from noisy_fm.signals import StopSignals
from noisy_fm.train.state import TrainState, shardings

ASK_EVERY = 20  # steps between two askings of all hosts whether to save
IN_FLIGHT = 2  # steps handed to the device before the host waits for the oldest


def fit(
    step_fn: Callable,
    state: TrainState,
    batches: Iterable[dict[str, np.ndarray]],
    *,
    steps: int,
    mesh: jax.sharding.Mesh,
    log_every: int = 50,
    on_log: Callable[[int, dict[str, float]], None] = lambda step, values: None,
    save: Callable[[int, TrainState], None] = lambda step, state: None,
    save_every: int = 0,
    save_minutes: float = 0.0,
    evaluate: Callable[[int, TrainState], tuple[str, bool]] = lambda step, state: ("", False),
    eval_every: int = 0,
    max_skipped: int = 0,
    on_skip: Callable[[int, dict[str, np.ndarray]], Any] = lambda step, batch: "",
    stall_seconds: float = 0.0,
    profile: "Profile | None" = None,
    name: str = "train",
) -> TrainState:
    """Trains with `step_fn` (of `make_step`) from `state.step` to `steps` and returns the state.

    `batches` starts at `state.step` and holds this host's share of each global batch. `on_log`
    gets the means since the last log. `evaluate` returns a note to show, and whether to save then.
    `save` is also called every `save_every` steps, every `save_minutes` (0: not by them), at the
    end, if `evaluate` fails, and when Ctrl-C or a signal of `signals.STOP` asks to stop (which then
    raises). `on_skip` gets each batch whose loss or update was not finite, and returns where it put
    it; more than `max_skipped` of them raise FloatingPointError. After `stall_seconds` without a
    step a line says what is waited for.
    """
    start = int(state.step)
    in_flight: collections.deque = collections.deque()
    skips = Skips(int(state.skipped), max_skipped, on_skip)
    clock = Clock(save_minutes)
    # Batches are read and sent to the device ahead, while it computes.
    feed = loader.to_device(batches, lambda batch: (batch, sharding.to_global(batch, mesh)))
    with (
        contextlib.closing(feed),
        jax.set_mesh(mesh),
        StopSignals() as signals,
        Watchdog(stall_seconds) as watchdog,
        profile or contextlib.nullcontext(),
        Progress(name, steps, start=start, show=hosts.first()) as bar,
    ):
        for step in range(start + 1, steps + 1):
            watchdog.waits_for("input", step)
            with clock:
                batch, on_device = next(feed)
            watchdog.waits_for("the device, or another host" if step > start + 1 else "", step)
            if profile:
                profile.at(step, state)
            state, loss = step_fn(state, on_device)
            in_flight.append((step, loss, batch))
            last, logs = step == steps, not step % log_every
            evaluates = last or (eval_every and not step % eval_every)
            asked = signals.asked(step)
            saves = last or asked or (save_every and not step % save_every)
            saves = saves or clock.save_is_due(step)
            while in_flight and (saves or logs or evaluates or len(in_flight) > IN_FLIGHT):
                skips.check(*in_flight.popleft())
            note = ""
            if logs or last:
                values = {k: float(v) for k, v in state.metrics.compute().items()}
                empty = jax.device_put(type(state.metrics).empty(), shardings(state.metrics))
                state = state.replace(metrics=empty)
                on_log(step, {**values, **clock.lap(step - start), "skipped": skips.count})
                note = "  ".join(f"{key} {value:.4g}" for key, value in values.items())
            watchdog.waits_for("", step)  # these may take long, and say so themselves
            if evaluates:
                with saved_if_it_fails(save, step, state):
                    found, best = evaluate(step, state)
                note, saves = f"{note}  {found}", saves or best
            if saves:
                save(step, state)
                clock.saved()
            bar.update(1, note)
            if asked:
                raise signals.error()
    return state


@contextlib.contextmanager
def saved_if_it_fails(save: Callable, step: int, state: TrainState):
    """Saves the state before an error goes on, so that no training is lost to it.

    A resumed run goes on from there; only at the last step is the evaluation made again.
    Not with several hosts: the others, which may not have met the error, would be waited for.
    """
    try:
        yield
    except Exception:
        if jax.process_count() == 1:
            save(step, state)
        raise


class Skips:
    """Counts the steps whose loss or update was not finite, and says when there are too many."""

    def __init__(self, count: int, most: int, keep: Callable[[int, dict], Any]):
        self.count, self.most, self.keep = count, most, keep

    def check(self, step: int, loss: jax.Array, batch: dict[str, np.ndarray]) -> None:
        """Waits for `step`; raises FloatingPointError if it is one too many."""
        if np.isfinite(float(loss)):
            return
        self.count += 1
        place = self.keep(step, batch)
        where = f"the loss or an update was not finite at step {step}"
        if self.count <= self.most:
            say(f"warning: {where}; the step was skipped ({self.count} so far)", file=sys.stderr)
            return
        ids = " ".join(str(i) for i in np.asarray(batch.get("id", ()))[:8])
        raise FloatingPointError(
            f"{where}, {self.count} of at most {self.most} (a lower learning_rate, clip, or "
            f"float32 precision usually helps); the batch has ids {ids} …"
            + (f" and is in {place}" if place else "")
        )


class Clock:
    """Steps a second, the share of time spent waiting for input, and when a save is due."""

    def __init__(self, save_minutes: float = 0.0):
        self.began, self.waited, self.steps = time.perf_counter(), 0.0, 0
        self.save_seconds, self.last_save = 60 * save_minutes, time.perf_counter()

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

    def save_is_due(self, step: int) -> bool:
        """Whether `save_minutes` have passed since the last save, by the first host's clock.

        Several hosts ask one another, which takes time, only every `ASK_EVERY` steps.
        """
        if not self.save_seconds or (jax.process_count() > 1 and step % ASK_EVERY):
            return False
        due = time.perf_counter() - self.last_save > self.save_seconds
        if jax.process_count() > 1:
            due = bool(multihost_utils.broadcast_one_to_all(np.asarray(due)))
        return due

    def saved(self) -> None:
        self.last_save = time.perf_counter()


class Watchdog:
    """A thread that says on which host, and for what, the loop has been waiting too long."""

    def __init__(self, seconds: float):
        self.seconds, self.what, self.step, self.since = seconds, "", 0, time.monotonic()
        self.done = threading.Event()

    def __enter__(self):
        if self.seconds:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.done.set()

    def waits_for(self, what: str, step: int) -> None:
        """The loop is about to wait; an empty `what` is a wait of unknown, legitimate length."""
        self.what, self.step, self.since = what, step, time.monotonic()

    def _watch(self) -> None:
        while not self.done.wait(self.seconds / 4):
            waited = time.monotonic() - self.since
            if self.what and waited > self.seconds:
                say(
                    f"warning: host {jax.process_index()} has waited {waited:.0f} s for "
                    f"{self.what} at step {self.step}",
                    file=sys.stderr,
                )


class Profile:
    """Traces the steps `first … last` into a folder that TensorBoard and Perfetto read."""

    def __init__(self, folder, first: int, last: int):
        self.folder, self.first, self.last, self.running = folder, first, last, False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stop()

    def at(self, step: int, state: TrainState) -> None:
        """To be called before `step` is started, with the state that the last one gave."""
        if step == self.first or (self.running and step > self.last):
            jax.block_until_ready(state.step)
            self._stop()
        if step == self.first:
            jax.profiler.start_trace(str(self.folder))
            self.running = True

    def _stop(self) -> None:
        if self.running:
            jax.profiler.stop_trace()
            self.running = False
