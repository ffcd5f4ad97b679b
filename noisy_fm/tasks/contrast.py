"""Image–text contrast (CLIP; Radford et al., ICML 2021): a caption is nearest to its own image."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics as clu_metrics
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict

from noisy_fm import config as config_lib
from noisy_fm import losses, models, optim, sharding
from noisy_fm.data import Source
from noisy_fm.data import augment as augment_lib
from noisy_fm.messages import require_known
from noisy_fm.models.clip import HIGHEST_SCALE
from noisy_fm.tasks import augmentation
from noisy_fm.tasks.task import Parts, Task, apply_training, separated
from noisy_fm.texts import Tokenizer, clip_tokenizer

LOSSES = ("softmax", "sigmoid")
COMPARED = 1000  # captions that are looked at to tell whether all are one


def defaults() -> dict:
    """The keys of `config.task`."""
    return {
        "name": "contrast",
        "loss": "softmax",  # or "sigmoid", SigLIP's
        "chunk": 4096,  # columns of the batch's logits in memory at a time; 0: all
        "hide": 0.0,  # probability with which each part of a caption, between commas, is left out
        "normalize": {"mean": 0.5, "std": 0.5},  # of pixels in [0, 1]; one number or three
        "augment": {"name": "flip_crop"},  # other keys go to what the name picks
    }


RANGES: tuple[config_lib.Range, ...] = (
    (("task.hide",), lambda v: 0 <= v < 1, "[0, 1)"),
    (("task.chunk",), lambda v: isinstance(v, int) and v >= 0, "a whole number, 0 or more"),
)


def check(config: ConfigDict) -> None:
    """Raises one clear line for what this task cannot be."""
    require_known("config.task.loss", config.task.loss, LOSSES)
    config_lib.check_ranges(config, RANGES)
    augmentation.check_images(config)
    if {"dtype", "num_classes", "logit_bias"} & set(config.model):
        raise ValueError(
            "config.model sets dtype, num_classes or logit_bias; use config.precision and task.loss"
        )
    if config.batch_size < 2:
        raise ValueError(f"config.batch_size is {config.batch_size}; expected 2 or more to compare")


def check_data(source: Source, eval_source: Source, *, where: tuple[str, str]) -> None:
    """Raises ValueError unless both have captions, which differ."""
    for place, one in zip(where, (source, eval_source), strict=True):
        if "caption" not in one.columns:
            raise ValueError(
                f"{place} has no captions; expected them (config.data.captions says which text)"
            )
        some = np.unique(np.arange(len(one))[:: max(1, len(one) // COMPARED)])
        if len({str(text) for text in one.columns["caption"][some]}) < 2:
            raise ValueError(
                f"{place} has one caption for all images, "
                f"{str(one.columns['caption'][some][0])!r}; expected some that differ"
            )


def network(config: ConfigDict, info: Mapping) -> models.Clip:
    """The config's two towers."""
    arguments = dict(config.model)
    arguments["text"] = dict(arguments.get("text", {}))
    sigmoid = config.task.loss == "sigmoid"
    return models.create_clip(dtype=jnp.dtype(config.precision), logit_bias=sigmoid, **arguments)


def make(config: ConfigDict, info: Mapping) -> Task:
    """The config's towers and loss for data of which `info` is known."""
    module = network(config, info)
    tokenizer = clip_tokenizer(module.text.context)
    if module.text.vocabulary != tokenizer.size:
        raise ValueError(
            f"config.model.text.vocabulary is {module.text.vocabulary}, CLIP's tokenizer has "
            f"{tokenizer.size} tokens; expected the same"
        )
    return contrast(
        module,
        tokenizer=tokenizer,
        loss=config.task.loss,
        chunk=config.task.chunk,
        hide=config.task.hide,
        augment=augmentation.of(config, info),
        normalize=config.task.normalize,
        frozen=lambda path: optim.frozen(f"{path}/scale", config.trainable),
    )


@flax.struct.dataclass
class ContrastMetrics(clu_metrics.Collection):
    """Mean loss of the pairs, the share whose caption is the batch's nearest, and the scale."""

    loss: clu_metrics.Average.from_output("loss")  # type: ignore[valid-type]
    matched: clu_metrics.Average.from_output("correct")  # type: ignore[valid-type]
    scale: clu_metrics.Average.from_output("scale")  # type: ignore[valid-type]


