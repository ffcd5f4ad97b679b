"""Swin transformers (Liu et al., ICCV 2021): attention within windows, shifted in turn."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from noisy_fm.models import fast
from noisy_fm.models.layers import (
    REMAT,
    DropPath,
    check_images,
    check_rate,
    check_remat,
    drop_rates,
    pooled,
)
from noisy_fm.models.transformer import (
    Init,
    Mlp,
    Qkv,
    dense,
    embed_patches,
    layer_norm,
    truncated_normal,
)

MASKED = -100.0  # added to the logits of pairs that only the shift brings into one window


def relative_positions(window: tuple[int, int], largest: int) -> np.ndarray:
    """The row of the bias table for each pair of a window's places, [h·w h·w].

    The table has (2·largest − 1)² rows, of the offsets (dy, dx) from −(largest − 1) on.
    """
    y, x = (a.reshape(-1) for a in np.mgrid[: window[0], : window[1]])
    dy, dx = (a[:, None] - a for a in (y, x))
    return (dy + largest - 1) * (2 * largest - 1) + dx + largest - 1


def shift_mask(padded: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]):
    """What is added to the attention of each window of a shifted map, [windows h·w h·w].

    A window at the end of an axis holds places of the map's two ends, which do not see each other.
    """
    ends = [
        (np.arange(size) >= size - w).astype(int) + (np.arange(size) >= size - s) * (s > 0)
        for size, w, s in zip(padded, window, shift, strict=True)
    ]
    region = (3 * ends[0][:, None] + ends[1])[None, :, :, None]
    region = np.asarray(windows_of(region, window))[0, :, :, 0]
    return np.where(region[:, :, None] == region[:, None], 0, MASKED).astype(np.float32)


def windows_of(x, window: tuple[int, int]):
    """A map [n h w c] as windows in rows, [n windows h·w c]."""
    n, h, w, c = x.shape
    x = x.reshape(n, h // window[0], window[0], w // window[1], window[1], c)
    return x.swapaxes(2, 3).reshape(n, -1, window[0] * window[1], c)


def map_of(x, window: tuple[int, int], padded: tuple[int, int]):
    """The map [n h w c] of its windows; undoes `windows_of`."""
    n, c = x.shape[0], x.shape[-1]  # not len: an exported batch is of any size
    x = x.reshape(n, padded[0] // window[0], padded[1] // window[1], *window, c)
    return x.swapaxes(2, 3).reshape(n, *padded, c)


class WindowAttention(nn.Module):
    """Attention within each window of x [n windows l d], with a bias by relative position.

    softmax(q kᵀ / √(d/heads) + bias + mask) v in float32; section 3.2, equation 4. `window` is the
    one of the table, `shape` [h w] that of these, at most as large.
    """

    num_heads: int
    window: int
    dtype: Any

    @nn.compact
    def __call__(self, x, shape: tuple[int, int], mask=None):
        n, windows, length, d = x.shape
        rows = (2 * self.window - 1) ** 2
        table = self.param("position_bias", truncated_normal, (rows, self.num_heads))
        bias = jnp.moveaxis(table[relative_positions(shape, self.window)], -1, 0)
        if mask is not None:
            bias = bias + mask[:, None]
        qkv = Qkv(self.num_heads, truncated_normal, self.dtype, name="qkv")(
            x.reshape(n * windows, length, d)
        )
        q, k, v = qkv.reshape(3, n, windows, length, self.num_heads, -1)
        logits = jnp.einsum("nwqhd,nwkhd->nwhqk", q, k, preferred_element_type=jnp.float32)
        weights = nn.softmax(logits * q.shape[-1] ** -0.5 + bias).astype(self.dtype)
        x = jnp.einsum("nwhqk,nwkhd->nwqhd", weights, v).reshape(x.shape)
        return dense(d, self.dtype, "proj")(x)


class Block(nn.Module):
    """Window attention and MLP on a map [n h w d], each after a LayerNorm; `shifted` or not.

    Windows are as large as the map where it is smaller, and a map no larger than its window is not
    shifted; one that is no multiple is padded with zeros after the shift.
    """

    num_heads: int
    window: int
    shifted: bool
    mlp_ratio: float
    rate: float
    dtype: Any

    @nn.compact
    def __call__(self, x, train):
        norm = partial(layer_norm, self.dtype, epsilon=1e-5)
        y = self._attended(norm("norm1")(x))
        x = x + DropPath(name="drop_path1")(y, self.rate, train=train)
        hidden = int(x.shape[-1] * self.mlp_ratio)
        y = Mlp(hidden, "gelu", Init(), self.dtype, name="mlp")(norm("norm2")(x))
        return x + DropPath(name="drop_path2")(y, self.rate, train=train)

    def _attended(self, x):
        size = h, w = x.shape[1:3]
        window = (min(self.window, h), min(self.window, w))
        shift = tuple(self.window // 2 * (self.shifted and s > self.window) for s in size)
        padded = tuple(-(-s // one) * one for s, one in zip(size, window, strict=True))
        if any(shift):
            x = jnp.roll(x, (-shift[0], -shift[1]), (1, 2))
        if padded != size:
            x = fast.pad(x, ((0, 0), (0, padded[0] - h), (0, padded[1] - w), (0, 0)))
        mask = shift_mask(padded, window, shift) if any(shift) else None
        attention = WindowAttention(self.num_heads, self.window, self.dtype, name="attn")
        x = map_of(attention(windows_of(x, window), window, mask), window, padded)[:, :h, :w]
        return jnp.roll(x, shift, (1, 2)) if any(shift) else x


class Merge(nn.Module):
    """Each 2×2 of a map [n h w d] side by side, normalised, as one place: [n h/2 w/2 2d].

    In the order (0, 0), (1, 0), (0, 1), (1, 1) of (y, x); an odd map ends in zeros. Section 3.1.
    """

    dtype: Any

    @nn.compact
    def __call__(self, x):
        n, h, w, d = x.shape
        x = fast.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))
        x = x.reshape(n, -(-h // 2), 2, -(-w // 2), 2, d).transpose(0, 1, 3, 4, 2, 5)
        x = layer_norm(self.dtype, "norm", epsilon=1e-5)(x.reshape(*x.shape[:3], 4 * d))
        return dense(2 * d, self.dtype, "reduction", bias=False)(x)


class Swin(nn.Module):
    """images [n h w c], normalised floats → (logits [n num_classes], features).

    features: "embed", "stageI/blockJ", "stageI" (I from 1), each a map [n h w d], and "pre_logits"
    [n d] float32, the mean of the LayerNormed last map. Parameters are float32, compute is in
    `dtype`, LayerNorm's statistics, softmax, pooling and head in float32. `num_classes=0` has no
    head. Images may have any size that is a multiple of `patch`.

    drop_path: stochastic depth's rate of the last block, to which it rises from 0. remat: what a
    block's gradient reads from memory, as in `resnet.ResNet`.
    """

    num_classes: int
    dim: int
    depths: Sequence[int]
    num_heads: Sequence[int]
    window: int = 7
    patch: int = 4
    mlp_ratio: float = 4.0
    drop_path: float = 0.0
    remat: str = "none"
    dtype: Any = jnp.float32

    def __post_init__(self):
        super().__post_init__()
        check_rate("drop_path", self.drop_path)
        check_remat(self.remat)
        if len(self.depths) != len(self.num_heads):
            raise ValueError(
                f"depths has {len(self.depths)} stages, num_heads {len(self.num_heads)}"
            )
        for i, heads in enumerate(self.num_heads):
            if self.dim * 2**i % heads:
                raise ValueError(
                    f"dim {self.dim * 2**i} of stage {i + 1} is not a multiple of "
                    f"its num_heads {heads}"
                )

    @nn.compact
    def __call__(self, images, *, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        check_images(images)
        x = self._embed(images.astype(self.dtype))
        features = {"embed": x}
        block = Block
        if self.remat != "none":
            block = nn.remat(block, policy=REMAT[self.remat], static_argnums=(2,))
        rates = iter(drop_rates(self.drop_path, sum(self.depths)))
        for i, (depth, heads) in enumerate(zip(self.depths, self.num_heads, strict=True)):
            if i:
                x = Merge(self.dtype, name=f"stage{i + 1}_merge")(x)
            for j in range(depth):
                x = block(
                    heads,
                    self.window,
                    j % 2 == 1,
                    self.mlp_ratio,
                    next(rates),
                    self.dtype,
                    name=f"stage{i + 1}_block{j}",
                )(x, train)
                features[f"stage{i + 1}/block{j}"] = x
            features[f"stage{i + 1}"] = x
        x = pooled(layer_norm(jnp.float32, "norm", epsilon=1e-5)(x.astype(jnp.float32)))
        features["pre_logits"] = x
        if self.num_classes:
            x = dense(self.num_classes, jnp.float32, "head")(x)
        return x, features

    def _embed(self, x):
        """Patches, LayerNormed: a map [n h/patch w/patch dim]."""
        x = embed_patches(x, self.patch, self.dim, dtype=self.dtype)
        return layer_norm(self.dtype, "patch_norm", epsilon=1e-5)(x)
