"""EfficientNets (Tan and Le, ICML 2019), and their Lite variants of 2020.

Lite: ReLU6 for SiLU, no squeeze-and-excitation, stem and top of one width. The published weights
are of networks that pad as TensorFlow does; timm has trained others, padded symmetrically.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from noisy_fm.messages import unknown
from noisy_fm.models.layers import PADDINGS, DepthwiseConv, DropPath, check_images, check_rate


class StageSpec(NamedTuple):
    blocks: int
    kernel: int
    stride: int
    expand: int
    features: int


B0 = (  # table 1
    StageSpec(1, 3, 1, 1, 16),
    StageSpec(2, 3, 2, 6, 24),
    StageSpec(2, 5, 2, 6, 40),
    StageSpec(3, 3, 2, 6, 80),
    StageSpec(3, 5, 1, 6, 112),
    StageSpec(4, 5, 2, 6, 192),
    StageSpec(1, 3, 1, 6, 320),
)
ACTIVATIONS = {"silu": nn.silu, "relu6": nn.relu6}
LITE: dict[str, Any] = {"squeeze": False, "activation": "relu6"}
SYMMETRIC: dict[str, Any] = {"padding": "symmetric", "epsilon": 1e-5}  # timm's own

_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def scaled(width: float, depth: float, *, lite: bool = False) -> dict[str, Any]:
    """Fields of the `EfficientNet` that is B0 times `width` and `depth` (section 3.3).

    lite: the first and last stage keep their depth, stem and top their width.
    """
    ends = (0, len(B0) - 1) if lite else ()
    stages = tuple(
        spec._replace(
            blocks=spec.blocks if i in ends else math.ceil(spec.blocks * depth),
            features=_rounded(spec.features * width),
        )
        for i, spec in enumerate(B0)
    )
    if lite:
        return {"stages": stages, **LITE}
    return {
        "stages": stages,
        "stem_width": _rounded(32 * width),
        "top_width": _rounded(1280 * width),
    }


def _rounded(width: float) -> int:
    """The nearest multiple of 8 that is not below 0.9 of the width."""
    nearest = max(8, int(width + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * width else nearest


class Form(NamedTuple):
    """What the layers of a network have in common."""

    activation: str
    padding: str
    epsilon: float
    dtype: Any


class ConvNorm(nn.Module):
    """Convolution without bias, BatchNorm (statistics in float32), and activation unless linear."""

    features: int
    form: Form
    kernel: int = 1
    stride: int = 1
    depthwise: bool = False
    linear: bool = False

    @nn.compact
    def __call__(self, x, *, train):
        form = self.form
        if self.depthwise:
            x = DepthwiseConv(
                self.kernel, self.stride, form.padding, _fan_out, dtype=form.dtype, name="conv"
            )(x)
        else:
            x = nn.Conv(
                self.features,
                (self.kernel, self.kernel),
                self.stride,
                padding=PADDINGS[form.padding](self.kernel),
                use_bias=False,
                kernel_init=_fan_out,
                dtype=form.dtype,
                name="conv",
            )(x)
        x = nn.BatchNorm(
            momentum=0.99,
            epsilon=form.epsilon,
            use_fast_variance=False,
            dtype=form.dtype,
            name="norm",
        )(x, use_running_average=not train)
        return x if self.linear else ACTIVATIONS[form.activation](x)


class SqueezeExcite(nn.Module):
    """Weighs each channel of a map by all their means (Hu et al., CVPR 2018)."""

    width: int
    form: Form

    @nn.compact
    def __call__(self, x):
        def dense(features, name):
            return nn.Dense(features, kernel_init=_fan_out, dtype=self.form.dtype, name=name)

        y = x.astype(jnp.float32).mean((1, 2), keepdims=True)
        y = ACTIVATIONS[self.form.activation](dense(self.width, "reduce")(y))
        return x * nn.sigmoid(dense(x.shape[-1], "expand")(y))


class Block(nn.Module):
    """Inverted residual: widen by 1×1, filter each channel, narrow by a linear 1×1, shortcut.

    squeeze: what is narrowed is weighed first; that is a quarter as wide as the block's input.
    """

    spec: StageSpec
    stride: int
    squeeze: bool
    form: Form

    @nn.compact
    def __call__(self, x, rate, *, train):
        spec, width = self.spec, x.shape[-1] * self.spec.expand
        y = x
        if spec.expand != 1:
            y = ConvNorm(width, self.form, name="expand")(y, train=train)
        y = ConvNorm(width, self.form, spec.kernel, self.stride, depthwise=True, name="depthwise")(
            y, train=train
        )
        if self.squeeze:
            y = SqueezeExcite(max(1, x.shape[-1] // 4), self.form, name="squeeze")(y)
        y = ConvNorm(spec.features, self.form, linear=True, name="project")(y, train=train)
        if self.stride != 1 or x.shape[-1] != spec.features:
            return y
        return x + DropPath(name="drop_path")(y, rate, train=train)


class EfficientNet(nn.Module):
    """images [n h w 3], normalised floats → (logits [n num_classes], features).

    features: "stem", "stageI/blockJ", "stageI" (its last block), "top" [n h/32 w/32 top_width], and
    "pre_logits" [n top_width] float32, its mean over positions. Parameters are float32,
    convolutions run in `dtype`. `num_classes=0` has no head and returns the pooled features as
    logits.

    squeeze: squeeze-and-excitation. padding: "same", as TensorFlow pads what is strided (the odd
    pixel goes to the right and bottom), or "symmetric". epsilon: BatchNorm's; the published weights
    have 1e-3 and "same". dropout: of the pooled features; drop_path: stochastic depth's rate,
    rising linearly from 0 by its share a block. The published weights were trained with 0.2 to 0.5
    and 0.2.
    """

    num_classes: int
    stages: Sequence[StageSpec] = B0
    stem_width: int = 32
    top_width: int = 1280
    squeeze: bool = True
    activation: str = "silu"
    padding: str = "same"
    epsilon: float = 1e-3
    dropout: float = 0.0
    drop_path: float = 0.0
    dtype: Any = jnp.float32

    def __post_init__(self):
        super().__post_init__()
        for field, known in (("activation", ACTIVATIONS), ("padding", PADDINGS)):
            if getattr(self, field) not in known:
                raise ValueError(unknown(field, getattr(self, field), known))
        check_rate("dropout", self.dropout)
        check_rate("drop_path", self.drop_path)

    @nn.compact
    def __call__(self, images, *, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        check_images(images)
        x = images.astype(self.dtype)
        form = Form(self.activation, self.padding, self.epsilon, self.dtype)
        x = ConvNorm(self.stem_width, form, 3, 2, name="stem")(x, train=train)
        features = {"stem": x}
        depth, index = sum(spec.blocks for spec in self.stages), 0
        for i, spec in enumerate(self.stages, 1):
            for j in range(spec.blocks):
                name = f"stage{i}/block{j}"
                stride = 1 if j else spec.stride
                block = Block(spec, stride, self.squeeze, form, name=name.replace("/", "_"))
                x = features[name] = block(x, self.drop_path * index / depth, train=train)
                index += 1
            features[f"stage{i}"] = x
        x = ConvNorm(self.top_width, form, name="top")(x, train=train)
        features["top"] = x
        x = features["pre_logits"] = x.astype(jnp.float32).mean((1, 2))
        if self.num_classes:
            x = nn.Dropout(self.dropout, deterministic=not train, name="dropout")(x)
            x = nn.Dense(self.num_classes, name="head")(x)
        return x, features
