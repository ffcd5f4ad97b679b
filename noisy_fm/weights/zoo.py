"""What models of other libraries are called, here and there, and what their images look like."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from noisy_fm.data.decode import Fit
from noisy_fm.messages import unknown
from noisy_fm.models import MODELS
from noisy_fm.models.clip import Clip
from noisy_fm.models.convnext import ConvNeXt
from noisy_fm.models.efficientnet import EfficientNet
from noisy_fm.models.resnet import ResNet
from noisy_fm.models.resnetv2 import ResNetV2
from noisy_fm.models.swin import Swin
from noisy_fm.models.vit import ViT
from noisy_fm.weights.maps import clip, convnext, efficientnet, resnet, resnetv2, swin, vit
from noisy_fm.weights.rules import Map, to_theirs

# library → class of ours → its table
MAPS: dict[str, dict[type, Callable[..., Map]]] = {
    "timm": {
        ConvNeXt: convnext.timm,
        EfficientNet: efficientnet.timm,
        ResNet: resnet.timm,
        ResNetV2: resnetv2.timm,
        Swin: swin.timm,
        ViT: vit.timm,
    },
    "torchvision": {
        ConvNeXt: convnext.torchvision,
        EfficientNet: efficientnet.torchvision,
        ResNet: resnet.timm,  # the same names
    },
    "open_clip": {Clip: clip.open_clip},
    "hf": {
        Clip: clip.hugging_face,
        ConvNeXt: convnext.hugging_face,
        ResNet: resnet.hugging_face,
        ResNetV2: resnetv2.hugging_face,
        Swin: swin.hugging_face,
        ViT: vit.hugging_face,
    },
    "vision_transformer": {ViT: vit.vision_transformer},
    "big_vision": {ViT: vit.big_vision},
    "bit": {ResNetV2: resnetv2.bit_npz},
    "lite_pytorch": {EfficientNet: efficientnet.lite_pytorch},
}


class Row(NamedTuple):
    """A network of another library: a key of `MODELS`, its images' size, fields that differ."""

    model: str
    size: int = 224
    fields: Mapping[str, Any] = MappingProxyType({})


