"""ConvNeXt (Liu et al., CVPR 2022), also with the hidden layer that CLIP's towers have on top."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from noisy_fm.models.layers import (
    REMAT,
    DepthwiseConv,
    DropPath,
    check_images,
    check_rate,
    check_remat,
    drop_rates,
)
from noisy_fm.models.transformer import (
    ACTIVATIONS,
    Init,
    LayerScale,
    Mlp,
    dense,
    layer_norm,
    truncated_normal,
)


def patches(features: int, size: int, dtype, name: str) -> nn.Conv:
    """A convolution whose stride is its size; what is left of the image is not read."""
    return nn.Conv(
        features,
        (size, size),
        (size, size),
        padding="VALID",
        kernel_init=truncated_normal,
        dtype=dtype,
        name=name,
    )


class Block(nn.Module):
    """Each channel filtered by 7×7, an MLP of each position, and a shortcut (figure 4)."""

    rate: float
    layer_scale: float
    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x, train):
        y = DepthwiseConv(
            7, 1, "symmetric", truncated_normal, use_bias=True, dtype=self.dtype, name="conv_dw"
        )(x)
        y = layer_norm(self.dtype, "norm", epsilon=self.epsilon)(y)
        y = Mlp(4 * x.shape[-1], "gelu", Init(), self.dtype, name="mlp")(y)
        y = LayerScale(self.layer_scale, self.dtype, name="layer_scale")(y)
        return x + DropPath(name="drop_path")(y, self.rate, train=train)


class Stage(nn.Module):
    """Blocks of one resolution, one for each of `rates`; returns the output of each.

    downsample: the resolution is halved before, by a norm and a 2×2 convolution.
    """

    width: int
    downsample: bool
    rates: Sequence[float]
    layer_scale: float
    epsilon: float
    remat: str
    dtype: Any

    @nn.compact
    def __call__(self, x, *, train):
        if self.downsample:
            x = layer_norm(self.dtype, "downsample_norm", epsilon=self.epsilon)(x)
            x = patches(self.width, 2, self.dtype, "downsample")(x)
        block, outputs = Block, []
        if self.remat != "none":
            block = nn.remat(block, policy=REMAT[self.remat], static_argnums=(2,))
        for i, rate in enumerate(self.rates):
            made = block(rate, self.layer_scale, self.epsilon, self.dtype, name=f"block{i}")
            x = made(x, train)
            outputs.append(x)
        return outputs


class ConvNeXt(nn.Module):
    """images [n h w c], normalised floats → (logits [n num_classes], features).

    features: "stem", "stageI/blockJ", "stageI" (its last block), and "pre_logits" [n d] float32:
    the mean over positions after a norm, d = width · 2^(stages − 1), or of `head_width` after a
    hidden layer and GELU. Parameters are float32, convolutions run in `dtype`, the head in float32.
    `num_classes=0` has no head and returns "pre_logits" as logits.

    stage_sizes: blocks a stage; each stage but the first halves the resolution and doubles the
    width. head_width: of the hidden layer; 0 has none. drop_path: stochastic depth's rate at the
    last block, rising linearly from 0. layer_scale: what the blocks' scales start at. remat: as
    `resnet.ResNet`.
    """

    num_classes: int
    stage_sizes: Sequence[int]
    width: int = 96
    head_width: int = 0
    layer_scale: float = 1e-6
    epsilon: float = 1e-6
    drop_path: float = 0.0
    remat: str = "none"
    dtype: Any = jnp.float32

    def __post_init__(self):
        super().__post_init__()
        check_rate("drop_path", self.drop_path)
        check_remat(self.remat)

    @nn.compact
    def __call__(self, images, *, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        check_images(images)
        x = patches(self.width, 4, self.dtype, "stem")(images.astype(self.dtype))
        x = layer_norm(self.dtype, "stem_norm", epsilon=self.epsilon)(x)
        features = {"stem": x}
        rates = drop_rates(self.drop_path, sum(self.stage_sizes))
        for i, size in enumerate(self.stage_sizes):
            outputs = Stage(
                self.width * 2**i,
                i > 0,
                rates[:size],
                self.layer_scale,
                self.epsilon,
                self.remat,
                self.dtype,
                name=f"stage{i + 1}",
            )(x, train=train)
            rates, x = rates[size:], outputs[-1]
            features |= {f"stage{i + 1}/block{j}": y for j, y in enumerate(outputs)}
            features[f"stage{i + 1}"] = x
        x = x.astype(jnp.float32).mean((1, 2))
        x = layer_norm(jnp.float32, "norm", epsilon=self.epsilon)(x)
        if self.head_width:
            x = ACTIVATIONS["gelu"](dense(self.head_width, jnp.float32, "pre_logits")(x))
        features["pre_logits"] = x
        if self.num_classes:
            x = dense(self.num_classes, jnp.float32, "head")(x)
        return x, features
