"""Networks as pure functions: `create(name, num_classes)` gives a Linen module.

`module.apply(variables, images, train=…)` returns (logits, features), a dict of named arrays in
which "pre_logits" [n d] is what the head reads. Parameters are in "params", BatchNorm's statistics
in "batch_stats" (`mutable=["batch_stats"]` in training), drop path draws from the "dropout" key.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import flax.linen as nn

from noisy_fm.messages import unknown
from noisy_fm.models.clip import Clip, TextTransformer
from noisy_fm.models.convnext import ConvNeXt
from noisy_fm.models.efficientnet import LITE, SYMMETRIC, EfficientNet, scaled
from noisy_fm.models.modified_resnet import ModifiedResNet
from noisy_fm.models.resnet import ResNet
from noisy_fm.models.resnetv2 import ResNetV2
from noisy_fm.models.swin import Swin
from noisy_fm.models.vit import ViT

PRE_NORM: dict[str, Any] = {"pre_norm": True, "epsilon": 1e-5}
# Widths by letter: Dosovitskiy et al., ICLR 2021, table 1; Ti and S: Touvron et al., ICML 2021,
# table 1; M: Touvron et al., ECCV 2022.
WIDTHS: dict[str, dict[str, Any]] = {
    "ti": {"dim": 192, "depth": 12, "num_heads": 3},
    "s": {"dim": 384, "depth": 12, "num_heads": 6},
    "m": {"dim": 512, "depth": 12, "num_heads": 8},
    "b": {"dim": 768, "depth": 12, "num_heads": 12},
    "l": {"dim": 1024, "depth": 24, "num_heads": 16},
    "h": {"dim": 1280, "depth": 32, "num_heads": 16},
}
DEIT3 = partial(ViT, class_position=False, layer_scale=1e-6)
DINOV2 = partial(ViT, patch=14, layer_scale=1e-5)
DINOV2_REG = partial(DINOV2, registers=4, class_position=False)
SWIN = partial(Swin, depths=(2, 2, 18, 2))

MODELS: dict[str, partial] = {
    # 224×224 images. He et al., CVPR 2016, table 1.
    "resnet18": partial(ResNet, stage_sizes=(2, 2, 2, 2)),
    "resnet34": partial(ResNet, stage_sizes=(3, 4, 6, 3)),
    "resnet50": partial(ResNet, stage_sizes=(3, 4, 6, 3), block="bottleneck"),
    "resnet101": partial(ResNet, stage_sizes=(3, 4, 23, 3), block="bottleneck"),
    "resnet152": partial(ResNet, stage_sizes=(3, 8, 36, 3), block="bottleneck"),
    # Zagoruyko and Komodakis, BMVC 2016, section 3.
    "wide_resnet50_2": partial(ResNet, stage_sizes=(3, 4, 6, 3), block="wide_bottleneck"),
    "wide_resnet101_2": partial(ResNet, stage_sizes=(3, 4, 23, 3), block="wide_bottleneck"),
    # Kolesnikov et al., ECCV 2020, section 3.
    "resnetv2_50x1_bit": partial(ResNetV2, stage_sizes=(3, 4, 6, 3)),
    "resnetv2_50x3_bit": partial(ResNetV2, stage_sizes=(3, 4, 6, 3), width=192),
    "resnetv2_101x1_bit": partial(ResNetV2, stage_sizes=(3, 4, 23, 3)),
    "resnetv2_101x3_bit": partial(ResNetV2, stage_sizes=(3, 4, 23, 3), width=192),
    "resnetv2_152x2_bit": partial(ResNetV2, stage_sizes=(3, 8, 36, 3), width=128),
    "resnetv2_152x4_bit": partial(ResNetV2, stage_sizes=(3, 8, 36, 3), width=256),
    # Liu et al., CVPR 2022, section 3; with a hidden layer: Ilharco et al., OpenCLIP, 2023.
    "convnext_tiny": partial(ConvNeXt, stage_sizes=(3, 3, 9, 3)),
    "convnext_small": partial(ConvNeXt, stage_sizes=(3, 3, 27, 3)),
    "convnext_base": partial(ConvNeXt, stage_sizes=(3, 3, 27, 3), width=128),
    "convnext_large": partial(ConvNeXt, stage_sizes=(3, 3, 27, 3), width=192),
    "convnext_xlarge": partial(ConvNeXt, stage_sizes=(3, 3, 27, 3), width=256),
    "convnext_large_mlp": partial(ConvNeXt, stage_sizes=(3, 3, 27, 3), width=192, head_width=1536),
    # Tan and Le, ICML 2019, table 2: B0 times a width and a depth.
    "tf_efficientnet_b0": partial(EfficientNet, **scaled(1.0, 1.0)),
    "tf_efficientnet_b1": partial(EfficientNet, **scaled(1.0, 1.1)),
    "tf_efficientnet_b2": partial(EfficientNet, **scaled(1.1, 1.2)),
    "tf_efficientnet_b3": partial(EfficientNet, **scaled(1.2, 1.4)),
    "tf_efficientnet_b4": partial(EfficientNet, **scaled(1.4, 1.8)),
    "tf_efficientnet_b5": partial(EfficientNet, **scaled(1.6, 2.2)),
    "tf_efficientnet_b6": partial(EfficientNet, **scaled(1.8, 2.6)),
    "tf_efficientnet_b7": partial(EfficientNet, **scaled(2.0, 3.1)),
    # The same networks as timm trained them, padded symmetrically.
    "efficientnet_b0": partial(EfficientNet, **scaled(1.0, 1.0), **SYMMETRIC),
    "efficientnet_b1": partial(EfficientNet, **scaled(1.0, 1.1), **SYMMETRIC),
    "efficientnet_b2": partial(EfficientNet, **scaled(1.1, 1.2), **SYMMETRIC),
    "efficientnet_b3": partial(EfficientNet, **scaled(1.2, 1.4), **SYMMETRIC),
    "efficientnet_b4": partial(EfficientNet, **scaled(1.4, 1.8), **SYMMETRIC),
    "efficientnet_b5": partial(EfficientNet, **scaled(1.6, 2.2), **SYMMETRIC),
    "efficientnet_b6": partial(EfficientNet, **scaled(1.8, 2.6), **SYMMETRIC),
    "efficientnet_b7": partial(EfficientNet, **scaled(2.0, 3.1), **SYMMETRIC),
    # Without squeeze-and-excitation, of 2020; `weights.lite0` loads published weights.
    "efficientnet_lite0": partial(EfficientNet, **LITE),
    "tf_efficientnet_lite0": partial(EfficientNet, **scaled(1.0, 1.0, lite=True)),
    "tf_efficientnet_lite1": partial(EfficientNet, **scaled(1.0, 1.1, lite=True)),
    "tf_efficientnet_lite2": partial(EfficientNet, **scaled(1.1, 1.2, lite=True)),
    "tf_efficientnet_lite3": partial(EfficientNet, **scaled(1.2, 1.4, lite=True)),
    "tf_efficientnet_lite4": partial(EfficientNet, **scaled(1.4, 1.8, lite=True)),
    # Dosovitskiy et al., ICLR 2021.
    "vit_ti16": partial(ViT, patch=16, **WIDTHS["ti"]),
    "vit_s32": partial(ViT, patch=32, **WIDTHS["s"]),
    "vit_s16": partial(ViT, patch=16, **WIDTHS["s"]),
    "vit_b32": partial(ViT, patch=32, **WIDTHS["b"]),
    "vit_b16": partial(ViT, patch=16, **WIDTHS["b"]),
    "vit_b8": partial(ViT, patch=8, **WIDTHS["b"]),
    "vit_l32": partial(ViT, patch=32, **WIDTHS["l"]),
    "vit_l16": partial(ViT, patch=16, **WIDTHS["l"]),
    "vit_l14": partial(ViT, patch=14, **WIDTHS["l"]),
    "vit_h14": partial(ViT, patch=14, **WIDTHS["h"]),
    # DeiT III. Touvron et al., ECCV 2022.
    "deit3_s16": partial(DEIT3, patch=16, **WIDTHS["s"]),
    "deit3_m16": partial(DEIT3, patch=16, **WIDTHS["m"]),
    "deit3_b16": partial(DEIT3, patch=16, **WIDTHS["b"]),
    "deit3_l16": partial(DEIT3, patch=16, **WIDTHS["l"]),
    "deit3_h14": partial(DEIT3, patch=14, **WIDTHS["h"]),
    # DINOv2, trained last at 518×518 images. Oquab et al., TMLR 2024; with registers: Darcet et
    # al., ICLR 2024, as timm has them (the class token's position is part of the token).
    "dinov2_s14": partial(DINOV2, **WIDTHS["s"]),
    "dinov2_b14": partial(DINOV2, **WIDTHS["b"]),
    "dinov2_l14": partial(DINOV2, **WIDTHS["l"]),
    "dinov2_s14_reg": partial(DINOV2_REG, **WIDTHS["s"]),
    "dinov2_b14_reg": partial(DINOV2_REG, **WIDTHS["b"]),
    "dinov2_l14_reg": partial(DINOV2_REG, **WIDTHS["l"]),
    # Liu et al., ICCV 2021, section 3.3; "_384" for 384×384 images.
    "swin_t": partial(Swin, dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
    "swin_s": partial(SWIN, dim=96, num_heads=(3, 6, 12, 24)),
    "swin_b": partial(SWIN, dim=128, num_heads=(4, 8, 16, 32)),
    "swin_b_384": partial(SWIN, dim=128, num_heads=(4, 8, 16, 32), window=12),
    "swin_l": partial(SWIN, dim=192, num_heads=(6, 12, 24, 48)),
    "swin_l_384": partial(SWIN, dim=192, num_heads=(6, 12, 24, 48), window=12),
    # CLIP's image towers. Radford et al., ICML 2021, tables 19 and 20.
    "clip_resnet50": partial(ModifiedResNet, stage_sizes=(3, 4, 6, 3)),
    "clip_vit_b32": partial(ViT, patch=32, **WIDTHS["b"], **PRE_NORM),
    "clip_vit_b16": partial(ViT, patch=16, **WIDTHS["b"], **PRE_NORM),
    "clip_vit_l14": partial(ViT, patch=14, **WIDTHS["l"], **PRE_NORM),
    # 32×32 images. He et al., section 4.2, n = 3 (with 1×1 convolutions as shortcuts).
    "resnet20": partial(ResNet, stage_sizes=(3, 3, 3), width=16, stem="cifar"),
    "resnet18_cifar": partial(ResNet, stage_sizes=(2, 2, 2, 2), stem="cifar"),
    "resnet10_narrow": partial(ResNet, stage_sizes=(1, 1, 1, 1), width=16, stem="cifar"),
    # As narrow, first stage at 16×16: about a third of the time on a CPU, the same D = 128.
    "resnet10_half": partial(ResNet, stage_sizes=(1, 1, 1, 1), width=16, stem="half"),
    "vit_tiny": partial(ViT, patch=4, dim=128, depth=4, num_heads=4, pool="gap"),
}


def create(name: str, num_classes: int, **overrides) -> nn.Module:
    """The model of that name with `num_classes` outputs (0: no head, logits are "pre_logits").

    overrides: fields of its class (`ResNet`, `ViT`), such as `dtype`, `drop_path`, `width`, `dim`.
    Raises ValueError for a name or a field that does not exist.
    """
    if name not in MODELS:
        raise ValueError(unknown("model", name, sorted(MODELS)))
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 0:
        raise ValueError(f"num_classes is {num_classes!r}; expected a whole number, 0 for no head")
    constructor = MODELS[name]
    fields = {f.name for f in dataclasses.fields(cast(type, constructor.func))} - {"parent", "name"}
    for field in overrides:
        if field not in fields - {"num_classes"}:
            raise ValueError(
                unknown(f"argument of {name}", field, sorted(fields - {"num_classes"}))
            )
    return constructor(num_classes=num_classes, **overrides)


# image tower → width of the common space, and the fields of the text tower that differ
CLIPS: dict[str, tuple[int, dict]] = {
    "clip_resnet50": (1024, {}),
    "clip_vit_b32": (512, {}),
    "clip_vit_b16": (512, {}),
    "clip_vit_l14": (768, {"dim": 768, "num_heads": 12}),
}


def create_clip(
    name: str,
    *,
    embed_dim: int = 0,
    text: Mapping | None = None,
    logit_bias: bool = False,
    dtype=None,
    **image,
) -> Clip:
    """The image tower `name` of `MODELS` beside a text tower, as `clip.Clip`.

    embed_dim: 0 is that of the paper's towers, `CLIPS`; other towers need it said. text: fields of
    `TextTransformer`; image: of the tower's class. Raises ValueError as `create`.
    """
    width, fields = CLIPS.get(name, (0, {}))
    given = dict(text or {})
    known = {f.name for f in dataclasses.fields(TextTransformer)} - {"parent", "name", "dtype"}
    for field in given:
        if field not in known:
            raise ValueError(unknown("argument of the text tower", field, sorted(known)))
    if not (embed_dim or width):
        raise ValueError(f"embed_dim of {name} beside a text tower is not known; expected a number")
    precision = {} if dtype is None else {"dtype": dtype}
    tower = create(name, 0, **image, **precision)
    return Clip(
        tower,
        TextTransformer(**{**fields, **given, **precision}),
        embed_dim or width,
        projection_bias=isinstance(tower, ModifiedResNet),
        logit_bias=logit_bias,
    )
