"""What is exported of a model: one float32 function of pixels, and the outputs that it has."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from PIL import Image

from noisy_fm.data import augment, decode
from noisy_fm.model import Model, Preprocess
from noisy_fm.models.clip import Clip
from noisy_fm.texts import clip_tokenizer

# What changes how a network is computed, not what: exported networks have none of it.
PLAIN = {"dtype": jnp.float32, "remat": "none", "scan": False}
# What towers of texts are compared on.
TEXTS = ("a photo of a cat", "two dogs, and a very long walk through the fields in the evening", "")
PHOTOS = 2  # that scikit-learn brings, at the sizes that `photos` crops them to


class Network(NamedTuple):
    """module: in float32, neither scanned nor rematerialised; variables: NumPy arrays, float32."""

    module: Any
    variables: dict[str, Any]
    preprocess: Preprocess
    label_names: tuple[str, ...]
    arguments: dict[str, Any]  # of `models.create` or `create_clip`, as JSON types
    precision: str  # that it was trained in

    @property
    def texts(self) -> bool:
        return isinstance(self.module, Clip)

    @property
    def outputs(self) -> tuple[str, ...]:
        """What every format gives, by name."""
        if self.texts:
            return ("projected", "normalized")
        return ("logits", "pre_logits") if self.module.num_classes else ("pre_logits",)

    @property
    def name(self) -> str:
        return self.arguments["name"]

    @property
    def size(self) -> int:
        return self.preprocess.size


def of(model: Model) -> Network:
    """The network of a model, run or loaded."""
    variables = jax.tree.map(lambda x: np.asarray(x, np.float32), dict(model.variables))
    config = model.meta.get("config", {})
    module = _plain(model.module)
    own = {"logit_bias": module.logit_bias} if isinstance(module, Clip) else {
        "num_classes": module.num_classes
    }  # fmt: skip
    arguments = {"name": type(module).__name__, **config.get("model", {}), **own}
    names = tuple(map(str, model.meta.get("info", {}).get("label_names", ())))
    precision = str(config.get("precision", "float32"))
    return Network(module, variables, model.preprocess, names, arguments, precision)


def _plain(module: nn.Module) -> nn.Module:
    if isinstance(module, Clip):
        return module.clone(image=_plain(module.image), text=_plain(module.text))
    return module.clone(**{name: value for name, value in PLAIN.items() if hasattr(module, name)})


def flat(variables) -> dict[str, np.ndarray]:
    """{"params/block0/norm1/scale": array}, as files hold them."""
    return traverse_util.flatten_dict(dict(variables), sep="/")


def nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """What `flat` flattened."""
    return traverse_util.unflatten_dict(dict(arrays), sep="/")


def apply(network: Network, variables, pixels) -> dict[str, jax.Array]:
    """The outputs of pixels 0 … 255 [n size size 3], uint8 or float32."""
    mean, std = network.preprocess.mean, network.preprocess.std
    images = augment.normalize(pixels, mean=mean, std=std)
    logits, features = network.module.apply(variables, images)
    named = {**features, "logits": logits}
    return {name: named[name] for name in network.outputs}


def normalised(network: Network, pixels: np.ndarray) -> np.ndarray:
    """Float32 [n size size 3] as the network takes them, in NumPy."""
    mean, std = (np.asarray(x, np.float32) for x in network.preprocess[1:])
    return (pixels.astype(np.float32) / np.float32(255) - mean) / std


def placed(network: Network, middle: str, nearest: bool, library: str) -> bool:
    """Whether a library that rounds a crop's first pixel so crops as the model; see `decode.Fit`.

    Raises ValueError if it does not, unless `nearest` says that this is accepted.
    """
    fit = network.preprocess.fit
    margin = (fit.shorter - fit.size) / 2
    alike = decode.MIDDLES[middle](margin) == decode.MIDDLES[fit.middle](margin)
    exact = fit.middle == middle or (fit.whole and alike)
    if not exact and not nearest:
        raise ValueError(
            f"the model's evaluation rounds where a crop begins by {fit.middle!r}, {library} by "
            f"{middle!r}, so that some images are cropped a pixel aside; nearest=True (--nearest) "
            "accepts that"
        )
    return exact


def width(network: Network) -> int:
    """Of what the head reads."""
    pixels = jax.ShapeDtypeStruct((1, network.size, network.size, 3), np.float32)
    _, features = jax.eval_shape(network.module.apply, network.variables, pixels)
    return features["pre_logits"].shape[-1]


def triples(network: Network) -> tuple[list[float], list[float]]:
    """(mean, std), a number a channel."""
    both = [np.broadcast_to(np.asarray(x, float), 3).tolist() for x in network.preprocess[1:]]
    return both[0], both[1]


def tokens(network: Network) -> np.ndarray:
    """`TEXTS` as the text tower takes them; for a small vocabulary numbers in their place."""
    text = network.module.text
    found = clip_tokenizer(text.context)(TEXTS)
    if found.max() < text.vocabulary:
        return found
    drawn = np.random.default_rng(0).integers(1, text.vocabulary - 1, found.shape)
    drawn[:, -1] = text.vocabulary - 1  # what ends a text
    return drawn.astype(np.int32)


def reference(network: Network, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs and all features of our own network, in float32 at the highest precision."""
    more = (tokens(network),) if network.texts else ()
    with jax.default_matmul_precision("highest"):
        run = jax.jit(network.module.apply)
        logits, features = run(network.variables, normalised(network, pixels), *more)
    return jax.device_get({"logits": logits, **features})


@functools.cache
def photos() -> list[np.ndarray]:
    """Real photographs, uint8 [h w 3]: wide, tall, and of odd sides."""
    from sklearn.datasets import load_sample_images

    wide = load_sample_images().images[:PHOTOS]
    tall = [np.ascontiguousarray(one.swapaxes(0, 1)) for one in wide]
    return [*wide, *tall, np.ascontiguousarray(wide[0][:301, 5:402])]


def examples(network: Network, count: int) -> np.ndarray:
    """Pixels [count size size 3] to compare on: views of photographs, and noise."""
    seen = network.preprocess.views(photos()[: max(1, count - 1)])
    noise = np.random.default_rng(0).integers(0, 256, (1, *seen.shape[1:]), np.uint8)
    return np.concatenate([seen, noise])[:count]


def levels(network: Network, seen: np.ndarray, photo: np.ndarray, *, aside: bool = False) -> float:
    """The largest difference, in grey levels, of what a target sees of a photograph [s s 3].

    aside: its crop may begin a pixel aside; the place that fits best counts.
    """
    mean, std = (np.asarray(x, np.float64) for x in network.preprocess[1:])
    theirs = (np.asarray(seen, np.float64) * std + mean) * 255
    ours, side = network.preprocess.views([photo])[0], network.size
    places = [(y, x) for y in range(1 + aside) for x in range(1 + aside)]
    pairs = ((theirs, ours), (ours, theirs))
    found = [a[y:, x:] - b[: side - y, : side - x] for y, x in places for a, b in pairs]
    return min(float(np.abs(one).max()) for one in found)


def picture(photo: np.ndarray) -> Image.Image:
    return Image.fromarray(photo)
