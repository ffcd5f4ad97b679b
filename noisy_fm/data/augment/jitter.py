"""Colour jitter: brightness, contrast and saturation by random factors in random order."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from noisy_fm.data.augment import pixels


class Jitter(NamedTuple):
    """What is drawn for one image."""

    order: jax.Array  # int32 [3], a permutation of 0 brightness, 1 contrast, 2 saturation
    factors: jax.Array  # float32 [3]: of brightness, contrast and saturation


def draw_jitter(key, strengths) -> Jitter:
    """Factors uniform on [max(0, 1 − s), 1 + s] for the three `strengths` s, in any order."""
    order_key, factor_key = jax.random.split(key)
    strengths = jnp.array(strengths, jnp.float32)
    part = jax.random.uniform(factor_key, (3,))
    low = jnp.maximum(0.0, 1 - strengths)
    factors = jnp.where(strengths > 0, low + part * (1 + strengths - low), 1.0)
    return Jitter(jax.random.permutation(order_key, jnp.arange(3)), factors)


def apply_jitter(jitter: Jitter, image):
    """`image` uint8 [h w 3] jittered as torchvision's ColorJitter jitters a Pillow image."""

    def step(image, kind):
        luma = pixels.grey(image)[..., None]
        base = jnp.where(kind == 2, luma, jnp.where(kind == 1, pixels.mean_grey(image), 0))
        return pixels.blend(base, image, jitter.factors[kind]).astype(jnp.uint8), None

    return jax.lax.scan(step, image, jitter.order)[0]
