"""The augmentation of ImageNet recipes: resize, flip, a policy, colour jitter and random erasing.

What is random is drawn first and apart (`draw`), then applied, so that the same draw can be applied
on the device (`apply`) and by Pillow on the host (`pillow.apply`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from noisy_fm.data.augment.erase import MODES, Erase, apply_erase, draw_erase
from noisy_fm.data.augment.geometry import flip, resize_crop
from noisy_fm.data.augment.jitter import Jitter, apply_jitter, draw_jitter
from noisy_fm.data.augment.policies import (
    Layers,
    RandAugment,
    ThreeAugment,
    apply_layers,
    parse_policy,
)
from noisy_fm.messages import unknown

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Of the pixels that CLIP was trained on (Radford et al., ICML 2021).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class Draw(NamedTuple):
    """What is drawn for one image; None is a step that is off."""

    flipped: jax.Array  # bool
    layers: Layers | None
    jitter: Jitter | None
    erase: Erase | None


@dataclass(frozen=True)
class ImageNet:
    """An augmentation, (key, batch) → batch: float32 images [n size size 3]. See `imagenet`."""

    size: int
    policy: RandAugment | ThreeAugment | None
    flip: float
    color_jitter: tuple[float, ...]
    erase: float
    erase_mode: str
    erase_count: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def draw(self, key) -> Draw:
        """Everything random for one image."""
        flip_key, policy_key, jitter_key, erase_key = jax.random.split(key, 4)
        return Draw(
            jax.random.bernoulli(flip_key, self.flip),
            self.policy.draw(policy_key) if self.policy else None,
            draw_jitter(jitter_key, self.color_jitter) if any(self.color_jitter) else None,
            draw_erase(erase_key, probability=self.erase, count=self.erase_count, size=self.size)
            if self.erase
            else None,
        )

    def apply(self, draw: Draw, image, extent=None):
        """One image uint8 [s s 3], or its top-left `extent` (h, w), augmented: [size size 3]."""
        if extent is not None or image.shape[:2] != (self.size, self.size):
            whole = jnp.array(image.shape[:2])
            image = resize_crop(image, whole if extent is None else extent, self.size)
        image = flip(image, draw.flipped)
        if self.policy is not None and draw.layers is not None:
            image = apply_layers(draw.layers, image, ops=self.policy.ops, fill=self.fill)
        if draw.jitter is not None:
            image = apply_jitter(draw.jitter, image)
        image = image.astype(jnp.float32)
        if draw.erase is not None:
            image = apply_erase(
                draw.erase, image, mode=self.erase_mode, mean=self.mean, std=self.std
            )
        return image

    @property
    def fill(self) -> tuple[int, ...]:
        """The colour that rotations, shears and translations bring in: the data set's mean."""
        return tuple(round(255 * value) for value in self.mean)

    def keys(self, key, rows: int):
        """One key for each of `rows` rows, which depends on the row's position only."""
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))

    def __call__(self, key, batch: Mapping):
        images = batch["image"]
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != jnp.uint8:
            raise ValueError(
                f"image is {images.dtype} {images.shape}: expected uint8 [n h w 3] to augment"
            )

        def one(key, image, extent):
            return self.apply(self.draw(key), image, extent)

        extent = batch.get("extent")
        axes = (0, 0, None if extent is None else 0)
        images = jax.vmap(one, axes)(self.keys(key, len(images)), images, extent)
        return {**{k: v for k, v in batch.items() if k != "extent"}, "image": images}


def imagenet(
    *,
    size: int,
    policy: str = "",
    flip: float = 0.5,
    color_jitter: float | tuple[float, ...] = 0.0,
    erase: float = 0.0,
    erase_mode: str = "pixel",
    erase_count: int = 1,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> ImageNet:
    """The steps of timm's training transform after the random crop, in its order.

    size: pixels a side; policy: see `parse_policy`; flip, erase: probabilities; color_jitter: the
    strength of brightness, contrast and saturation, one for all or three; erase_mode, erase_count:
    see `erase`; mean, std: of the data set, 0..1, what is filled in and erased with. Raises
    ValueError for a setting that it cannot follow.
    """
    jitter = (color_jitter,) * 3 if isinstance(color_jitter, int | float) else tuple(color_jitter)
    if not (isinstance(size, int) and size > 0):
        raise ValueError(f"augment: size is {size!r}; expected a positive whole number of pixels")
    if len(jitter) != 3 or min(jitter) < 0:
        raise ValueError(f"augment: color_jitter is {color_jitter!r}; expected one or three ≥ 0")
    for name, value in {"flip": flip, "erase": erase}.items():
        if not 0 <= value <= 1:
            raise ValueError(f"augment: {name} is {value!r}; expected a probability in 0 … 1")
    if erase_mode not in MODES:
        raise ValueError(unknown("augment erase_mode", erase_mode, MODES))
    if not (isinstance(erase_count, int) and erase_count > 0):
        raise ValueError(f"augment: erase_count is {erase_count!r}; expected at least 1")
    return ImageNet(
        size=size,
        policy=parse_policy(policy),
        flip=flip,
        color_jitter=jitter,
        erase=erase,
        erase_mode=erase_mode,
        erase_count=erase_count,
        mean=tuple(mean),
        std=tuple(std),
    )
