"""The page's sections on scores and spectra: text, what is missing, drawings and tables."""

import functools
import re

import numpy as np
import pandas as pd

from noisy_fm.report import figures, paired, tables

SCORES = ("accuracy", "balanced_accuracy", "macro_f1")
DRAWN = ("accuracy", "macro_f1")
CELL = ["noise_rate", "label"]


def section(key: str, title: str) -> dict:
    """An empty section: what the template shows of it, in this order."""
    return {
        "key": key,
        "title": title,
        "text": "",
        "missing": [],
        "drawings": [],
        "caption": "",
        "groups": [],
        "columns": [],
        "tasks": [],
    }


def pretraining(records: pd.DataFrame, studio: figures.Studio, model: str) -> dict:
    """Table 1 of the paper: accuracy of the pre-trained models at each γ."""
    part = section("pretraining", "Pre-training accuracy")
    frame = records[records["stage"] == "pretrain"]
    if frame[frame["metric"] == "accuracy"].empty:
        part["missing"] = ["No pre-training accuracy was recorded."]
        return part
    part["text"] = "Accuracy on held-out images against their true labels (the paper's Table 1)."
    if (frame["metric"] == "flipped_fits_given").any():
        part["text"] += (
            " A changed label that the model predicts has been memorised only as far as that is "
            "above chance, (1 − share whose truth it predicts)/(classes − 1)."
        )
    rows_shown: list[tuple] = []
    part["groups"] = [{"title": "", "rows": rows_shown}]
    for metric, rows in frame.groupby("metric"):
        summary = tables.summarise(rows.assign(label=named(metric)), CELL)
        score, change = is_score(metric), metric == "accuracy_change"
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
    metrics = set(frame["metric"])
    if "flipped_fits_given" in metrics and "flipped_fits_chance" not in metrics:
        part["missing"].append("How many changed labels chance predicts was not recorded.")
    part["drawings"] += memorised(frame, studio, model)
    return part


def memorised(frame: pd.DataFrame, studio: figures.Studio, model: str) -> list:
    """What a model predicts for the training examples whose label was changed."""
    labels = {
        "flipped_fits_given": "wrong label",
        "flipped_fits_true": "true label",
        "flipped_fits_chance": "chance",
    }
    frame = frame[frame["metric"].isin(labels)]
    if frame["noise_rate"].nunique() < 2:
        return []
    summary = tables.summarise(frame.assign(label=frame["metric"].map(labels)), CELL)
    drawing = studio.lines(
        summary,
        name=slug("memorised", model),
        title="Changed training labels: what is predicted",
        ylabel="share of them, %",
        scale=100,
    )
    return [drawing]


