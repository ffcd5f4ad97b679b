"""Classification of images, under whatever labels their source has."""

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import metrics as clu_metrics
from ml_collections import ConfigDict

from noisy_fm import config as config_lib
from noisy_fm import losses, models, optim
from noisy_fm.data import Source
from noisy_fm.data import augment as augment_lib
from noisy_fm.data.storage.labels import appearance
from noisy_fm.messages import require_known, warn
from noisy_fm.tasks import augmentation
from noisy_fm.tasks.task import Task, apply_training, separated

LOSSES = {"softmax": losses.softmax_cross_entropy, "bce": losses.binary_cross_entropy}
MIX_MODES = ("batch", "elem")


def defaults() -> dict:
    """The keys of `config.task`."""
    return {
        "name": "classify",
        "loss": "softmax",  # or "bce"
        "label_smoothing": 0.0,
        "normalize": {"mean": 0.5, "std": 0.5},  # of pixels in [0, 1]; one number or three
        "augment": {"name": "flip_crop"},  # other keys go to what the name picks
        # Arguments of `augment.mix`; `mixup` and `cutmix` are their Beta parameters, 0 is off.
        "mix": {
            "mixup": 0.0,
            "cutmix": 0.0,
            "mode": "batch",
            "probability": 1.0,
            "switch_probability": 0.5,
            "groups": 1,  # runs of rows that mix among themselves; see `augment.mix`
        },
    }


RANGES: tuple[config_lib.Range, ...] = (
    (("task.mix.groups",), lambda v: isinstance(v, int) and v > 0, "a positive whole number"),
    (("task.mix.mixup", "task.mix.cutmix"), lambda v: v >= 0, "0 or more"),
    (("task.label_smoothing",), lambda v: 0 <= v < 1, "[0, 1)"),
    (
        ("task.mix.probability", "task.mix.switch_probability"),
        lambda v: 0 <= v <= 1,
        "[0, 1]",
    ),
)


def check(config: ConfigDict) -> None:
    """Raises one clear line for what this task cannot be."""
    task = config.task
    require_known("config.task.loss", task.loss, LOSSES)
    require_known("config.task.mix.mode", task.mix.mode, MIX_MODES)
    config_lib.check_ranges(config, RANGES)
    augmentation.check_images(config)
    if config.batch_size % task.mix.groups:
        raise ValueError(
            f"config.batch_size is {config.batch_size}; expected a multiple of "
            f"config.task.mix.groups ({task.mix.groups})"
        )
    if {"dtype", "num_classes"} & set(config.model):
        raise ValueError("config.model sets dtype or num_classes; use config.precision and data")


def check_data(source: Source, eval_source: Source, *, where: tuple[str, str]) -> None:
    """Raises ValueError unless both have the same two classes or more.

    `where` says what they are. Of a class with no image in one of them a line is logged.
    """
    for place, one in zip(where, (source, eval_source), strict=True):
        if "label" not in one.columns:
            raise ValueError(
                f"{place} has no labels; expected them (images on disk that have captions have "
                "none: config.data.captions='')"
            )
    ours, theirs = (one.info["label_names"] for one in (source, eval_source))
    if ours != theirs:
        here, there = next(pair for pair in zip_longest(ours, theirs) if len({*pair}) > 1)
        what = f"config.split has {len(ours)} classes, config.eval_split has {len(theirs)}"
        if len(ours) == len(theirs):
            what = f"config.split and config.eval_split have different classes ({len(ours)} each)"
        raise ValueError(
            f"{what}; expected the same in both, in the same order"
            + (
                _alone(where[0], ours, theirs) + _alone(where[1], theirs, ours)
                or f"; the first that differs is {here} in one, {there} in the other"
            )
        )
    if len(ours) < 2:
        raise ValueError(
            f"{where[0]} has one class only, {ours[0]!r}; expected two or more to tell apart"
        )
    for place, one in zip(where, (source, eval_source), strict=True):
        images = np.bincount(one.columns["label"], minlength=len(ours))
        empty = [name for name, found in zip(ours, images, strict=True) if not found]
        if empty:
            warn(f"{place}: {len(empty)} of {len(ours)} classes have no image, as {empty[0]}")


def _alone(place: str, names: Sequence[str], others: Sequence[str]) -> str:
    """What only one side has, for the end of a message; letter by letter where it looks alike."""
    only = sorted(set(names) - set(others))
    if not only:
        return ""
    looks = {appearance(name) for name in others}
    shown = [ascii(name) if appearance(name) in looks else name for name in only[:3]]
    alike = " (composed or decomposed letters)" if shown != only[:3] else ""
    return f"; only {place} has {', '.join(shown)}{alike}"


