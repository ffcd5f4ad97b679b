"""Image augmentation on the device: pure functions of (uint8 images [n h w c], key).

Each image has its own key, so the draw does not depend on how a batch is laid out over devices.
"""

import jax
import jax.numpy as jnp

MEAN, STD = 0.5, 0.5  # pixels to about [-1, 1]; white, the drawings' background, is 1


def normalize(images, dtype=jnp.float32):
    """uint8 [n h w c] to `dtype` in [−1, 1]."""
    return ((images.astype(jnp.float32) / 255.0 - MEAN) / STD).astype(dtype)


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


AUGMENT = {"none": lambda images, key: images, "flip_crop": flip_crop}
