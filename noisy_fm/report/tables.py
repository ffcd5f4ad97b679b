"""Records to the aggregated frames that the figures, tables and tests are made of."""

import json
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from noisy_fm import nmtune
from noisy_fm.report import paired

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
    "flipped_fits_given": "changed labels that the model predicts",
    "flipped_fits_true": "changed labels whose truth it predicts",
}
SHIFTS = {"id": "in-domain", "ood": "out-of-domain"}
# What stays the same when two noise levels or two methods are compared.
UNIT = ["model", "seed", "dataset", "task", "source", "target", "fraction", "label_noise"]
# Targets are tested with one head and share its luck.
HEAD = [name for name in UNIT if name != "target"]
# F has neither task nor source: a feature set is the images of one domain of one dataset.
SPECTRUM_UNIT = ["model", "seed", "dataset", "target"]
ENOUGH_SEEDS = 3


def prepare(records: pd.DataFrame) -> pd.DataFrame:
    """Fill the fields a stage leaves null and give each (method, preset) its `label`."""
    frame = records.copy()
    named = ["model", "dataset", "task", "source", "target"]
    frame[named] = frame[named].astype(object).fillna("")
    frame["seed"] = frame["seed"].fillna(0)
    frame["fraction"] = frame["fraction"].fillna(1.0)
    frame["label_noise"] = frame["label_noise"].fillna(0.0)
    frame["noise_rate"] = frame["noise_rate"].fillna(0.0)
    same = np.where(frame["source"] == frame["target"], "id", "ood")
    frame["shift"] = frame["shift"].where(frame["shift"].notna(), same)
    frame["label"] = method_labels(frame)
    return frame


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


def spectrum_scores(records: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One row a (feature set, γ, method) of a spectral metric; label "Features F" is F itself.

    The Z of several tasks and source domains on the same images are averaged.
    """
    frame = records[(records["stage"] == "spectrum") & (records["metric"] == metric)]
    keys = [*SPECTRUM_UNIT, "noise_rate", "label"]
    return frame.groupby(keys, as_index=False, dropna=False)[["value", "low", "high", "n"]].mean()


def common_units(frame: pd.DataFrame, unit: list[str], cell: list[str]):
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
            "No task was measured in every cell, so these means are over different tasks "
            "and should not be compared."
        )
    left_out = units - kept.groupby(unit, dropna=False).ngroups
    if left_out:
        return kept, f"{left_out} of {units} tasks are not measured in every cell and are left out."
    return kept, None


def summarise(frame: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Mean and 95 % interval of each cell.

    With three or more pre-training seeds the interval is Student's t over the seeds' means. With
    fewer it is the mean of the records' own intervals (test-set sampling), which would be exact
    if the tasks' errors were fully correlated and is too wide otherwise.
    """
    rows = []
    for key, group in frame.groupby(by, sort=True, dropna=False):
        runs = group.groupby(["model", "seed"])["value"].mean()
        mean = group["value"].mean()
        low, high = group["low"].mean(), group["high"].mean()
        if len(runs) >= ENOUGH_SEEDS:
            half = stats.t.ppf(0.975, len(runs) - 1) * runs.std(ddof=1) / np.sqrt(len(runs))
            low, high = mean - half, mean + half
        rows.append([*key, mean, low, high, len(group), len(runs)])
    return pd.DataFrame(rows, columns=[*by, "value", "low", "high", "cells", "runs"])


def paired_gains(frame: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Differences of paired units, by γ and label, as `summarise` gives means.

    reference: "label" for each method less LP at the same γ, "noise_rate" for each γ less γ = 0
    with the same method. Value and interval are Hodges and Lehmann's over the heads, whose
    targets are averaged.
    """
    base = METHODS["lp"] if reference == "label" else 0.0
    other = {"label": "noise_rate", "noise_rate": "label"}[reference]
    wide = frame.pivot_table(index=[*UNIT, other], columns=reference, values="value")
    if base not in wide:
        return pd.DataFrame()
    gains = wide.drop(columns=base).sub(wide[base], axis=0).stack().dropna()
    gains = gains.groupby(level=[*HEAD, other, reference]).mean()
    rows = [
        {**dict(zip((other, reference), key, strict=True)), **paired.signed_rank(group)._asdict()}
        for key, group in gains.groupby(level=[other, reference])
    ]
    return pd.DataFrame(rows).rename(columns={"effect": "value"})


def interval_kind(summary: pd.DataFrame, sample: str = "test images") -> str:
    """What the intervals of `summarise` are, in words for a caption."""
    if not summary["low"].notna().any():
        return "The records hold no intervals."
    if summary["runs"].min() >= ENOUGH_SEEDS:
        return f"Bars: 95 % intervals over {summary['runs'].min()} pre-training runs (Student's t)."
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
    keys = ["dataset", "task", "source", "target"]
    rates = sorted(frame["noise_rate"].unique())
    rows = []
    for key, group in frame.groupby(keys, sort=True):
        dataset, task, source, target = key
        for label in ordered_labels(group["label"]):
            means = group[group["label"] == label].groupby("noise_rate")["value"].mean() * 100
            rows.append(
                {
                    "task": f"{dataset} · {task}".strip(" ·") if name_dataset else task,
                    "route": source if source == target else f"{source} → {target}",
                    "method": label,
                    "values": [means.get(rate, np.nan) for rate in rates],
                }
            )
    return rows


def percent(rate: float) -> str:
    """0.05 -> "5 %", with a no-break space."""
    return f"{rate * 100:g}\N{NO-BREAK SPACE}%"


def percents(rates: list[float]) -> str:
    """[0.05, 0.1] -> "5, 10 %", with a no-break space."""
    return ", ".join(f"{rate * 100:g}" for rate in rates) + "\N{NO-BREAK SPACE}%"


def signed(value: float, digits: int) -> str:
    """A number with its sign and a true minus; zero has none."""
    text = f"{value:+.{digits}f}"
    if float(text) == 0:
        return text[1:]
    return text.replace("-", "\N{MINUS SIGN}")


def signed_interval(low: float, high: float, digits: int) -> str:
    """ "−2.1, +0.3", with a no-break space."""
    return f"{signed(low, digits)},\N{NO-BREAK SPACE}{signed(high, digits)}"


def plural(number: float, noun: str) -> str:
    """ "1 epoch", "2,000 steps"."""
    return f"{number:,.10g} {noun}" + ("" if number == 1 else "s")
