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
# Everything here runs on the emoji that come with the package, in about two minutes on two CPU
# cores. If you have features of your own, skip to "Spectrum". `NOISY_FM_FAST=1` in the
# environment makes everything smaller.

# %%
import os
import tempfile

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from noisy_fm import (
    NMTuneClassifier,
    config,
    data,
    diagnose,
    features,
    probe,
    spectrum,
    statistics,
    train,
)

FAST = os.environ.get("NOISY_FM_FAST") == "1"
config.cache_compilations()

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
figure, panels = plt.subplots(len(tests), 8, figsize=(5, 2.2))
shared = np.array(sorted(set.intersection(*(set(s.groups.tolist()) for s in tests.values()))))
for row, (domain, source) in zip(panels, tests.items(), strict=True):
    for axes, concept in zip(row, shared[:: len(shared) // 8], strict=False):
        axes.imshow(source.images[np.flatnonzero(source.groups == concept)[0]])
        axes.axis("off")
    row[0].set_title(domain, fontsize=8, loc="left")

# %% [markdown]
# ## Spectrum
#
# The singular values σ of the features, normalised to pᵢ = σᵢ/Σσ, give two numbers. **SVE**, their
# entropy: how many directions are in use. **LSVR**, −log p₁: how little the largest dominates.
# Intervals are a jackknife over concepts (pictures of one concept are not independent).

# %%
everything = {name: np.concatenate([x[name], *x_test[name].values()]) for name in models}
concepts = np.concatenate([learn.groups, *(source.groups for source in tests.values())])
intervals = {name: spectrum.jackknife(f, groups=concepts) for name, f in everything.items()}
spectrum.plot(everything, intervals=intervals, title="Features by pre-training noise γ")

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
table = pd.DataFrame(rows, columns=["model", "domain", "method", "accuracy", "low", "high"])
print(table.pivot_table("accuracy", ["model", "domain"], "method").round(3))

# %%
figure, panels = plt.subplots(1, len(tests), figsize=(9, 3), sharey=True, layout="constrained")
for axes, domain in zip(panels, tests, strict=True):
    for offset, method in zip((-0.15, 0, 0.15), METHODS, strict=True):
        part = table[(table.domain == domain) & (table.method == method)]
        spread = [part.accuracy - part.low, part.high - part.accuracy]
        axes.errorbar(np.arange(len(part)) + offset, part.accuracy, spread, fmt="o", label=method)
    axes.set_xticks(range(len(models)), list(models))
    axes.set_xlim(-0.5, len(models) - 0.5)
    axes.set_title(f"{domain} ({'ID' if domain == 'noto' else 'OOD'})", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
panels[0].set_ylabel("accuracy, 95 % interval")
_ = panels[0].legend(frameon=False)

# %% [markdown]
# ## Larger than chance?
#
# The intervals above are wide because test sets are small; the comparison of two methods is
# sharper, since both answer the same questions. So: the difference on each example, and a bootstrap
# over concepts.

# %%
for name in models:
    for domain, source in tests.items():
        for other in ("lp", "mlp"):
            gain = correct(name, "nmtune", domain) - correct(name, other, domain)
            low, high = (100 * v for v in statistics.cluster_bootstrap(gain, source.groups))
            verdict = "NMTune is better" if low > 0 else "NMTune is worse" if high < 0 else "open"
            found = f"{100 * gain.mean():+5.1f} points [{low:+5.1f}, {high:+5.1f}]: {verdict}"
            print(f"{name}, {domain:8}: NMTune − {other.upper():3} = {found}")

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