QUICK = {"activation": "quick_gelu"}
# architecture of timm → ours; those that have timm's names here follow below
TIMM: dict[str, Row] = {
    "vit_tiny_patch16_224": Row("vit_ti16"),
    "vit_tiny_patch16_384": Row("vit_ti16", 384),
    "vit_small_patch32_224": Row("vit_s32"),
    "vit_small_patch16_224": Row("vit_s16"),
    "vit_small_patch16_384": Row("vit_s16", 384),
    "vit_base_patch32_224": Row("vit_b32"),
    "vit_base_patch16_224": Row("vit_b16"),
    "vit_base_patch16_384": Row("vit_b16", 384),
    "vit_base_patch8_224": Row("vit_b8"),
    "vit_large_patch16_224": Row("vit_l16"),
    "vit_large_patch16_384": Row("vit_l16", 384),
    "deit_tiny_patch16_224": Row("vit_ti16"),
    "deit_small_patch16_224": Row("vit_s16"),
    "deit_base_patch16_224": Row("vit_b16"),
    "deit3_small_patch16_224": Row("deit3_s16"),
    "deit3_medium_patch16_224": Row("deit3_m16"),
    "deit3_base_patch16_224": Row("deit3_b16"),
    "deit3_base_patch16_384": Row("deit3_b16", 384),
    "deit3_large_patch16_224": Row("deit3_l16"),
    "deit3_huge_patch14_224": Row("deit3_h14"),
    "vit_small_patch14_dinov2": Row("dinov2_s14", 518),
    "vit_base_patch14_dinov2": Row("dinov2_b14", 518),
    "vit_large_patch14_dinov2": Row("dinov2_l14", 518),
    "vit_small_patch14_reg4_dinov2": Row("dinov2_s14_reg", 518),
    "vit_base_patch14_reg4_dinov2": Row("dinov2_b14_reg", 518),
    "vit_large_patch14_reg4_dinov2": Row("dinov2_l14_reg", 518),
    "vit_base_patch32_clip_224": Row("clip_vit_b32"),
    "vit_base_patch16_clip_224": Row("clip_vit_b16"),
    "vit_large_patch14_clip_224": Row("clip_vit_l14"),
    "vit_base_patch32_clip_quickgelu_224": Row("clip_vit_b32", 224, QUICK),
    "vit_base_patch16_clip_quickgelu_224": Row("clip_vit_b16", 224, QUICK),
    "vit_large_patch14_clip_quickgelu_224": Row("clip_vit_l14", 224, QUICK),
    "swin_tiny_patch4_window7_224": Row("swin_t"),
    "swin_small_patch4_window7_224": Row("swin_s"),
    "swin_base_patch4_window7_224": Row("swin_b"),
    "swin_base_patch4_window12_384": Row("swin_b_384", 384),
    "swin_large_patch4_window7_224": Row("swin_l"),
    "swin_large_patch4_window12_384": Row("swin_l_384", 384),
}
SAME_NAMES = (ConvNeXt, EfficientNet, ResNetV2)
TIMM |= {
    name: Row(name)
    for name, row in MODELS.items()
    if row.func in SAME_NAMES and name != "efficientnet_lite0"
}
RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
TIMM |= {name: Row(name) for name in (*RESNETS, "wide_resnet50_2", "wide_resnet101_2")}
# Its B5 to B7 have another epsilon than timm's of these names.
TORCHVISION = {name: Row(name) for name in (*RESNETS, "wide_resnet50_2", "wide_resnet101_2")}
TORCHVISION |= {
    **{f"convnext_{size}": Row(f"convnext_{size}") for size in ("tiny", "small", "base", "large")},
    **{f"efficientnet_b{i}": Row(f"efficientnet_b{i}") for i in range(5)},
    **{f"efficientnet_b{i}": Row(f"efficientnet_b{i}", 224, {"epsilon": 1e-3}) for i in (5, 6, 7)},
}
OPEN_CLIP = {
    "RN50": Row("clip_resnet50"),
    "ViT-B-32": Row("clip_vit_b32"),
    "ViT-B-16": Row("clip_vit_b16"),
    "ViT-L-14": Row("clip_vit_l14"),
    "RN50-quickgelu": Row("clip_resnet50", 224, {"text": QUICK}),
    "ViT-B-32-quickgelu": Row("clip_vit_b32", 224, {**QUICK, "text": QUICK}),
    "ViT-B-16-quickgelu": Row("clip_vit_b16", 224, {**QUICK, "text": QUICK}),
    "ViT-L-14-quickgelu": Row("clip_vit_l14", 224, {**QUICK, "text": QUICK}),
}
GOOGLE = {
    name: row
    for name, row in TIMM.items()
    if name.startswith("vit_") and row.model.startswith("vit_") and not row.fields
}
ROWS: dict[str, Mapping[str, Row]] = {
    "timm": TIMM,
    "torchvision": TORCHVISION,
    "open_clip": OPEN_CLIP,
    "vision_transformer": GOOGLE,
    "big_vision": GOOGLE,
    "bit": {name: TIMM[name] for name in TIMM if name.startswith("resnetv2_")},
    "lite_pytorch": {"efficientnet_lite0": Row("efficientnet_lite0")},
}

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
INCEPTION = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
LITE = {"mean": (127 / 255,) * 3, "std": (128 / 255,) * 3}
OPENAI = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}


def norm(mean, std, *, where) -> dict[str, tuple[float, ...]]:
    """{"mean", "std"} of pixels in [0, 1], three numbers each, from what a config says.

    Raises ValueError for what no preprocessing has, such as means of pixels up to 255.
    """
    found = {}
    for name, value, least in (("mean", mean, 0.0), ("std", std, 1e-6)):
        numbers = value if isinstance(value, list | tuple) else [value] * 3
        there = all(isinstance(one, int | float) and least <= one <= 1 for one in numbers)
        if len(numbers) != 3 or not there:
            raise ValueError(f"{where}: {name} is {value!r}; expected three numbers, of [0, 1]")
        found[name] = tuple(map(float, numbers))
    return found


class Images(NamedTuple):
    """Size, share of the resized image that the centre crop keeps, filter, and pixels' norm."""

    size: int
    crop_fraction: float
    filter: str
    norm: Mapping[str, tuple[float, ...]]


