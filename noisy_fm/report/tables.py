"""Records to the aggregated frames that the figures, tables and tests are made of."""

import json
from collections.abc import Sequence

import numpy as np
import pandas as pd

from noisy_fm import nmtune, statistics
from noisy_fm.figures import signed

METHODS = {
    "features": "Features F",
    "lp": "LP",
    "mlp": "MLP",
    "nmtune": "NMTune",
    "lora": "LoRA",
    "ft": "Full FT",
}
METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro-F1",
    "sve": "SVE",
    "lsvr": "LSVR",
    "accuracy_change": "accuracy, change from γ = 0",
    "train_accuracy_true_labels": "accuracy on all training images, true labels",
    "matched": "images nearest to their own caption of a batch",
    "matched_change": "images nearest to their own caption of a batch, change from γ = 0",
    "flipped_fits_given": "changed supervision that the model repeats",
    "flipped_fits_true": "changed supervision whose truth it keeps to",
    "flipped_fits_chance": "changed labels that chance repeats",
}
SPECTRA = {"sve": "singular value entropy", "lsvr": "largest singular value ratio"}
SHIFTS = {"id": "in-domain", "ood": "out-of-domain"}
# What stays the same when two noise levels or two methods are compared.
UNIT = ["model", "seed", "dataset", "labels", "source", "target", "fraction", "label_noise"]
TASK = ["dataset", "labels"]  # counts once, with all its artists and domains
# F has neither labels nor source: a feature set is the images of one domain of one dataset.
SPECTRUM_UNIT = ["model", "seed", "dataset", "target"]
# Of runs or of tasks that a judgement needs. Two have one difference to tell their spread by: the
# 95 % interval then reaches 12.7 standard errors to either side, and a test would find nothing.
FEWEST = 3


def wrong(records: pd.DataFrame) -> str:
    """What noise made wrong, in words."""
    return SWAPPED if (records["noise_kind"] == "captions").any() else "wrong labels"


SWAPPED = "swapped captions"


def prepare(records: pd.DataFrame) -> pd.DataFrame:
    """Fill the fields a stage leaves null and give each (method, preset) its `label`."""
    frame = records.copy()
    named = ["model", "dataset", "labels", "source", "target"]
    frame[named] = frame[named].astype(object).fillna("")
    frame["fraction"] = frame["fraction"].fillna(1.0)
    frame["label_noise"] = frame["label_noise"].fillna(0.0)
    same = np.where(frame["source"] == frame["target"], "id", "ood")
    frame["shift"] = frame["shift"].mask(frame["shift"].isna() & ~placeless(records), same)
    frame["label"] = method_labels(frame)
    return frame


def placeless(records: pd.DataFrame) -> pd.Series:
    """Which rows do not say whether they are in domain: features of a domain, without a shift."""
    unknown = records[["shift", "source"]].isna().all(axis=1)
    return unknown & records["target"].notna()


def method_labels(frame: pd.DataFrame) -> pd.Series:
    """LP, MLP, NMTune, …; the preset is added only where a method was run with several."""
    method = frame["method"].fillna("features")
    presets = frame.groupby(method)["preset"].nunique()
    name = method.map(lambda key: METHODS.get(key, key))
    several = method.map(presets).gt(1) & frame["preset"].notna()
    return name.where(~several, name + " (" + frame["preset"].fillna("").astype(str) + ")")


def is_sweep(frame: pd.DataFrame) -> pd.Series:
    """Which rows are NMTune at another λ than their preset's: a λ-sweep's, not the study's."""
    weights = frame["weights"].fillna("null").map(json.loads)
    given: dict = {name: about["weights"] for name, about in nmtune.PRESETS.items()}
    recipes = {name: [*weights.values()] for name, weights in given.items()}
    default = frame["preset"].map(recipes)
    return pd.Series(
        [w is not None and w != d for w, d in zip(weights, default, strict=True)], frame.index
    )


def lambda_text(weights: Sequence[float]) -> str:
    """The λ of L_MSE, L_COV, L_SVD: "0.01" where they are equal, else "1, 0.04, 0.001"."""
    alike = len(set(weights)) == 1
    return ", ".join(f"{weight:g}" for weight in (weights[:1] if alike else weights))


def ordered_labels(labels) -> list[str]:
    """Method labels, the known methods in the paper's order, then others by length, name."""
    known = list(METHODS.values())

    def rank(label):
        name = label.split(" (")[0]
        return (known.index(name) if name in known else len(known), len(label), label)

    return sorted(set(labels), key=rank)


