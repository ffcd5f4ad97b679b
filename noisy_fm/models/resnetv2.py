"""BiT's ResNets (Kolesnikov et al., ECCV 2020): norms before convolutions (He et al., ECCV 2016),
GroupNorm (Wu and He, ECCV 2018) and standardised weights (Qiao et al., 2019)."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from noisy_fm.models import fast
from noisy_fm.models.layers import (
    REMAT,
    DropPath,
    check_images,
    check_rate,
    check_remat,
    drop_rates,
    symmetric_padding,
)

GROUPS = 32

_he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class StandardConv(nn.Module):
    """A convolution, padded symmetrically, whose filters have mean 0 and variance 1."""

    features: int
    kernel: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        w = self.param("kernel", _he_normal, shape, jnp.float32)
        # The biased variance, and 1e-8 inside the root, are those of the published weights.
        w = (w - w.mean((0, 1, 2))) * jax.lax.rsqrt(w.var((0, 1, 2)) + 1e-8)
        x, w = x.astype(self.dtype), w.astype(self.dtype)
        if self.kernel == self.stride == 1:
            return fast.pointwise(x, w)
        return jax.lax.conv_general_dilated(
            x,
            w,
            (self.stride, self.stride),
            symmetric_padding(self.kernel),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


def group_norm(dtype, name: str) -> nn.GroupNorm:
    # Flax's fast variance loses digits where the mean is large.
    return nn.GroupNorm(GROUPS, epsilon=1e-5, use_fast_variance=False, dtype=dtype, name=name)


class Block(nn.Module):
    """1×1, 3×3, 1×1 convolutions, each after norm and ReLU, the last four times as wide.

    The shortcut is a convolution of what the first norm gives where `downsample` says so.
    """

    width: int
    stride: int
    downsample: bool
    rate: float
    dtype: Any

    @nn.compact
    def __call__(self, x, train):
        conv, norm = partial(StandardConv, dtype=self.dtype), partial(group_norm, self.dtype)
        y = nn.relu(norm("norm1")(x))
        if self.downsample:
            x = conv(4 * self.width, 1, self.stride, name="downsample")(y)
        y = conv(self.width, 1, 1, name="conv1")(y)
        y = conv(self.width, 3, self.stride, name="conv2")(nn.relu(norm("norm2")(y)))
        y = conv(4 * self.width, 1, 1, name="conv3")(nn.relu(norm("norm3")(y)))
        return x + DropPath(name="drop_path")(y, self.rate, train=train)


class Stage(nn.Module):
    """Blocks of one resolution, one for each of `rates`; returns the output of each."""

    width: int
    stride: int
    rates: Sequence[float]
    remat: str
    dtype: Any

    @nn.compact
    def __call__(self, x, *, train):
        block, outputs = Block, []
        if self.remat != "none":
            block = nn.remat(block, policy=REMAT[self.remat], static_argnums=(2,))
        for i, rate in enumerate(self.rates):
            stride = 1 if i else self.stride
            x = block(self.width, stride, i == 0, rate, self.dtype, name=f"block{i}")(x, train)
            outputs.append(x)
        return outputs


class ResNetV2(nn.Module):
    """images [n h w c], normalised floats → (logits [n num_classes], features).

    features: "stem", "layerI/blockJ", "layerI" (its last block, before the norm that follows), and
    "pre_logits" [n d] float32, the mean over positions after norm and ReLU, d = 4 · width ·
    2^(stages − 1). Parameters are float32, convolutions run in `dtype`; statistics of filters and
    of GroupNorm, the pooling and the head are in float32. `num_classes=0` has no head and returns
    the pooled features as logits.

    stage_sizes: blocks a stage; each stage but the first halves the resolution and doubles the
    width. drop_path: stochastic depth's rate at the last block, rising linearly from 0. remat: as
    `resnet.ResNet`.
    """

    num_classes: int
    stage_sizes: Sequence[int]
    width: int = 64
    drop_path: float = 0.0
    remat: str = "none"
    dtype: Any = jnp.float32

    def __post_init__(self):
        super().__post_init__()
        if self.width % GROUPS:
            raise ValueError(f"width is {self.width}; expected a multiple of {GROUPS}")
        check_rate("drop_path", self.drop_path)
        check_remat(self.remat)

    @nn.compact
    def __call__(self, images, *, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        check_images(images)
        x = StandardConv(self.width, 7, 2, self.dtype, name="stem")(images.astype(self.dtype))
        # The border is 0, not −∞ as a pooling's own would be: no ReLU came before.
        x = fast.pad(x, ((0, 0), *symmetric_padding(3), (0, 0)))
        x = fast.max_pool(x, "VALID")
        features = {"stem": x}
        rates = drop_rates(self.drop_path, sum(self.stage_sizes))
        for i, size in enumerate(self.stage_sizes):
            stage = Stage(
                self.width * 2**i,
                2 if i else 1,
                rates[:size],
                self.remat,
                self.dtype,
                name=f"layer{i + 1}",
            )
            outputs = stage(x, train=train)
            rates, x = rates[size:], outputs[-1]
            features |= {f"layer{i + 1}/block{j}": y for j, y in enumerate(outputs)}
            features[f"layer{i + 1}"] = x
        x = nn.relu(group_norm(self.dtype, "norm")(x))
        x = features["pre_logits"] = x.astype(jnp.float32).mean((1, 2))
        if self.num_classes:
            x = nn.Dense(self.num_classes, name="head")(x)
        return x, features
