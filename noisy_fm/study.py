"""Runs a study: pre-train at each noise rate, extract, look at the spectrum, tune, report.

    python -m noisy_fm.study --config=configs/study/emoji.py --workdir=runs/emoji

Every stage writes one artifact, whole or not at all, and is skipped when its artifact is there:
kill it anywhere and run the same line again. Widening the grid (noise_rates, seeds, methods, …) in
the same workdir only runs what is missing.
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from noisy_fm import checkpoint, evaluate, features, probe, records, report, spectrum, train
from noisy_fm import config as config_lib
from noisy_fm import data as data_lib


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """One pre-trained model of the grid."""

    rate: float
    seed: int
    config: ConfigDict  # its training config
    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name


def cells(config: ConfigDict, workdir: Path) -> list[Cell]:
    """The grid: every noise rate with every seed."""
    made = []
    for seed, rate in itertools.product(range(config.seeds), config.noise_rates):
        seeds = {f"seeds.{key}": value + seed for key, value in config.pretrain.seeds.items()}
        cell = config_lib.updated(config.pretrain, {"noise.rate": float(rate), **seeds})
        made.append(
            Cell(float(rate), seed, cell, workdir / "cells" / f"noise{rate:.4f}-seed{seed}")
        )
    return made


def stage(path: Path, key: dict, work: Callable[[], dict]) -> dict:
    """The JSON at `path` if `key` made it, else `work()`'s, written there with its duration."""
    mark = config_lib.hash_of(key)
    if path.exists():
        found = checkpoint.read_json(path)
        if found.get("key") == mark:
            return found
    began = time.perf_counter()
    made = work()
    made |= {"key": mark, "duration_s": round(time.perf_counter() - began, 2)}
    checkpoint.write_json(path, made)
    return made


def pretrain(cell: Cell, show: str) -> dict:
    """Trains the cell's model and says what it learned, and what noise it memorised."""
    state, made, result = train.run(cell.config, str(cell.folder / "train"), name=show)
    keep = ("correct", "prediction")
    measure = functools.partial(
        features.predict,
        made.task,
        state.variables,
        keep=keep,
        batch_size=cell.config.batch_size,
        mesh=made.mesh,
    )
    held_out = measure(made.eval_source)["correct"]
    prediction = measure(made.source)["prediction"]
    flipped = made.labels != made.source.labels
    metrics = {
        "accuracy": with_interval(held_out, made.eval_source.groups),
        "train_accuracy_clean": with_interval(prediction == made.source.labels),
    }
    if flipped.any():
        metrics["flipped_fits_given"] = with_interval(prediction[flipped] == made.labels[flipped])
        metrics["flipped_fits_true"] = with_interval(
            prediction[flipped] == made.source.labels[flipped]
        )
    return {
        "metrics": metrics,
        "manifest": made.manifest.summary(),
        "num_params": result["num_params"],
        "steps": result["steps"],
    }


def with_interval(correct: np.ndarray, groups: np.ndarray | None = None) -> dict:
    """Mean of a 0/1 array, its 95 % interval (resampling whole `groups`, else Wilson's), and n."""
    correct = np.asarray(correct, dtype=float)
    if groups is None:
        low, high = evaluate.wilson_interval(int(correct.sum()), len(correct))
    else:
        low, high = evaluate.cluster_bootstrap(correct, groups)
    return {"value": float(correct.mean()), "low": low, "high": high, "n": len(correct)}


