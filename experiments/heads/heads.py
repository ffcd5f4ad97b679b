"""Why do MLP heads lose out of domain to a linear probe, and what of it do NMTune's terms repair?

    python experiments/heads/heads.py --workdir STUDY --out experiments/heads

Heads of many settings on the stored features of a study (`configs/study/emoji.py:full`), which is
only read and may be running: three γ, six seeds, four labellings tuned on one artist, digits.
Every setting is also fitted on three folds of the training images, related images kept together,
where a choice between settings can be made that has seen no test set (target "folds").

Rows go to OUT/heads.parquet after each labelling of a model; a second run computes what is missing.
About 14 s of one core a model and labelling, 20 minutes in all.
"""

import argparse
import dataclasses
import functools
import json
import os
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
from ml_collections import ConfigDict
from sklearn.model_selection import StratifiedGroupKFold

from noisy_fm import config as config_lib
from noisy_fm import probe
from noisy_fm.models import heads as networks
from noisy_fm.probe import fit
from noisy_fm.study import analysis, cells, settings, transfers

RATES = ((0.0, 0.3), (0.05,))  # the last when all seeds have the first
SEEDS = range(6)
TRANSFERS = ("category_noto", "skin_tone_noto", "subject_noto", "person_kind_noto", "digits")
FOLDS = 3


@dataclasses.dataclass(frozen=True)
class Setting:
    """A head, whether features are standardised, and the MLP's hidden width over D."""

    head: probe.Head
    standardize: bool = False
    hidden: float = 4.0
    folds: bool = False  # may be chosen between


def table() -> dict[str, Setting]:
    """Every setting by name; the paper's recipe but for what the name says."""
    paper = functools.partial(probe.Head, "nmtune")
    mlp = functools.partial(probe.Head, "mlp")
    lp = functools.partial(probe.Head, "lp")
    return {
        "lp": Setting(lp(), folds=True),
        "mlp": Setting(mlp(), folds=True),
        **{f"nmtune λ={w:g}": Setting(paper(weights=w), folds=True) for w in (0.01, 0.1, 1, 10)},
        "nmtune release": Setting(paper("release"), folds=True),
        "mlp release": Setting(mlp("release")),
        **{
            f"logreg {w:g}": Setting(probe.Head("logreg", weight_decay=w), folds=True)
            for w in (0.01, 0.1, 1)
        },
        **{f"lp {e} epochs": Setting(lp(epochs=e), folds=True) for e in (3, 10, 100)},
        **{f"mlp {e} epochs": Setting(mlp(epochs=e), folds=True) for e in (3, 10, 100)},
        **{
            f"nmtune λ={w:g} {e} epochs": Setting(paper(weights=w, epochs=e), folds=True)
            for w in (0.01, 1)
            for e in (3, 10)
        },
        **{f"mlp decay {w:g}": Setting(mlp(weight_decay=w), folds=True) for w in (1, 10)},
        "lp standardised": Setting(lp(), standardize=True),
        "mlp standardised": Setting(mlp(), standardize=True),
        "mlp width D": Setting(mlp(), hidden=1),
        "mlp width D/4": Setting(mlp(), hidden=0.25),
    }


@contextmanager
def hidden_width(ratio: float):
    """Within it MLP heads have `ratio` · D hidden units, not 4 D."""
    whole = networks.initialize

    def narrow(layout, seed, width, num_classes):
        params, statistics = whole(layout, seed, width, num_classes)
        units = round(ratio * width)
        layers = params["mlp"]
        for name in ("kernel_in", "bias_in", "norm_scale", "norm_bias"):
            layers[name] = layers[name][..., :units]
        # PyTorch's initial range is 1/√fan_in.
        layers["kernel_out"] = layers["kernel_out"][:units] * (4 * width / units) ** 0.5
        layers["bias_out"] *= (4 * width / units) ** 0.5
        return params, {name: value[:units] for name, value in statistics.items()}

    networks.initialize = narrow if ratio != 4 else whole
    fit._start.clear_cache()
    try:
        yield
    finally:
        networks.initialize = whole
        fit._start.clear_cache()


