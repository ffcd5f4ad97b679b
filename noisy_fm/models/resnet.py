"""ResNets (He et al., CVPR 2016), v1.5: the bottleneck's stride is on its 3×3 convolution."""

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
)

# (kernel, stride, whether a 3×3 maximum pooling of stride 2 follows)
STEMS = {"imagenet": (7, 2, True), "cifar": (3, 1, False), "half": (3, 2, False)}

_he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def convolution(features: int, kernel: int, stride: int, dtype, name: str) -> nn.Conv:
    """Padded by (kernel − 1)/2 on each side, as in PyTorch; "SAME" would shift strided ones."""
    return nn.Conv(
        features,
        (kernel, kernel),
        (stride, stride),
        padding=(kernel - 1) // 2,
        use_bias=False,
        kernel_init=_he_normal,
        dtype=dtype,
        conv_general_dilated=_pointwise if kernel == stride == 1 else None,
        name=name,
    )


def _pointwise(x, kernel, strides, padding, **unused):
    return fast.pointwise(x, kernel)


def batch_norm(train: bool, dtype, name: str, scale_init=nn.initializers.ones):
    """Statistics in float32 whatever `dtype`; running ones decay by 0.9 (PyTorch's 0.1).

    Training or not is said at the call, where a frozen module's statistics can be kept.
    """
    norm = nn.BatchNorm(
        momentum=0.9,
        epsilon=1e-5,
        use_fast_variance=False,
        dtype=dtype,
        scale_init=scale_init,
        name=name,
    )
    return partial(norm, use_running_average=not train)


class Downsample(nn.Module):
    """The shortcut where the shape changes: a 1×1 convolution."""

    features: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x, *, train):
        x = convolution(self.features, 1, self.stride, self.dtype, "conv")(x)
        return batch_norm(train, self.dtype, "norm")(x)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut."""

    width: int
    stride: int
    rate: float
    zero_init_last: bool
    dtype: Any

    expansion = 1

    @nn.compact
    def __call__(self, x, train):
        conv, norm = partial(convolution, dtype=self.dtype), partial(batch_norm, train, self.dtype)
        last = nn.initializers.zeros if self.zero_init_last else nn.initializers.ones
        y = conv(self.width, 3, self.stride, name="conv1")(x)
        y = nn.relu(norm("norm1")(y))
        y = conv(self.width, 3, 1, name="conv2")(y)
        y = norm("norm2", last)(y)
        if x.shape != y.shape:
            x = Downsample(self.width, self.stride, self.dtype, name="downsample")(x, train=train)
        return nn.relu(x + DropPath(name="drop_path")(y, self.rate, train=train))


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 convolutions, the last four times as wide, and a shortcut."""

    width: int
    stride: int
    rate: float
    zero_init_last: bool
    dtype: Any

    expansion = 4
    inner = 1  # width of the 3×3 convolution, of `width`

    @nn.compact
    def __call__(self, x, train):
        conv, norm = partial(convolution, dtype=self.dtype), partial(batch_norm, train, self.dtype)
        last = nn.initializers.zeros if self.zero_init_last else nn.initializers.ones
        inner, features = self.width * self.inner, self.width * self.expansion
        y = nn.relu(norm("norm1")(conv(inner, 1, 1, name="conv1")(x)))
        y = nn.relu(norm("norm2")(conv(inner, 3, self.stride, name="conv2")(y)))
        y = norm("norm3", last)(conv(features, 1, 1, name="conv3")(y))
        if x.shape != y.shape:
            x = Downsample(features, self.stride, self.dtype, name="downsample")(x, train=train)
        return nn.relu(x + DropPath(name="drop_path")(y, self.rate, train=train))


class WideBottleneck(Bottleneck):
    """A bottleneck twice as wide inside (Zagoruyko and Komodakis, BMVC 2016)."""

    inner = 2


BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck, "wide_bottleneck": WideBottleneck}


class Stem(nn.Module):
    kind: str
    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x, *, train):
        kernel, stride, pool = STEMS[self.kind]
        x = convolution(self.width, kernel, stride, self.dtype, "conv")(x)
        x = nn.relu(batch_norm(train, self.dtype, "norm")(x))
        return fast.max_pool(x, ((1, 1), (1, 1))) if pool else x


class Stage(nn.Module):
    """Blocks of one resolution, one for each of `rates`; returns the output of each."""

    block: type
    width: int
    stride: int
    rates: Sequence[float]
    zero_init_last: bool
    remat: str
    dtype: Any

    @nn.compact
    def __call__(self, x, *, train):
        block, outputs = self.block, []
        if self.remat != "none":
            block = nn.remat(block, policy=REMAT[self.remat], static_argnums=(2,))
        for i, rate in enumerate(self.rates):
            stride = 1 if i else self.stride
            x = block(self.width, stride, rate, self.zero_init_last, self.dtype, name=f"block{i}")(
                x, train
            )
            outputs.append(x)
        return outputs


class ResNet(nn.Module):
    """images [n h w c], normalised floats → (logits [n num_classes], features).

    features: "stem", "layerI/blockJ", "layerI" (its last block), "pre_logits" [n d] float32, the
    mean over positions, d = width · 2^(stages − 1) · (1 or 4). Parameters are float32, convolutions
    run in `dtype`, BatchNorm's statistics, the pooling and the head in float32. `num_classes=0`
    has no head and returns the pooled features as logits.

    stage_sizes: blocks a stage; each stage but the first halves the resolution and doubles the
    width. stem: "imagenet" (7×7 of stride 2, pooling), "cifar" (3×3), "half" (3×3 of stride 2).
    drop_path: stochastic depth's rate at the last block, rising linearly from 0. zero_init_last:
    the last BatchNorm scale of a block starts at 0, the block as its shortcut (Goyal et al., 2017).
    remat: "none" keeps a block's intermediate results for its gradient; "full" computes them again
    from the block's input, "dots" does so with all that is no convolution (see `layers.REMAT`).
    """

    num_classes: int
    stage_sizes: Sequence[int]
    block: str = "basic"
    width: int = 64
    stem: str = "imagenet"
    drop_path: float = 0.0
    zero_init_last: bool = True
    remat: str = "none"
    dtype: Any = jnp.float32

    def __post_init__(self):
        super().__post_init__()
        for field, known in (("block", BLOCKS), ("stem", STEMS)):
            if getattr(self, field) not in known:
                raise ValueError(
                    f"{field} is {getattr(self, field)!r}; expected one of {', '.join(known)}"
                )
        check_rate("drop_path", self.drop_path)
        check_remat(self.remat)

    @nn.compact
    def __call__(self, images, *, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        check_images(images)
        x = Stem(self.stem, self.width, self.dtype, name="stem")(
            images.astype(self.dtype), train=train
        )
        features = {"stem": x}
        rates = drop_rates(self.drop_path, sum(self.stage_sizes))
        for i, size in enumerate(self.stage_sizes):
            stage = Stage(
                BLOCKS[self.block],
                self.width * 2**i,
                2 if i else 1,
                rates[:size],
                self.zero_init_last,
                self.remat,
                self.dtype,
                name=f"layer{i + 1}",
            )
            outputs = stage(x, train=train)
            rates, x = rates[size:], outputs[-1]
            features |= {f"layer{i + 1}/block{j}": y for j, y in enumerate(outputs)}
            features[f"layer{i + 1}"] = x
        x = features["pre_logits"] = x.astype(jnp.float32).mean((1, 2))
        if self.num_classes:
            x = nn.Dense(self.num_classes, name="head")(x)
        return x, features
