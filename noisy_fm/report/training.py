"""The section on training: what was logged against steps, and which captions images are near to."""

import numpy as np
import pandas as pd

from noisy_fm.report import figures, tables
from noisy_fm.report.sections import section

LOGGED = {
    "loss": "Training loss",
    "accuracy": "Accuracy on training batches",
    "matched": "Images nearest to their own caption of a batch",
    "scale": "Temperature: the factor of cosines",
}
TEXT = "Means since the log line before, and over seeds."
NEAR = (
    "Cosines of a few held-out images (rows) with their captions (columns), of one seed; ○ marks "
    "the caption that an image is nearest to, a good model's along the diagonal."
)


def training(
    history: list[dict], similarity: list[dict], studio: figures.Studio, model: str
) -> dict | None:
    """Curves of what the training log holds, one a γ, and matrices of cosines, if there are any."""
    part = section("training", "Training")
    for name, curves in logged(history).items():
        drawing = studio.curves(
            curves, name=figures.slug("training", name, model), title=LOGGED[name], xlabel="step"
        )
        part["drawings" if name in ("loss", "scale") else "folded"].append(drawing)
    part["text"] = TEXT if history else ""
    for row in similarity:
        drawing = studio.matrix(
            np.asarray(row["cosines"], float),
            row["captions"],
            name=figures.slug("similarity", f"{row['noise_rate']:g}", model),
            title=f"Images and captions, γ = {tables.percent(row['noise_rate'])}",
        )
        part["drawings"].append(drawing)
        part["caption"] = NEAR
    return part if part["drawings"] or part["folded"] else None


def logged(history: list[dict]) -> dict[str, dict[float, pd.Series]]:
    """{name: {γ: mean over seeds by step}} of what is drawn, where all γ have it at two steps."""
    frame = pd.DataFrame(history)
    found = {}
    for name in LOGGED:
        if name not in frame:
            continue
        rows = frame.dropna(subset=name)
        curves = {}
        for rate, group in rows.groupby("noise_rate"):
            by_step = group.groupby("step")[name]
            there = by_step.count() == group["seed"].nunique()  # or a mean is over other seeds
            curves[rate] = by_step.mean()[there]
        if curves and min(map(len, curves.values())) > 1:
            found[name] = curves
    return found
