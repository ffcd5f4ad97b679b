"""The stages that follow training: features are extracted, their spectra taken, heads tuned."""

from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from noisy_fm import (
    checkpoint,
    data,
    features,
    files,
    hosts,
    probe,
    record,
    spectrum,
    statistics,
    train,
)
from noisy_fm import config as config_lib
from noisy_fm.evaluators.evaluator import readable
from noisy_fm.model import Preprocess
from noisy_fm.study import pretraining, protocols, transfers, views
from noisy_fm.study.cells import Cell
from noisy_fm.study.transfers import Images, Transfer
from noisy_fm.train.build import Setup


class Examples(NamedTuple):
    """What heads and spectra are made of: features [n d], or [n 2 d], and their supervision."""

    features: np.ndarray
    labels: np.ndarray
    ids: np.ndarray
    groups: np.ndarray
    num_classes: int


def features_key(cell: Cell, config: ConfigDict) -> dict:
    wanted = transfers.wanted(transfers.collect(config))
    return {"stores": [store_key(cell, config, images) for images in wanted]}


def store_key(cell: Cell, config: ConfigDict, images: Images) -> dict:
    """What made a store: weights (by training config), feature, and images, as they are seen.

    What is not in every store has no key in the others, which thus stay as they were made.
    """
    own, other = (one["name"] in data.IN_MEMORY for one in (cell.config.data, images.data))
    return {
        **({} if own == other else {"cropped": not own}),
        **pretraining.trained_by(cell),
        "feature": config.feature,
        "size": cell.config.data.size,
        **images.spec,
        **views.key(config, images),
    }


def store_path(cell: Cell, config: ConfigDict, images: Images) -> Path:
    """A store's folder: what it is of, for people, and the hash of what makes it."""
    mark = config_lib.hash_of(store_key(cell, config, images))
    parts = (images.dataset, images.domain, images.split, mark)
    return cell.folder / "features" / "-".join(filter(None, parts)).replace("/", "_")


def is_stored(cell: Cell, config: ConfigDict, images: Images) -> bool:
    return (store_path(cell, config, images) / "meta.json").is_file()


def all_stored(cell: Cell, config: ConfigDict) -> bool:
    wanted = transfers.wanted(transfers.collect(config))
    return all(is_stored(cell, config, images) for images in wanted)


def extract(cell: Cell, config: ConfigDict) -> dict:
    """Feature stores of the cell's final model for all images that have none yet.

    They hold features [n d], of images that heads are tuned on [n 2 d] if there is a second view.
    Images that cannot be read have no row; meta.json names them in `left_out`.
    """
    wanted = transfers.wanted(transfers.collect(config))
    stored = hosts.gather([is_stored(cell, config, images) for images in wanted])[0]
    made = train.setup(cell.config)
    saver = checkpoint.Checkpointer(cell.folder / "train" / "checkpoints")
    try:
        state, _ = saver.restore(made.plan.shapes, step=made.steps)
    except ValueError as error:
        raise ValueError(f"{error}; delete {cell.folder} to train that cell again") from None
    finally:
        saver.close()
    look = Preprocess.of(cell.config, made.clean.info)
    output = f"features/{config.feature}"
    predict = pretraining.predictor(cell, made.task, made.mesh, output)
    second = second_predictor(cell, config, made, output)
    for images in (one for one, there in zip(wanted, stored, strict=True) if not there):
        source = look.source(transfers.load(images, cell.config.data.size))
        read, found = readable(predict(state.variables, source))
        seen = found[output].astype(np.float32)
        if views.key(config, images):
            _, again = readable(second(state.variables, source))
            seen = np.stack([seen, again[output].astype(np.float32)], axis=1)
        if not hosts.first():
            continue
        features.write_store(
            store_path(cell, config, images),
            features=seen,
            ids=source.ids[read],
            meta={
                **store_key(cell, config, images),
                "model": cell.config.model.name,
                "noise": made.manifest.summary(),
                "left_out": {
                    str(source.ids[row]): source.name(row) for row in np.flatnonzero(~read).tolist()
                },
            },
        )
    stores = [store_path(cell, config, images) for images in wanted] if hosts.first() else []
    left_out = [files.read_json(path / "meta.json")["left_out"] for path in stores]
    unreadable = {name for one in left_out for name in one.values()}
    return {"stores": len(wanted), "unreadable": sorted(unreadable)}


def second_predictor(cell: Cell, config: ConfigDict, made: Setup, *keep: str):
    """`pretraining.predictor` of the images' second view."""
    about = {"size": cell.config.data.size, "seed": cell.config.seeds.dropout}
    task = views.augmented(made.task, config.second_view, **about)
    return pretraining.predictor(cell, task, made.mesh, *keep)