def probe_scores(records: pd.DataFrame, *, shift: str, metric: str) -> pd.DataFrame:
    """One row a (unit, γ, method): probe seeds, which share a model and test set, averaged."""
    frame = records[
        (records["stage"] == "probe") & (records["shift"] == shift) & (records["metric"] == metric)
    ]
    keys = [*UNIT, "noise_rate", "method", "label"]
    return frame.groupby(keys, as_index=False, dropna=False)[["value", "low", "high", "n"]].mean()


def full_data(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows tuned on the largest fraction and the least downstream label noise."""
    if frame.empty:
        return frame
    return frame[
        (frame["fraction"] == frame["fraction"].max())
        & (frame["label_noise"] == frame["label_noise"].min())
    ]


def feature_sets(records: pd.DataFrame, metric: str, shift: str) -> pd.DataFrame:
    """A spectral metric of F on all test images of a domain: one row a (feature set, γ)."""
    frame = spectra(records, metric, shift)
    frame = frame[(frame["label"] == METHODS["features"]) & (frame["source"] == "")]
    keys = ["model", "seed", "dataset", "target", "noise_rate", "label"]
    frame = frame[frame["labels"] == ""]
    return frame.groupby(keys, as_index=False)[["value", "low", "high", "n"]].mean()


def same_images(records: pd.DataFrame, metric: str, shift: str) -> pd.DataFrame:
    """A spectral metric of Z, and of F on the very same images: a row a (task, domain, γ, label).

    The Z of several source domains are averaged. F is left out unless it was recorded, on as many
    images, for every task and domain that Z was.
    """
    frame = spectra(records, metric, shift)
    keys = ["model", "seed", "dataset", "labels", "target", "noise_rate", "label"]
    frame = frame.groupby(keys, as_index=False)[["value", "low", "high", "n"]].mean()
    of_features = frame["label"] == METHODS["features"]
    images = [*keys[:-1], "n"]
    tuned = frame[~of_features]
    alike = frame[of_features].merge(tuned[images].drop_duplicates(), on=images)
    covered = len(alike) == len(tuned[images].drop_duplicates())
    return pd.concat([alike, tuned], ignore_index=True) if covered else tuned


def spectra(records: pd.DataFrame, metric: str, shift: str) -> pd.DataFrame:
    """The records of a spectral metric on in-domain or out-of-domain images."""
    return records[
        (records["stage"] == "spectrum")
        & (records["metric"] == metric)
        & (records["shift"] == shift)
    ]


def common_units(frame: pd.DataFrame, unit: list[str], cell: list[str], noun: str = "test"):
    """Keep the units measured in every cell, so that means compare like with like.

    Returns the rows and a line about what was left out, or None. Without a common unit all rows
    are kept, and the line says so.
    """
    cells = frame.groupby(cell, dropna=False).ngroup()
    keys = [frame[name] for name in unit]
    units = frame.groupby(unit, dropna=False).ngroups
    kept = frame[cells.groupby(keys, dropna=False).transform("nunique") == cells.nunique()]
    if kept.empty and not frame.empty:
        return frame, (
            f"No {noun} was measured in every cell, so these means are over different {noun}s "
            "and should not be compared."
        )
    left_out = units - kept.groupby(unit, dropna=False).ngroups
    if left_out:
        return kept, (
            f"{left_out} of {plural(units, noun)} are not measured in every cell and are left out."
        )
    return kept, None


def summarise(frame: pd.DataFrame, by: list[str], count: Sequence[str] = TASK) -> pd.DataFrame:
    """Mean and 95 % interval of each cell.

    Each group of `count` (a task) counts once, with the mean of its rows. With three or more
    pre-training runs the interval is Student's t over the runs' means. With fewer it is the mean
    of the records' own intervals (test-set sampling), which would be exact if the tasks' errors
    were fully correlated and is too wide for the sample of images otherwise.
    """
    runs = run_means(frame, by, count)
    sizes = frame.groupby(by, dropna=False).size()
    rows = []
    for key, group in runs.groupby(level=by, dropna=False):
        mean, low, high = group.mean()
        if len(group) >= FEWEST:
            _, low, high, *_ = statistics.t_test(group["value"])
        key = key if isinstance(key, tuple) else (key,)
        rows.append([*key, mean, low, high, sizes.loc[key if len(by) > 1 else key[0]], len(group)])
    return pd.DataFrame(rows, columns=[*by, "value", "low", "high", "cells", "runs"])


def run_means(frame: pd.DataFrame, by: list[str], count: Sequence[str] = TASK) -> pd.DataFrame:
    """value, low, high of every run in each cell, indexed by `by`, model and seed.

    Each group of `count` (a task) counts once, with the mean of its rows.
    """
    columns = ["value", "low", "high"]
    keys = [*by, "model", "seed"]
    tasks = frame.groupby([*keys, *count], dropna=False)[columns].mean()
    return tasks.groupby(level=keys, dropna=False).mean()


def interval_kind(summary: pd.DataFrame, sample: str = "test images") -> str:
    """What the intervals of `summarise` are, in words for a caption."""
    if not summary["low"].notna().any():
        return "The records hold no intervals."
    if summary["runs"].min() >= FEWEST:
        return f"Bars: 95 % intervals over {summary['runs'].min()} pre-training runs."
    averaged = ", averaged over tasks (too wide rather than too narrow)"
    return (
        f"Bars: 95 % intervals from the sample of {sample}"
        f"{averaged if summary['cells'].max() > 1 else ''}; they do not cover the luck of a "
        "pre-training run."
    )


def grid(summary: pd.DataFrame, *, scale: float, digits: int, change: bool = False) -> dict:
    """A label × γ table as text: {"columns": [...], "rows": [(name, [cell, …])]}.

    change: the values are differences, written with their signs.
    """
    rates = sorted(summary["noise_rate"].unique())
    cells = {(r["label"], r["noise_rate"]): r for _, r in summary.iterrows()}
    rows = []
    for name in ordered_labels(summary["label"]):
        texts = []
        for rate in rates:
            cell = cells.get((name, rate))
            texts.append(None if cell is None else cell_text(cell, scale, digits, change))
        rows.append((name, texts))
    return {"columns": [percent(rate) for rate in rates], "rows": rows}


def cell_text(cell, scale: float, digits: int, change: bool) -> dict:
    """A mean and its interval as text; the interval is empty if none was recorded."""
    value, low, high = (cell[name] * scale for name in ("value", "low", "high"))
    if change:
        text, interval = signed(value, digits), signed_interval(low, high, digits)
    else:
        text, interval = f"{value:.{digits}f}", f"{low:.{digits}f}–{high:.{digits}f}"
    return {"value": text, "interval": interval if np.isfinite(low) else ""}


def task_table(frame: pd.DataFrame, name_dataset: bool) -> list[dict]:
    """One row a (task, source → target, method): accuracy in % at each γ, in γ's order."""
    keys = ["dataset", "labels", "source", "target"]
    rates = sorted(frame["noise_rate"].unique())
    rows = []
    for key, group in frame.groupby(keys, sort=True):
        dataset, task, source, target = key
        for label in ordered_labels(group["label"]):
            means = group[group["label"] == label].groupby("noise_rate")["value"].mean() * 100
            rows.append(
                {
                    "task": task_name(dataset, task, name_dataset),
                    "route": target if source in ("", target) else f"{source} → {target}",
                    "method": label,
                    "values": [means.get(rate, np.nan) for rate in rates],
                }
            )
    return rows


def task_name(dataset: str, task: str, name_dataset: bool) -> str:
    """ "emoji_domains · category", or "category" where there is one data set."""
    return f"{dataset} · {task}".strip(" ·") if name_dataset or not task else task


def sizes(frame: pd.DataFrame) -> str:
    """How many tasks, heads and tests a mean is over: "4 tasks, 12 heads, 30 tests"."""
    counts = {
        noun: len(frame[columns].drop_duplicates())
        for noun, columns in (
            ("task", TASK),
            ("head", [*TASK, "source"]),
            ("test", [*TASK, "source", "target"]),
        )
    }
    first = {count: noun for noun, count in reversed(counts.items())}
    return ", ".join(plural(count, noun) for count, noun in reversed(first.items()))


def percent(rate: float) -> str:
    """0.05 -> "5 %", with a no-break space."""
    return f"{rate * 100:g}\N{NO-BREAK SPACE}%"


def percents(rates: list[float]) -> str:
    """[0.05, 0.1] -> "5, 10 %", with a no-break space."""
    return ", ".join(f"{rate * 100:g}" for rate in rates) + "\N{NO-BREAK SPACE}%"


def signed_interval(low: float, high: float, digits: int) -> str:
    """ "−2.1, +0.3", with a no-break space."""
    return f"{signed(low, digits)},\N{NO-BREAK SPACE}{signed(high, digits)}"


def plural(number: float, noun: str) -> str:
    """ "1 epoch", "2,000 steps"."""
    return f"{number:,.10g} {noun}" + ("" if number == 1 else "s")
