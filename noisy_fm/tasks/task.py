"""What a model is trained for, as a value: the loop takes a Task and knows nothing else of it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from clu import metrics as clu_metrics


class Parts(NamedTuple):
    """A loss of all rows' embeddings, which can be made a part of the rows at a time.

    `loss_fn` of the task is `combine_fn` of `embed_fn`'s embeddings.

    embed_fn(params, model_state, batch, key) → (embeddings, model_state), a row each
    combine_fn(params, embeddings, batch) → (loss, outputs)
    """

    embed_fn: Callable[..., tuple[Any, Any]]
    combine_fn: Callable[..., tuple[jax.Array, dict]]


class Task(NamedTuple):
    """A loss and a prediction over nested `params` and `model_state` (BatchNorm statistics).

    init_fn(key, batch) → (params, model_state)
    prepare_fn(batch, key) → the batch that `loss_fn` takes, augmented and mixed
    loss_fn(params, model_state, batch, key) → (loss, (model_state, outputs)); `outputs` feeds
      `metrics.single_from_model_output`
    predict_fn(params, model_state, batch) → outputs with "features", and, if the batch holds its
      supervision, metric inputs
    metrics: a `clu.metrics.Collection`, merged over steps and devices
    columns: what a source must have, besides image and id
    collate(batch) → the batch with its columns as numbers, on the host; pickles
    scores: name → the output of `predict_fn` [n] whose mean over examples validates
    agreement: the output of `predict_fn` [n] that is larger, the better an example fits the
      supervision it is given
    splits: the loss is a mean over rows, so that a batch may be taken in parts
    parts: how else it may be, if it may
    texts: ((params, model_state), texts) → embeddings [n e] of length 1, if it knows texts
    limits: (parameter's path, lowest, highest) between which an update leaves it
    preview_fn(batch, prepared, true) → (images [n h w c], lines of text for each): what a batch, as
      read and as prepared, shows a person; `true` is the batch with its true supervision
    """

    init_fn: Callable[..., tuple[Any, Any]]
    prepare_fn: Callable[[dict, jax.Array], dict]
    loss_fn: Callable[..., tuple[jax.Array, tuple[Any, dict]]]
    predict_fn: Callable[..., dict[str, Any]]
    metrics: type[clu_metrics.Collection]
    columns: tuple[str, ...]
    preview_fn: Callable[[dict, dict, dict], tuple[Any, Sequence[Sequence[str]]]]
    scores: Mapping[str, str]
    agreement: str
    collate: Callable[[dict], dict] = dict
    splits: bool = True
    parts: Parts | None = None
    texts: Callable[[tuple[Any, Any], Sequence[str]], np.ndarray] | None = None
    limits: tuple[tuple[str, float, float], ...] = ()


def separated(variables) -> tuple[Any, dict]:
    """(params, model_state) of Linen's variables, as a Task takes them."""
    return variables["params"], {k: v for k, v in variables.items() if k != "params"}


def apply_training(
    model: nn.Module, params, model_state, key: jax.Array, *inputs, frozen: Callable | None
) -> tuple[Any, Any]:
    """(the model's output in training, its new state); see `keep_statistics` for `frozen`."""
    with nn.intercept_methods(keep_statistics(frozen)):
        return model.apply(
            {"params": params, **model_state},
            *inputs,
            train=True,
            rngs={"dropout": key},
            mutable=list(model_state),
        )


def keep_statistics(frozen: Callable[[str], bool] | None):
    """A linen interceptor: BatchNorm of frozen modules runs on its stored statistics."""

    def interceptor(call, args, kwargs, context):
        module = context.module
        if frozen and isinstance(module, nn.BatchNorm) and frozen("/".join(module.path)):
            kwargs = {**kwargs, "use_running_average": True}
        return call(*args, **kwargs)

    return interceptor
