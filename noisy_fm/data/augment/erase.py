"""Random erasing: boxes of an image replaced by its data set's mean, a random colour or noise."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

MODES = ("const", "rand", "pixel")
AREA = (0.02, 1 / 3)  # of all boxes together
ASPECT = (0.3, 1 / 0.3)
ATTEMPTS = 10


class Erase(NamedTuple):
    """What is drawn for one image."""

    boxes: jax.Array  # int32 [count 4]: top, left, height, width; height 0 erases nothing
    key: jax.Array  # of the noise


def draw_erase(key, *, probability: float, count: int, size: int) -> Erase:
    """Up to `count` boxes (at least one, uniform) with `probability` in an image [size size].

    A box's area is uniform on `AREA` over their number, its logarithmic aspect uniform on `ASPECT`;
    ten attempts are made to find one that is smaller than the image. Zhong et al., arXiv
    1708.04896, as timm has it.
    """
    erased_key, count_key, box_key, noise_key = jax.random.split(key, 4)
    number = jax.random.randint(count_key, (), 1, count + 1)
    number = jnp.where(jax.random.bernoulli(erased_key, probability), number, 0)

    def box(index):
        area_key, aspect_key, top_key, left_key = jax.random.split(
            jax.random.fold_in(box_key, index), 4
        )
        area = jax.random.uniform(area_key, (ATTEMPTS,), minval=AREA[0], maxval=AREA[1])
        area = area * size**2 / jnp.maximum(number, 1)
        low, high = math.log(ASPECT[0]), math.log(ASPECT[1])
        aspect = jnp.exp(jax.random.uniform(aspect_key, (ATTEMPTS,), minval=low, maxval=high))
        heights = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
        widths = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
        fits = (heights < size) & (widths < size)
        first = jnp.argmax(fits)
        erased = fits[first] & (index < number)
        h, w = jnp.where(erased, jnp.stack([heights[first], widths[first]]), 0)
        top = jax.random.randint(top_key, (), 0, size - h + 1)
        left = jax.random.randint(left_key, (), 0, size - w + 1)
        return jnp.stack([top, left, h, w])

    return Erase(jax.vmap(box)(jnp.arange(count)), noise_key)


def apply_erase(erase: Erase, image, *, mode: str, mean, std):
    """`image` float32 [h w c] in 0..255 with the boxes erased.

    To `mean` + `std` · ε, both of 0..1: ε is 0 ("const"), normal for each channel ("rand") or for
    each value ("pixel").
    """
    h, w, c = image.shape
    y, x = jnp.arange(h)[:, None], jnp.arange(w)
    for index in range(erase.boxes.shape[0]):
        top, left, height, width = erase.boxes[index]
        within = (y >= top) & (y < top + height) & (x >= left) & (x < left + width)
        noise = erase_noise(erase.key, index, mode=mode, shape=(h, w, c))
        filling = 255 * (jnp.array(mean, jnp.float32) + jnp.array(std, jnp.float32) * noise)
        image = jnp.where(within[..., None], filling, image)
    return image


def erase_noise(key, index: int, *, mode: str, shape):
    """ε of box `index`, which broadcasts to the image's `shape`."""
    if mode == "const":
        return jnp.zeros((1, 1, 1))
    size = shape if mode == "pixel" else (1, 1, shape[-1])
    return jax.random.normal(jax.random.fold_in(key, index), size)
