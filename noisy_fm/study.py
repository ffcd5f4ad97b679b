"""Runs a study: pre-train at each noise rate, extract, look at the spectrum, tune, report.

    python -m noisy_fm.study --config=configs/study/emoji.py --workdir=runs/emoji

Every stage writes one artifact, whole or not at all, and is skipped when its artifact is there:
kill it anywhere and run the same line again. More noise_rates or seeds in the same workdir only run
the new cells; a change in what is measured (tasks, methods, …) runs that again, never the training.
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from noisy_fm import (
    app,
    checkpoint,
    features,
    files,
    lease,
    probe,
    records,
    report,
    spectrum,
    statistics,
    train,
)
from noisy_fm import config as config_lib
from noisy_fm import data as data_lib
from noisy_fm.messages import say


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
        made.append(Cell(float(rate), seed, cell, workdir / "cells" / f"noise{rate:g}-seed{seed}"))
    return made


def stage(path: Path, key: dict, work: Callable[[], dict], *, intact: bool = True) -> dict:
    """The JSON at `path` if `key` made it and it is `intact`, else `work()`'s, written there.

    It carries the stage's duration, and the versions and commit that made it.
    """
    mark = config_lib.hash_of(key)
    if path.exists():
        found = files.read_json(path)
        if found.get("key") == mark and intact:
            return found
    began = time.perf_counter()
    made = {**work(), "key": mark, **checkpoint.provenance()}
    made["duration_s"] = round(time.perf_counter() - began, 2)
    files.write_json(path, made)
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
    given, true = (one.columns["label"] for one in (made.source, made.clean))
    groups, flipped = made.source.groups, given != true
    metrics = {
        "accuracy": with_interval(held_out, made.eval_source.groups),
        "train_accuracy_true_labels": with_interval(prediction == true, groups),
    }
    for name, labels in (("given", given), ("true", true)) if flipped.any() else ():
        fits = prediction[flipped] == labels[flipped]
        metrics[f"flipped_fits_{name}"] = with_interval(fits, groups[flipped])
    return {
        "metrics": metrics,
        "correct": held_out.astype(int).tolist(),
        "groups": made.eval_source.groups.tolist(),
        "manifest": made.manifest.summary(),
        "num_params": result["num_params"],
        "steps": result["steps"],
    }


def with_interval(values: np.ndarray, groups: np.ndarray) -> dict:
    """Mean of one number an example, its 95 % interval (resampling whole `groups`), and n."""
    values = np.asarray(values, dtype=float)
    low, high = statistics.cluster_bootstrap(values, groups)
    return {"value": float(values.mean()), "low": low, "high": high, "n": len(values)}


def extract(cell: Cell, config: ConfigDict) -> dict:
    """Feature stores of the cell's final model for every (data, domain, split) not there yet."""
    made = train.setup(cell.config)
    saver = checkpoint.Checkpointer(cell.folder / "train" / "checkpoints")
    try:
        state, _ = saver.restore(made.plan.shapes, step=made.steps)
    except ValueError as error:
        raise ValueError(f"{error}; delete {cell.folder} to train that cell again") from None
    finally:
        saver.close()
    for name, domain, split in stores(config):
        if is_stored(cell, config, name, domain, split):
            continue
        source = load(cell, name, domain=domain, split=split)
        out = features.predict(
            made.task,
            state.variables,
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
                **store_key(cell, config, name, domain, split),
                "model": cell.config.model.name,
                "noise": made.manifest.summary(),
            },
        )
    return {"stores": len(stores(config))}


def store_key(cell: Cell, config: ConfigDict, name: str, domain: str, split: str) -> dict:
    """What made a store: weights (by training config), feature, and images."""
    return {
        "train": config_lib.hash_of(cell.config),
        "feature": config.feature,
        "data": name,
        "domain": domain,
        "split": split,
    }


def is_stored(cell: Cell, config: ConfigDict, name: str, domain: str, split: str) -> bool:
    """Whether the store is there and was made by this cell's model and feature."""
    meta = store_path(cell, name, domain, split) / "meta.json"
    key = store_key(cell, config, name, domain, split)
    return meta.is_file() and key.items() <= files.read_json(meta).items()


