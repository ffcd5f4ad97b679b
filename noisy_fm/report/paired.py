"""Scores to the paired numbers that are tested: one a pre-training run.

Another study draws its pre-training runs anew. All heads, artists, domains and probe seeds within
a run share its luck and are averaged to one number, and the noise levels are paired by the seed
that they share; so are two methods, by the run whose features both are tuned on.
"""

import numpy as np
import pandas as pd

from noisy_fm import statistics
from noisy_fm.report import tables

RUN = ["model", "seed", "noise_rate"]
TEST = ["dataset", "labels", "source", "target"]  # a head, by task and source, on a domain
SET = ["dataset", "target"]  # the images of a feature set


def grid(frame: pd.DataFrame, unit: list[str]) -> pd.DataFrame:
    """Mean `value` as [units × runs]; a method's difference from another is that of their grids."""
    return frame.groupby([*unit, *RUN])["value"].mean().unstack(RUN)


def complete(wide: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """A grid without gaps, and a line about what was left out for that, or "".

    Seeds that lack a noise level or a model go first, then units not measured in every run left.
    """
    wide = wide.dropna(axis=0, how="all").dropna(axis=1, how="all")
    runs = wide.columns.to_frame(index=False)
    per_seed = runs.groupby("seed").size()
    seeds = per_seed.index[per_seed == len(runs[["model", "noise_rate"]].drop_duplicates())]
    kept = wide.loc[:, wide.columns.get_level_values("seed").isin(seeds)]
    whole = kept.dropna()
    lost = {"pre-training seed": (len(per_seed) - len(seeds), len(per_seed))}
    noun = "test" if "labels" in wide.index.names else "feature set"
    lost[noun] = (len(kept) - len(whole), len(kept))
    words = [f"{n} of {tables.plural(m, noun)}" for noun, (n, m) in lost.items() if n]
    return whole, f"{' and '.join(words)} not recorded in every run and left out" if words else ""


def by_run(wide: pd.DataFrame, count: list[str]) -> tuple[pd.DataFrame, str]:
    """One number a pre-training run, [seeds × γ], and a line about what was left out.

    It is the mean over the groups of `count` (tasks), each the mean of its units; several models
    of one seed are averaged.
    """
    whole, note = complete(wide)
    if whole.empty:
        return pd.DataFrame(), note
    runs = whole.groupby(level=count).mean().mean()
    return runs.groupby(level=["seed", "noise_rate"]).mean().unstack("noise_rate"), note


def changes_from_clean(frame: pd.DataFrame) -> pd.DataFrame:
    """value, low, high of each γ less γ = 0 by label, paired by seed; NaN where seeds are few."""
    rows = []
    for label, scores in frame.groupby("label"):
        for rate in sorted(set(scores["noise_rate"]) - {0.0}):
            both = scores[scores["noise_rate"].isin([0.0, rate])]
            runs, _ = by_run(grid(both, TEST), tables.TASK)
            if {0.0, rate} <= set(runs):
                rows.append(
                    {"label": label, "noise_rate": rate, **interval(runs[rate] - runs[0.0])}
                )
    return pd.DataFrame(rows)


def gains_over(frame: pd.DataFrame, base: str, by: str) -> pd.DataFrame:
    """value, low, high of each label less the label `base`, at each value of `by` (if not "")."""
    rows = []
    for at, scores in frame.groupby(by) if by else [(None, frame)]:
        grids = {label: grid(part, TEST) for label, part in scores.groupby("label")}
        for label in sorted(set(grids) - {base}) if base in grids else ():
            runs, _ = by_run(grids[label] - grids[base], tables.TASK)
            if runs.size:
                own = {"label": label, **({by: at} if by else {})}
                rows.append({**own, **interval(runs.mean(axis=1))})
    return pd.DataFrame(rows)


def interval(values: pd.Series) -> dict:
    """value, low, high of one number a pre-training seed; NaN bounds where seeds are few."""
    if len(values) < tables.FEWEST:
        return {"value": float(values.mean()), "low": np.nan, "high": np.nan}
    test = statistics.t_test(values)
    return {"value": test.effect, "low": test.low, "high": test.high}


def ends(runs: pd.DataFrame) -> tuple[float, ...]:
    """value, low, high of the highest γ less the lowest of runs [seeds × γ]."""
    return tuple(interval(runs[max(runs)] - runs[min(runs)]).values())
