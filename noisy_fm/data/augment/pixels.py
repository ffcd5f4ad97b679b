"""Pillow's pixel arithmetic on uint8 images [h w 3]: lookup tables, blends and Gaussian blur.

Everything is integer arithmetic, or float32 arithmetic in Pillow's own order, and rounds as Pillow
does, so that a chain of operations gives Pillow's images. All of it works under `jit` and `vmap`.

A TPU is slow at gathering and scattering single numbers and fast at products of matrices: there
`look_up` and `histogram` are products with zeros and ones, exact in bfloat16 up to 256.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

VALUES = np.arange(256, dtype=np.int32)
ONE_PASS = jax.lax.Precision.DEFAULT  # a TPU's: operands in bfloat16, sums in float32
MAX_BLUR = 2.4  # standard deviation in pixels up to which Pillow's box is at most 5 pixels wide


def look_up(image, table):
    """table[c, image[h, w, c]] with a table [3, 256], as `Image.point`."""
    return jax.lax.platform_dependent(
        image, table.astype(jnp.uint8), tpu=look_up_by_product, default=look_up_by_gather
    )


def look_up_by_gather(image, table):
    """`look_up` for processors with fast access to any place in memory."""
    indices = image.astype(jnp.int32) + 256 * jnp.arange(3)
    return table.reshape(-1).at[indices].get(mode="promise_in_bounds")


def look_up_by_product(image, table):
    """`look_up` as 16 candidates by the value's high digit, then the one of the low digit."""
    high, low = _digits(image)
    table = table.reshape(3, 16, 16).astype(jnp.float32)
    candidates = jnp.einsum("cab,cap->cbp", table, high.astype(jnp.float32), precision=ONE_PASS)
    values = jnp.where(low, candidates, 0).sum(1).astype(jnp.int32).astype(jnp.uint8)
    return jnp.moveaxis(values.reshape(3, *image.shape[:2]), 0, -1)


def _digits(image):
    """Which hexadecimal digits each pixel has: two bool [c 16 pixels], the high and the low one."""
    values = jnp.moveaxis(image, -1, 0).reshape(3, 1, -1).astype(jnp.int32)
    digits = jnp.arange(16)[:, None]
    return values >> 4 == digits, values & 15 == digits


def invert_table():
    """255 − v."""
    return 255 - VALUES


def posterize_table(bits):
    """The `bits` highest bits of v are kept, as `ImageOps.posterize`; 0 bits leave black."""
    return VALUES & ~((1 << (8 - bits)) - 1)


def solarize_table(threshold):
    """v below the threshold, 255 − v from it on, as `ImageOps.solarize`."""
    return jnp.where(threshold > VALUES, VALUES, 255 - VALUES)


def solarize_add_table(added):
    """min(v + added, 255) below 128, v from there on."""
    return jnp.where(VALUES < 128, jnp.minimum(VALUES + added, 255), VALUES)


def histogram(image):
    """How many pixels have each value in each channel: int32 [3 256]."""
    return jax.lax.platform_dependent(image, tpu=histogram_by_product, default=histogram_by_scatter)


def histogram_by_scatter(image):
    """`histogram` for processors with fast access to any place in memory."""
    indices = image.astype(jnp.int32) + 256 * jnp.arange(3)
    counts = jnp.zeros(768, jnp.int32)
    return counts.at[indices.reshape(-1)].add(1, mode="promise_in_bounds").reshape(3, 256)


def histogram_by_product(image):
    """`histogram` as how often each high digit is with each low one; exact to 2²⁴ pixels."""
    high, low = (digit.astype(jnp.float32) for digit in _digits(image))
    counts = jnp.einsum("cap,cbp->cab", high, low, precision=ONE_PASS)
    return counts.astype(jnp.int32).reshape(3, 256)


def _extremes(counts):
    """The lowest and the highest value that occurs in each channel: int32 [3 1] each."""
    occurs = counts > 0
    low = jnp.argmax(occurs, axis=1, keepdims=True)
    return low, 255 - jnp.argmax(occurs[:, ::-1], axis=1, keepdims=True)


