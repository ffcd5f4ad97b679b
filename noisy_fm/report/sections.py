"""The page's sections on scores and spectra: text, what is missing, drawings and tables."""

import numpy as np
import pandas as pd
from scipy import stats

from noisy_fm.report import figures, paired, paper, tables
from noisy_fm.report.figures import slug

SCORES = ("accuracy", "balanced_accuracy", "macro_f1")
DRAWN = ("macro_f1",)  # accuracy is drawn above all else
CELL = ["noise_rate", "label"]


def section(key: str, title: str) -> dict:
    """An empty section: what the template shows of it, in this order."""
    return {
        "key": key,
        "title": title,
        "text": "",
        "missing": [],
        "drawings": [],
        "folded": [],  # drawings to be looked up
        "caption": "",
        "groups": [],
        "columns": [],
        "tasks": [],
        "heat": [],
        "paper": False,  # whether a drawing has the paper's values behind
    }


def pretraining(records: pd.DataFrame, studio: figures.Studio, model: str) -> dict:
    """Table 1 of the paper: accuracy of the pre-trained models at each γ."""
    part = section("pretraining", "Pre-training accuracy")
    frame = records[records["stage"] == "pretrain"]
    if frame.empty:
        part["missing"] = ["No pre-training accuracy was recorded."]
        return part
    part["text"] = "Held-out images against their true labels (the paper's Table 1)."
    if swapped := tables.wrong(records) == tables.SWAPPED:
        part["text"] = "Held-out pairs: nothing is tuned (zero-shot is the paper's Table 1)."
    if (frame["metric"] == "flipped_fits_given").any() and not swapped:
        part["text"] += " By chance a model would repeat (1 − share whose truth it predicts)/"
        part["text"] += "(classes − 1) of the wrong labels."
    rows_shown: list[tuple] = []
    part["groups"] = [{"title": "", "rows": rows_shown}]
    for metric, rows in frame.groupby("metric"):
        summary = tables.summarise(rows.assign(label=named(metric)), CELL)
        score, change = is_score(metric), metric.endswith("_change")
        numbers = {"scale": 100, "digits": 1} if score else {"scale": 1, "digits": 3}
        table = tables.grid(summary, **numbers, change=change)
        part["columns"] = part["columns"] or table["columns"]
        name = named(metric) + (", points" if change else ", %" if score else "")
        rows_shown += [(name, cells) for _, cells in aligned(table, part)]
        if metric == "accuracy":
            part["caption"] = tables.interval_kind(summary)
            if summary["noise_rate"].nunique() > 1:
                drawing = studio.lines(
                    summary.assign(label="Pre-training"),
                    name=slug("pretraining", model),
                    title="Pre-training accuracy",
                    ylabel="accuracy, %",
                    scale=100,
                )
                part["drawings"].append(drawing)
            else:
                part["missing"].append("Only one γ is recorded, so there is no curve to draw.")
    if (frame["metric"] == "accuracy_change").any():
        part["caption"] += " The change from γ = 0 is of the same seed on the same images."
        part["drawings"].append(beside_the_paper(frame, studio, model))
        part["caption"] += (
            " Pale behind it: the paper's Table 1, ImageNet-1K validation accuracy of its models, "
            "zero-shot for CLIP."
        )
        part["paper"] = True
    metrics = set(frame["metric"])
    if "flipped_fits_given" in metrics and "flipped_fits_chance" not in metrics:
        part["missing"].append("How many changed labels chance predicts was not recorded.")
    return part


def beside_the_paper(frame: pd.DataFrame, studio: figures.Studio, model: str) -> figures.Drawing:
    """Change of pre-training accuracy from γ = 0, and behind it that of the paper's models."""
    change = tables.summarise(frame[frame["metric"] == "accuracy_change"], ["noise_rate"])
    clean = {"noise_rate": 0.0, "value": 0.0, "low": 0.0, "high": 0.0}
    summary = pd.concat([pd.DataFrame([clean]), change], ignore_index=True)
    return studio.lines(
        summary.assign(label="this study"),
        name=slug("pretraining", "change", model),
        title="Pre-training accuracy, change from γ = 0",
        ylabel="points",
        scale=100,
        zero=True,
        behind=paper.pretraining_changes(summary["noise_rate"].max()),
    )


