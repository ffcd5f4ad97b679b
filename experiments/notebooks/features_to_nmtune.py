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
# # From features to NMTune
#
# A model pre-trained with wrong labels carries them in its features. Three questions about any
# matrix of features, in the order one would ask them:
#
# 1. What does the **spectrum** of the features say?
# 2. What do a linear probe (**LP**), an **MLP** and **NMTune** reach on top of them, in the domain
#    they were tuned on and outside it?
# 3. Is the difference larger than chance?
#
# The first section reads features of yours. The rest runs on the emoji that come with the package,
# in about two minutes on two CPU cores; `NOISY_FM_FAST=1` in the environment makes it smaller.

# %%
import os
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits

from noisy_fm import (
    NMTuneClassifier,
    config,
    data,
    diagnose,
    features,
    figures,
    probe,
    spectrum,
    statistics,
    train,
)

FAST = os.environ.get("NOISY_FM_FAST") == "1"
config.cache_compilations()

# %% [markdown]
# ## Bring your own parquet or folder
#
# Name your files in `YOURS`: a column of lists in a `.parquet`, a feature-store folder, or an
# array in `.npy`, `.npz`, `.safetensors` or `.csv`. With none there, handwritten digits stand in,
# and the same digits in black and white, as two columns of a parquet.

# %%
YOURS = {}  # {"mine": "mine.parquet:embedding", "other": "runs/a/features"}

with tempfile.TemporaryDirectory() as folder:
    if not YOURS:
        example, pixels = Path(folder, "digits.parquet"), load_digits().data / 16
        pd.DataFrame({"grey": [*pixels], "black": [*pixels.round()]}).to_parquet(example)
        YOURS = {"grey": f"{example}:grey", "black and white": f"{example}:black"}
    mine = {name: spectrum.load_features(source) for name, source in YOURS.items()}

found = spectrum.measure(mine)
print(spectrum.headline(found), *spectrum.cautions(found), sep="\n")
spectrum.plot(found.spectra, intervals=found.bounds, bands=found.bands)

# %% [markdown]
# **What to see:** a curve that falls late uses many directions (its SVE is high); one that starts
# high is dominated by its first (its LSVR is low). Below, the differences from the first set: a
# filled point is one whose interval leaves 0 out. Rows that are the same examples are compared
# pairwise, and all sets at equal n, on which a spectrum depends.
#
# From a shell, as a page: `python -m noisy_fm.spectrum a.npy b.parquet:col --out spectra.html`.

# %%
figures.forest(found.panels) if found.panels else "one set: nothing to compare"

# %% [markdown]
# ## Features
#
# Two small ResNets learn the emoji of three artists by subcategory: one from correct labels, one
# with 30 % of them replaced by another class (γ = 0.3). Both see the same images in the same order.


# %%
def pretrain(noise_rate):
    """A trained ResNet's task, variables and mesh: what `features.predict` reads features with."""
    settings = config.train()
    settings.noise.rate = noise_rate
    settings.data.domain = ("noto",) if FAST else ("noto", "twemoji", "openmoji")
    settings.epochs = 1.0 if FAST else 8.0
    settings.optimizer.learning_rate = 3e-3
    settings.schedule.warmup_epochs = 0.0 if FAST else 1.0
    with tempfile.TemporaryDirectory() as folder:
        state, made, _ = train.run(settings, folder, name=f"γ = {noise_rate}")
    return made.task, state.variables, made.mesh


def extract(trained, source):
    """Features [n d] of the images of `source`, before the classification layer."""
    task, variables, mesh = trained
    keep = ("features/pre_logits",)
    return features.predict(task, variables, source, keep=keep, batch_size=128, mesh=mesh)[keep[0]]


models = {f"γ = {rate}": pretrain(rate) for rate in (0.0, 0.3)}

# %% [markdown]
# The downstream task is another one: eight categories instead of subcategories, on emoji whose
# concepts the models have not seen. A head learns from Noto's drawings. *In domain* (ID) it is
# tested on other concepts by Noto, *out of domain* (OOD) on the same ones as line art and in 3D.

# %%
learn = data.load("emoji_domains", domain="noto", split="train", labels="category")
tests = {
    domain: data.load("emoji_domains", domain=domain, split="test", labels="category")
    for domain in ("noto", "lineart", "fluent3d")
}
x = {name: extract(trained, learn) for name, trained in models.items()}
x_test = {
    name: {domain: extract(trained, source) for domain, source in tests.items()}
    for name, trained in models.items()
}
print({name: f.shape for name, f in x.items()}, {name: len(s) for name, s in tests.items()})

