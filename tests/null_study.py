"""Made-up studies whose components of variance are those measured (test-only).

Every number is drawn: a pre-training run's luck, shared by all that is measured of it; a task's and
a head's own; and a run's at a method. Effects are what the caller adds, none by default.
"""

import itertools
from typing import NamedTuple

import numpy as np
import pandas as pd

from noisy_fm.report import artifacts, tables

RATES = (0.0, 0.05, 0.1, 0.2, 0.3)
ARTISTS = ("noto", "twemoji", "openmoji")
UNSEEN = ("lineart", "fluent3d", "fluentflat")
TASKS = ("category", "subject", "person_kind", "skin_tone")
FREE = {"skin_tone": "free"}  # the one that does not follow from the labels of pre-training
METHODS = ("lp", "mlp", "nmtune")

# Standard deviations in points. RUN: of a mean over heads between pre-training runs of one γ, two
# studies of the embedded recipe with the same seeds at two commits. The others are moment
# estimates from the first published study (one seed), its five γ taken for replicates, which
# gave no component of run × method.
RUN = {"id": 1.2, "ood": 0.8}
RUN_TASK = {"id": 1.5, "ood": 0.0}  # a run's luck at one task
RUN_HEAD = {"id": 3.0, "ood": 2.1}  # … at one head: the tuning's luck and the sample of images
RUN_TEST = {"id": 0.0, "ood": 2.6}  # … at one domain it is tested on
RUN_PRETRAIN = 1.0
RUN_SPECTRUM = {"sve": 0.013, "lsvr": 0.012}  # nats; four memorising runs at each of three γ


class Method(NamedTuple):
    """What a method adds to another's accuracy by a run's luck: at a task, a head, a test."""

    run_task: float
    run_head: float
    run_test: float


MLP_LESS_LP = {"id": Method(0.75, 2.1, 0.0), "ood": Method(0.9, 0.3, 2.3)}
NMTUNE_LESS_MLP = {"id": Method(0.45, 0.95, 0.0), "ood": Method(0.3, 0.5, 0.7)}


class Skeleton(NamedTuple):
    """A prepared frame of records and, for each row, the codes that components are drawn by."""

    records: pd.DataFrame
    rows: dict[str, np.ndarray]  # part → positions
    codes: dict[str, np.ndarray]


def skeleton(seeds: int, rates=RATES) -> Skeleton:
    """The records of a study of `seeds` pre-training seeds, one probe seed, without values."""
    rows = []
    for seed, rate in itertools.product(range(seeds), rates):
        run = {"model": "resnet10_half", "noise_kind": "symmetric", "noise_rate": rate}
        run |= {"seed": seed, "value": 0.0, "config_hash": "c0ffee12"}
        made = {"stage": "pretrain", "dataset": "emoji_domains", "labels": "subcategory"}
        rows.append({**run, **made, "metric": "accuracy"})
        domains = [("digits", None), *(("emoji_domains", d) for d in (*ARTISTS, *UNSEEN))]
        for (dataset, domain), metric in itertools.product(domains, RUN_SPECTRUM):
            shift = "ood" if domain in UNSEEN else "id"
            place = {"stage": "spectrum", "dataset": dataset, "target": domain, "shift": shift}
            rows.append({**run, **place, "metric": metric})
        heads = [("emoji_domains", task, artist) for task in TASKS for artist in ARTISTS]
        for dataset, task, source in (*heads, ("digits", None, None)):
            unseen = [d for d in UNSEEN if task in ("category", "subject") or d != "lineart"]
            for target, method in itertools.product((source, *unseen[: 3 * bool(task)]), METHODS):
                head = {"dataset": dataset, "labels": task, "source": source, "target": target}
                head |= {"shift": "id" if source == target else "ood", "method": method}
                relation = {"digits": None}.get(dataset, FREE.get(task, "determined"))
                head |= {"relation": relation, "fraction": 1.0, "label_noise": 0.0, "probe_seed": 0}
                rows.append({**run, "stage": "probe", **head, "metric": "accuracy"})
    problems: list[str] = []
    records = tables.prepare(artifacts.tidy(rows, problems))
    assert not problems

    def code(*names):
        return records.groupby(list(names), dropna=False).ngroup().to_numpy()

    run = ("noise_rate", "seed")
    codes = {
        "run": code(*run),
        "task": code("dataset", "labels"),
        "test": code("dataset", "labels", "source", "target"),
        "run_task": code("dataset", "labels", *run),
        "run_head": code("dataset", "labels", "source", *run),
        "run_test": code("dataset", "labels", "source", "target", *run),
    }
    parts = {"pretrain": records["stage"] == "pretrain"}
    parts |= {metric: records["metric"] == metric for metric in RUN_SPECTRUM}
    probe = records["stage"] == "probe"
    parts |= {shift: probe & (records["shift"] == shift) for shift in tables.SHIFTS}
    return Skeleton(records, {name: np.flatnonzero(part) for name, part in parts.items()}, codes)


def draw(bones: Skeleton, rng, effects=None) -> pd.DataFrame:
    """The records of one study; `effects(frame)` [rows] is added to the values.

    Accuracies are shares, spectra nats; effects are in the same units.
    """
    values = np.zeros(len(bones.records))

    def luck(part: str, by: str, spread: float, of=None):
        """Normal numbers, one a code; `of` [rows] says which rows share in it."""
        rows, codes = bones.rows[part], bones.codes[by]
        drawn = rng.normal(0, spread, codes.max() + 1)[codes[rows]]
        values[rows] += drawn if of is None else np.where(of[rows], drawn, 0)

    luck("pretrain", "run", RUN_PRETRAIN / 100)
    for metric, spread in RUN_SPECTRUM.items():
        luck(metric, "run", spread)
        luck(metric, "run_test", spread)
        luck(metric, "test", 0.2)
    method = bones.records["method"].to_numpy()
    tuned, nmtune = np.isin(method, ("mlp", "nmtune")), method == "nmtune"
    for shift in tables.SHIFTS:
        luck(shift, "run", RUN[shift] / 100)
        luck(shift, "task", 0.1)
        luck(shift, "test", 0.07)
        luck(shift, "run_task", RUN_TASK[shift] / 100)
        luck(shift, "run_head", RUN_HEAD[shift] / 100)
        luck(shift, "run_test", RUN_TEST[shift] / 100)
        for of, spreads in ((tuned, MLP_LESS_LP[shift]), (nmtune, NMTUNE_LESS_MLP[shift])):
            for by, spread in spreads._asdict().items():
                luck(shift, by, spread / 100, of)
    if effects is not None:
        values += effects(bones.records)
    return bones.records.assign(value=values)
