"""What a model is trained for, as a value: the loop takes a Task and knows nothing else of it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from clu import metrics as clu_metrics


class Task(NamedTuple):
    """A loss and a prediction over nested `params` and `model_state` (BatchNorm statistics).

    init_fn(key, batch) → (params, model_state)
    prepare_fn(batch, key) → the batch that `loss_fn` takes, augmented and mixed
    loss_fn(params, model_state, batch, key) → (loss, (model_state, outputs)); `outputs` feeds
      `metrics.single_from_model_output`
    predict_fn(params, model_state, batch) → outputs with "features", and metric inputs
    metrics: a `clu.metrics.Collection`, merged over steps and devices
    columns: what a source must have, and a batch holds, besides image and id
    scores: name → the output of `predict_fn` [n] whose mean over examples validates
    splits: the loss is a mean over rows, so that a batch may be taken in parts
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
    splits: bool = True