# %%
shared = np.array(sorted(set.intersection(*(set(s.groups.tolist()) for s in tests.values()))))
shown = shared[:: len(shared) // 8][:8]
figures.images(
    {d: [s.images[np.flatnonzero(s.groups == c)[0]] for c in shown] for d, s in tests.items()}
)

# %% [markdown]
# **What to see:** a column is one concept; from row to row only the artist differs.

# %% [markdown]
# ## Spectrum
#
# The singular values σ of the features, normalised to pᵢ = σᵢ/Σσ, give two numbers. **SVE**, their
# entropy: how many directions are in use. **LSVR**, −log p₁: how little the largest dominates.
# Intervals are a jackknife over concepts (pictures of one concept are not independent), and the
# models see the same pictures, so their difference is paired.

# %%
everything = {name: np.concatenate([x[name], *x_test[name].values()]) for name in models}
concepts = np.concatenate([learn.groups, *(source.groups for source in tests.values())])
found = spectrum.measure(everything, groups=concepts)
print(spectrum.headline(found), *spectrum.cautions(found), sep="\n")
spectrum.plot(
    found.spectra, intervals=found.bounds, bands=found.bands, title="By pre-training noise γ"
)

# %%
figures.forest(found.panels)

# %% [markdown]
# **What to see:** whether the curves part at the head (LSVR) or along the tail (SVE). The intervals
# speak of other pictures, not of other training runs: one model at each γ cannot tell noise from
# the luck of its run.

# %% [markdown]
# ## LP, MLP and NMTune
#
# NMTune trains an MLP z = MLP(f) with three more terms in the loss: z stays consistent with f, its
# dimensions are decorrelated, its largest singular value is kept up. All heads, here three seeds of
# each method, train in one compiled program.

# %%
METHODS = ("lp", "mlp", "nmtune")
SEEDS = range(1 if FAST else 3)
heads = [probe.Head(m, seed=s, epochs=3 if FAST else None) for m in METHODS for s in SEEDS]
results = {
    name: probe.fit_heads(
        x[name],
        learn.labels,
        heads,
        num_classes=learn.num_classes,
        test_sets={d: (x_test[name][d], source.labels) for d, source in tests.items()},
    )
    for name in models
}


def correct(name, method, domain):
    """Share of the seeds' heads that are right, for each test example [n]."""
    chosen = [r for r in results[name] if r.head.method == method]
    return np.mean([r.predictions[domain] == tests[domain].labels for r in chosen], axis=0)


rows = []
for name in models:
    for domain, source in tests.items():
        for method in METHODS:
            right = correct(name, method, domain)
            low, high = statistics.cluster_bootstrap(right, source.groups)
            rows.append((name, domain, method, right.mean(), low, high))
table = pd.DataFrame(rows, columns=["model", "domain", "method", "value", "low", "high"])
print(table.pivot_table("value", ["model", "domain"], "method").round(3))

# %%
table["panel"] = [f"{d} ({'ID' if d == 'noto' else 'OOD'})" for d in table.domain]
figures.points(table, x="model", by="method", panel="panel", ylabel="accuracy")

# %% [markdown]
# **What to see:** accuracy falls from in domain (ID) to out of domain (OOD) far more than any two
# methods differ. The intervals are wide because test sets are small, and they overlap; that does
# not settle the comparison.
#
# ## Larger than chance?
#
# Two methods answer the same questions. So: the difference on each example, and a bootstrap over
# concepts.

# %%
gains = {f"NMTune − {other.upper()}, points": {} for other in ("lp", "mlp")}
for name in models:
    for domain, source in tests.items():
        for other in ("lp", "mlp"):
            gain = correct(name, "nmtune", domain) - correct(name, other, domain)
            bounds = statistics.cluster_bootstrap(gain, source.groups)
            row = tuple(100 * v for v in (gain.mean(), *bounds))
            gains[f"NMTune − {other.upper()}, points"][f"{name}, {domain}"] = row
figures.forest(gains, share=True)

# %% [markdown]
# **What to see:** filled points right of 0 are tests where NMTune is better, filled ones left of it
# where it is worse. A hollow point leaves both open. In words:

# %%
for versus, found in gains.items():
    better = sum(low > 0 for _, low, _ in found.values())
    worse = sum(high < 0 for _, _, high in found.values())
    still = len(found) - better - worse
    print(f"{versus}: better in {better} of {len(found)} tests, worse in {worse}, open in {still}")

# %% [markdown]
# ## Is it worth it? One call
#
# `diagnose` asks that of any features and labels: what the spectrum says, and LP, MLP and NMTune on
# the same cross-validation folds. It needs no test set, so the answer is about this domain only.

# %%
noisy = list(models)[-1]
names = np.array(learn.label_names)
found = diagnose(x[noisy], names[learn.labels], repeats=1 if FAST else 2, epochs=3 if FAST else 30)
print(found)
found.plot()

# %% [markdown]
# ## In a scikit-learn workflow
#
# The same head as an estimator: it goes into pipelines, searches and cross-validation.

# %%
estimator = NMTuneClassifier(epochs=3 if FAST else 30, random_state=0)
estimator.fit(x[noisy], names[learn.labels])
for domain, source in tests.items():
    print(f"{domain:8} {estimator.score(x_test[noisy][domain], names[source.labels]):.3f}")