def downstream(records: pd.DataFrame, studio: figures.Studio, model: str) -> dict:
    """Figs. 3 and 7 of the paper: in- and out-of-domain scores by method and γ."""
    part = section("downstream", "Downstream, by method")
    part["text"] = (
        "Heads tuned on frozen features, in the domain they were tuned on and outside it (the "
        "paper's Figs. 3 and 7). A task counts once, its heads and tests averaged."
    )
    notes = []
    for shift, metric in ((s, m) for m in SCORES for s in tables.SHIFTS):
        frame = tables.full_data(tables.probe_scores(records, shift=shift, metric=metric))
        title = f"{tables.SHIFTS[shift].capitalize()} {tables.METRICS[metric]}"
        if frame.empty:
            part["missing"].append(f"{title}: not recorded.")
            continue
        frame, note = tables.common_units(frame, tables.UNIT, CELL)
        summary = tables.summarise(frame, CELL)
        table = tables.grid(summary, scale=100, digits=1)
        part["columns"] = part["columns"] or table["columns"]
        part["groups"].append(
            {
                "title": f"{title}, % ({tables.sizes(frame)})",
                "rows": aligned(table, part),
            }
        )
        notes += [f"{title}: {note}"] if note else []
        part["caption"] = part["caption"] or tables.interval_kind(summary)
        if metric in DRAWN and summary["noise_rate"].nunique() > 1:
            name = slug("downstream", shift, metric, model)
            ylabel = f"{tables.METRICS[metric]}, %"
            part["drawings"].append(
                studio.lines(summary, name=name, title=title, ylabel=ylabel, scale=100)
            )
    drawn = changes(records, studio, model)
    if drawn:
        part["drawings"] = [*drawn, *part["drawings"]]
        part["caption"] += " Changes from γ = 0 are of the same seed, heads and tests."
    if part["groups"] and not part["drawings"]:
        part["missing"].append("Only one γ is recorded, so there is no curve to draw.")
    part["missing"] += notes
    return part


def changes(records: pd.DataFrame, studio: figures.Studio, model: str) -> list:
    """Accuracy at each γ less that at γ = 0, by method."""
    drawings = []
    for shift, where in tables.SHIFTS.items():
        scores = tables.probe_scores(records, shift=shift, metric="accuracy")
        change = paired.changes_from_clean(tables.full_data(scores))
        if change.empty or change["noise_rate"].nunique() < 2:
            continue
        drawing = studio.lines(
            change,
            name=slug("change from γ = 0", shift, model),
            title=f"{where.capitalize()} accuracy, change from γ = 0",
            ylabel="points",
            scale=100,
            zero=True,
        )
        drawings.append(drawing)
    return drawings


def less_data(records: pd.DataFrame, studio: figures.Studio, model: str) -> list[dict]:
    """Accuracy against the downstream fraction and label noise η, if the study varied them."""
    parts = []
    for x, other, title, label in (
        ("fraction", "label_noise", "Downstream, by share of the data", "downstream data, %"),
        ("label_noise", "fraction", "Downstream, by label noise η", "downstream label noise η, %"),
    ):
        probes = records[records["stage"] == "probe"]
        if probes[x].nunique() < 2:
            continue
        part = section(x, title)
        for shift in tables.SHIFTS:
            frame = tables.probe_scores(records, shift=shift, metric="accuracy")
            keep = frame[other].max() if other == "fraction" else frame[other].min()
            frame = frame[frame[other] == keep]
            methods = frame.assign(kind="methods, mean over γ")
            lp = frame[frame["method"] == "lp"]
            lp = lp.assign(label=lp["noise_rate"].map(tables.percent), kind="LP by γ")
            for rows in (methods, lp):
                unit = [u for u in tables.UNIT if u not in (x, other)]
                rows, note = tables.common_units(rows, unit, [x, "noise_rate", "label"])
                if rows.empty or rows[x].nunique() < 2:
                    continue
                kind = rows["kind"].iloc[0]
                drawing = studio.lines(
                    tables.summarise(rows, [x, "label"]),
                    name=slug(x, shift, kind, model),
                    title=f"{tables.SHIFTS[shift].capitalize()}, {kind}",
                    ylabel="accuracy, %",
                    scale=100,
                    x=x,
                    xlabel=label,
                )
                part["drawings"].append(drawing)
                part["missing"] += [note] if note else []
        parts.append(part)
    return parts


