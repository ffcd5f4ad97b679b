"""Fits one head step by step: early stopping, a warm state."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from noisy_fm.config import cache_compilations
from noisy_fm.estimator.rows import bucket, gathered
from noisy_fm.probe import forks
from noisy_fm.probe.head import Head
from noisy_fm.probe.lanes import CHUNK, advance
from noisy_fm.probe.plan import Plan
from noisy_fm.probe.step import start_state
from noisy_fm.scalars import plain


@dataclasses.dataclass
class State:
    """A head in training: NumPy trees and the optimiser steps taken."""

    tree: dict
    steps: int = 0

    @classmethod
    def fresh(cls, head: Head, width: int, num_classes: int) -> "State":
        forks.refuse_orphan()
        keep_programs()
        return cls(jax.device_get(_start(head.layout, np.uint32(head.seed), width, num_classes)))


@functools.cache
def keep_programs() -> None:
    """Compiled programs go to the disk, unless the user has chosen a place or switched it off."""
    settings: Any = jax.config
    if settings.jax_compilation_cache_dir is None and settings.jax_enable_compilation_cache:
        cache_compilations()


def plan_of(head: Head, labels, weights, mean_weight: float | None = None) -> Plan:
    """The batches of a head that trains on all rows, in their order."""
    return Plan(
        clipped(head, len(labels)),
        np.arange(len(labels), dtype=np.int32),
        labels.astype(np.int32),
        weights,
        mean_weight,
    )


def clipped(head: Head, count: int) -> Head:
    """The head with no batch much larger than `count` rows: all beyond them would be padding."""
    return dataclasses.replace(head, batch_size=min(head.batch_size, bucket(count)))


def stretched(plan: Plan, min_steps: int) -> Plan:
    """The plan with every epoch as many passes as it takes to make `min_steps` steps."""
    passes = max(1, -(-plain(min_steps) // plan.steps))  # NumPy's unsigned -5 is 251
    head = dataclasses.replace(plan.head, epochs=plan.head.epochs * passes)
    return dataclasses.replace(plan, head=head)


def resident(features, rows, scale=None) -> np.ndarray:
    """float32 [m d]: rows [n] of features, scaled, with zeros below up to a bucket's size."""
    return gathered(features, rows, scale, padded=bucket(len(rows)))


def run(state: State, plan: Plan, features, *, rates, first: int = 0, stride: int, bar=None):
    """Yields (state, losses [stride]) after every `stride` steps, until `rates` are used up.

    features float32 [m d] as `resident` makes them, m ≥ the plan's rows, not to be changed later;
    `first` is the plan's step to begin with; `bar` a `Progress` to move.
    Raises ValueError where the loss is no longer finite.
    """
    head = plan.head
    resident = jax.device_put(features[:, None], may_alias=True)
    options = {
        "preset": head.preset if head.regularized else None,
        "unrolled": next(iter(resident.devices())).platform == "cpu",
    }
    tree = jax.tree.map(lambda a: a[None], state.tree)  # one lane
    for stop in range(stride, len(rates) + 1, stride):
        losses = []
        for begin in range(stop - stride, stop, CHUNK):
            end = min(begin + CHUNK, stop)
            arrays = _arrays(plan, first + begin, rates[begin:end], state.steps)
            tree, found = advance(tree, resident, arrays, end - begin, **options)
            state = State(jax.tree.map(lambda a: a[0], tree), state.steps + end - begin)
            losses.append(np.array(found)[0, : end - begin])
            if bar is not None:
                bar.update(end - begin)
            if not np.isfinite(losses[-1]).all():
                raise _diverged(state, head, "the loss is not finite")
        yield state, np.concatenate(losses)


def require_finite(state: State, head: Head) -> None:
    """ValueError where the last step overflowed, or the squares of a gradient that λ multiplies.

    AdamW divides by the root of those squares: where they are infinite, nothing moves any more.
    """
    if not all(_finite(state.tree[part]) for part in ("params", "statistics")):
        raise _diverged(state, head, "the parameters are not finite")
    if head.regularized and not _finite(state.tree["square"]):
        raise ValueError(
            f"training stands still (squares of the gradient overflow float32): lower "
            f"weights={head.weights} or set standardize=True"
        )


def _finite(tree) -> bool:
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


def _diverged(state: State, head: Head, why: str) -> ValueError:
    return ValueError(
        f"training diverged within {state.steps} steps ({why}): lower "
        f"learning_rate={head.learning_rate} or set standardize=True"
    )


def _arrays(plan: Plan, first: int, rates, taken: int) -> dict:
    """What `advance` needs for the plan's steps from `first`, of one lane, padded to CHUNK."""
    head, steps = plan.head, len(rates)
    size, decay = head.batch_size, head.weight_decay
    rows, labels, _ = plan.batches(first, first + steps)
    arrays = {
        "rows": np.zeros((1, CHUNK, size), np.int32),
        "labels": np.zeros((1, CHUNK, size), np.int32),
        "masks": np.zeros((1, CHUNK, size), np.float32),
        "shares": np.ones((1, CHUNK), np.float32),
        "momenta": np.zeros((1, CHUNK), np.float32),
        "rates": np.zeros((1, CHUNK), np.float32),
        "steps": np.arange(taken + 1, taken + CHUNK + 1, dtype=np.float32)[None],
        "weights": np.asarray([head.weights], np.float32),
        "decay": np.asarray([[decay, decay * (head.preset == "release")]], np.float32),
    }
    arrays["rows"][0, :steps], arrays["labels"][0, :steps] = rows, labels
    here = (0, slice(0, steps))
    for name, values in plan.weighing(first, first + steps).items():
        arrays[name][here] = values
    arrays["rates"][0, :steps] = rates
    return arrays


@functools.partial(jax.jit, static_argnames=("layout", "width", "num_classes"))
def _start(layout: str, seed, width: int, num_classes: int):
    return start_state(layout, seed, width, num_classes)


def copy(tree):
    """The tree as NumPy arrays of their own (a device may reuse its memory)."""
    return jax.tree.map(np.array, tree)
