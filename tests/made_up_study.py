"""A study's folder on made-up records (test-only: no number here comes from a model)."""

import base64
import io
import itertools
import json
import zlib

import numpy as np
import pandas as pd
from PIL import Image

from noisy_fm.report import artifacts, questions, tables

RATES = (0.0, 0.05, 0.1, 0.2, 0.3)
DOMAINS = ("noto", "twemoji", "openmoji", "fluent3d")
TASKS = ("category", "skin_tone", "subject", "gender")
FREE = ("skin_tone", "gender")  # those that do not follow from the labels of pre-training
HEADS = 12  # the tasks, each tuned on three domains
LESS = {"accuracy": 0, "balanced_accuracy": 0.04, "macro_f1": 0.07}
COMMON = {
    "model": "resnet_w16",
    "noise_kind": "symmetric",
    "config_hash": "c0ffee12",
    "commit": "0123456789abcdef",
    "versions": {"jax": "0.10.2"},
    "duration_s": 1.5,
}


def write_study(folder, *, rates=RATES, seeds=(0,), probe_seeds=(0, 1), effect=None, ood=True):
    """A plausible workdir. effect(shift, method, rate) in [0, 1] adds to every accuracy."""
    effect = effect or planted
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    rows, spectra, clean = [], [], {}
    for seed, rate in itertools.product(seeds, rates):
        here = {**COMMON, "seed": seed, "noise_rate": rate}
        truth = {"stage": "pretrain", "dataset": "emoji_domains", "labels": "subcategory"}
        value = 0.72 - 0.5 * rate + rng.normal(0, 0.004)
        rows.append({**here, **truth, "metric": "accuracy", **measured(value, 3000)})
        if rate == 0:
            clean[seed] = value
        fits = {"value": 0.9 - rate, "low": 0.88 - rate, "high": 0.92 - rate, "n": 9000}
        rows.append({**here, **truth, "metric": "train_accuracy_true_labels", **fits})
        if rate and seed in clean:
            lost = value - clean[seed]
            change = {"value": lost, "low": lost - 0.011, "high": lost + 0.009, "n": 3000}
            rows.append({**here, **truth, "metric": "accuracy_change", **change})
        if rate:
            for metric, value in (("flipped_fits_given", 0.1 + rate), ("flipped_fits_true", 0.6)):
                rows.append({**here, **truth, "metric": metric, **measured(value, 500)})
        for domain, method in itertools.product(DOMAINS, (None, "mlp", "nmtune")):
            lift = {"mlp": -0.2, "nmtune": 0.35}.get(method, 0) + 0.8 * rate
            sigma = np.exp(-np.arange(128) / (14 + 9 * lift)) * np.exp(rng.normal(0, 0.02, 128))
            p = sigma / sigma.sum()
            here_too = {**here, "dataset": "emoji_domains", "target": domain}
            here_too["shift"] = "id" if domain in DOMAINS[:3] else "ood"
            if method:
                here_too |= {"labels": "category", "source": domain, "preset": "paper"}
            for metric, x in (("sve", -np.sum(p * np.log(p))), ("lsvr", -np.log(p[0]))):
                rows.append(
                    {**here_too, "stage": "spectrum", "method": method, "metric": metric}
                    | {"value": x, "low": x - 0.02, "high": x + 0.02, "n": 800}
                )
            kept = ("model", "seed", "noise_rate")
            spectra.append(
                {k: here[k] for k in kept}
                | {"domain": domain, "method": method, "singular_values": list(sigma * 90)}
            )
        pairs = [(s, t) for s in DOMAINS[:3] for t in DOMAINS if ood or s == t]
        for task, (source, target) in itertools.product(TASKS, pairs):
            shift = "id" if source == target else "ood"
            # The same task is as hard at every γ and for every method.
            hard = np.random.default_rng(zlib.crc32(f"{task}{source}{target}".encode())).uniform(
                0, 0.25
            )
            for method, probe_seed in itertools.product(("lp", "mlp", "nmtune"), probe_seeds):
                base = (0.85 if shift == "id" else 0.6) - hard + effect(shift, method, rate)
                for metric, less in LESS.items():
                    value = float(np.clip(base - less + rng.normal(0, 0.006), 0, 1))
                    rows.append(
                        {**here, "stage": "probe", "dataset": "emoji_domains", "labels": task}
                        | {"relation": "free" if task in FREE else "determined"}
                        | {"shift": shift, "source": source, "target": target, "fraction": 1.0}
                        | {"method": method, "preset": "paper", "probe_seed": probe_seed}
                        | {"label_noise": 0.0, "metric": metric, **measured(value, 380)}
                    )
    write_lines(folder / "records.jsonl", rows)
    write_lines(folder / "spectra.jsonl", spectra)
    write_rest(folder, rates, seeds)
    return folder


