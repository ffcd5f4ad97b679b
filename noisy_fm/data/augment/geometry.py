"""Pillow's resampling: the antialiased bicubic resize and the affine transform."""

from functools import partial

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
    halves. image: uint8 [h w 3]; shift: float32 (a b c d e f), with |d| < 1 + a on TPUs; bicubic:
    bool, else bilinear; fill: the colour of what lies outside, three integers. Pillow's kernel here
    is a = −1, and it truncates; edges are repeated. With float32 coordinates a value differs by 1
    from Pillow's where that one is all but a whole number.
    """
    return jax.lax.platform_dependent(
        image,
        shift,
        jnp.asarray(bicubic),
        tpu=partial(affine_from, rows_by_products, fill=fill),
        default=partial(affine_from, rows_by_gather, fill=fill),
    )


def affine_from(rows_about, image, shift, bicubic, *, fill):
    """`affine` with a way of reading `rows_about` each pixel, by a gather or by products."""
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
    left, top = jnp.clip(left, -1, w - 1), jnp.clip(top, -1, h - 1)

    def across(pixels):
        return _interpolate(pixels, part_x[..., None], bicubic)

    rows = rows_about(image, top, left, shift, across)
    values = jnp.clip(_interpolate(rows, part_y[..., None], bicubic), 0, 255).astype(jnp.uint8)
    return jnp.where(inside[..., None], values, jnp.array(fill, jnp.uint8))


def rows_by_gather(image, top, left, shift, across):
    """Rows top − 1 … top + 2 about each pixel: `across` of columns left − 1 … left + 2 in each.

    Four float32 [h w 3]. image: uint8 [h w 3]; top, left: int32 [h w], −1 … the last; edges are
    repeated; across: of four float32 [h w 3]. `shift`, that of `affine`, is not used here.
    """
    w = image.shape[1]
    # Two pixels of border, so that the pixels around any place inside are at fixed distances.
    padded = jnp.pad(image, ((2, 2), (2, 2), (0, 0)), mode="edge").reshape(-1, 3)
    corner = (top + 1) * (w + 4) + left + 1

    def tap(y, x):
        values = padded.at[corner + (y * (w + 4) + x)].get(mode="promise_in_bounds")
        return values.astype(jnp.float32)

    return [across([tap(y, x) for x in range(4)]) for y in range(4)]


def rows_by_products(image, top, left, shift, across):
    """`rows_by_gather` as two products with zeros and ones: a TPU has no fast gather.

    First, for each output row and source column, the block of 5×4 pixels about the place where the
    row's pixels meet that column; then, for each output pixel, the block of its column. Rows meet
    columns where `shift` says, within half a pixel if |d| < 1 + a (turns below 45°), so that the
    pixel's four rows are the block's upper or lower ones. Pixels outside may get any values.
    """
    h, w, _ = image.shape
    a, b, c, d, e, f = shift
    slope = d / (1 + a)
    along_y = 1 + e - slope * b
    origin = along_y / 2 + f - slope * c - 1

    def fixed(value):  # 16-bit fixed point: floats may round differently in each fusion
        return jnp.round(value * 65536).astype(jnp.int32)

    def meeting(column):
        y = jnp.arange(h)[:, None]
        return (fixed(slope) * column + fixed(along_y) * y + fixed(origin)) >> 16

    def select(equation, chosen, blocks):  # 8 bits: bfloat16 would need far more memory
        chosen = chosen.astype(jnp.uint8)
        selected = jnp.einsum(equation, chosen, blocks, preferred_element_type=jnp.int32)
        return selected.astype(jnp.uint8)

    padded = jnp.moveaxis(jnp.pad(image, ((3, 3), (2, 2), (0, 0)), mode="edge"), -1, 0)
    u, r = jnp.arange(w + 1), jnp.arange(h + 2)
    blocks = [padded[:, i : i + h + 2, j : j + w + 1] for i in range(5) for j in range(4)]
    blocks = jnp.concatenate(blocks)  # [60 r u]
    blocks = select("yur,mru->ymu", meeting(u)[..., None] + 2 == r, blocks)
    blocks = select("yxu,ymu->myx", left[..., None] + 1 == u, blocks)
    blocks = blocks.reshape(5, 4, 3, h, w)

    def tap(i, j):
        return jnp.moveaxis(blocks[i, j], 0, -1).astype(jnp.float32)

    rows = [across([tap(i, j) for j in range(4)]) for i in range(5)]
    lower = (top > meeting(left + 1))[..., None]
    return [jnp.where(lower, rows[i + 1], rows[i]) for i in range(4)]


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
