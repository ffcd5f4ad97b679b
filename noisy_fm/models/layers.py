"""Layers that more than one architecture uses."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from noisy_fm.messages import unknown
from noisy_fm.models import fast

# What the backward pass reads from memory, block by block, instead of computing it again.
REMAT: dict[str, Callable | None] = {
    "none": None,  # everything: no checkpointing
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_with_no_batch_dims_saveable": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def pooled(x: jax.Array) -> jax.Array:
    """Features [n … d] (maps, tokens) averaged over the middle axes, [n d], in float32."""
    middle = tuple(range(1, x.ndim - 1))
    return x.astype(jnp.float32).mean(middle) if middle else x


def same_padding(kernel: int) -> str:
    """As TensorFlow pads: to ⌈size/stride⌉, the odd pixel on the right and at the bottom."""
    return "SAME"


def symmetric_padding(kernel: int) -> Sequence[tuple[int, int]]:
    """As PyTorch's models pad: (kernel − 1)/2 on each side, whatever the stride."""
    return (((kernel - 1) // 2,) * 2,) * 2


PADDINGS: dict[str, Callable] = {"same": same_padding, "symmetric": symmetric_padding}


class DepthwiseConv(nn.Module):
    """One k×k filter a channel; its parameters are `nn.Conv`'s of as many groups."""

    kernel: int
    stride: int
    padding: str
    kernel_init: Callable
    use_bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        shape = (self.kernel, self.kernel, 1, x.shape[-1])
        w = self.param("kernel", self.kernel_init, shape, jnp.float32).astype(self.dtype)
        pads = PADDINGS[self.padding](self.kernel)
        x = fast.depthwise(x.astype(self.dtype), w, stride=self.stride, padding=pads)
        if self.use_bias:
            x += self.param("bias", nn.initializers.zeros, x.shape[-1:]).astype(self.dtype)
        return x


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., ECCV 2016): drops the whole branch of an example.

    In training each example of x [n …] is zeroed with probability `rate` and the others are
    divided by 1 − rate, so the expectation stays; otherwise the identity. Draws from "dropout".
    `rate` is an argument, not a field, so that the same block can stand at every depth.
    """

    @nn.compact
    def __call__(self, x: jax.Array, rate: float, *, train: bool) -> jax.Array:
        if not train or (isinstance(rate, float | int) and rate == 0):
            return x
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - rate, shape)
        return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def drop_rates(last: float, depth: int, *, rule: str = "linear") -> list[float]:
    """The rates of `depth` blocks: rising linearly from 0 to `last`, or "uniform", all `last`."""
    return [last if rule == "uniform" else last * i / max(1, depth - 1) for i in range(depth)]


def check_rate(name: str, rate: float) -> None:
    if not 0 <= rate < 1:
        raise ValueError(f"{name} is {rate}; expected a rate in [0, 1)")


def check_remat(remat: str) -> None:
    if remat not in REMAT:
        raise ValueError(unknown("remat", remat, REMAT))


def check_images(images: jax.Array) -> None:
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images are {images.dtype} of shape {images.shape}; expected normalised floats "
            "[n h w c]"
        )