def planted(shift, method, rate):
    """NMTune above the others out of domain, noise harmful there; nothing in domain."""
    if shift == "id":
        return 0.0
    return -0.15 * rate + (0.03 if method == "nmtune" else 0.0)


def measured(value, n):
    half = 1.96 * np.sqrt(max(value * (1 - value), 1e-6) / n)
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_rest(folder, rates, seeds):
    """Everything but the records and spectra."""
    config = {"pretrain": {"steps": 1200, "batch_size": 128}, "noise_rates": list(rates)}
    (folder / "config.json").write_text(json.dumps(config))
    environment = {"versions": {"jax": "0.10.2", "numpy": "2.4"}, "device": "cpu", "cores": 2}
    environment |= {"commit": "0123456789abcdef", "command": "python -m noisy_fm.study --x=1"}
    (folder / "environment.json").write_text(json.dumps(environment))
    stages = [(f"pretrain/{rate:g}", 40.0 + rate) for rate in rates] + [("probe", 21.0)]
    write_lines(folder / "stages.jsonl", [{"stage": s, "duration_s": d} for s, d in stages])
    manifests = []
    for rate, seed in itertools.product(rates, seeds):
        manifest = {"kind": "symmetric", "rate": rate, "realised": int(rate * 11000) / 11000}
        manifest |= {"seed": seed, "n": 11000, "changed": int(rate * 11000), "num_classes": 98}
        manifest["hash"] = f"abc{int(rate * 100)}{seed}"
        manifests.append({"cell": f"noise{rate:g}-seed{seed}", **manifest})
    write_lines(folder / "manifests.jsonl", manifests)
    examples = [
        {"image": png(i), "true": "cat-face", "given": "sky & weather", "noise_rate": 0.05}
        | {"concept": f"concept <{i}>"}
        for i in range(6)
    ]
    (folder / "examples.json").write_text(json.dumps(examples))


def png(i):
    pixels = np.random.default_rng(i).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((32, 32), 0).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def collected(folder):
    """The findings of a workdir by key."""
    records = tables.prepare(artifacts.load(folder).records)
    return {finding.key: finding for finding in questions.collect(records)}


def by_hand(folder, shift):
    """Accuracy in points by (seed, γ, method, task), everything else averaged."""
    frame = pd.read_json(folder / "records.jsonl", lines=True, precise_float=True)
    rows = frame[
        (frame.stage == "probe") & (frame["shift"] == shift) & (frame.metric == "accuracy")
    ]
    return rows.groupby(["seed", "noise_rate", "method", "labels"]).value.mean() * 100


def with_sweep(rows, gain):
    """`rows` with their λ written, and NMTune's heads at λ = 0 and 0.1 as `gain[λ]` has them."""
    own = [
        {**r, "weights": [0.01] * 3} if r.get("method") == "nmtune" else r for r in rows
    ]  # fmt: skip
    swept = [
        {**r, "weights": [weight] * 3}
        | {name: r[name] + gain[weight] for name in ("value", "low", "high")}
        for r in rows
        if r.get("method") == "nmtune"
        for weight in gain
    ]
    return own + swept
