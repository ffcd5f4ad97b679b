"""A trained model to use, read from a run's folder in seconds, without its data or optimiser.

model = load_model("runs/a")
model.features(images)  # float32 [n d], of uint8 images [n h w 3] of any size
model.predict(images)  # probabilities [n C] of model.label_names
model.zero_shot(images, names)  # likewise of any classes, by a model that knows texts
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from noisy_fm import checkpoint, files, noise, optim, pretrained, tasks, zeroshot
from noisy_fm import config as config_lib
from noisy_fm import data as data_lib
from noisy_fm.data import augment, decode
from noisy_fm.data.source import numbered
from noisy_fm.data.storage import FORMATS, TFDS
from noisy_fm.messages import unknown
from noisy_fm.models.layers import pooled
from noisy_fm.tasks.task import separated
from noisy_fm.weights import folders

KEPT = 8  # sets of zero-shot classes whose weights are kept
_class_weights: dict[tuple, np.ndarray] = {}
MODELS_OWN = ("name", "size", "canvas", "crop")  # arguments of `data.load` that a model sets


class Preprocess(NamedTuple):
    """From images of any size to what the network takes, as the run's own evaluation does it.

    Images are uint8 RGB: [n h w 3], or a list of [h w 3] of different sizes. They are resized and
    cropped as `fit` says (see `decode.view`), mean and std are of pixels in [0, 1].
    """

    fit: decode.Fit
    mean: float | tuple[float, ...]
    std: float | tuple[float, ...]

    @property
    def size(self) -> int:
        """Pixels a side of what the network takes."""
        return self.fit.size

    def said(self) -> dict:
        """All of it, as JSON types."""
        norm = {name: np.asarray(getattr(self, name)).tolist() for name in ("mean", "std")}
        return {**self.fit._asdict(), **norm}

    @classmethod
    def of(cls, config: ConfigDict, info: Mapping) -> "Preprocess":
        """That of a training config, for a run on data of which `info` is known."""
        size = config.data.size
        fit = decode.fitted(size) if info["encoded"] else decode.Fit(size, size, whole=True)
        return cls(fit, **config.task.normalize)

    def source(self, source):
        """A source whose images are seen so, but for the normalisation."""
        if source.encoded:
            return dataclasses.replace(source, size=self.size, fit=self.fit)
        return dataclasses.replace(source, images=self.views(source.images))

    def __call__(self, images) -> jax.Array:
        """Normalised float32 [n size size 3], for `module.apply`."""
        return augment.normalize(jnp.asarray(self.views(images)), mean=self.mean, std=self.std)

    def views(self, images, *, first: int = 0) -> np.ndarray:
        """What is seen of the images before it is normalised, uint8 [n size size 3].

        Raises ValueError or TypeError, one line, for what is not uint8 RGB; `first` is added to
        the image's number there.
        """
        pixels = [_rgb(image, f"images[{first + i}]") for i, image in enumerate(images)]
        return np.stack([decode.view(one, self.fit) for one in pixels])


def _rgb(image, where: str) -> np.ndarray:
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8:
        raise TypeError(f"{where} has dtype {pixels.dtype}; expected uint8, 0 to 255")
    if pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 1):
        raise ValueError(
            f"{where} is grey, {list(pixels.shape)}; expected [h w 3], as "
            "np.repeat(image.reshape(h, w, 1), 3, -1) makes it"
        )
    if pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(f"{where} has shape {list(pixels.shape)}; expected [h w 3], RGB")
    return pixels


class Model(NamedTuple):
    """A trained network with all that its use needs; `load_model` gives one.

    module: `module.apply(variables, preprocess(images))` → (logits, named features)
    variables: {"params": …, "batch_stats": …}, on one device; averaged, if the run keeps an average
    feature: the name of the features that are given if none is asked for, "" for none
    task: the run's; its `predict_fn` is what the run was evaluated with
    meta: what the checkpoint says made it: config, hashes, versions, `info`; its `step`, and a hash
      of its `weights`
    """

    module: nn.Module
    variables: dict[str, Any]
    preprocess: Preprocess
    feature: str
    meta: dict
    task: tasks.Task

    def __repr__(self) -> str:
        name, size = self.meta["config"]["model"]["name"], self.preprocess.size
        knows = "texts" if self.texts else f"{len(self.label_names)} classes"
        source = self.meta.get("source")
        came = f"of {source['library']}" if source else f"step {self.meta['step']}"
        return (
            f"Model({name}, {optim.count(self.variables['params']):,} parameters, images "
            f"{size}×{size}, {knows}, feature {self.feature!r}, {came})"
        )

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(self.meta["info"]["label_names"])

    @property
    def feature_names(self) -> tuple[str, ...]:
        image = jax.ShapeDtypeStruct((1, self.preprocess.size, self.preprocess.size, 3), np.uint8)
        out = jax.eval_shape(self.task.predict_fn, *separated(self.variables), {"image": image})
        return tuple(out["features"])

    def features(self, images, *, feature: str | None = None, batch_size: int = 128) -> np.ndarray:
        """Features float32 [n d] of uint8 images, [n h w 3] or a list of [h w 3].

        Those that have more axes (maps, tokens) are averaged over positions. Raises ValueError
        for a name that is no feature, and as `Preprocess.views`.
        """
        return self._outputs(images, self.feature if feature is None else feature, batch_size)

    def predict(self, images, *, batch_size: int = 128) -> np.ndarray:
        """Probabilities float32 [n C] of the classes `label_names`; images as for `features`.

        The softmax of the logits, or, where the run's loss is a binary one for each class, their
        sigmoids, scaled to sum to 1.
        """
        if self.texts:
            raise ValueError("the model has no classes of its own; expected model.zero_shot(…)")
        if not self.label_names:
            raise ValueError("the model has no classifier; expected model.features(…)")
        logits = self._outputs(images, None, batch_size)
        if self.meta["config"]["task"]["loss"] == "softmax":
            return np.asarray(jax.nn.softmax(logits))
        each = jax.nn.sigmoid(logits)
        return np.asarray(each / each.sum(-1, keepdims=True))

    def on(self, mesh: jax.sharding.Mesh) -> tuple[Any, Any]:
        """(params, model_state), whole on every device of the mesh."""
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        return jax.device_put(separated(self.variables), everywhere)

    def data(self, name: str, **arguments):
        """`data.load`, drawn at the size that the model sees where there is a choice."""
        size = self.preprocess.size
        own = {"size": size} if name in data_lib.IN_MEMORY and size in data_lib.SIZES else {}
        return data_lib.load(name, **arguments, **own)

    @property
    def texts(self) -> bool:
        """Whether the model knows texts."""
        return self.task.texts is not None

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings float32 [n e] of length 1, in the space of the feature "normalized"."""
        if self.task.texts is None:
            task = self.meta["config"]["task"]["name"]
            raise ValueError(f"the model knows no texts: it was trained to {task}")
        if isinstance(texts, str):
            raise TypeError("texts are one str; expected a list of them")
        return self.task.texts(separated(self.variables), list(texts))

    def zero_shot(
        self,
        images,
        names: Sequence[str],
        *,
        prompts: str | Sequence[str] = "simple",
        batch_size: int = 128,
    ) -> np.ndarray:
        """Probabilities float32 [n C] of classes by their names; images as for `features`.

        prompts: as `zeroshot.prompts`. The softmax of scale · cosines. Weights of classes are kept
        for the next call with their names and prompts.
        """
        weights = self._class_weights(names, zeroshot.prompts(prompts))
        images = self.features(images, feature="normalized", batch_size=batch_size)
        scale = float(np.exp(self.variables["params"]["logit_scale"]))
        return np.asarray(jax.nn.softmax(zeroshot.logits(images, weights, scale=scale)))

    def _class_weights(self, names: Sequence[str], chosen: tuple[str, ...]) -> np.ndarray:
        made = self.meta["weights"], self.meta.get("config_hash")
        key = (*made, names if isinstance(names, str) else tuple(names), chosen)
        if key not in _class_weights:
            while len(_class_weights) >= KEPT:
                del _class_weights[next(iter(_class_weights))]
            _class_weights[key] = zeroshot.classifier(self.encode_texts, names, chosen)
        return _class_weights[key]

    def _outputs(self, images, feature: str | None, batch_size: int) -> np.ndarray:
        """Named features, or logits, of images that are looked at a batch at a time."""
        if not hasattr(images, "__len__"):
            raise TypeError(f"images are a {type(images).__name__}; expected [n h w 3], or a list")
        number = len(images)
        if isinstance(images, np.ndarray) and images.ndim == 3:
            raise ValueError(f"images are {list(images.shape)}; expected [n h w 3], or a list")
        if not number or batch_size < 1:
            raise ValueError(f"{number} images, batch_size {batch_size}; expected 1 or more")
        rows = min(batch_size, 1 << (number - 1).bit_length())  # so that few shapes are compiled
        predict_fn = self.task.predict_fn

        def batches():
            for first in range(0, number, rows):
                views = self.preprocess.views(images[first : first + rows], first=first)
                padding = np.zeros((rows - len(views), *views.shape[1:]), np.uint8)
                views = np.concatenate([views, padding])
                yield _apply(self.variables, views, predict_fn=predict_fn, feature=feature)

        return np.concatenate(list(to_host(batches())))[:number]