def extract(cell: Cell, config: ConfigDict, wanted: Iterable[tuple[str, str, str]]) -> dict:
    """Feature stores of the cell's model for every (data, domain, split) wanted."""
    made = train.setup(cell.config)
    saver = checkpoint.Checkpointer(cell.folder / "train" / "checkpoints")
    found = saver.restore(train.abstract(made.state))
    saver.close()
    if found is None:
        raise ValueError(f"{cell.folder}/train has no checkpoint; delete {cell.folder} to redo it")
    for name, domain, split in wanted:
        source = load(cell, name, domain=domain, split=split)
        out = features.predict(
            made.task,
            found[0].variables,
            source,
            keep=(f"features/{config.feature}",),
            batch_size=cell.config.batch_size,
            mesh=made.mesh,
        )
        features.write_store(
            store_path(cell, name, domain, split),
            features=out[f"features/{config.feature}"].astype(np.float32),
            ids=source.ids,
            meta={
                "data": name,
                "domain": domain,
                "split": split,
                "feature": config.feature,
                "model": cell.config.model.name,
                "noise": made.manifest.summary(),
                "config_hash": config_lib.hash_of(cell.config),
            },
        )
    return {"stores": len(list(wanted))}


def load(cell: Cell, name: str, *, domain: str, split: str, task: str = ""):
    """A downstream source at the size the model was trained on."""
    return data_lib.load(
        name,
        split=split,
        domain=domain or None,
        task=task or None,
        size=cell.config.data.size,
    )


def store_path(cell: Cell, name: str, domain: str, split: str) -> Path:
    return cell.folder / "features" / "-".join(filter(None, (name, domain, split)))


def stores(config: ConfigDict) -> list[tuple[str, str, str]]:
    """Every (data, domain, split) that the tasks need."""
    wanted = set()
    for name, _, source, targets in config.tasks:
        wanted |= {(name, source, "train"), (name, source, "test")}
        wanted |= {(name, target, "test") for target in targets}
    return sorted(wanted)


def read(cell: Cell, name: str, *, domain: str, split: str, task: str):
    """(features, labels, ids, groups, number of classes) of a task's examples in a stored split."""
    source = load(cell, name, domain=domain, split=split, task=task)
    store = features.open_store(store_path(cell, name, domain, split))
    order = np.argsort(store.ids)
    rows = order[np.searchsorted(store.ids, source.ids, sorter=order)]
    return store.features[rows], source.labels, source.ids, source.groups, source.num_classes


def spectra(cell: Cell, config: ConfigDict) -> dict:
    """Spectrum metrics, with jackknife intervals, of the test features of every stored domain."""
    rows = []
    for name, domain, split in stores(config):
        if split == "test":
            x, _, _, groups, _ = read(cell, name, domain=domain, split=split, task="")
            rows.append({"dataset": name, "domain": domain, **spectrum_row(x, groups, config)})
    return {"rows": rows}


def spectrum_row(x: np.ndarray, groups, config: ConfigDict) -> dict:
    """Singular values of x [m d] and its metrics with intervals over concepts."""
    settings = dict(config.spectrum)
    intervals = spectrum.jackknife(x, groups=groups, **settings)
    return {
        "n": len(x),
        "singular_values": [float(v) for v in spectrum.singular_values(x, **settings)],
        "metrics": {
            name: {"value": i.value, "low": i.low, "high": i.high} for name, i in intervals.items()
        },
    }


def heads(config: ConfigDict) -> list[probe.Head]:
    """Every method × fraction × label noise × seed of the study."""
    return [
        probe.Head(
            method=method,
            preset=config.preset,
            seed=seed,
            fraction=fraction,
            label_noise=label_noise,
            epochs=config.probe_epochs,
        )
        for method, fraction, label_noise, seed in itertools.product(
            config.methods, config.fractions, config.label_noise, range(config.probe_seeds)
        )
    ]