def downstream(records: pd.DataFrame, studio: figures.Studio, model: str) -> dict:
    """Figs. 3 and 7 of the paper: in- and out-of-domain scores by method and γ."""
    part = section("downstream", "Downstream, by method")
    part["text"] = (
        "Mean over tasks of heads tuned on frozen features, in the domain they were tuned on and "
        "outside it (the paper's Figs. 3 and 7). A task counts once: its heads, one a domain to "
        "tune on, and their tests, one a domain, are averaged first."
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
    drawn = gains(records, studio, model)
    if drawn:
        part["drawings"] += drawn
        part["caption"] += (
            " The panels of changes and gains pair the same heads, so that their difficulty "
            "cancels. Changes from γ = 0 have 95 % intervals over seeds, gains over LP over tasks "
            "and seeds, where there are three or more of them; with fewer seeds they are of these "
            "models alone."
        )
    if part["groups"] and not part["drawings"]:
        part["missing"].append("Only one γ is recorded, so there is no curve to draw.")
    part["missing"] += notes
    return part


def gains(records: pd.DataFrame, studio: figures.Studio, model: str) -> list:
    """The same accuracies as paired differences: from γ = 0, and from LP at the same γ."""
    drawings = []
    changes = paired.changes_from_clean
    over_lp = functools.partial(paired.gains_over, base=tables.METHODS["lp"], by="noise_rate")
    for title, difference_of in (("change from γ = 0", changes), ("gain over LP", over_lp)):
        for shift, where in tables.SHIFTS.items():
            scores = tables.probe_scores(records, shift=shift, metric="accuracy")
            difference = difference_of(tables.full_data(scores))
            if difference.empty or difference["noise_rate"].nunique() < 2:
                continue
            drawing = studio.lines(
                difference,
                name=slug(title, shift, model),
                title=f"{where.capitalize()} accuracy, {title}",
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
        "SVE is the entropy of σᵢ/Σσ, LSVR is −log σ₁/Σσ, both in nats (eqs. 2 and 3). A larger "
        "SVE is a flatter spectrum, a larger LSVR a weaker dominant direction. As in the paper's "
        "section 5, SVE is asked about on in-domain images and LSVR on out-of-domain images; with "
        "noise LSVR “drops” in the caption of its Fig. 5 and rises in its text, and eq. 3 and the "
        "text are followed here. F are the frozen features, Z what a method's head makes of them "
        "(Fig. 7)."
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
        drawn = (metric, shift) in JUDGED
        add_spectrum(part, summary, studio, title, slug("spectrum", metric, model) if drawn else "")
        caption = tables.interval_kind(summary, "images whose features these are")
        part["caption"] = caption.replace("over tasks", "over feature sets")
    for metric, shift in JUDGED:
        add_same_images(part, records, studio, model, metric, shift)
    if not spectra:
        part["missing"].append("The singular values themselves were not recorded.")
    part["drawings"] += spectrum_curves(spectra, studio, model)
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


def spectrum_curves(spectra: list, studio: figures.Studio, model: str) -> list:
    """σ_i/Σσ of F and of each method's Z, and F's against γ = 0."""
    drawings = []
    for method in sorted({row.get("method") or "features" for row in spectra}, key=method_rank):
        rows = [r for r in spectra if (r.get("method") or "features") == method]
        if method == "features":
            rows = [r for r in rows if not r.get("labels")]  # whole feature sets
        rows = [r for r in rows if r.get("noise_rate") in studio.rates]
        curves = figures.mean_spectra(rows) if rows else {}
        if not curves:
            continue
        name = "F" if method == "features" else f"Z, {tables.METHODS.get(method, method)}"
        drawings.append(
            studio.spectra(
                curves,
                name=slug("spectrum", method, model),
                title=f"Normalised spectrum of {name}",
                ylabel="σᵢ / Σσ",
            )
        )
        if method == "features" and 0.0 in curves and len(curves) > 1:
            clean = curves.pop(0.0)
            length = min(len(clean), *(len(curve) for curve in curves.values()))
            floor = clean[:length] > 1e-6 * clean[0]  # below that a ratio is rounding
            ratios = {
                rate: np.where(floor, curve[:length] / clean[:length].clip(1e-300), np.nan)
                for rate, curve in curves.items()
            }
            drawings.append(
                studio.spectra(
                    ratios,
                    name=slug("spectrum", "ratio", model),
                    title="Spectrum of F relative to γ = 0 %",
                    ylabel="ratio of σᵢ / Σσ",
                    log_y=False,
                )
            )
    return drawings


def tasks(records: pd.DataFrame) -> dict:
    """Every task's accuracy by method and γ."""
    part = section("tasks", "Every task")
    part["text"] = (
        "Accuracy in %, probe and pre-training seeds averaged, to be looked up. No best method is "
        "marked: among so many uncorrected comparisons some would stand out by luck."
    )
    for shift, name in tables.SHIFTS.items():
        frame = tables.full_data(tables.probe_scores(records, shift=shift, metric="accuracy"))
        if frame.empty:
            part["missing"].append(f"No {name} task is recorded.")
            continue
        rates = sorted(frame["noise_rate"].unique())
        rows = tables.task_table(frame, records["dataset"].replace("", None).nunique() > 1)
        for row in rows:
            peers = [r for r in rows if (r["task"], r["route"]) == (row["task"], row["route"])]
            row["spark"] = sparkline(row["values"])
            row["span"] = len(peers)
            row["first"] = peers[0] is row
        columns = [tables.percent(rate) for rate in rates]
        part["tasks"].append({"title": name.capitalize(), "columns": columns, "rows": rows})
    return part


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
    return any(word in metric for word in ("accuracy", "f1", "flipped"))


def method_rank(method: str) -> tuple:
    known = list(tables.METHODS)
    return (known.index(method) if method in known else len(known), method)


def slug(*parts: str) -> str:
    """Words to a file's stem."""
    return "-".join(filter(None, (re.sub(r"[^a-z0-9]+", "-", p.lower()).strip("-") for p in parts)))


def sparkline(values: list[float]) -> str:
    """Points of a small polyline in an 80 × 20 box; empty if a value is missing."""
    array = np.asarray(values)
    if len(array) < 2 or not np.isfinite(array).all():
        return ""
    height = (array - array.min()) / max(float(np.ptp(array)), 1e-9)
    across = np.linspace(3, 77, len(array))
    return " ".join(f"{x:.1f},{17 - 14 * y:.1f}" for x, y in zip(across, height, strict=True))