def read(
    cell: Cell, config: ConfigDict, images: Images, labels: str = "", *, every_view: bool = False
) -> Examples:
    """Stored features of `images` under `labels`, those left out that could not be read.

    Of the first view, [n d], or of `every_view` of a store that holds two, [n 2 d].
    """
    store = features.open_store(store_path(cell, config, images))
    source = transfers.load(images, cell.config.data.size, labels=labels)
    kept = ~np.isin(source.ids, [int(id_) for id_ in store.meta["left_out"]])
    ids = source.ids[kept]
    order = np.argsort(store.ids)
    where = np.searchsorted(store.ids, ids, sorter=order)
    rows = order[np.minimum(where, len(order) - 1)]
    if not np.array_equal(store.ids[rows], ids):
        raise ValueError(
            f"{store.path} lacks images of {images.dataset}; delete it to have it made again"
        )
    label, num_classes = source.columns["label"][kept], len(source.info["label_names"])
    stored = store.features if every_view or store.features.ndim < 3 else store.features[:, 0]
    return Examples(stored[rows], label, ids, source.groups[kept], num_classes)


def spectra_key(cell: Cell, config: ConfigDict) -> dict:
    return {"spectrum": config.spectrum, "transfers": config.transfers}


def spectra(cell: Cell, config: ConfigDict) -> dict:
    """Spectrum metrics of all images that are tested on, with jackknife intervals.

    And without intervals those of each labelling's images alone, for what heads make of the same.
    """
    collected, rows = transfers.collect(config), []
    tuned_on = {(one.dataset, one.source) for one in collected}
    for images in transfers.tested(collected):
        place = (images.dataset, images.domain)
        found = read(cell, config, images)
        about = dict(zip(("dataset", "target"), place, strict=True))
        about["shift"] = "id" if place in tuned_on else "ood"
        rows.append({**about, **spectrum_row(found.features, found.groups, config)})
    for one, target in labelled(collected):
        x = read(cell, config, one.tests[target], one.labels).features
        summary = spectrum.summary(x, **config.spectrum)
        metrics = {metric: {"value": summary[metric]} for metric in ("sve", "lsvr")}
        about = {"dataset": one.dataset, "labels": one.labels, "target": target}
        rows.append({**about, "shift": shift(one, target), "n": len(x), "metrics": metrics})
    return {"rows": rows}


def labelled(collected: list[Transfer]) -> list[tuple[Transfer, str]]:
    """(transfer, target) for every labelling that is tested on a target in or out of domain."""
    found = {
        (one.dataset, one.labels, target, shift(one, target)): (one, target)
        for one in collected
        for target in one.tests
        if one.labels
    }
    return [found[key] for key in sorted(found)]


def shift(one: Transfer, target: str) -> str:
    return "id" if target == one.source else "ood"


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


def probes_key(cell: Cell, config: ConfigDict) -> dict:
    tuning = ("methods", "preset", "weights", "fractions", "label_noise", "probe_seeds")
    names = ("transfers", "spectrum", *tuning, "probe_epochs")
    return {name: config[name] for name in names}


def probes(cell: Cell, config: ConfigDict) -> dict:
    """Tunes every head on every transfer; tests it in domain and on the unseen domains."""
    rows, transformed = [], []
    for one in transfers.collect(config):
        tuned = read(cell, config, one.train, one.labels, every_view=True)
        tests = {
            target: read(cell, config, images, one.labels) for target, images in one.tests.items()
        }
        results = probe.fit_heads(
            tuned.features,
            tuned.labels,
            protocols.heads(config),
            num_classes=tuned.num_classes,
            ids=tuned.ids,
            test_sets={target: (test.features, test.labels) for target, test in tests.items()},
            devices=jax.local_devices() if jax.process_count() > 1 else None,
        )
        for result in results:
            about = {"dataset": one.dataset, "labels": one.labels, "source": one.source}
            about |= head_fields(result.head)
            for target, test in tests.items():
                metrics = statistics.metric_intervals(
                    test.labels,
                    result.predictions[target],
                    test.num_classes,
                    groups=test.groups,
                )
                place = {"target": target, "shift": shift(one, target)}
                if target == one.source:
                    metrics |= training_losses(result)
                rows.append({**about, **place, "metrics": metrics})
                if spectrum_wanted(result.head, config):
                    z = np.asarray(result.transform(test.features))
                    transformed.append({**about, **place, **spectrum_row(z, test.groups, config)})
    return {"rows": rows, "spectra": transformed}


def training_losses(result: probe.Result) -> dict:
    """Mean cross-entropy of a head's last epoch and of the one halfway, where it was trained.

    Of a single epoch there is no other.
    """
    if not len(result.losses) or result.diverged:
        return {}
    found = {"train_loss": result.losses[-1]}
    if len(result.losses) > 1:
        found["train_loss_halfway"] = result.losses[(len(result.losses) - 1) // 2]
    return {name: {"value": float(loss), "n": result.examples} for name, loss in found.items()}


def head_fields(head: probe.Head) -> dict:
    """Which head it is, in the fields of a record."""
    values = (
        head.method,
        head.preset if head.layout != "linear" else None,
        # λ of eqs. 4, 5, 6
        np.asarray(head.weights).tolist() if head.method == "nmtune" else None,
        head.fraction,
        head.label_noise,
        head.seed,
    )
    return dict(zip(record.HEAD, values, strict=True))


def spectrum_wanted(head: probe.Head, config: ConfigDict) -> bool:
    """The spectrum of Z is taken once a method and λ: all data, no label noise, first seed."""
    first = (max(config.fractions), min(config.label_noise), 0)
    return head.layout != "linear" and (head.fraction, head.label_noise, head.seed) == first
