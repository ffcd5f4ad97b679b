"""The stage that trains a cell's model, and says what it learned and what noise it memorised."""

import base64
import io

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from noisy_fm import config as config_lib
from noisy_fm import features, statistics, train
from noisy_fm.data import Source
from noisy_fm.data.source import View
from noisy_fm.evaluators.evaluator import readable
from noisy_fm.study.cells import Cell
from noisy_fm.tasks import Task
from noisy_fm.train.build import Setup

NUM_EXAMPLES = 12  # images with wrong labels shown in the report
LARGEST = 128  # pixels a side of them


def key(cell: Cell, config: ConfigDict) -> dict:
    """What training depends on: not how it is read, laid out, watched or kept."""
    return {"train": config_lib.binding(cell.config)}


def work(cell: Cell, config: ConfigDict) -> dict:
    """Trains the cell's model and measures it; the arrays are one number an image held out."""
    state, made, result = train.run(cell.config, str(cell.folder / "train"), name=cell.title)
    predict = predictor(cell, made.task, made.mesh, "correct", "prediction")
    held_out, found = readable(predict(state.variables, made.eval_source))
    correct, groups = found["correct"], made.eval_source.groups[held_out]
    metrics = {"accuracy": with_interval(correct, groups)}
    read, found = readable(predict(state.variables, made.source))
    metrics |= memorised(made, np.flatnonzero(read), found["prediction"])
    return {
        "metrics": metrics,
        "arrays": {
            "id": made.eval_source.ids[held_out],
            "correct": correct.astype(np.uint8),
            "group": groups,
        },
        "manifest": made.manifest.summary(),
        "unreadable": [*result["unreadable"].values(), *result.get("unreadable_eval", {}).values()],
        "examples": wrong_labels(made, cell.rate),
        "num_params": result["num_params"],
        "steps": result["steps"],
    }


def memorised(made: Setup, rows: np.ndarray, prediction: np.ndarray) -> dict:
    """How far predictions [m] for the training images `rows` [m] are their labels, and which."""
    given, true = (one.columns["label"][rows] for one in (made.source, made.clean))
    groups, flipped = made.source.groups[rows], given != true
    metrics = {"train_accuracy_true_labels": with_interval(prediction == true, groups)}
    for name, labels in (("given", given), ("true", true)) if flipped.any() else ():
        fits = prediction[flipped] == labels[flipped]
        metrics[f"flipped_fits_{name}"] = with_interval(fits, groups[flipped])
    return metrics


def predictor(cell: Cell, task: Task, mesh: jax.sharding.Mesh, *keep: str):
    """`features.predictor` of the task, laid out and read as the cell's training is."""
    reading = cell.config.loader
    return features.predictor(
        task,
        keep=("mask", *keep),
        batch_size=cell.config.batch_size,
        mesh=mesh,
        pooled=True,
        threads=reading.threads * max(reading.workers, 1) or None,
        buffer=reading.buffer,
        max_bad=reading.max_bad,
    )


def with_interval(values: np.ndarray, groups: np.ndarray) -> dict:
    """Mean of one number an example, its 95 % interval (resampling whole `groups`), and n."""
    values = np.asarray(values, dtype=float)
    low, high = statistics.cluster_bootstrap(values, groups, bounds=(0.0, 1.0))
    return {"value": float(values.mean()), "low": low, "high": high, "n": len(values)}


def wrong_labels(made: Setup, rate: float) -> list[dict]:
    """A few training images whose label was changed, as the report shows them."""
    source, names = made.clean, made.clean.info["label_names"]
    given, true = (one.columns["label"] for one in (made.source, made.clean))
    flipped = np.flatnonzero(given != true)
    chosen = np.random.default_rng(0).permutation(flipped)[:NUM_EXAMPLES]
    if not len(chosen):
        return []
    batch = source.read(chosen, View(damaged=[]))
    rows = []
    for i, image, id_ in zip(chosen, batch["image"], batch["id"], strict=True):
        if id_ != source.ids[i]:  # it cannot be read, and another stands in
            continue
        png, picture = io.BytesIO(), Image.fromarray(image)
        picture.thumbnail((LARGEST, LARGEST))
        picture.save(png, "PNG")
        rows.append(
            {
                "image": base64.b64encode(png.getvalue()).decode(),
                "true": names[true[i]],
                "given": names[given[i]],
                "concept": shown(source, i),
                "noise_rate": rate,
            }
        )
    return rows


def shown(source: Source, row: int) -> str:
    """What a person calls an example: its caption, or its file."""
    if "caption" in source.columns:
        return str(source.columns["caption"][row])
    return source.name(row).rpartition(": ")[2]
