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
from noisy_fm.models.efficientnet import EfficientNetLite
from noisy_fm.models.modified_resnet import ModifiedResNet
from noisy_fm.models.resnet import ResNet
from noisy_fm.models.vit import ViT

PRE_NORM: dict[str, Any] = {"pre_norm": True, "epsilon": 1e-5}

MODELS: dict[str, partial] = {
    # 224×224 images. He et al., CVPR 2016, table 1.
    "resnet18": partial(ResNet, stage_sizes=(2, 2, 2, 2)),
    "resnet34": partial(ResNet, stage_sizes=(3, 4, 6, 3)),
    "resnet50": partial(ResNet, stage_sizes=(3, 4, 6, 3), block="bottleneck"),
    "resnet101": partial(ResNet, stage_sizes=(3, 4, 23, 3), block="bottleneck"),
    "resnet152": partial(ResNet, stage_sizes=(3, 8, 36, 3), block="bottleneck"),
    # Tan and Le, ICML 2019, as Lite; with published weights: `efficientnet.load_lite0()`.
    "efficientnet_lite0": partial(EfficientNetLite),
    # Dosovitskiy et al., ICLR 2021, table 1; Ti and S: Touvron et al., ICML 2021, table 1.
    "vit_ti16": partial(ViT, patch=16, dim=192, depth=12, num_heads=3),
    "vit_s16": partial(ViT, patch=16, dim=384, depth=12, num_heads=6),
    "vit_b16": partial(ViT, patch=16, dim=768, depth=12, num_heads=12),
    # CLIP's image towers. Radford et al., ICML 2021, tables 19 and 20.
    "clip_resnet50": partial(ModifiedResNet, stage_sizes=(3, 4, 6, 3)),
    "clip_vit_b32": partial(ViT, patch=32, dim=768, depth=12, num_heads=12, **PRE_NORM),
    "clip_vit_b16": partial(ViT, patch=16, dim=768, depth=12, num_heads=12, **PRE_NORM),
    "clip_vit_l14": partial(ViT, patch=14, dim=1024, depth=24, num_heads=16, **PRE_NORM),
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