def accuracies(train, tests: dict, chosen: dict[str, Setting]) -> list[tuple]:
    """(setting, target, accuracy, n) of heads fitted on `train`, of all `analysis.Examples`."""
    rows = []
    for key in dict.fromkeys((one.standardize, one.hidden) for one in chosen.values()):
        names = [name for name, one in chosen.items() if (one.standardize, one.hidden) == key]
        mean, scale = train.features.mean(0), train.features.std(0) + 1e-6
        shift: Callable = (lambda f: (f - mean) / scale) if key[0] else (lambda f: f)  # noqa: B023
        with hidden_width(key[1]):
            results = probe.fit_heads(
                shift(train.features),
                train.labels,
                [chosen[name].head for name in names],
                num_classes=train.num_classes,
                ids=train.ids,
                test_sets={to: (shift(test.features), test.labels) for to, test in tests.items()},
                keep_parameters=False,
            )
        for name, result in zip(names, results, strict=True):
            rows += [
                (name, to, metrics["accuracy"], len(tests[to].labels))
                for to, metrics in result.metrics.items()
            ]
    return rows


def over_folds(train, chosen: dict[str, Setting]) -> list[tuple]:
    """The same of folds of the training images: (setting, "folds", mean accuracy, n)."""
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    found: dict[str, list] = {name: [] for name in chosen}
    for rest, held in splitter.split(train.labels, train.labels, train.groups):
        part, validation = (_rows(train, rows) for rows in (rest, held))
        for name, _, accuracy, n in accuracies(part, {"folds": validation}, chosen):
            found[name].append((accuracy * n, n))
    totals = {name: np.sum(values, axis=0) for name, values in found.items()}
    return [(name, "folds", hits / n, int(n)) for name, (hits, n) in totals.items()]


def _rows(examples, rows):
    arrays = (examples.features, examples.labels, examples.ids, examples.groups)
    return analysis.Examples(*(a[rows] for a in arrays), examples.num_classes)


def study(workdir: Path) -> ConfigDict:
    return settings.completed(ConfigDict(json.loads((workdir / "config.json").read_text())))


def models(config: ConfigDict, workdir: Path):
    """The finished cells of `RATES` and `SEEDS`."""
    for seed, rate in ((seed, rate) for some in RATES for seed in SEEDS for rate in some):
        cell = cells.make(config, workdir, rate, seed)
        if (cell.folder / "probes.json").is_file():
            yield cell


def missing(rows: pd.DataFrame, about: dict) -> dict[str, Setting]:
    """The settings without rows for this model and labelling."""
    done = rows
    for name, value in about.items():
        done = done[done[name] == value]
    return {name: one for name, one in table().items() if name not in set(done["setting"])}


def save(rows: pd.DataFrame, path: Path) -> None:
    rows.to_parquet(path.with_suffix(".part"), index=False)
    os.replace(path.with_suffix(".part"), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, help="a study's folder, only read")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--transfers", nargs="*", default=TRANSFERS)
    args = parser.parse_args()
    config_lib.cache_compilations()
    config, path = study(args.workdir), args.out / "heads.parquet"
    columns = ["seed", "rate", "task", "source", "target", "setting", "accuracy", "n"]
    rows = pd.read_parquet(path) if path.is_file() else pd.DataFrame(columns=columns)
    wanted = {one.name: one for one in transfers.collect(config) if one.name in args.transfers}
    for cell in models(config, args.workdir):
        for one in wanted.values():
            task = one.labels or one.dataset
            about = {"seed": cell.seed, "rate": cell.rate, "task": task, "source": one.source}
            chosen = missing(rows, about)
            if not chosen:
                continue
            train = analysis.read(cell, config, one.train, one.labels)
            tests = {
                to: analysis.read(cell, config, images, one.labels)
                for to, images in one.tests.items()
            }
            found = accuracies(train, tests, chosen)
            folded = {name: setting for name, setting in chosen.items() if setting.folds}
            found += over_folds(train, folded) if folded and one.source else []
            new = pd.DataFrame(found, columns=["setting", "target", "accuracy", "n"]).assign(
                **about
            )
            rows = pd.concat([rows, new[columns]], ignore_index=True) if len(rows) else new[columns]
            save(rows, path)
            print(cell.name, one.name, len(rows), flush=True)


if __name__ == "__main__":
    main()
