"""torchvision's ResNets, ConvNeXts and EfficientNets: weights, and Python that makes the model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from noisy_fm import files
from noisy_fm.export.network import Network, placed, triples
from noisy_fm.export.target import OTHERS, Target
from noisy_fm.export.torch_side import read_input, runner, with_counters
from noisy_fm.models import ConvNeXt, EfficientNet, ResNet
from noisy_fm.weights import files as weight_files
from noisy_fm.weights import rules, zoo

LOADING = """\
import json
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torchvision import transforms
BUILD
model.load_state_dict(load_file("FOLDER/model.safetensors"))
model.eval()
SEEN
logits = model(transform(image)[None])  # of a PIL image
"""
SEEN = """\
given = json.loads(Path("FOLDER/config.json").read_text())["preprocess"]
transform = transforms.Compose([
    transforms.Resize(given["resize"], transforms.InterpolationMode(given["interpolation"])),
    transforms.CenterCrop(given["size"]),
    transforms.ToTensor(),
    transforms.Normalize(given["mean"], given["std"]),
])
"""


def _resnet(module: ResNet) -> tuple[str, Callable[[], Any]]:
    """(Python that makes the model, what makes it)."""
    if module.stem != "imagenet" or module.width != 64 or len(module.stage_sizes) != 4:
        shown = f"stem={module.stem!r}, width={module.width}, {len(module.stage_sizes)} stages"
        raise ValueError(f"torchvision has no ResNet with {shown}; {OTHERS}")
    block = "BasicBlock" if module.block == "basic" else "Bottleneck"
    layers, wide = list(module.stage_sizes), 128 if module.block == "wide_bottleneck" else 64
    code = (
        f"from torchvision.models.resnet import {block}, ResNet\n\nmodel = ResNet({block}, "
        f"{layers}, num_classes={module.num_classes}, width_per_group={wide})"
    )

    def make():
        from torchvision.models import resnet as theirs

        return theirs.ResNet(
            getattr(theirs, block), layers, num_classes=module.num_classes, width_per_group=wide
        )

    return code, make


def _convnext(module: ConvNeXt) -> tuple[str, Callable[[], Any]]:
    if module.head_width or module.epsilon != 1e-6 or module.layer_scale <= 0:
        shown = f"head_width={module.head_width} and epsilon={module.epsilon:g}"
        raise ValueError(f"torchvision has no ConvNeXt with {shown}; {OTHERS}")
    widths = [module.width * 2**i for i in range(len(module.stage_sizes))]
    settings: list[tuple] = list(zip(widths, [*widths[1:], None], module.stage_sizes, strict=True))
    code = (
        f"from torchvision.models.convnext import CNBlockConfig, ConvNeXt\n\nmodel = ConvNeXt("
        f"[CNBlockConfig(*one) for one in {settings}], num_classes={module.num_classes})"
    )

    def make():
        from torchvision.models.convnext import CNBlockConfig
        from torchvision.models.convnext import ConvNeXt as Theirs

        return Theirs([CNBlockConfig(*one) for one in settings], num_classes=module.num_classes)

    return code, make


def _efficientnet(module: EfficientNet) -> tuple[str, Callable[[], Any]]:
    if module.padding != "symmetric" or not module.squeeze or module.activation != "silu":
        shown = f"padding={module.padding!r}, squeeze={module.squeeze}"
        raise ValueError(f"torchvision has no EfficientNet with {shown}; {OTHERS}")
    before = [module.stem_width, *(spec.features for spec in module.stages[:-1])]
    settings = [
        (float(spec.expand), spec.kernel, spec.stride, start, spec.features, spec.blocks)
        for start, spec in zip(before, module.stages, strict=True)
    ]
    arguments = f"num_classes={module.num_classes}, last_channel={module.top_width}"
    code = (
        "from torchvision.models.efficientnet import EfficientNet, MBConvConfig\n\n"
        f"stages = [MBConvConfig(*one) for one in {settings}]\n"
        f"norm = partial(torch.nn.BatchNorm2d, eps={module.epsilon})\n"
        f"model = EfficientNet(stages, 0.0, norm_layer=norm, {arguments})"
    )

    def make():
        from functools import partial

        import torch
        from torchvision.models.efficientnet import EfficientNet as Theirs
        from torchvision.models.efficientnet import MBConvConfig

        stages = [MBConvConfig(*one) for one in settings]
        norm = partial(torch.nn.BatchNorm2d, eps=module.epsilon)
        return Theirs(
            stages,
            0.0,
            norm_layer=norm,
            num_classes=module.num_classes,
            last_channel=module.top_width,
        )

    return code, make


# class → (Python and maker, the submodule that reads what a head reads, and
# {our feature: torchvision's submodule})
KINDS: dict[type, tuple[Callable, str, Callable[[Any], dict[str, str]]]] = {
    ResNet: (
        _resnet,
        "fc",
        lambda m: {f"layer{i}": f"layer{i}" for i in range(1, 5)},
    ),
    ConvNeXt: (
        _convnext,
        "classifier.2",
        lambda m: {f"stage{i}": f"features.{2 * i - 1}" for i in range(1, 5)},
    ),
    EfficientNet: (
        _efficientnet,
        "classifier.1",
        lambda m: {f"stage{i}": f"features.{i}" for i in range(1, len(m.stages) + 1)},
    ),
}


def torchvision(network: Network, *, nearest: bool = False, **unused) -> Target:
    """model.safetensors by torchvision's names, and config.json with the preprocessing."""
    module, fit = network.module, network.preprocess.fit
    if type(module) not in KINDS:
        known = ", ".join(kind.__name__ for kind in KINDS)
        raise ValueError(f"{type(module).__name__} has no form for torchvision, which is written "
                         f"of {known}; {OTHERS}, timm")  # fmt: skip
    if not module.num_classes:
        raise ValueError("torchvision's models have a head, this has none; expected to='timm'")
    exact = placed(network, "round", nearest, "torchvision")
    describe, head, stages = KINDS[type(module)]
    code, make = describe(module)
    state = with_counters(rules.to_theirs(network.variables, zoo.table("torchvision", module)))
    mean, std = triples(network)
    seen = {
        "size": fit.size,
        "resize": [fit.shorter, fit.shorter] if fit.whole else fit.shorter,
        "interpolation": fit.filter,
        "mean": mean,
        "std": std,
    }

    def write(folder: Path) -> None:
        weight_files.write(folder / "model.safetensors", state, about={"format": "pt"})
        labels = list(network.label_names)
        files.write_json(folder / "config.json", {
            "model": network.name, "python": code, "label_names": labels, "preprocess": seen,
        })  # fmt: skip

    def load(folder: Path):
        model = make()
        model.load_state_dict(_tensors(folder))
        read = read_input(model, head)

        def forward(x):
            logits = model(x)
            return {"logits": logits, "pre_logits": read[0]}

        return runner(network, model, forward, stages(module))

    return Target(
        write,
        load,
        ("torchvision", "torch"),
        "pip install torchvision",
        LOADING.replace("BUILD", code).replace("SEEN", SEEN),
        {"model.safetensors": "weights", "config.json": "the model's Python, and preprocessing"},
        see=_transform,
        exact=exact,
        aside=not exact,
    )


def _tensors(folder: Path):
    import torch

    found = weight_files.read(folder / "model.safetensors")
    return {name: torch.from_numpy(value) for name, value in found.items()}


def _transform(folder: Path):
    from torchvision import transforms

    given = files.read_json(folder / "config.json")["preprocess"]
    transform = transforms.Compose(
        [
            transforms.Resize(
                given["resize"], transforms.InterpolationMode(given["interpolation"])
            ),
            transforms.CenterCrop(given["size"]),
            transforms.ToTensor(),
            transforms.Normalize(given["mean"], given["std"]),
        ]
    )
    return lambda image: transform(image).numpy().transpose(1, 2, 0)