def spectrum(records: pd.DataFrame, spectra: list, studio: figures.Studio, model: str) -> dict:
    """Fig. 5 of the paper: SVE, LSVR and the normalised singular values."""
    part = section("spectrum", "Singular value spectrum of the features")
    part["text"] = (
        "SVE is the entropy of σᵢ/Σσ, LSVR is −log σ₁/Σσ (eqs. 2 and 3), in nats. As in section 5 "
        "of the paper, SVE is asked about on in-domain images and LSVR on the others; with noise "
        "LSVR “drops” in the caption of its Fig. 5 and rises in its text, which is followed here. "
        "F are the frozen features, Z what a head makes of them (Fig. 7)."
    )
    for metric, shift in (("sve", "id"), ("lsvr", "ood"), ("sve", "ood"), ("lsvr", "id")):
        title = f"{metric.upper()} of F, {tables.SHIFTS[shift]} images"
        frame = tables.feature_sets(records, metric, shift)
        if frame.empty:
            part["missing"].append(f"{title}: not recorded.")
            continue
        unit = tables.SPECTRUM_UNIT
        frame, note = tables.common_units(frame, unit, CELL, "feature set")
        part["missing"] += [f"{title}: {note}"] * bool(note)
        summary = tables.summarise(frame, CELL, ["dataset", "target"])
        add_spectrum(part, summary, studio, title, "")
        caption = tables.interval_kind(summary, "images whose features these are")
        part["caption"] = caption.replace("over tasks", "over feature sets")
    for metric, shift in JUDGED:
        add_same_images(part, records, studio, model, metric, shift)
    if not spectra:
        part["missing"].append("The singular values themselves were not recorded.")
    spectrum_curves(part, spectra, studio, model)
    return part


JUDGED = (("sve", "id"), ("lsvr", "ood"))  # the pairs that section 5 of the paper speaks of


def add_spectrum(part, summary, studio, title: str, name: str) -> None:
    """A table of a spectral metric by γ and, with a `name`, its figure."""
    table = tables.grid(summary, scale=1, digits=3)
    part["columns"] = part["columns"] or table["columns"]
    part["groups"].append({"title": f"{title}, nats", "rows": aligned(table, part)})
    if name and summary["noise_rate"].nunique() > 1:
        part["drawings"].append(studio.lines(summary, name=name, title=title, ylabel="nats"))


def add_same_images(part, records, studio, model: str, metric: str, shift: str) -> None:
    """F beside the methods' Z, both on the test images of the tasks."""
    frame = tables.same_images(records, metric, shift)
    labels = tables.ordered_labels(frame["label"])
    if not set(labels) - {tables.METHODS["features"]}:
        return  # no method makes a Z
    has_features = tables.METHODS["features"] in labels
    of = "F and Z" if has_features else "Z"
    title = f"{metric.upper()} of {of}, {tables.SHIFTS[shift]} tasks"
    if not has_features:
        part["missing"].append(
            f"{title}: F was not recorded on the images of these tasks, so it has no line there."
        )
    frame, note = tables.common_units(frame, [*tables.SPECTRUM_UNIT, "labels"], CELL)
    part["missing"] += [f"{title}: {note}"] * bool(note)
    add_spectrum(part, tables.summarise(frame, CELL), studio, title, slug("same", metric, model))


def spectrum_curves(part: dict, spectra: list, studio: figures.Studio, model: str) -> None:
    """F's σᵢ/Σσ against γ = 0; and, to be looked up, σᵢ/Σσ of F and of each method's Z."""
    for method in sorted({row.get("method") or "features" for row in spectra}, key=method_rank):
        rows = [r for r in spectra if (r.get("method") or "features") == method]
        if method == "features":
            rows = [r for r in rows if not r.get("labels")]  # whole feature sets
        rows = [r for r in rows if r.get("noise_rate") in studio.rates]
        curves = figures.mean_spectra(rows) if rows else {}
        if not curves:
            continue
        name = "F" if method == "features" else f"Z, {tables.METHODS.get(method, method)}"
        drawing = studio.spectra(
            curves,
            name=slug("spectrum", method, model),
            title=f"Normalised spectrum of {name}",
            ylabel="σᵢ / Σσ",
        )
        part["folded"].append(drawing)
        if method == "features" and 0.0 in curves and len(curves) > 1:
            ratios, bands = spectrum_ratios(rows)
            drawing = studio.spectra(
                ratios,
                bands=bands,
                name=slug("spectrum", "ratio", model),
                title="Spectrum of F relative to γ = 0 %",
                ylabel="ratio of σᵢ / Σσ",
                log_y=False,
            )
            part["drawings"].append(drawing)


