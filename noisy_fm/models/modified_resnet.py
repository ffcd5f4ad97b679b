"""CLIP's ResNet (Radford et al., ICML 2021, section 2.4): a deep stem, averaging where it strides,
and attention in place of the pooling."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from noisy_fm.models.layers import REMAT, check_images, check_remat
from noisy_fm.models.resnet import batch_norm, convolution


def _average(x, stride: int):
    return nn.avg_pool(x, (stride, stride), (stride, stride)) if stride > 1 else x


class Bottleneck(nn.Module):
    """1×1, 3×3, averaging, 1×1 convolutions, and a shortcut that is averaged likewise."""

    width: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x, train):
        conv, features = partial(convolution, dtype=self.dtype), 4 * self.width
        bn = partial(batch_norm, train, self.dtype)
        y = nn.relu(bn("norm1")(conv(self.width, 1, 1, name="conv1")(x)))
        y = nn.relu(bn("norm2")(conv(self.width, 3, 1, name="conv2")(y)))
        y = conv(features, 1, 1, name="conv3")(_average(y, self.stride))
        y = bn("norm3", nn.initializers.zeros)(y)
        if self.stride > 1 or x.shape[-1] != features:
            x = conv(features, 1, 1, name="downsample_conv")(_average(x, self.stride))
            x = bn("downsample_norm")(x)
        return nn.relu(x + y)


class AttentionPool(nn.Module):
    """A map [n h w c] to [n c]: what its mean attends to in it, with learned positions."""

    num_heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        n, c = x.shape[0], x.shape[-1]  # not len: an exported batch is of any size
        x = x.reshape(n, -1, c)
        x = jnp.concatenate([x.astype(jnp.float32).mean(1, keepdims=True).astype(x.dtype), x], 1)
        normal = nn.initializers.normal(c**-0.5)
        if self.has_variable("params", "pos_embed"):
            known: int = self.get_variable("params", "pos_embed").shape[0]
            if known != x.shape[1]:
                raise ValueError(
                    f"images make {x.shape[1] - 1} positions, the attention pool has {known - 1}; "
                    "expected images of the size the model was initialised with"
                )
        x = x + self.param("pos_embed", normal, (x.shape[1], c)).astype(x.dtype)

        def split(name, y):
            made = nn.Dense(c, kernel_init=normal, dtype=self.dtype, name=name)(y)
            return made.reshape(n, y.shape[1], self.num_heads, -1)

        q, k, v = split("query", x[:, :1]), split("key", x), split("value", x)
        return jax.nn.dot_product_attention(q, k, v).reshape(n, c)


class ModifiedResNet(nn.Module):
    """images [n h w c], normalised floats → (logits [n num_classes], features).

    features: "stem", "layerI/blockJ", "layerI", and "pre_logits" [n d] float32, d = 32 · width: the
    heads of the attention pool, before any projection. `num_classes=0` has no head. remat: as
    `resnet.ResNet`.
    """

    num_classes: int
    stage_sizes: Sequence[int]
    width: int = 64
    num_heads: int = 32
    remat: str = "none"
    dtype: Any = jnp.float32

    def __post_init__(self):
        super().__post_init__()
        check_remat(self.remat)

    @nn.compact
    def __call__(self, images, *, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        check_images(images)
        x = images.astype(self.dtype)
        stem = ((self.width // 2, 2), (self.width // 2, 1), (self.width, 1))
        for i, (width, stride) in enumerate(stem, 1):
            x = convolution(width, 3, stride, self.dtype, f"stem_conv{i}")(x)
            x = nn.relu(batch_norm(train, self.dtype, f"stem_norm{i}")(x))
        x = _average(x, 2)
        features = {"stem": x}
        block = Bottleneck
        if self.remat != "none":
            block = nn.remat(block, policy=REMAT[self.remat], static_argnums=(2,))
        for i, size in enumerate(self.stage_sizes):
            for j in range(size):
                stride = 2 if i and not j else 1
                name = f"layer{i + 1}_block{j}"
                x = block(self.width * 2**i, stride, self.dtype, name=name)(x, train)
                features[f"layer{i + 1}/block{j}"] = x
            features[f"layer{i + 1}"] = x
        x = AttentionPool(self.num_heads, self.dtype, name="attention_pool")(x)
        x = features["pre_logits"] = x.astype(jnp.float32)
        if self.num_classes:
            x = nn.Dense(self.num_classes, name="head")(x)
        return x, features
