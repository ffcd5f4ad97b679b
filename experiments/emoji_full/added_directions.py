"""Do tasks that do not follow from the labels of pre-training gain by what memorisation adds?

    python experiments/emoji_full/added_directions.py runs/full --out added_directions.csv

Of a noisy model and the clean one of its seed, the features of the same images: what ridge
regression cannot predict of the noisy from the clean ones is taken as added by noise, and its K
leading principal directions are projected out of the noisy features. A linear probe is then tuned
again. The same number of directions of the noisy features' own spectrum, from its first and drawn
at random, is projected out for comparison. About ten seconds a model and K.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from noisy_fm import files, probe
from noisy_fm.study import analysis, cells, settings, transfers

RIDGE = 1e-2  # of the clean features' mean squared singular value
DIRECTIONS = (0, 4, 16, 48)


def added(clean: np.ndarray, noisy: np.ndarray) -> np.ndarray:
    """Principal directions [d d], leading first, of what `clean` [n d] leaves of `noisy` [n d]."""
    x, y = clean - clean.mean(axis=0), noisy - noisy.mean(axis=0)
    gram = x.T @ x
    gram += RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
    left = y - x @ np.linalg.solve(gram, x.T @ y)
    return np.linalg.svd(left, full_matrices=False)[2]


def without(x: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """`x` [n d] less its part along orthonormal `directions` [k d]."""
    return x - (x @ directions.T) @ directions


def probed(train: analysis.Examples, tests: dict, directions: np.ndarray) -> dict[str, float]:
    """Accuracy of a linear probe on each test set, along none of the `directions`."""
    (result,) = probe.fit_heads(
        without(train.features, directions),
        train.labels,
        [probe.Head(method="lp", epochs=30)],
        num_classes=train.num_classes,
        ids=train.ids,
        test_sets={k: (without(v.features, directions), v.labels) for k, v in tests.items()},
    )
    return {name: metrics["accuracy"] for name, metrics in result.metrics.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.3])
    parser.add_argument("--seeds", type=int, default=4)
    args = parser.parse_args()
    config = settings.completed(settings.ConfigDict(files.read_json(args.workdir / "config.json")))
    collected = {one.name: one for one in transfers.collect(config)}
    rows = []
    for seed in range(args.seeds):
        clean = cells.make(config, args.workdir, 0.0, seed)
        for rate in args.rates:
            noisy = cells.make(config, args.workdir, rate, seed)
            images = collected["artist"].train  # drawings of all artists
            both = [analysis.read(cell, config, images, "artist") for cell in (clean, noisy)]
            order = added(*(found.features.astype(float) for found in both))
            own = np.linalg.svd(both[1].features.astype(float), full_matrices=False)[2]
            drawn = np.random.default_rng(seed).normal(size=own.shape)
            kinds = {"added": order, "leading": own, "random": np.linalg.qr(drawn)[0].T}
            for name, one in collected.items():
                if not name.endswith("_noto"):
                    continue
                about = {"seed": seed, "noise_rate": rate, "labels": one.labels}
                for cell, of in ((clean, "clean"), (noisy, "noisy")):
                    data = analysis.read(cell, config, one.train, one.labels)
                    tests = {
                        target: analysis.read(cell, config, test, one.labels)
                        for target, test in one.tests.items()
                    }
                    for kind, directions in kinds.items() if of == "noisy" else [("", own)]:
                        for k in DIRECTIONS if of == "noisy" else (0,):
                            if k or kind in ("", "added"):
                                found = probed(data, tests, directions[:k].astype(np.float32))
                                row = {**about, "features": of, "left_out": kind, "k": k}
                                rows += [
                                    {**row, "target": t, "accuracy": a} for t, a in found.items()
                                ]
            pd.DataFrame(rows).to_csv(args.out, index=False)
            print(f"seed {seed}, γ = {rate:.0%}: done", flush=True)


if __name__ == "__main__":
    main()