def spectrum_ratios(rows: list[dict]) -> tuple[dict, dict]:
    """({γ: mean over seeds of σᵢ/Σσ at γ over that at γ = 0}, {γ: its 95 % interval [2 n]}).

    The intervals are over the seeds at each i, where there are three or more.
    """
    by_seed: dict[float, list] = {}
    for seed in sorted({row.get("seed", 0) for row in rows}):
        curves = figures.mean_spectra([row for row in rows if row.get("seed", 0) == seed])
        if 0.0 not in curves:
            continue
        clean = curves.pop(0.0)
        for rate, curve in curves.items():
            length = min(len(clean), len(curve))
            floor = clean[:length] > 1e-6 * clean[0]  # below that a ratio is rounding
            ratio = np.where(floor, curve[:length] / clean[:length].clip(1e-300), np.nan)
            by_seed.setdefault(rate, []).append(ratio)
    means, bands = {}, {}
    for rate, ratios in sorted(by_seed.items()):
        length = min(len(ratio) for ratio in ratios)
        table = np.stack([ratio[:length] for ratio in ratios])
        means[rate] = table.mean(axis=0)
        if len(table) >= tables.FEWEST:
            half = stats.t.isf(0.025, len(table) - 1) * table.std(axis=0, ddof=1)
            half /= np.sqrt(len(table))
            bands[rate] = np.stack([means[rate] - half, means[rate] + half])
    return means, bands


def tasks(records: pd.DataFrame) -> dict:
    """Every task: LP's change from γ = 0 as a map, and accuracy by method and γ."""
    part = section("tasks", "Every task")
    part["text"] = (
        "LP's accuracy at γ = 0 in %, and its change with γ in points; ● where the 95 % interval "
        "over seeds leaves out 0, uncorrected: among so many some stand out by luck."
    )
    several = records["dataset"].replace("", None).nunique() > 1
    for shift, name in tables.SHIFTS.items():
        frame = tables.full_data(tables.probe_scores(records, shift=shift, metric="accuracy"))
        if frame.empty:
            part["missing"].append(f"No {name} task is recorded.")
            continue
        rates = sorted(frame["noise_rate"].unique())
        part["heat"].append({"title": name.capitalize(), **heat(frame, rates, several)})
        rows = tables.task_table(frame, several)
        for row in rows:
            peers = [r for r in rows if (r["task"], r["route"]) == (row["task"], row["route"])]
            row["span"] = len(peers)
            row["first"] = peers[0] is row
        columns = [tables.percent(rate) for rate in rates]
        part["tasks"].append({"title": name.capitalize(), "columns": columns, "rows": rows})
    return part


def heat(frame: pd.DataFrame, rates: list[float], several: bool) -> dict:
    """LP's accuracy of each test at γ = 0 and its change at every other γ, with a shade."""
    lp = frame[frame["method"] == "lp"]
    rows, largest = [], 1.0
    for (dataset, labels, source, target), test in lp.groupby(paired.TEST):
        wide = test.groupby(["seed", "noise_rate"])["value"].mean().unstack() * 100
        if 0.0 not in wide:
            continue
        cells = []
        for rate in rates[1:]:
            change = (wide[rate] - wide[0.0]).dropna() if rate in wide else pd.Series(dtype=float)
            found = paired.interval(change) if len(change) else None
            cells.append(found and {**found, "clear": found["low"] > 0 or found["high"] < 0})
            largest = max(largest, abs(found["value"]) if found else 0)
        route = target if source in ("", target) else f"{source} → {target}"
        name = f"{tables.task_name(dataset, labels, several)}{', ' * bool(route)}{route}"
        rows.append({"name": name, "clean": wide[0.0].mean(), "cells": cells})
    for cell in (cell for row in rows for cell in row["cells"] if cell):
        cell["shade"] = round(60 * abs(cell["value"]) / largest)
    return {"columns": [tables.percent(rate) for rate in rates], "rows": rows}


def aligned(table: dict, part: dict) -> list:
    """The rows of a γ table with its cells under the section's columns."""
    places = [table["columns"].index(c) if c in table["columns"] else None for c in part["columns"]]
    return [
        (name, [None if place is None else cells[place] for place in places])
        for name, cells in table["rows"]
    ]


def named(metric: str) -> str:
    """macro_f1 -> "Macro-F1"."""
    name = tables.METRICS.get(metric, metric.replace("_", " "))
    return name[0].upper() + name[1:]


def is_score(metric: str) -> bool:
    """Whether a metric is a fraction that reads best in %."""
    return any(
        word in metric
        for word in ("accuracy", "f1", "flipped", "R@", "top5", "zero_shot", "matched")
    )


def method_rank(method: str) -> tuple:
    known = list(tables.METHODS)
    return (known.index(method) if method in known else len(known), method)
