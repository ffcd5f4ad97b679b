"""Small convolutional networks beside timm's, for `test_zoo_conv.py` and `tools/reference_zoo.py`.

One of each form: with and without squeezing, of both paddings, with each block and each head.
"""

from functools import partial

import zoo

from noisy_fm.models.convnext import ConvNeXt
from noisy_fm.models.efficientnet import LITE, SYMMETRIC, EfficientNet, StageSpec
from noisy_fm.models.resnet import ResNet
from noisy_fm.models.resnetv2 import ResNetV2
from noisy_fm.weights.maps import convnext, efficientnet, resnet, resnetv2

CLASSES = 7
STAGES = (StageSpec(1, 3, 1, 1, 8), StageSpec(2, 5, 2, 2, 16), StageSpec(1, 3, 2, 3, 24))


def timm_efficientnet(*, squeeze: bool, **fields):
    from timm.models._efficientnet_builder import decode_arch_def
    from timm.models.efficientnet import EfficientNet as Theirs

    stages = [
        [f"{'ir' if s.expand > 1 else 'ds'}_r{s.blocks}_k{s.kernel}_s{s.stride}_e{s.expand}"
         f"_c{s.features}" + "_se0.25" * squeeze]
        for s in STAGES
    ]  # fmt: skip
    return Theirs(
        decode_arch_def(stages), num_classes=CLASSES, num_features=40, stem_size=16, **fields
    )


def timm_norm(epsilon: float):
    import torch

    return partial(torch.nn.BatchNorm2d, eps=epsilon)


def timm_activation(name: str):
    import torch

    return getattr(torch.nn, name)


def timm_convnext(**fields):
    from timm.models.convnext import ConvNeXt as Theirs

    return Theirs(num_classes=CLASSES, depths=(1, 2, 1, 1), dims=(8, 16, 32, 64), **fields)


def timm_resnetv2():
    from timm.layers import StdConv2d
    from timm.models.resnetv2 import ResNetV2 as Theirs

    return Theirs(
        layers=(2, 1),
        channels=(128, 256),
        stem_chs=32,
        stem_type="fixed",
        conv_layer=partial(StdConv2d, eps=1e-8),
        num_classes=CLASSES,
    )


def timm_resnet(block: str, base_width: int = 64):
    """Two stages; its stem is 64 wide whatever the stages are, and it calls four."""
    import torch
    from timm.models import resnet as theirs

    model = theirs.ResNet(
        getattr(theirs, block),
        layers=(2, 1),
        channels=(64, 128),
        base_width=base_width,
        num_classes=CLASSES,
    )
    model.layer3 = model.layer4 = torch.nn.Identity()
    return model


effnet = partial(EfficientNet, CLASSES, stages=STAGES, stem_width=16, top_width=40)
convnext_small = partial(ConvNeXt, CLASSES, (1, 2, 1, 1), width=8)
short_resnet = partial(ResNet, CLASSES, (2, 1))

SMALLS = {
    "tf_efficientnet": zoo.Small(
        effnet,
        lambda: timm_efficientnet(
            squeeze=True,
            pad_type="same",
            norm_layer=timm_norm(1e-3),
            act_layer=timm_activation("SiLU"),
        ),
        efficientnet.timm,
        30,
    ),
    "efficientnet": zoo.Small(
        partial(effnet, **SYMMETRIC),
        lambda: timm_efficientnet(squeeze=True, act_layer=timm_activation("SiLU")),
        efficientnet.timm,
        30,
    ),
    "tf_efficientnet_lite": zoo.Small(
        partial(effnet, **LITE),
        lambda: timm_efficientnet(
            squeeze=False,
            pad_type="same",
            norm_layer=timm_norm(1e-3),
            act_layer=timm_activation("ReLU6"),
        ),
        efficientnet.timm,
        30,
    ),
    "convnext": zoo.Small(convnext_small, timm_convnext, convnext.timm, 64),
    "convnext_mlp": zoo.Small(
        partial(convnext_small, head_width=24),
        partial(timm_convnext, head_hidden_size=24),
        convnext.timm,
        70,
    ),
    "resnetv2_bit": zoo.Small(
        partial(ResNetV2, CLASSES, (2, 1), width=32), timm_resnetv2, resnetv2.timm, 31
    ),
    "resnet_basic": zoo.Small(short_resnet, partial(timm_resnet, "BasicBlock"), resnet.timm, 40),
    "resnet_bottleneck": zoo.Small(
        partial(short_resnet, block="bottleneck"),
        partial(timm_resnet, "Bottleneck"),
        resnet.timm,
        40,
    ),
    "wide_resnet": zoo.Small(
        partial(short_resnet, block="wide_bottleneck"),
        partial(timm_resnet, "Bottleneck", 128),
        resnet.timm,
        40,
    ),
}
