"""What makes networks fast on a CPU: same results to rounding, nothing changed on accelerators.

`tools/bench.py fast` times each piece beside the plain form that it stands for.
"""

import contextlib
import contextvars
import functools
from collections.abc import Iterator
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [… d] @ kernel [d e], whose gradient for the kernel is faster on a CPU than by JAX's rule.

    XLA copies there the left operand of a product over several axes, and computes in the copy what
    it is made of. By JAX's rule that is the output's gradient: in a residual network a sum over all
    later blocks, anew for each kernel. Here it is x (`bench.py fast`: 1.2 times as fast a gradient
    of ViT-S). On a TPU nothing changes.
    """
    return x @ kernel


def _product_fwd(x, kernel):
    return x @ kernel, (x, kernel)


def _product_bwd(residuals, g):
    x, kernel = residuals
    leading = tuple(range(x.ndim - 1))
    return g @ kernel.T, jax.lax.dot_general(x, g, ((leading, leading), ((), ())))


product.defvjp(_product_fwd, _product_bwd)


def dot_general(x, kernel, dimension_numbers, precision=None):
    """`product` as `nn.Dense` calls it."""
    return product(x, kernel)


@jax.custom_vjp
def pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [n h w c] convolved with kernel [1 1 c f]; its gradient on a CPU is that of a product.

    There that is faster (`bench.py fast`: 1.2 times, of a whole ResNet-50's gradient); on a TPU it
    is slower, by its compiler's estimate.
    """
    return by_convolution(x, kernel)


def by_product(x, kernel):
    rows = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
    return rows.reshape(*x.shape[:-1], -1)


def by_convolution(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _pointwise_fwd(x, kernel):
    return by_convolution(x, kernel), (x, kernel)


def _pointwise_bwd(residuals, g):
    def gradients(function):
        return lambda x, kernel, g: jax.vjp(function, x, kernel)[1](g)

    return jax.lax.platform_dependent(
        *residuals, g, cpu=gradients(by_product), default=gradients(by_convolution)
    )


pointwise.defvjp(_pointwise_fwd, _pointwise_bwd)


_plain = contextvars.ContextVar("plain", default=False)


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """What is traced inside does not depend on the platform, for formats that know none."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def pad(x: jax.Array, pads, value: float = 0.0) -> jax.Array:
    """x with (before, after) entries of `value` on each axis."""
    if not _plain.get():
        return jnp.pad(x, pads, constant_values=value)
    for axis, counts in enumerate(pads):
        sides = [
            jnp.full((*x.shape[:axis], count, *x.shape[axis + 1 :]), value, x.dtype)
            for count in counts
        ]
        if any(counts):
            parts = zip((counts[0], 1, counts[1]), (sides[0], x, sides[1]), strict=True)
            x = jnp.concatenate([part for count, part in parts if count], axis)
    return x


def max_pool(x: jax.Array, padding) -> jax.Array:
    """The maximum of each 3×3 at stride 2 of x [n h w c], padded by what is below all."""
    if not _plain.get():
        return nn.max_pool(x, (3, 3), (2, 2), padding)
    pads = ((0, 0), (0, 0)) if padding == "VALID" else padding
    padded = pad(x, ((0, 0), *pads, (0, 0)), float(jnp.finfo(x.dtype).min))
    h, w = padded.shape[1:3]
    rows, columns = (h - 3) // 2 + 1, (w - 3) // 2 + 1
    taps = [
        padded[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2]
        for i in range(3)
        for j in range(3)
    ]
    return functools.reduce(jnp.maximum, taps)


def depthwise(x: jax.Array, kernel: jax.Array, *, stride: int, padding="SAME") -> jax.Array:
    """x [n h w c] convolved with kernel [k k 1 c], one filter a channel.

    padding: "SAME", TensorFlow's, to ⌈h/stride⌉, or ((top, bottom), (left, right)).
    """
    form = grouped_conv if _plain.get() else _by_platform
    return form(x, kernel, stride=stride, padding=padding)


@partial(jax.jit, static_argnames=("stride", "padding"))
def _by_platform(x, kernel, *, stride: int, padding):
    """Layers of the same shapes are traced once: ConvNeXt-T's gradient is lowered in a third of
    the time."""
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: sum_of_taps(x, kernel, stride=stride, padding=padding),
        default=lambda x, kernel: grouped_conv(x, kernel, stride=stride, padding=padding),
    )


def grouped_conv(x, kernel, *, stride: int, padding="SAME"):
    """`depthwise` as a convolution of as many groups as channels."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def sum_of_taps(x, kernel, *, stride: int, padding="SAME"):
    """`depthwise` as k² shifted products, for CPUs.

    `bench.py fast`: a whole EfficientNet-Lite0's gradient takes a quarter of the time that it takes
    with `grouped_conv`.
    """
    n, h, wide, c = x.shape
    k = kernel.shape[0]
    pads = padding
    if isinstance(padding, str):
        pads = jax.lax.padtype_to_pads((h, wide), (k, k), (stride, stride), padding)
    rows, columns = (
        (size + sum(pad) - k) // stride + 1 for size, pad in zip((h, wide), pads, strict=True)
    )
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    total = jnp.zeros((n, rows, columns, c), jnp.float32)
    for i in range(k):
        for j in range(k):
            last = (n, i + (rows - 1) * stride + 1, j + (columns - 1) * stride + 1, c)
            tap = jax.lax.slice(padded, (0, i, j, 0), last, (1, stride, stride, 1))
            total += tap.astype(jnp.float32) * kernel[i, j, 0].astype(jnp.float32)
    return total.astype(x.dtype)
