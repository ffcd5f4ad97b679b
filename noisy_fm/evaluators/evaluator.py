"""What an evaluator is given and what it gives."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from noisy_fm import statistics
from noisy_fm.data import Source
from noisy_fm.tasks import Task

Variables = tuple[Any, Any]  # (nested params, model_state)


class Outcome(NamedTuple):
    """One number an example, whose mean is measured: values, ids and groups [n]."""

    values: np.ndarray
    ids: np.ndarray
    groups: np.ndarray


def interval(outcome: Outcome | float) -> dict:
    """Mean of one number an example, its 95 % interval (resampling whole groups), and n.

    What is no mean has a value alone.
    """
    if not isinstance(outcome, Outcome):
        return {"value": float(outcome)}
    there = np.isfinite(outcome.values)
    values = np.asarray(outcome.values, float)[there]
    if not len(values):
        return {"value": float("nan"), "n": 0}
    bounds = (0.0, 1.0) if values.min() >= 0 and values.max() <= 1 else None
    low, high = statistics.cluster_bootstrap(values, outcome.groups[there], bounds=bounds)
    return {"value": float(values.mean()), "low": low, "high": high, "n": len(values)}


class Evaluator(NamedTuple):
    """`outcomes(variables)` gives, for each of `names` or for none of them, what is measured.

    An `Outcome`, for its mean, intervals and paired comparisons, or a number that is no mean.
    """

    names: tuple[str, ...]
    outcomes: Callable[[Variables], dict[str, Outcome | float]]

    def measure(self, variables: Variables) -> dict[str, float]:
        """{name: value}; examples that have none do not count."""
        return {
            name: float(np.nanmean(one.values)) if isinstance(one, Outcome) else float(one)
            for name, one in self.outcomes(variables).items()
        }


class Given(NamedTuple):
    """What an entry of `config.evaluators` measures, and with what.

    clean, source: what is trained on, with true and with given labels; eval_source: what is not.
    For an entry with data of its own they are those, `clean` and `source` alike.
    trained: what the run itself is trained on, with true supervision, whatever data an entry has;
      None where that is not known.
    info: the classes that the task knows (`Source.info` of the run's own data).
    layout: what `features.predictor` takes to lay out and read batches.
    """

    task: Task
    variables: Variables  # or their shapes: only to tell which features there are
    clean: Source
    source: Source
    eval_source: Source
    trained: Source | None
    info: Mapping[str, Any]
    layout: Mapping[str, Any]


def sample(rows: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of `rows`, the same ones every time, in order."""
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(0).choice(rows, most, replace=False))


def readable(found: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(bool [n], the outputs where it holds); elsewhere another image stood in."""
    read = found["mask"] != 0
    return read, {name: value[read] for name, value in found.items()}
