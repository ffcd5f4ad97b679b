"""Normalisation, and the light augmentation for small images: a mirror and a shift of each."""

import jax
import jax.numpy as jnp

MEAN, STD = 0.5, 0.5  # pixels to about [-1, 1]; white, the drawings' background, is 1


def normalize(images, *, mean=MEAN, std=STD):
    """Pixels 0 … 255 [n h w c] to float32 (pixel / 255 − mean) / std; one number or c of them."""
    scaled = images.astype(jnp.float32) / 255.0
    return (scaled - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


def flip_crop(images, key, *, pad: int = 4):
    """Mirrors half of the images and shifts each by up to `pad` pixels (edges repeated)."""
    n, h, w, c = images.shape
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="edge")

    def one(image, key):
        key_flip, key_crop = jax.random.split(key)
        image = jnp.where(jax.random.bernoulli(key_flip), image[:, ::-1], image)
        y, x = jax.random.randint(key_crop, (2,), 0, 2 * pad + 1)
        return jax.lax.dynamic_slice(image, (y, x, 0), (h, w, c))

    return jax.vmap(one)(padded, jax.random.split(key, n))