def contrast(
    model: models.Clip,
    *,
    tokenizer: Tokenizer,
    loss: str = "softmax",
    chunk: int = 0,
    hide: float = 0.0,
    augment: Callable[[jax.Array, dict], dict] | None = None,
    normalize: Mapping[str, Any] | None = None,
    frozen: Callable[[str], bool] | None = None,
) -> Task:
    """Contrast of uint8 `image` [n h w c] with `caption` [n], which `collate` makes `tokens`.

    The loss compares all pairs of a batch, over all devices. `hide` leaves parts of captions out in
    training; see `hidden`. Validation compares within batches too, so its values depend on their
    size ("matched": the share of images nearest to their own caption); `similarity` [n], the cosine
    of a pair, does not.
    """

    def pixels(images):
        return augment_lib.normalize(images, **(normalize or {}))

    def compare(params, embeddings, mask=None):
        image, text = embeddings
        scale, bias = model.apply({"params": params}, method="scale")
        known = {"mask": mask, "chunk": chunk, "gather": whole, "scale": scale}
        if loss == "sigmoid":
            values, correct = losses.sigmoid_contrastive(image, text, bias=bias, **known)
        else:
            values, correct = losses.contrastive(image, text, **known)
        rows = jnp.full(values.shape, scale)
        out = {"loss": values, "correct": correct, "scale": rows}
        return {**out, **({} if mask is None else {"mask": mask})}

    def init_fn(key, batch):
        return separated(model.init({"params": key}, pixels(batch["image"]), batch["tokens"]))

    def prepare_fn(batch, key):
        key_image, key_text = jax.random.split(key)
        if augment:
            batch = augment(key_image, batch)
        if hide:
            tokens = hidden(batch["tokens"], key_text, rate=hide, tokenizer=tokenizer)
            batch = {**batch, "tokens": tokens}
        return batch

    def embed_fn(params, model_state, batch, key):
        inputs = pixels(batch["image"]), batch["tokens"]
        (_, features), new_state = apply_training(
            model, params, model_state, key, *inputs, frozen=frozen
        )
        return (features["normalized"], features["text/normalized"]), new_state

    def combine_fn(params, embeddings, batch):
        out = compare(params, embeddings, batch.get("mask"))
        return losses.mean(out["loss"], batch.get("mask")), out

    def loss_fn(params, model_state, batch, key):
        embeddings, new_state = embed_fn(params, model_state, batch, key)
        value, out = combine_fn(params, embeddings, batch)
        return value, (new_state, out)

    def predict_fn(params, model_state, batch):
        images = pixels(batch["image"])
        _, features = model.apply(
            {"params": params, **model_state}, images, batch.get("tokens"), train=False
        )
        out = {"features": features}
        if "tokens" in batch:
            pair = features["normalized"], features["text/normalized"]
            out |= compare(params, pair, batch.get("mask"))
            out["similarity"] = jnp.sum(pair[0] * pair[1], -1)
        return out

    def preview_fn(batch, prepared, true):
        right = collate(true, tokenizer=tokenizer)["tokens"]
        lines = []
        for seen, given, own, caption in zip(
            prepared["tokens"], batch["tokens"], right, true["caption"], strict=True
        ):
            wrong = [] if np.array_equal(given, own) else [f"is {caption}"]
            lines.append((tokenizer.decode(seen).strip(), *wrong))
        return np.asarray(prepared["image"]), lines

    return Task(
        init_fn,
        prepare_fn,
        loss_fn,
        predict_fn,
        ContrastMetrics,
        columns=("caption",),
        preview_fn=preview_fn,
        scores={"loss": "loss", "matched": "correct"},
        agreement="similarity",
        collate=functools.partial(collate, tokenizer=tokenizer),
        splits=False,
        parts=Parts(embed_fn, combine_fn),
        texts=functools.partial(encode_texts, model, tokenizer),
        # As its authors clip it after every step.
        limits=(("logit_scale", -math.inf, math.log(HIGHEST_SCALE)),) if loss == "softmax" else (),
    )


TEXTS = 256  # encoded at a time


def encode_texts(model: models.Clip, tokenizer: Tokenizer, variables, texts) -> np.ndarray:
    """Embeddings float32 [n e] of length 1; `variables` are (params, model_state)."""
    tokens = tokenizer(texts)
    rows = min(TEXTS, 1 << max(0, len(tokens) - 1).bit_length())  # so that few shapes are compiled
    found = []
    for first in range(0, len(tokens), rows):
        some = tokens[first : first + rows]
        padded = np.pad(some, ((0, rows - len(some)), (0, 0)))
        found.append(np.asarray(_encoded(variables[0], padded, model=model))[: len(some)])
    return np.concatenate(found) if found else np.zeros((0, model.embed_dim), np.float32)


@functools.partial(jax.jit, static_argnames="model")
def _encoded(params, tokens, *, model: models.Clip):
    found: Any = model.apply({"params": params}, tokens, method="encode_text")
    return whole(found["normalized"])


def collate(batch: dict, *, tokenizer: Tokenizer) -> dict:
    """The batch with `tokens` int32 [n l] in place of `caption`, if it has captions."""
    if "caption" not in batch:
        return batch
    rest = {name: value for name, value in batch.items() if name != "caption"}
    return {**rest, "tokens": tokenizer([str(text) for text in batch["caption"]])}


def hidden(tokens, key, *, rate: float, tokenizer: Tokenizer):
    """Captions [n l] of which each part, between commas, is left out with probability `rate`.

    One part always stays: of those drawn to go, the one that was nearest to staying.
    """
    comma = tokenizer.encode(",")[0]
    inner = (tokens != 0) & (tokens != tokenizer.start) & (tokens != tokenizer.end)
    part = jnp.cumsum((tokens == comma) & inner, axis=1)
    says = jax.vmap(lambda p, counted: jnp.zeros(p.shape).at[p].add(counted))(
        part, inner & (tokens != comma)
    )
    draws = jnp.where(says > 0, jax.random.uniform(key, tokens.shape), -1.0)
    stays = (draws >= rate) | (draws == draws.max(1, keepdims=True))
    keep = ~inner | jnp.take_along_axis(stays, part, axis=1)
    first = jnp.argmax(keep & inner, axis=1)  # which is a comma where its part's first went
    leads = (jnp.arange(tokens.shape[1]) == first[:, None]) & (tokens == comma)
    keep &= ~leads
    order = jnp.argsort(~keep, axis=1, stable=True)
    return jnp.take_along_axis(jnp.where(keep, tokens, 0), order, axis=1)


def whole(x):
    """Embeddings whole on every device, if a mesh is set: each takes its rows against all."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not set(sharding.AXES) <= set(mesh.axis_names):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec())
