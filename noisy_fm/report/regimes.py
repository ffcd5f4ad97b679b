"""Two studies side by side: the same questions where models memorise and where they do not."""

import pandas as pd

from noisy_fm.report import overview, paired, tables
from noisy_fm.report.figures import slug
from noisy_fm.report.sections import aligned, section

COLOURS = ("#2f6fb7", "#c77d11")


def beside(records: pd.DataFrame, other: pd.DataFrame, names: tuple[str, str], studio) -> dict:
    """A section with the changes from γ = 0 of this study and of `other`, by their names.

    Tasks and feature sets are those that both studies have.
    """
    part = section("regimes", f"Beside {names[1]}")
    part["text"] = (
        "The same measurements in another study: what noise changes there and here, from γ = 0, "
        "each run paired with the clean one of its seed. Tasks and images are those of both."
    )
    studio.colours |= dict(zip(names, COLOURS, strict=True))
    studio.dashes[names[1]] = "--"
    for title, ylabel, scale, count, of in MEASURES:
        frames = [of(one) for one in (records, other)]
        drawn = changes(frames, names, count)
        if drawn is None:
            part["missing"].append(f"{title}: not recorded at γ = 0 and others in both.")
            continue
        summary = overview.intervals(drawn)
        table = tables.grid(summary, scale=scale, digits=1 if scale > 1 else 3, change=True)
        part["columns"] = part["columns"] or table["columns"]
        part["groups"].append({"title": f"{title}, {ylabel}", "rows": aligned(table, part)})
        drawing = studio.lines(
            summary,
            dots=drawn,
            name=slug("regimes", title),
            title=title,
            ylabel=ylabel,
            scale=scale,
            zero=True,
        )
        part["drawings"].append(drawing)
    shares = [overview.memorised_share(one) for one in (records, other)]
    part["caption"] = (
        f"{tables.wrong(records).capitalize()} memorised at the highest γ: "
        + ", ".join(
            f"{name} {'not recorded' if share is None else f'{share:.0%}'}"
            for name, share in zip(names, shares, strict=True)
        )
    )
    return part


def changes(frames: list[pd.DataFrame], names, count: list[str]) -> pd.DataFrame | None:
    """One number a run and study, its change from γ = 0, over what both studies have."""
    if any(frame.empty for frame in frames):
        return None
    unit = paired.SET if count == paired.SET else paired.TEST
    grids = [paired.complete(paired.grid(frame, unit))[0] for frame in frames]
    common = grids[0].index.intersection(grids[1].index)
    found = []
    for name, wide in zip(names, grids, strict=True):
        runs, _ = paired.by_run(wide.loc[common], count)
        if 0.0 not in runs or runs.shape[1] < 2:
            return None
        change = runs.drop(columns=0.0).sub(runs[0.0], axis=0)
        found.append(change.stack().rename("value").reset_index().assign(label=name))
    return pd.concat(found, ignore_index=True)


def accuracy(shift: str):
    """LP's accuracy."""

    def of(records: pd.DataFrame) -> pd.DataFrame:
        frame = tables.full_data(tables.probe_scores(records, shift=shift, metric="accuracy"))
        return frame[frame["method"] == "lp"]

    return of


def spectra(metric: str, shift: str):
    """A spectral metric of F."""
    return lambda records: tables.feature_sets(records, metric, shift)


MEASURES = (
    ("In-domain accuracy, change", "points", 100, tables.TASK, accuracy("id")),
    ("Out-of-domain accuracy, change", "points", 100, tables.TASK, accuracy("ood")),
    ("SVE in domain, change", "nats", 1, paired.SET, spectra("sve", "id")),
    ("LSVR out of domain, change", "nats", 1, paired.SET, spectra("lsvr", "ood")),
)