@functools.partial(jax.jit, static_argnames=("predict_fn", "feature"))
def _apply(variables: dict, views: jax.Array, *, predict_fn: Callable, feature: str | None):
    out = predict_fn(*separated(variables), {"image": views})
    if feature is None:
        return out["logits"]
    if feature not in out["features"]:
        raise ValueError(unknown("feature", feature, out["features"]))
    return pooled(out["features"][feature]).astype(jnp.float32)


def to_host(outputs: Iterable) -> Iterator:
    """Each of the outputs on the host, fetched while the device computes the one after it."""
    last = None
    for out in outputs:
        if last is not None:
            yield jax.device_get(last)
        last = out
    if last is not None:
        yield jax.device_get(last)


def load_model(
    source,
    *,
    best: bool = False,
    step: int | None = None,
    path=None,
    **foreign,
) -> Model:
    """A model: that a run has trained, or of another library.

    source: a run's folder, local or in a bucket: of its newest checkpoint that can be read, that of
    `step`, or the `best` by the run's config.keep_best. Only parameters and BatchNorm statistics
    are read, whole, to this process' first device, whatever mesh wrote them; the run's data need
    not be there any more.

    Or another library's model: "timm/resnet50.a1_in1k" with the `path` of its weights, a folder of
    timm, open_clip or Hugging Face; `foreign` are arguments of `pretrained.load`: head, part, size,
    rounding, images.

    Raises:
      FileNotFoundError: nothing there. ValueError: no such checkpoint, or none that can be read.
    """
    if path is not None or foreign or not _is_run(source):
        if best or step is not None:
            raise ValueError(f"{source} is no run, and has no step or best checkpoint")
        return _of_another_library(source, path, foreign)
    folder = files.absolute(source)
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{folder} is not a run's folder (it has no config.json)")
    if not (folder / "checkpoints").exists():
        raise ValueError(f"{folder} has no checkpoint yet")
    keep_best = files.read_json(folder / "config.json").get("keep_best", "")
    saver = checkpoint.Checkpointer(folder / "checkpoints", best=keep_best)
    try:
        chosen = _chosen_step(saver, folder, keep_best if best else None, step)
        found = saver.restore_parts(_used, step=chosen)
    finally:
        saver.close()
    if found is None:
        raise ValueError(f"{folder} has no checkpoint yet")
    parts, meta, number = found
    about = {
        "step": number,
        "info": _info(folder, meta),
        "config": config_lib.today(meta["config"]),
    }
    return _assembled(parts, meta={**meta, **about})


