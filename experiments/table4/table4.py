"""Table 4 of the paper: LP, MLP tuning and NMTune on frozen practical models, in and out of domain.

    python experiments/table4/table4.py --out table4 --model=vit_s=vit_s \
        --model=lite0=lite_pytorch/efficientnet_lite0 --weights=lite0=efficientnet-lite0.pth

A model is NAME=SOURCE, as `load_model` takes it, with the NAME=PATH of its weights where the source
has none. What to expect: features of the emoji by each model (minutes, kept in OUT), heads with the
paper's recipe (seeds × tasks × methods, minutes), then OUT/records.csv, OUT/means.csv and a table
with 95 % intervals, which resample whole concepts.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from noisy_fm import load_model, probe, statistics
from noisy_fm.features import open_store
from noisy_fm.features.extraction import extract

METHODS = ("lp", "mlp", "nmtune")
SEEDS = range(3)
SOURCE = "noto"
LABELS = ("category", "subject", "skin_tone")
UNSEEN = ("fluent3d", "fluentflat")


def features(model, name: str, out: Path, known: dict, labels: str, domain: str, split: str):
    """(features [n d], labels [n], concepts [n]) of one part of the emoji.

    known: {id: features} of what the model has seen, so that each drawing is looked at once.
    """
    source = model.data("emoji_domains", labels=labels, domain=domain, split=split)
    new = np.array([i for i, one in enumerate(source.ids) if one not in known], int)
    if len(new):
        store = out / "features" / f"{name}-{labels}-{domain}-{split}"
        about = {"labels": labels, "domain": domain, "split": split}
        extract(model, source.select(new), store, data={"name": "emoji_domains", **about})
        found = open_store(store)
        known.update(zip(found.ids.tolist(), np.asarray(found.features), strict=True))
    return np.stack([known[one] for one in source.ids.tolist()]), source.labels, source.groups


def transfers(model, name: str, out: Path, labellings):
    """(labels, what is tuned on, {target: what is tested on}) one after another."""
    known: dict[int, np.ndarray] = {}
    for labels in labellings:
        train = features(model, name, out, known, labels, SOURCE, "train")
        tests = {
            to: features(model, name, out, known, labels, to, "test") for to in (SOURCE, *UNSEEN)
        }
        yield labels, train, tests


def rows(model, name: str, out: Path, labellings) -> list[dict]:
    """Accuracy of each head on each example, meaned over seeds: a row a method and test set."""
    found = []
    for labels, (x, y, _), tests in transfers(model, name, out, labellings):
        heads = [probe.Head(method, seed=seed) for method in METHODS for seed in SEEDS]
        sets = {to: (features, own) for to, (features, own, _) in tests.items()}
        results = probe.fit_heads(
            x, y, heads, num_classes=int(y.max()) + 1, test_sets=sets, keep_parameters=False
        )
        for method in METHODS:
            own = [r for r in results if r.head.method == method]
            for to, (_, truth, groups) in tests.items():
                hits = np.mean([r.predictions[to] == truth for r in own], axis=0)
                spread = np.std([r.metrics[to]["accuracy"] for r in own], ddof=1)
                found.append({"model": name, "labels": labels, "target": to, "method": method,
                              "shift": "id" if to == SOURCE else "ood", "hits": hits,
                              "groups": groups, "seed_sd": spread})  # fmt: skip
    return found


def measured(hits, groups, bounds=(0.0, 1.0)) -> dict:
    low, high = statistics.cluster_bootstrap(hits, groups, bounds=bounds)
    return {"value": hits.mean(), "low": low, "high": high, "n": len(hits)}


def table(found: list[dict]) -> pd.DataFrame:
    """A row a model, task, target and what is measured: three accuracies and two differences."""
    frame, kept = pd.DataFrame(found), []
    about = ["model", "labels", "target", "shift"]
    for key, group in frame.groupby(about, sort=False):
        one = {row["method"]: row for row in group.to_dict("records")}
        named = dict(zip(about, key, strict=True))
        for method, row in one.items():
            kept.append({**named, "method": method, **measured(row["hits"], row["groups"]),
                         "seed_sd": row["seed_sd"]})  # fmt: skip
        for a, b in (("mlp", "lp"), ("nmtune", "mlp"), ("nmtune", "lp")):
            change = one[a]["hits"] - one[b]["hits"]
            kept.append({**named, "method": f"{a} - {b}",
                         **measured(change, one[a]["groups"], (-1.0, 1.0))})  # fmt: skip
    return pd.DataFrame(kept)


def means(found: list[dict]) -> pd.DataFrame:
    """Each model's mean over tasks, in domain and out of it; whole concepts are resampled."""
    frame, kept = pd.DataFrame(found), []
    for (name, shift), group in frame.groupby(["model", "shift"], sort=False):
        for method in (*METHODS, "mlp - lp", "nmtune - mlp", "nmtune - lp"):
            a, _, b = method.partition(" - ")
            parts = []
            for _, task in group.groupby(["labels", "target"]):
                one = {row["method"]: row for row in task.to_dict("records")}
                values = one[a]["hits"] - (one[b]["hits"] if b else 0)
                parts.append((values, one[a]["groups"]))
            tests = len(parts)
            total = sum(len(values) for values, _ in parts)
            # Weights such that the mean of all rows is the mean over tests.
            hits = np.concatenate([v * total / (tests * len(v)) for v, _ in parts])
            low, high = statistics.cluster_bootstrap(hits, np.concatenate([g for _, g in parts]))
            kept.append({"model": name, "shift": shift, "method": method, "value": hits.mean(),
                         "low": low, "high": high, "tests": tests})  # fmt: skip
    return pd.DataFrame(kept)


def pairs(given: list[str]) -> dict[str, str]:
    return dict(one.split("=", 1) for one in given)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", action="append", required=True, metavar="NAME=SOURCE")
    parser.add_argument("--weights", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--labels", nargs="*", default=LABELS)
    args = parser.parse_args()
    weights, found = pairs(args.weights), []
    for name, source in pairs(args.model).items():
        model = load_model(source, path=weights.get(name))
        print(model)
        found += rows(model, name, args.out, args.labels)
    table(found).to_csv(args.out / "records.csv", index=False, float_format="%.5f")
    summary = means(found)
    summary.to_csv(args.out / "means.csv", index=False, float_format="%.5f")
    print(
        (summary.set_index(["model", "shift", "method"])[["value", "low", "high"]] * 100).round(1)
    )


if __name__ == "__main__":
    main()