def load(cell: Cell, name: str, *, domain: str, split: str, task: str = ""):
    """A downstream source at the size the model was trained on."""
    return data_lib.load(
        name,
        split=split,
        domain=domain or None,
        labels=task or None,
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
    where = np.searchsorted(store.ids, source.ids, sorter=order)
    rows = order[np.minimum(where, len(order) - 1)]
    if not np.array_equal(store.ids[rows], source.ids):
        raise ValueError(f"{store.path} lacks images of {name}; delete it to have it made again")
    return store.features[rows], source.labels, source.ids, source.groups, source.num_classes


def spectra(cell: Cell, config: ConfigDict) -> dict:
    """Spectrum metrics of the test features of every stored domain, with jackknife intervals.

    And without intervals those of each task's test images alone, for what heads make of the same.
    """
    rows = []
    for name, domain, split in stores(config):
        if split == "test":
            x, _, _, groups, _ = read(cell, name, domain=domain, split=split, task="")
            rows.append({"dataset": name, "domain": domain, **spectrum_row(x, groups, config)})
    for name, task, domain, shift in tested(config):
        x, _, _, _, _ = read(cell, name, domain=domain, split="test", task=task)
        found = spectrum.summary(x, **config.spectrum)
        metrics = {metric: {"value": found[metric]} for metric in ("sve", "lsvr")}
        about = {"dataset": name, "task": task, "domain": domain, "shift": shift, "n": len(x)}
        rows.append({**about, "metrics": metrics})
    return {"rows": rows}


def tested(config: ConfigDict) -> list[tuple[str, str, str, str]]:
    """Every (data, task, domain, "id" or "ood") that heads are tested on, of data with tasks."""
    return sorted(
        {
            (name, task, domain, "id" if domain == source else "ood")
            for name, task, source, targets in config.tasks
            for domain in (source, *targets)
            if task
        }
    )


def spectrum_row(x: np.ndarray, groups, config: ConfigDict) -> dict:
    """Singular values of x [m d] and its metrics with intervals over concepts."""
    settings = dict(config.spectrum)
    intervals = spectrum.jackknife(x, groups=groups, **settings)
    return {
        "n": len(x),
        "singular_values": [float(v) for v in spectrum.singular_values(x, **settings)],
        "metrics": {
            name: {"value": i.value, "low": i.low, "high": i.high}
            for name, i in intervals.items()
            if np.isfinite([i.value, i.low, i.high]).all()  # α of a spectrum too short for it
        },
    }


def heads(config: ConfigDict) -> list[probe.Head]:
    """Every method × λ × fraction × label noise × seed of the study, each once.

    λ is the preset's (None), and for NMTune every one of `config.weights` besides.
    """
    recipes = [
        (method, weights)
        for method in config.methods
        for weights in (None, *(config.weights if method == "nmtune" else ()))
    ]
    made = [
        probe.Head(
            method=method,
            preset=config.preset,
            weights=weights,
            seed=seed,
            fraction=fraction,
            label_noise=label_noise,
            epochs=config.probe_epochs,
        )
        for (method, weights), fraction, label_noise, seed in itertools.product(
            recipes, config.fractions, config.label_noise, range(config.probe_seeds)
        )
    ]
    return list(dict.fromkeys(made))  # the preset's λ may be among `config.weights`


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
                        "metrics": statistics.metric_intervals(
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
        # λ of eqs. 4, 5, 6
        "weights": np.asarray(head.weights).tolist() if head.method == "nmtune" else None,
        "fraction": head.fraction,
        "label_noise": head.label_noise,
        "probe_seed": head.seed,
    }


def spectrum_wanted(head: probe.Head, config: ConfigDict) -> bool:
    """The spectrum of Z is taken once a method and λ: all data, no label noise, first seed."""
    first = (max(config.fractions), min(config.label_noise), 0)
    return head.layout != "linear" and (head.fraction, head.label_noise, head.seed) == first


def resolve(config: ConfigDict) -> ConfigDict:
    """The config with its shorthands spelled out; raises for whatever could not run."""
    config = config_lib.updated(config, {})
    if config.model and config.model != config.pretrain.model.name:
        config.pretrain.model = {"name": config.model}
    config.model = config.pretrain.model.name
    config_lib.check_study(config)
    heads(config)
    if jax.process_count() > 1:
        raise ValueError(f"a study runs in one process; there are {jax.process_count()}")
    first = cells(config, Path())[0]
    made = train.setup(first.config)
    features.check_names(
        made.task, made.plan.shapes.variables, made.source, [config.feature], where="config.feature"
    )
    for name, task, source, targets in config.tasks:
        for domain, split in ((source, "train"), *((d, "test") for d in (source, *targets))):
            load(first, name, domain=domain, split=split, task=task)
    return config


def run(config: ConfigDict, workdir: str) -> Path:
    """Runs what is missing of the study in `workdir` and returns the path of its report."""
    config_lib.cache_compilations()
    config = resolve(config)
    folder = Path(workdir).expanduser().absolute()
    with lease.held(folder):
        return _run(config, folder)


def _run(config: ConfigDict, folder: Path) -> Path:
    plain = config_lib.plain(config)
    checkpoint.claim(folder, "pretrain.json", plain["pretrain"], differences=config_lib.differences)
    files.write_json(folder / "config.json", plain)
    if not (folder / "environment.json").exists():  # each record says what made it since
        files.write_json(folder / "environment.json", records.environment())
    grid = cells(config, folder)
    outputs: dict[Cell, dict[str, dict]] = {}
    for number, cell in enumerate(grid, 1):
        show = f"[{number}/{len(grid)}] noise {cell.rate:.1%} seed {cell.seed}"
        outputs[cell] = run_cell(cell, config, show)
    records.assemble(config, folder, outputs)
    return report.build(folder)


def run_cell(cell: Cell, config: ConfigDict, show: str) -> dict[str, dict]:
    """The four stages of one pre-trained model, each skipped if it has been done."""
    train_key = {"train": config_lib.hash_of(cell.config)}
    store_key = {**train_key, "feature": config.feature, "stores": stores(config)}
    spectrum_key = {**store_key, "spectrum": config.spectrum, "tasks": config.tasks}
    tuning = ("methods", "preset", "weights", "fractions", "label_noise", "probe_seeds")
    probe_key = {**spectrum_key, **{name: config[name] for name in (*tuning, "probe_epochs")}}
    stored = all(is_stored(cell, config, *wanted) for wanted in stores(config))
    out = {}
    for name, key, work in (
        ("pretrain", train_key, lambda: pretrain(cell, show)),
        ("features", store_key, lambda: extract(cell, config)),
        ("spectra", spectrum_key, lambda: spectra(cell, config)),
        ("probes", probe_key, lambda: probes(cell, config)),
    ):
        began = time.perf_counter()
        intact = stored if name == "features" else True
        out[name] = stage(cell.folder / f"{name}.json", key, work, intact=intact)
        seconds = time.perf_counter() - began
        note = f"{seconds:.1f} s" if out[name]["duration_s"] <= seconds + 0.01 else "done before"
        say(f"{show}: {name} {note}")
    return out


def main(config: ConfigDict, workdir: str) -> None:
    path = run(config, workdir)
    say(f"report: {path}")


if __name__ == "__main__":
    app.run_app(main, defaults=config_lib.study)
