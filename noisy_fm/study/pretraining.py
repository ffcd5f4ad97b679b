"""The stage that trains a cell's model, and says what it learned and what noise it memorised."""

import base64
import io

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from noisy_fm import config as config_lib
from noisy_fm import evaluators, features, train
from noisy_fm.data import Source
from noisy_fm.data.source import View
from noisy_fm.evaluators.contrast import IMAGE
from noisy_fm.evaluators.evaluator import readable
from noisy_fm.evaluators.memorised import changed
from noisy_fm.study.cells import Cell
from noisy_fm.tasks import Task
from noisy_fm.train.build import Setup

NUM_EXAMPLES = 12  # images with wrong labels shown in the report
LARGEST = 128  # pixels a side of them
PAIRS = 12  # held-out images and captions of which the report shows how near they are


def key(cell: Cell, config: ConfigDict) -> dict:
    """What training and its outcomes depend on: not how it is read, laid out or kept."""
    own = own_evaluators(cell)
    return {**trained_by(cell), **({"evaluators": own} if own else {})}


def trained_by(cell: Cell) -> dict:
    return {"train": config_lib.binding(cell.config)}


def work(cell: Cell, config: ConfigDict) -> dict:
    """Trains the cell's model and measures it; the arrays are one number an example held out."""
    state, made, result = train.run(cell.config, str(cell.folder / "train"), name=cell.title)
    left_out: dict[str, str] = {}
    found = outcomes(cell, made, state.variables, left_out)
    return {
        "metrics": {name: evaluators.interval(one) for name, one in found.items()},
        "arrays": {
            f"{name}:{field}": np.asarray(value)
            for name, one in found.items()
            if isinstance(one, evaluators.Outcome) and not name.startswith(MEMORISED)
            for field, value in one._asdict().items()
        },
        "manifest": made.manifest.summary(),
        "unreadable": sorted(
            {*result["unreadable"].values(), *result.get("unreadable_eval", {}).values()}
            | set(left_out.values())
        ),
        "examples": wrong_examples(made, cell.rate),
        "history": result.get("history", []),
        "similarity": similarity(cell, made, state.variables),
        "num_params": result["num_params"],
        "steps": result["steps"],
    }


MEMORISED = ("flipped_fits", "train_")  # of examples that are trained on


def outcomes(
    cell: Cell, made: Setup, variables, left_out: dict[str, str]
) -> dict[str, evaluators.Outcome | float]:
    """What is measured on a trained model, one number an example, by the names of records.

    What the task validates with, how much wrong supervision was learned, and what the training
    config's own evaluators of other kinds measure.
    """
    config = config_lib.updated(cell.config, {})
    config.evaluators = {
        **own_evaluators(cell),
        "validation": {"kind": "validation"},
        "memorised": {"kind": "memorised", "examples": len(made.source)},
    }
    config.keep_best = ""
    found = {}
    for entry, one in train.make_evaluators(config, made, left_out).items():
        for name, outcome in one.outcomes(variables).items():
            title = evaluators.title(entry, name)
            found[RENAMED.get(entry, {}).get(title, title)] = outcome
    trained_on = made._replace(eval_source=made.clean)
    config.evaluators = {"validation": {"kind": "validation"}}
    if "accuracy" in made.task.scores:
        known = train.make_evaluators(config, trained_on, left_out)["validation"]
        found["train_accuracy_true_labels"] = known.outcomes(variables)["accuracy"]
    return {name: one for name, one in found.items() if name}


APART = ("validation", "memorised", "spectrum", "probe")  # what the stages measure by themselves


def own_evaluators(cell: Cell) -> dict:
    """The entries of the training config that a study measures beside its own."""
    entries = cell.config.evaluators.items()
    return {name: one for name, one in entries if one.kind not in APART}


RENAMED = {
    "validation": {"loss": ""},  # of a mean over batches there is no interval
    "memorised": {"memorised": "flipped_fits_given", "resisted": "flipped_fits_true"},
}


def predictor(cell: Cell, task: Task, mesh: jax.sharding.Mesh, *keep: str):
    """`features.predictor` of images without supervision, read as the cell's training is."""
    reading = cell.config.loader
    return features.predictor(
        task,
        keep=("mask", *keep),
        columns=(),
        batch_size=cell.config.batch_size,
        mesh=mesh,
        pooled=True,
        threads=reading.threads * max(reading.workers, 1) or None,
        buffer=reading.buffer,
        max_bad=reading.max_bad,
    )


def similarity(cell: Cell, made: Setup, variables) -> dict:
    """Cosines of a few held-out images with their captions, of a model that knows texts."""
    if made.task.texts is None:
        return {}
    source = made.eval_source
    drawn = np.sort(np.random.default_rng(0).permutation(len(source))[: 20 * PAIRS])
    captions = np.asarray(source.columns["caption"][drawn]).astype(str)
    _, first = np.unique(captions, return_index=True)  # each caption once
    chosen = source.select(drawn[np.sort(first)[:PAIRS]])
    predict = predictor(cell, made.task, made.mesh, IMAGE)
    read, found = readable(predict(variables, chosen))
    said = np.asarray(chosen.columns["caption"][np.flatnonzero(read)]).astype(str).tolist()
    cosines = found[IMAGE] @ made.task.texts(variables, said).T
    return {"captions": said, "cosines": np.round(cosines, 4).tolist()}


def wrong_examples(made: Setup, rate: float) -> list[dict]:
    """A few training images whose supervision was changed, as the report shows them."""
    source = made.clean
    (column,) = made.task.columns
    rows = changed(source, made.source, (column,))
    chosen = np.random.default_rng(0).permutation(rows)[:NUM_EXAMPLES]
    if not len(chosen):
        return []
    batch = source.read(chosen, View(damaged=[]), columns=())
    found = []
    for i, image, id_ in zip(chosen, batch["image"], batch["id"], strict=True):
        if id_ != source.ids[i]:  # it cannot be read, and another stands in
            continue
        png, picture = io.BytesIO(), Image.fromarray(image)
        picture.thumbnail((LARGEST, LARGEST))
        picture.save(png, "PNG")
        found.append(
            {
                "image": base64.b64encode(png.getvalue()).decode(),
                "true": told(source, column, i),
                "given": told(made.source, column, i),
                "concept": shown(source, i),
                "noise_rate": rate,
            }
        )
    return found


def told(source: Source, column: str, row: int) -> str:
    """An example's supervision in words."""
    value = source.columns[column][np.array([row])][0]
    return source.info["label_names"][value] if column == "label" else str(value)


def shown(source: Source, row: int) -> str:
    """What a person calls an example: its caption, or its file."""
    if "caption" in source.columns:
        return told(source, "caption", row)
    return source.name(row).rpartition(": ")[2]