def network(config: ConfigDict, info: Mapping) -> nn.Module:
    """The config's model, with an output for each of `info["label_names"]`."""
    arguments = dict(config.model)
    name, num_classes = arguments.pop("name"), len(info["label_names"])
    return models.create(name, num_classes, dtype=jnp.dtype(config.precision), **arguments)


def make(config: ConfigDict, info: Mapping) -> Task:
    """The config's model and loss for data of which `info` is known.

    Modules without a trainable parameter are frozen.
    """
    return classify(
        network(config, info),
        len(info["label_names"]),
        label_names=info["label_names"],
        loss=config.task.loss,
        label_smoothing=config.task.label_smoothing,
        augment=augmentation.of(config, info),
        mix=config.task.mix,
        normalize=config.task.normalize,
        frozen=lambda module: optim.frozen(f"{module}/scale", config.trainable),
    )


@flax.struct.dataclass
class ClassifyMetrics(clu_metrics.Collection):
    """Mean loss and accuracy over the (unmasked) examples."""

    loss: clu_metrics.Average.from_output("loss")  # type: ignore[valid-type]
    accuracy: clu_metrics.Average.from_output("correct")  # type: ignore[valid-type]


def classify(
    model: nn.Module,
    num_classes: int,
    *,
    label_names: Sequence[str] = (),
    loss: str = "softmax",
    label_smoothing: float = 0.0,
    augment: Callable[[jax.Array, dict], dict] | None = None,
    mix: Mapping[str, Any] | None = None,
    normalize: Mapping[str, Any] | None = None,
    frozen: Callable[[str], bool] | None = None,
) -> Task:
    """Classification of uint8 `image` [n h w c] into `label` [n].

    `augment(key, batch)` gives the batch to train on; `mix` holds the arguments of `augment.mix`,
    `normalize` those of `augment.normalize`. `frozen(path)` says which modules' BatchNorm must
    use, and keep, its running statistics. `label_names` are for people.
    """
    per_example = LOSSES[loss]
    mixes = bool(mix and (mix["mixup"] or mix["cutmix"]))

    def pixels(images):
        return augment_lib.normalize(images, **(normalize or {}))

    def outputs(logits, batch, target):
        prediction = jnp.argmax(logits, -1)
        correct = (prediction == batch["label"]).astype(jnp.float32)
        out = {"logits": logits, "prediction": prediction, "correct": correct}
        # Mixed targets are smoothed where they are made.
        smoothing = 0.0 if target.ndim > 1 else label_smoothing
        out["loss"] = per_example(logits, target, label_smoothing=smoothing)
        return {**out, **({"mask": batch["mask"]} if "mask" in batch else {})}

    def init_fn(key, batch):
        return separated(model.init({"params": key}, pixels(batch["image"]), train=False))

    def prepare_fn(batch, key):
        key_augment, key_mix = jax.random.split(key)
        if augment:
            batch = augment(key_augment, batch)
        if not mixes:
            return batch
        targets = optax.smooth_labels(jax.nn.one_hot(batch["label"], num_classes), label_smoothing)
        images, targets = augment_lib.mix(key_mix, batch["image"], targets, **mix)
        return {**batch, "image": images, "target": targets}

    def loss_fn(params, model_state, batch, key):
        (logits, _), new_state = apply_training(
            model, params, model_state, key, pixels(batch["image"]), frozen=frozen
        )
        out = outputs(logits.astype(jnp.float32), batch, batch.get("target", batch["label"]))
        return losses.mean(out["loss"], batch.get("mask")), (new_state, out)

    def predict_fn(params, model_state, batch):
        images = pixels(batch["image"])
        logits, features = model.apply({"params": params, **model_state}, images, train=False)
        logits = logits.astype(jnp.float32)
        if "label" not in batch:
            return {"logits": logits, "prediction": jnp.argmax(logits, -1), "features": features}
        return {**outputs(logits, batch, batch["label"]), "features": features}

    def preview_fn(batch, prepared, true):
        names = label_names or [str(i) for i in range(num_classes)]
        pairs = zip(batch["label"], true["label"], strict=True)
        lines = [(names[a],) if a == b else (names[a], f"is {names[b]}") for a, b in pairs]
        return np.asarray(prepared["image"]), lines

    return Task(
        init_fn,
        prepare_fn,
        loss_fn,
        predict_fn,
        ClassifyMetrics,
        columns=("label",),
        preview_fn=preview_fn,
        scores={"loss": "loss", "accuracy": "correct"},
        agreement="correct",
    )