def probes(cell: Cell, config: ConfigDict) -> dict:
    """Tunes every head on every task; tests it in domain and on the unseen domains."""
    rows, transformed = [], []
    for name, task, source, targets in config.tasks:
        x, labels, ids, _, num_classes = read(cell, name, domain=source, split="train", task=task)
        tests = {
            domain: read(cell, name, domain=domain, split="test", task=task)
            for domain in (source, *targets)
        }
        results = probe.fit_heads(
            x,
            labels,
            heads(config),
            num_classes=num_classes,
            ids=ids,
            test_sets={domain: test[:2] for domain, test in tests.items()},
        )
        for result in results:
            about = {"dataset": name, "task": task, "source": source, **head_fields(result.head)}
            for target, test in tests.items():
                rows.append(
                    {
                        **about,
                        "target": target,
                        "shift": "id" if target == source else "ood",
                        "metrics": evaluate.metric_intervals(
                            test[1], result.predictions[target], num_classes, groups=test[3]
                        ),
                    }
                )
            if spectrum_wanted(result.head, config):
                for target, test in tests.items():
                    z = result.transform(test[0])
                    row = spectrum_row(np.asarray(z), test[3], config)
                    transformed.append({**about, "domain": target, **row})
    return {"rows": rows, "spectra": transformed}


def head_fields(head: probe.Head) -> dict:
    return {
        "method": head.method,
        "preset": head.preset if head.layout != "linear" else None,
        "fraction": head.fraction,
        "label_noise": head.label_noise,
        "probe_seed": head.seed,
    }


def spectrum_wanted(head: probe.Head, config: ConfigDict) -> bool:
    """The spectrum of Z is taken once a method: all data, no label noise, the first seed."""
    first = (max(config.fractions), min(config.label_noise), 0)
    return head.layout != "linear" and (head.fraction, head.label_noise, head.seed) == first


def resolve(config: ConfigDict) -> ConfigDict:
    """The config with its shorthands spelled out, checked."""
    config = config_lib.updated(config, {})
    if config.model:
        config.pretrain.model = {"name": config.model}
    config.model = config.pretrain.model.name
    config_lib.check_study(config)
    heads(config)
    for name, task, source, targets in config.tasks:
        for domain in (source, *targets):
            arguments = {"domain": domain or None, "task": task or None}
            data_lib.load(name, split="test", size=config.pretrain.data.size, **arguments)
    return config


def run(config: ConfigDict, workdir: str) -> Path:
    """Runs what is missing of the study in `workdir` and returns the path of its report."""
    config = resolve(config)
    folder = Path(workdir).absolute()
    plain = config_lib.plain(config)
    checkpoint.claim(folder, "pretrain.json", plain["pretrain"], differences=config_lib.differences)
    checkpoint.write_json(folder / "config.json", plain)
    checkpoint.write_json(folder / "environment.json", records.environment())
    config_lib.cache_compilations()
    grid = cells(config, folder)
    outputs: dict[Cell, dict[str, dict]] = {}
    for number, cell in enumerate(grid, 1):
        show = f"[{number}/{len(grid)}] noise {cell.rate:.1%} seed {cell.seed}"
        outputs[cell] = run_cell(cell, config, show)
    records.assemble(config, folder, outputs)
    return report.build(folder)


def run_cell(cell: Cell, config: ConfigDict, show: str) -> dict[str, dict]:
    """The four stages of one pre-trained model, each skipped if it has been done."""
    trained = {"train": config_lib.hash_of(cell.config)}
    stored = {**trained, "feature": config.feature, "stores": stores(config)}
    looked = {**stored, "spectrum": config.spectrum}
    keys = ("tasks", "methods", "preset", "fractions", "label_noise", "probe_seeds", "probe_epochs")
    tuned = {**looked, **{key: config[key] for key in keys}}
    out = {}
    for name, key, work in (
        ("pretrain", trained, lambda: pretrain(cell, show)),
        ("features", stored, lambda: extract(cell, config, stores(config))),
        ("spectra", looked, lambda: spectra(cell, config)),
        ("probes", tuned, lambda: probes(cell, config)),
    ):
        began = time.perf_counter()
        out[name] = stage(cell.folder / f"{name}.json", key, work)
        print(f"{show}: {name} {time.perf_counter() - began:.1f} s", flush=True)
    return out


def main(config: ConfigDict, workdir: str) -> None:
    path = run(config, workdir)
    print(f"report: {path}")


if __name__ == "__main__":
    config_lib.run_app(main)
