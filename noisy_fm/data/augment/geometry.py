"""Pillow's resampling: the antialiased bicubic resize and the affine transform."""

import jax
import jax.numpy as jnp
from jax.lax import Precision


def resize_crop(canvas, extent, size: int):
    """The top-left `extent` (h, w) of `canvas` [s s c] resized to uint8 [size size c].

    `Image.resize` with BICUBIC: Keys' kernel with a = −1/2, stretched by the factor of reduction,
    one way after the other, each rounded to uint8. Two products with [size, s] matrices.
    """
    h, w = extent[0], extent[1]
    # Pillow 13 shrinks columns first if that saves work (earlier ones never do): transpose then.
    columns_first = (h > size) & (2 * w < h + size)
    canvas = jnp.where(columns_first, canvas.swapaxes(0, 1), canvas)
    h, w = jnp.where(columns_first, jnp.stack([w, h]), jnp.stack([h, w]))
    image = canvas.astype(jnp.float32)
    across = _resize_weights(w, canvas.shape[1], size)
    image = jnp.einsum("xw,hwc->hxc", across, image, precision=Precision.HIGHEST)
    image = _to_uint8(image).astype(jnp.float32)
    down = _resize_weights(h, canvas.shape[0], size)
    image = _to_uint8(jnp.einsum("yh,hxc->yxc", down, image, precision=Precision.HIGHEST))
    return jnp.where(columns_first, image.swapaxes(0, 1), image)


def _to_uint8(values):
    return jnp.clip(jnp.floor(values + 0.5), 0, 255).astype(jnp.uint8)


def _resize_weights(extent, length: int, size: int):
    """Weights [size, length] of the first `extent` pixels in each output pixel; rows sum to 1."""
    extent = extent.astype(jnp.float32)
    stretch = jnp.maximum(extent / size, 1.0)
    source = (jnp.arange(length, dtype=jnp.float32) + 0.5) / stretch
    target = (jnp.arange(size, dtype=jnp.float32) + 0.5) * jnp.minimum(extent / size, 1.0)
    weights = _keys_kernel(source[None, :] - target[:, None])
    weights = jnp.where(jnp.arange(length) < extent, weights, 0.0)
    return weights / weights.sum(1, keepdims=True)


def _keys_kernel(x):
    """Cubic convolution with a = −1/2: Keys, IEEE Trans. ASSP 29 (1981)."""
    x = jnp.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = -0.5 * (((x - 5) * x + 8) * x - 4)
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0.0))


def affine(image, shift, *, bicubic, fill):
    """`Image.transform(AFFINE)`: each pixel (x, y) is `image` displaced by `shift`.

    (x, y) is taken from (x, y) + (a x + b y + c, d x + e y + f), in pixels whose centres are at
    halves. image: uint8 [h w 3]; shift: float32 (a b c d e f); bicubic: bool, else bilinear; fill:
    the colour of what lies outside, three integers. Pillow's
    kernel here is a = −1, and it truncates; edges are repeated. With float32 coordinates a value
    differs by 1 from Pillow's where that one is all but a whole number.
    """
    h, w, _ = image.shape
    a, b, c, d, e, f = shift
    row, column = jnp.mgrid[:h, :w]
    y, x = row.astype(jnp.float32) + 0.5, column.astype(jnp.float32) + 0.5
    # Only the displacement is in float32: the pixel's own position would cost it digits.
    by_x, by_y = a * x + b * y + c, d * x + e * y + f
    left, top = column + jnp.floor(by_x).astype(jnp.int32), row + jnp.floor(by_y).astype(jnp.int32)
    part_x, part_y = by_x - jnp.floor(by_x), by_y - jnp.floor(by_y)
    nearest_x, nearest_y = left + (part_x >= 0.5), top + (part_y >= 0.5)
    inside = (nearest_x >= 0) & (nearest_x < w) & (nearest_y >= 0) & (nearest_y < h)
    # Two pixels of border, so that the 4×4 pixels around any place inside are at fixed distances.
    padded = jnp.pad(image, ((2, 2), (2, 2), (0, 0)), mode="edge").reshape(-1, 3)
    corner = (jnp.clip(top, -1, h - 1) + 1) * (w + 4) + jnp.clip(left, -1, w - 1) + 1

    def tap(y, x):
        values = padded.at[corner + (y * (w + 4) + x)].get(mode="promise_in_bounds")
        return values.astype(jnp.float32)

    part_x, part_y = part_x[..., None], part_y[..., None]
    rows = [_interpolate([tap(y, x) for x in range(4)], part_x, bicubic) for y in range(4)]
    values = jnp.clip(_interpolate(rows, part_y, bicubic), 0, 255).astype(jnp.uint8)
    return jnp.where(inside[..., None], values, jnp.array(fill, jnp.uint8))


def _interpolate(values, part, bicubic):
    """The value at `part` of the way from the second to the third of four."""
    v1, v2, v3, v4 = values
    linear = jnp.where(bicubic, v3 - v1, v3 - v2)
    square = jnp.where(bicubic, 2 * (v1 - v2) + v3 - v4, 0.0)
    cube = jnp.where(bicubic, v2 - v1 + v4 - v3, 0.0)
    # Horner's scheme, so that equal values give just that value, which truncating needs.
    return v2 + part * (linear + part * (square + part * cube))


def flip(image, flipped):
    """`image` [h w c], mirrored if `flipped`."""
    return jax.lax.select(flipped, image[:, ::-1], image)
