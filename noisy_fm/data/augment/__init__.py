"""Image augmentation on the device: pure functions of a key and a batch.

Each image has its own key, so the draw does not depend on how a batch is laid out over devices.
"""

from collections.abc import Callable

import jax.numpy as jnp

from noisy_fm.data.augment.flip_crop import MEAN, STD, flip_crop, normalize
from noisy_fm.data.augment.imagenet import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImageNet,
    imagenet,
)
from noisy_fm.data.augment.mix import check_mix, mix


def _none():
    """The images as they are."""
    return lambda key, batch: {**batch, "image": _whole(batch).astype(jnp.float32)}


def _flip_crop(*, pad: int = 4):
    """`flip_crop`."""

    def augment(key, batch):
        return {**batch, "image": flip_crop(_whole(batch), key, pad=pad).astype(jnp.float32)}

    return augment


def _whole(batch):
    if "extent" in batch:
        raise ValueError(
            "the batch holds crops to be resized (it has 'extent'); expected augment 'imagenet'"
        )
    return batch["image"]


# name → factory(**arguments) → f(key, batch) → batch, whose images are float32 [n h w c] in 0..255.
# They come as uint8 [n s s c]; `extent` int32 [n 2], if there is one, is the (h, w) of the crop at
# the top left of each, and is used up.
AUGMENTATIONS: dict[str, Callable] = {
    "none": _none,
    "flip_crop": _flip_crop,
    "imagenet": imagenet,
}

__all__ = [
    "AUGMENTATIONS",
    "CLIP_MEAN",
    "CLIP_STD",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "MEAN",
    "STD",
    "ImageNet",
    "check_mix",
    "flip_crop",
    "imagenet",
    "mix",
    "normalize",
]