def autocontrast_table(counts):
    """Each channel's lowest value to 0 and highest to 255 [3 256], as `ImageOps.autocontrast`.

    Pillow truncates v·s − low·s, s = 255/(high − low), in float64. Where that is a whole number by
    the exact product it is one less if the roundings of v·s and low·s differ by too much.
    """
    low, high = _extremes(counts)
    span = jnp.maximum(high - low, 1)
    scaled = (VALUES - low) * 255
    table = jnp.clip(scaled // span, 0, 255)
    errors = jnp.asarray(_scaling_errors())[span[:, 0]]  # [3, 256]
    short = jnp.take_along_axis(errors, low, axis=1) - errors
    # The float64s just below a whole number n are 2^(k − 53) apart, n ≤ 2^k: half of that is lost.
    spacing = jnp.asarray([1 << (n - 1).bit_length() for n in range(1, 256)])[table - 1]
    less = (scaled % span == 0) & (4 * short > span * spacing)
    return jnp.where(high > low, table - less, VALUES)


@cache
def _scaling_errors() -> np.ndarray:
    """span · 2⁵² · (the float64 product v · (255/span) − 255 v/span): int32 [256 256]."""
    table = np.zeros((256, 256), np.int32)
    for span in range(1, 256):
        scale = 255.0 / span
        table[span] = [span * int(v * scale * 2**52) - (255 * v << 52) for v in range(256)]
    return table


def equalize_table(counts):
    """Each channel's histogram made flat [3, 256], as `ImageOps.equalize`."""
    _, highest = _extremes(counts)
    step = (counts.sum(1, keepdims=True) - jnp.take_along_axis(counts, highest, axis=1)) // 255
    before = jnp.cumsum(counts, axis=1) - counts
    table = jnp.minimum((step // 2 + before) // jnp.maximum(step, 1), 255)
    # No step: one value only, or too few pixels below the highest.
    return jnp.where(step > 0, table, VALUES)


def grey(image):
    """Luma (299 R + 587 G + 114 B)/1000 in Pillow's 16-bit fixed point, int32 [h w]."""
    r, g, b = jnp.moveaxis(image.astype(jnp.int32), -1, 0)
    return (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16


def mean_grey(image):
    """The mean luma, rounded half up: what `ImageEnhance.Contrast` blends with."""
    luma = grey(image)
    return (2 * luma.sum() + luma.size) // (2 * luma.size)


def smooth(image):
    """`ImageFilter.SMOOTH`: mean of 3×3 with weight 5 in the middle, int32; edges are kept."""
    wide = image.astype(jnp.int32)
    rows = wide[:-2] + wide[1:-1] + wide[2:]
    total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * wide[1:-1, 1:-1]
    # (2 total + 13) // 26 without the division, for totals to 13 · 255.
    return wide.at[1:-1, 1:-1].set((2 * total + 13) * 10083 >> 18)


def blend(base, image, factor):
    """base + factor · (image − base), truncated and kept in 0..255: `Image.blend`, int32."""
    base, image = base.astype(jnp.int32), image.astype(jnp.int32)
    mixed = base.astype(jnp.float32) + factor * (image - base).astype(jnp.float32)
    return jnp.clip(mixed, 0, 255).astype(jnp.int32)


def gaussian_blur(image, radius):
    """`ImageFilter.GaussianBlur(radius)`: three box blurs each way; radius at most `MAX_BLUR`.

    The box of radius r has weights 1/(2r + 1) and the remainder at its two ends, in 24-bit fixed
    point. r is chosen for the variance radius²/3: Gwosdek et al., SSVM 2011.
    """
    box = _box_radius(jnp.float32(radius))
    whole = box.astype(jnp.int32)
    inner = (jnp.float32(1 << 24) / (box * 2 + 1)).astype(jnp.uint32)
    outer = ((1 << 24) - (2 * whole + 1).astype(jnp.uint32) * inner) // 2
    zero = jnp.uint32(0)
    weights = (
        jnp.where(whole == 0, outer, inner),  # of the neighbours
        jnp.where(whole == 0, zero, outer),  # of theirs
    )

    def blur_rows(image):
        padded = jnp.pad(image, ((0, 0), (2, 2), (0, 0)), mode="edge").astype(jnp.uint32)
        size = image.shape[1]
        far2, far1, middle, near1, near2 = (padded[:, k : k + size] for k in range(5))
        total = middle * inner + (far1 + near1) * weights[0] + (far2 + near2) * weights[1]
        return ((total + (1 << 23)) >> 24).astype(jnp.uint8)

    for _ in range(2):
        image = blur_rows(blur_rows(blur_rows(image))).swapaxes(0, 1)
    return image


def _box_radius(radius):
    # XLA would multiply by 1/3; the last digit decides ties where r is 1/2, for instance.
    variance = radius * radius / jax.lax.optimization_barrier(jnp.float32(3))
    whole = jnp.floor((jnp.sqrt(12 * variance + 1) - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    return whole + part / (6 * (variance - (whole + 1) * (whole + 1)))