# As timm 1.0's `pretrained_cfg` and torchvision 0.29's weights have them, by LIBRARY/NAME.TAG. What
# is not here is read beside the weights, or said.
IMAGES: dict[str, Images] = {
    "timm/tf_efficientnet_b3.ns_jft_in1k": Images(300, 0.904, "bicubic", IMAGENET),
    "timm/tf_efficientnet_lite0.in1k": Images(224, 0.875, "bicubic", INCEPTION),
    "timm/efficientnet_b0.ra_in1k": Images(224, 0.875, "bicubic", IMAGENET),
    "timm/resnetv2_152x2_bit.goog_in21k": Images(224, 0.875, "bilinear", INCEPTION),
    "timm/resnetv2_152x2_bit.goog_in21k_ft_in1k": Images(448, 1.0, "bilinear", INCEPTION),
    "timm/swin_large_patch4_window7_224.ms_in22k": Images(224, 0.9, "bicubic", IMAGENET),
    "timm/swin_large_patch4_window7_224.ms_in22k_ft_in1k": Images(224, 0.9, "bicubic", IMAGENET),
    "timm/vit_large_patch14_clip_224.laion2b": Images(224, 1.0, "bicubic", INCEPTION),
    "timm/vit_large_patch14_clip_224.laion2b_ft_in12k_in1k": Images(224, 1.0, "bicubic", INCEPTION),
    "timm/convnext_large_mlp.clip_laion2b_augreg": Images(256, 1.0, "bicubic", OPENAI),
    "timm/convnext_large_mlp.clip_laion2b_augreg_ft_in1k": Images(256, 1.0, "bicubic", OPENAI),
    "timm/resnet18.a1_in1k": Images(224, 0.95, "bicubic", IMAGENET),
    "timm/resnet50.a1_in1k": Images(224, 0.95, "bicubic", IMAGENET),
    "timm/resnet50.tv_in1k": Images(224, 0.875, "bilinear", IMAGENET),
    "timm/deit3_base_patch16_224.fb_in22k_ft_in1k": Images(224, 1.0, "bicubic", IMAGENET),
    "timm/vit_small_patch14_dinov2.lvd142m": Images(518, 1.0, "bicubic", IMAGENET),
    "timm/vit_small_patch14_reg4_dinov2.lvd142m": Images(518, 1.0, "bicubic", IMAGENET),
    "timm/vit_base_patch16_224.augreg_in21k_ft_in1k": Images(224, 0.9, "bicubic", INCEPTION),
    "timm/vit_base_patch16_clip_224.openai": Images(224, 0.9, "bicubic", OPENAI),
    "torchvision/resnet18.IMAGENET1K_V1": Images(224, 224 / 256, "bilinear", IMAGENET),
    "torchvision/resnet34.IMAGENET1K_V1": Images(224, 224 / 256, "bilinear", IMAGENET),
    "torchvision/resnet50.IMAGENET1K_V1": Images(224, 224 / 256, "bilinear", IMAGENET),
    "torchvision/resnet50.IMAGENET1K_V2": Images(224, 224 / 232, "bilinear", IMAGENET),
    "torchvision/resnet101.IMAGENET1K_V1": Images(224, 224 / 256, "bilinear", IMAGENET),
    "torchvision/resnet101.IMAGENET1K_V2": Images(224, 224 / 232, "bilinear", IMAGENET),
    "torchvision/resnet152.IMAGENET1K_V1": Images(224, 224 / 256, "bilinear", IMAGENET),
    "torchvision/resnet152.IMAGENET1K_V2": Images(224, 224 / 232, "bilinear", IMAGENET),
    "torchvision/wide_resnet50_2.IMAGENET1K_V1": Images(224, 224 / 256, "bilinear", IMAGENET),
    "torchvision/wide_resnet50_2.IMAGENET1K_V2": Images(224, 224 / 232, "bilinear", IMAGENET),
    "torchvision/wide_resnet101_2.IMAGENET1K_V1": Images(224, 224 / 256, "bilinear", IMAGENET),
    "torchvision/wide_resnet101_2.IMAGENET1K_V2": Images(224, 224 / 232, "bilinear", IMAGENET),
    "torchvision/convnext_tiny.IMAGENET1K_V1": Images(224, 224 / 236, "bilinear", IMAGENET),
    "torchvision/convnext_small.IMAGENET1K_V1": Images(224, 224 / 230, "bilinear", IMAGENET),
    "torchvision/convnext_base.IMAGENET1K_V1": Images(224, 224 / 232, "bilinear", IMAGENET),
    "torchvision/convnext_large.IMAGENET1K_V1": Images(224, 224 / 232, "bilinear", IMAGENET),
    "torchvision/efficientnet_b0.IMAGENET1K_V1": Images(224, 224 / 256, "bicubic", IMAGENET),
    "torchvision/efficientnet_b1.IMAGENET1K_V1": Images(240, 240 / 256, "bicubic", IMAGENET),
    "torchvision/efficientnet_b1.IMAGENET1K_V2": Images(240, 240 / 255, "bilinear", IMAGENET),
    "torchvision/efficientnet_b2.IMAGENET1K_V1": Images(288, 288 / 288, "bicubic", IMAGENET),
    "torchvision/efficientnet_b3.IMAGENET1K_V1": Images(300, 300 / 320, "bicubic", IMAGENET),
    "torchvision/efficientnet_b4.IMAGENET1K_V1": Images(380, 380 / 384, "bicubic", IMAGENET),
    "torchvision/efficientnet_b5.IMAGENET1K_V1": Images(456, 456 / 456, "bicubic", IMAGENET),
    "torchvision/efficientnet_b6.IMAGENET1K_V1": Images(528, 528 / 528, "bicubic", IMAGENET),
    "torchvision/efficientnet_b7.IMAGENET1K_V1": Images(600, 600 / 600, "bicubic", IMAGENET),
    "lite_pytorch/efficientnet_lite0": Images(224, 0.875, "bicubic", LITE),
    # OpenAI's weights are those with QuickGELU.
    "open_clip/RN50-quickgelu": Images(224, 1.0, "bicubic", OPENAI),
    "open_clip/ViT-B-32-quickgelu": Images(224, 1.0, "bicubic", OPENAI),
    "open_clip/ViT-B-16-quickgelu": Images(224, 1.0, "bicubic", OPENAI),
    "open_clip/ViT-L-14-quickgelu": Images(224, 1.0, "bicubic", OPENAI),
}


