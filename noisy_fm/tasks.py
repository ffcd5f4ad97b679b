"""What a model is trained for, as a value: `fit` takes a Task and knows nothing else of it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from clu import metrics as clu_metrics

from noisy_fm import losses
from noisy_fm.data import augment as augment_lib


class Task(NamedTuple):
    """A loss and a prediction over nested `params` and `model_state` (BatchNorm statistics).

    init_fn(key, batch) → (params, model_state)
    prepare_fn(batch, key) → the batch that `loss_fn` takes, augmented and mixed
    loss_fn(params, model_state, batch, key) → (loss, (model_state, outputs)); `outputs` feeds
      `metrics.single_from_model_output`
    predict_fn(params, model_state, batch) → outputs with "logits", "features", and metric inputs
    metrics: a `clu.metrics.Collection`, merged over steps and devices
    """

    init_fn: Callable[..., tuple[Any, Any]]
    prepare_fn: Callable[[dict, jax.Array], dict]
    loss_fn: Callable[..., tuple[jax.Array, tuple[Any, dict]]]
    predict_fn: Callable[..., dict[str, Any]]
    metrics: type[clu_metrics.Collection]


@flax.struct.dataclass
class ClassifyMetrics(clu_metrics.Collection):
    """Mean loss and accuracy over the (unmasked) examples."""

    loss: clu_metrics.Average.from_output("loss")  # type: ignore[valid-type]
    accuracy: clu_metrics.Average.from_output("correct")  # type: ignore[valid-type]


def classify(
    model: nn.Module,
    num_classes: int,
    *,
    loss: str = "softmax",
    label_smoothing: float = 0.0,
    augment: Callable[[jax.Array, dict], jax.Array] | None = None,
    mix: Mapping[str, Any] | None = None,
    normalize: Mapping[str, Any] | None = None,
    frozen: Callable[[str], bool] | None = None,
) -> Task:
    """Classification of uint8 `image` [n h w c] into `label` [n].

    `augment(key, batch)` gives the images to train on; `mix` holds the arguments of `augment.mix`,
    `normalize` those of `augment.normalize`. `frozen(path)` says which modules' BatchNorm must
    use, and keep, its running statistics.
    """
    per_example = {"softmax": losses.softmax_cross_entropy, "bce": losses.binary_cross_entropy}[
        loss
    ]
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
        variables = model.init({"params": key}, pixels(batch["image"]), train=False)
        return variables["params"], {k: v for k, v in variables.items() if k != "params"}

    def prepare_fn(batch, key):
        key_augment, key_mix = jax.random.split(key)
        if augment:
            images = augment(key_augment, batch)
            batch = {name: value for name, value in batch.items() if name != "extent"}
            batch["image"] = images
        if not mixes:
            return batch
        targets = optax.smooth_labels(jax.nn.one_hot(batch["label"], num_classes), label_smoothing)
        images, targets = augment_lib.mix(key_mix, batch["image"], targets, **mix)
        return {**batch, "image": images, "target": targets}

    def loss_fn(params, model_state, batch, key):
        with nn.intercept_methods(keep_statistics(frozen)):
            (logits, _), new_state = model.apply(
                {"params": params, **model_state},
                pixels(batch["image"]),
                train=True,
                rngs={"dropout": key},
                mutable=list(model_state),
            )
        out = outputs(logits.astype(jnp.float32), batch, batch.get("target", batch["label"]))
        return losses.mean(out["loss"], batch.get("mask")), (new_state, out)

    def predict_fn(params, model_state, batch):
        images = pixels(batch["image"])
        logits, features = model.apply({"params": params, **model_state}, images, train=False)
        out = outputs(logits.astype(jnp.float32), batch, batch["label"])
        return {**out, "features": features}

    return Task(init_fn, prepare_fn, loss_fn, predict_fn, ClassifyMetrics)


def keep_statistics(frozen: Callable[[str], bool] | None):
    """A linen interceptor: BatchNorm of frozen modules runs on its stored statistics."""

    def interceptor(call, args, kwargs, context):
        module = context.module
        if frozen and isinstance(module, nn.BatchNorm) and frozen("/".join(module.path)):
            kwargs = {**kwargs, "use_running_average": True}
        return call(*args, **kwargs)

    return interceptor
