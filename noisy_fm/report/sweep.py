"""The page's section on a λ-sweep: what NMTune's heads do as the weight of its terms grows.

It stands apart from the questions: its heads enter no test and no other section.
"""

import json

import pandas as pd

from noisy_fm.report import figures, paired, tables
from noisy_fm.report.sections import aligned, section, slug

NONE = "0"  # λ = 0 is MLP tuning
TITLES = {
    ("sve", "id"): "SVE of Z, in-domain tasks",
    ("lsvr", "ood"): "LSVR of Z, out-of-domain tasks",
}


def rows_of(records: pd.DataFrame) -> pd.DataFrame:
    """The heads that differ in λ alone, labelled by it; empty where there was no sweep."""
    if not tables.is_sweep(records).any():
        return records.iloc[:0]
    nmtune = records[(records["method"] == "nmtune") & records["weights"].notna()]
    swept = nmtune["preset"].isin(nmtune.loc[tables.is_sweep(nmtune), "preset"])
    nmtune = nmtune[swept]
    labels = nmtune["weights"].map(lambda text: tables.lambda_text(json.loads(text)))
    mlp = records[(records["method"] == "mlp") & records["preset"].isin(nmtune["preset"])]
    # One method, so that a head of λ = 0 and the MLP's, which is the same, are averaged.
    return pd.concat([nmtune.assign(label=labels), mlp.assign(label=NONE)]).assign(method="nmtune")


def weight_sweep(records: pd.DataFrame, studio: figures.Studio, model: str) -> dict | None:
    """Scores and spectra against λ, and what λ adds to MLP tuning; None without a sweep."""
    rows = rows_of(records)
    if rows.empty:
        return None
    part = section("sweep", "NMTune by the weight λ of its terms")
    preset = " and ".join(sorted(rows["preset"].unique()))
    part["text"] = (
        f"λ weighs the three terms of eq. 7 alike, or (L_MSE, L_COV, L_SVD) one by one; λ = 0 is "
        f"MLP tuning. All else is the {preset} preset's, whose own λ the rest of this page is "
        "about. Choose λ on validation data (NMTuneClassifierCV does), not from these test scores."
    )
    order = sorted(rows["label"].unique(), key=lambda label: [*map(float, label.split(", "))])
    places = dict(enumerate(order))
    axis = {"x": "place", "xlabel": "λ", "places": places}
    numbers = {label: place for place, label in places.items()}
    for shift, where in tables.SHIFTS.items():
        frame = tables.full_data(tables.probe_scores(rows, shift=shift, metric="accuracy"))
        title = f"{where.capitalize()} accuracy"
        if frame.empty:
            part["missing"].append(f"{title}: not recorded.")
            continue
        add_scores(part, frame, studio, axis, numbers, title=title, name=slug(shift, model))
    for (metric, shift), title in TITLES.items():
        frame = tables.same_images(rows, metric, shift)
        if not frame.empty:
            draw_mean(part, frame, studio, axis, numbers, title=title, ylabel=metric.upper(),
                      scale=1, name=slug("sweep", metric, model))  # fmt: skip
    if part["groups"] and len(part["drawings"]) > len(TITLES):
        part["caption"] += (
            " Lines are means over γ. Changes pair the same heads; their 95 % intervals are over "
            "tasks (and over seeds, with three or more), domains and γ averaged. They are not "
            "corrected for the number of λ, and no verdict rests on them."
        )
    return part


def add_scores(part, frame, studio, axis, numbers, *, title: str, name: str) -> None:
    """A table λ × γ of mean accuracy, its curve over λ, and the paired change from λ = 0."""
    frame, note = tables.common_units(frame, tables.UNIT, ["noise_rate", "label"])
    part["missing"] += [f"{title}: {note}"] if note else []
    summary = tables.summarise(frame, ["noise_rate", "label"])
    table = tables.grid(summary, scale=100, digits=1)
    part["columns"] = part["columns"] or table["columns"]
    rows = sorted(aligned(table, part), key=lambda row: numbers[row[0]])
    rows = [(f"λ = {label}", cells) for label, cells in rows]
    part["groups"].append({"title": f"{title}, %", "rows": rows})
    part["caption"] = part["caption"] or tables.interval_kind(summary)
    draw_mean(part, frame, studio, axis, numbers, title=title, ylabel="accuracy, %", scale=100,
              name=slug("sweep", name))  # fmt: skip
    changes = paired.gains_over(frame, NONE, "")
    if changes.empty:
        part["missing"].append(f"{title}: no λ = 0 (MLP tuning) to compare with.")
        return
    changes = changes.assign(place=changes["label"].map(numbers), label=tables.METHODS["nmtune"])
    drawing = studio.lines(
        changes,
        name=slug("sweep", "gain", name),
        title=f"{title}, change from λ = 0",
        ylabel="points",
        scale=100,
        zero=True,
        **axis,
    )
    part["drawings"].append(drawing)


def draw_mean(part, frame, studio, axis, numbers, *, title, ylabel, scale, name) -> None:
    """The mean over γ of scores against λ, with intervals."""
    placed = frame.assign(place=frame["label"].map(numbers), label=tables.METHODS["nmtune"])
    summary = tables.summarise(placed, ["place", "label"])
    drawing = studio.lines(summary, name=name, title=title, ylabel=ylabel, scale=scale, **axis)
    part["drawings"].append(drawing)