def _is_run(source) -> bool:
    """Whether it is, or is meant to be, a run's folder."""
    folder = files.absolute(source)
    if (folder / "config.json").exists():
        found = files.read_json(folder / "config.json")
        return not (folder / folders.EXPORTED).exists() and not {
            "architecture",
            "model_type",
        } & set(found)
    if any((folder / name).exists() for name in (folders.OPEN_CLIP_CONFIG, folders.EXPORTED)):
        return False
    return folder.exists() or str(source).partition("/")[0] not in folders.LIBRARIES


def _of_another_library(source, path, arguments: Mapping) -> Model:
    config_lib.check_arguments(pretrained.load, arguments, where="load_model", given=("source",))
    loaded = pretrained.load(str(source), path=path, **arguments)
    config = config_lib.from_plain(loaded.meta["config"])
    kind, info = tasks.TASKS[config.task.name], loaded.meta["info"]
    preprocess = Preprocess(loaded.fit, **config.task.normalize)
    module, task = kind.network(config, info), kind.make(config, info)
    return Model(module, loaded.variables, preprocess, "pre_logits", loaded.meta, task)


def _chosen_step(saver, folder, best: str | None, step: int | None) -> int | None:
    if best is not None and step is not None:
        raise ValueError(f"step is {step} and best is True; expected one of them")
    if best is not None:
        step = saver.best_step
        if step is None:
            raise ValueError(
                f"{folder} has no best checkpoint: "
                + (f"none was kept for its {best!r}" if best else "its config.keep_best is empty")
            )
    elif step is not None and step not in saver.steps:
        if not isinstance(step, int):
            raise TypeError(f"step is {step!r}; expected a whole number")
        there = ", ".join(map(str, saver.steps)) or "none"
        raise ValueError(f"{folder} has no checkpoint of step {step}; there are {there}")
    return step


def _used(state: Mapping) -> dict:
    """Of a stored `TrainState`, what `TrainState.variables` is made of."""
    names = ("ema", "frozen") if state.get("ema") else ("params", "frozen", "model_state")
    return {name: state[name] for name in names}


def _assembled(parts: Mapping, *, meta: dict) -> Model:
    config = config_lib.from_plain(meta["config"])
    trained = parts.get("ema", parts)
    params = optim.join(trained["params"], parts.get("frozen") or {})
    variables = {"params": params, **(trained.get("model_state") or {})}
    meta["weights"] = config_lib.hash_of(checkpoint.digests(variables))
    kind = tasks.TASKS[config.task.name]
    preprocess = Preprocess.of(config, meta["info"])
    module, task = kind.network(config, meta["info"]), kind.make(config, meta["info"])
    model = Model(module, variables, preprocess, "", meta, task)
    return model._replace(feature="pre_logits" if "pre_logits" in model.feature_names else "")


def _info(folder, meta: Mapping) -> dict:
    """What is known of the run's data; of an older run, how many classes they have."""
    if "info" in meta:
        return meta["info"]
    manifest = noise.Manifest.load(folder / "noise.npz")
    name = meta["config"]["data"]["name"]
    encoded = name in FORMATS or name.startswith(TFDS)
    return {**numbered(cast(int, manifest.num_classes)), "encoded": encoded}
