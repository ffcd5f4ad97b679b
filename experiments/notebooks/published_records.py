# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What noise in the labels did, from the published records
#
# A study writes every number it measures as one row of `records.parquet`. Here: accuracy, the
# spectrum and the memorised share against γ, the share of labels that were wrong in pre-training.
# Nothing is trained, so this runs in seconds. To read a study of your own, set `RECORDS`.

# %%
from pathlib import Path

import numpy as np
import pandas as pd

from noisy_fm import figures, record, statistics

HERE = Path(__file__).parent if "__file__" in globals() else Path.cwd()
RECORDS = HERE.parent / "emoji_full" / "records.parquet"

rows = pd.DataFrame(record.read(RECORDS.parent, [])[1])
runs = rows[["seed", "noise_rate"]].dropna().drop_duplicates()
seeds, rates = sorted(runs.seed.unique()), sorted(runs.noise_rate.unique())
print(f"{RECORDS.parent.name}: {len(rows):,} records of {len(runs)} pre-training runs,")
print(f"{len(seeds)} seed(s) at γ = {', '.join(f'{100 * rate:g} %' for rate in rates)}")

# %% [markdown]
# ## One number a run
#
# Heads, artists and test sets of one pre-trained model share its luck. So all of them are averaged
# to one number a run (a seed at a γ): first within a task, then over the tasks, as in the study's
# report. Only what every run has is averaged.

# %%
TASK, TEST, SET = ["dataset", "labels"], ["source", "target"], ["dataset", "target"]


def by_run(chosen, unit, within=()):
    """Mean of `value` as [seeds × γ]: units count alike, each the mean of what is `within` it."""
    wide = chosen.groupby([*unit, *within, "seed", "noise_rate"], dropna=False).value.mean()
    wide = wide.unstack(["seed", "noise_rate"]).dropna().groupby(level=unit, dropna=False).mean()
    return wide.mean().unstack("noise_rate")


def of(stage, metric, **fields):
    """Rows of a metric with those fields; None stands for an empty one."""
    found = rows[(rows.stage == stage) & (rows.metric == metric)]
    for name, value in fields.items():
        found = found[found[name].isna() if value is None else found[name] == value]
    return found


def whole(metric, shift):
    """A spectral metric of the features of all images of a domain, whatever their labels."""
    found = of("spectrum", metric, method=None, shift=shift)
    return found[found["labels"].isna() | (found["labels"] == "")]


def probes(shift):
    """Accuracy of linear probes in percent, by run."""
    return 100 * by_run(of("probe", "accuracy", method="lp", shift=shift), TASK, TEST)


measured = {
    "pre-training accuracy, %": 100 * by_run(of("pretrain", "accuracy"), TASK),
    "wrong labels repeated, %": 100 * by_run(of("pretrain", "flipped_fits_given"), TASK),
    "LP in domain, %": probes("id"),
    "LP out of domain, %": probes("ood"),
    "SVE in domain, nats": by_run(whole("sve", "id"), SET),
    "LSVR out of domain, nats": by_run(whole("lsvr", "ood"), SET),
}
for name, wide in measured.items():
    means = (f"{value:.3f} at {100 * rate:g} %" for rate, value in wide.mean().items())
    print(f"{name}: {', '.join(means)}")

# %% [markdown]
# ## Against γ
#
# One line a seed. **What to see:** whether the lines of different seeds run in parallel. Where they
# cross, what γ did to one run is no more than what the seed did.

# %%
lines = pd.concat(
    wide.melt(ignore_index=False, var_name="γ, %").reset_index().assign(metric=name)
    for name, wide in measured.items()
)
lines = lines.assign(seed=[f"seed {seed:.0f}" for seed in lines.seed], low=np.nan, high=np.nan)
lines["γ, %"] = 100 * lines["γ, %"].astype(float)
figures.points(lines, x="γ, %", xlabel="γ, %", by="seed", panel="metric", lines=True, sharey=False)

# %% [markdown]
# ## Differences from γ = 0, paired by seed
#
# Runs of one seed share their start and the order of their images, so each is compared with the
# one that had clean labels. **What to see:** filled points, whose 95 % interval over the seeds
# (Student's t) leaves 0 out. Under three seeds there is no interval, and nothing is judged.

# %%
FEWEST = 3
changes = {}
for name, wide in measured.items():
    if 0.0 not in wide:  # nothing is wrong at γ = 0, so nothing of it repeated
        continue
    for rate in rates[1:]:
        paired = (wide[rate] - wide[0.0]).dropna()
        low = high = np.nan
        if len(paired) >= FEWEST:
            _, low, high, *_ = statistics.t_test(paired)
        found = changes.setdefault(name.replace("%", "points"), {})
        found[f"γ = {100 * rate:g} %"] = (paired.mean(), low, high)
figures.forest(changes)

# %%
seen = [
    f"{name.split(',')[0]} at {rate} ({value:+.2f})"
    for name, found in changes.items()
    for rate, (value, low, high) in found.items()
    if low > 0 or high < 0
]
if len(seeds) < FEWEST:
    print(
        f"{len(seeds)} seed(s): what is drawn is these models, and noise cannot be told from luck."
    )
else:
    print("An interval leaves 0 out for:", "; ".join(seen) or "none of them")
    print("Not corrected for the number of comparisons; the study's report does that.")
given, chance = (of("pretrain", f"flipped_fits_{kind}").value for kind in ("given", "chance"))
beside = f", chance {100 * chance.mean():.1f} %" if len(chance) else ""
print(f"Wrong labels repeated, mean over runs: {100 * given.mean():.1f} %{beside}.")
