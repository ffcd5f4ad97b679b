"""What a model is trained for, as a value: `fit` takes a Task and knows nothing else of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from clu import metrics as clu_metrics

from noisy_fm import losses
from noisy_fm.data import augment as augment_lib


class Task(NamedTuple):
    """A loss and a prediction over nested `params` and `model_state` (BatchNorm statistics).

    init_fn(key, batch) → (params, model_state)
    loss_fn(params, model_state, batch, key) → (loss, (model_state, outputs)); `outputs` feeds
      `metrics.single_from_model_output`
    predict_fn(params, model_state, batch) → outputs with "logits", "features", and metric inputs
    metrics: a `clu.metrics.Collection`, merged over steps and devices
    """

    init_fn: Callable[..., tuple[Any, Any]]
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
    *,
    loss: str = "softmax",
    label_smoothing: float = 0.0,
    augment: str = "none",
    frozen: Callable[[str], bool] | None = None,
) -> Task:
    """Classification of uint8 `image` [n h w c] into `label` [n].

    `frozen(path)` says which modules' BatchNorm must use, and keep, its running statistics.
    """
    example_loss = {"softmax": losses.softmax_cross_entropy, "bce": losses.binary_cross_entropy}
    per_example = example_loss[loss]

    def outputs(logits, batch):
        prediction = jnp.argmax(logits, -1)
        correct = (prediction == batch["label"]).astype(jnp.float32)
        out = {"logits": logits, "prediction": prediction, "correct": correct}
        out["loss"] = per_example(logits, batch["label"], label_smoothing=label_smoothing)
        return {**out, **({"mask": batch["mask"]} if "mask" in batch else {})}

    def init_fn(key, batch):
        images = augment_lib.normalize(batch["image"])
        variables = model.init({"params": key}, images, train=False)
        return variables["params"], {k: v for k, v in variables.items() if k != "params"}

    def loss_fn(params, model_state, batch, key):
        key_augment, key_dropout = jax.random.split(key)
        images = augment_lib.AUGMENT[augment](batch["image"], key_augment)
        with nn.intercept_methods(keep_statistics(frozen)):
            (logits, _), new_state = model.apply(
                {"params": params, **model_state},
                augment_lib.normalize(images),
                train=True,
                rngs={"dropout": key_dropout},
                mutable=list(model_state),
            )
        out = outputs(logits.astype(jnp.float32), batch)
        return jnp.mean(out["loss"]), (new_state, out)

    def predict_fn(params, model_state, batch):
        images = augment_lib.normalize(batch["image"])
        logits, features = model.apply({"params": params, **model_state}, images, train=False)
        return {**outputs(logits.astype(jnp.float32), batch), "features": features}

    return Task(init_fn, loss_fn, predict_fn, ClassifyMetrics)


def keep_statistics(frozen: Callable[[str], bool] | None):
    """A linen interceptor: BatchNorm of frozen modules runs on its stored statistics."""

    def interceptor(call, args, kwargs, context):
        module = context.module
        if frozen and isinstance(module, nn.BatchNorm) and frozen("/".join(module.path)):
            kwargs = {**kwargs, "use_running_average": True}
        return call(*args, **kwargs)

    return interceptor