class Found(NamedTuple):
    """A model elsewhere, before its arrays are read.

    library, row: its network. path: of the weights. images: how it sees them. label_names: of its
    classes, if they are known. fit: how images are fitted, where not as `images` says it in timm's
    way. table: arguments of the table of names. antialias: of resized positions.
    """

    library: str
    row: Row
    path: Path
    images: Images
    label_names: Sequence[str] = ()
    fit: Fit | None = None
    whole: bool = False
    table: Mapping[str, Any] = MappingProxyType({})
    antialias: bool = True
    classes: int = 0  # that its config says, 0 where it says none
    imagenet: bool = False  # a thousand classes are ImageNet's


def row(library: str, name: str) -> Row:
    """The row of `library`'s architecture `name`; ValueError with what is known near it."""
    if library not in ROWS:
        raise ValueError(unknown("library of models", library, ROWS))
    rows = ROWS[library]
    if name not in rows:
        raise ValueError(unknown(f"model of {library}", name, sorted(rows)))
    return rows[name]


def table(library: str, module: nn.Module, **arguments) -> Map:
    """The names that `library` has for the arrays of `module`; ValueError if it has no such."""
    made = MAPS[library].get(type(module))
    if made is None:
        raise ValueError(f"{library} has no {type(module).__name__}")
    return made(module, **arguments)


def shapes_of(module: nn.Module, size: int):
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    given = [image]
    if isinstance(module, Clip):
        given.append(jax.ShapeDtypeStruct((1, module.text.context), jnp.int32))
    return jax.eval_shape(lambda *x: module.init(jax.random.key(0), *x), *given)


def names_and_shapes(module: nn.Module, size: int, table: Map) -> dict[str, tuple]:
    """{their name: shape} of the arrays of a network of ours."""
    shapes = shapes_of(module, size)
    empty = jax.tree.map(lambda leaf: np.broadcast_to(np.bool_(0), leaf.shape), shapes)
    return {name: value.shape for name, value in to_theirs(empty, table).items()}
