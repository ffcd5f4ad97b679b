"""Names of EfficientNets' weights: timm's, torchvision's and those of efficientnet-lite-pytorch.

A block without widening has a layer less; timm and torchvision count its other layers anew.
"""

from noisy_fm.models.efficientnet import EfficientNet
from noisy_fm.weights.rules import PIXEL, Map, Rule, batch_norm, conv, linear


def _conv_norm(ours: str, theirs: str, norm: str) -> list[Rule]:
    return [*conv(f"params/{ours}/conv", theirs), *batch_norm(f"{ours}/norm", norm)]


def _squeeze(ours: str, reduce: str, expand: str) -> list[Rule]:
    rows = []
    for name, there in (("reduce", reduce), ("expand", expand)):
        path = f"params/{ours}/squeeze/{name}"
        rows += [
            Rule(f"{path}/kernel", f"{there}.weight", PIXEL),
            Rule(f"{path}/bias", f"{there}.bias"),
        ]
    return rows


def timm(module: EfficientNet) -> Map:
    rows = _conv_norm("stem", "conv_stem", "bn1")
    for i, spec in enumerate(module.stages, 1):
        block, there = f"stage{i}_block{{j}}", f"blocks.{i - 1}.{{j}}"
        wide = spec.expand != 1
        if wide:
            rows += _conv_norm(f"{block}/expand", f"{there}.conv_pw", f"{there}.bn1")
        project = f"{there}.conv_pw{'l' if wide else ''}"
        rows += [
            *_conv_norm(f"{block}/depthwise", f"{there}.conv_dw", f"{there}.bn{1 + wide}"),
            *_squeeze(block, f"{there}.se.conv_reduce", f"{there}.se.conv_expand"),
            *_conv_norm(f"{block}/project", project, f"{there}.bn{2 + wide}"),
        ]
    return Map([
        *rows, *_conv_norm("top", "conv_head", "bn2"), *linear("params/head", "classifier")
    ])  # fmt: skip


def torchvision(module: EfficientNet) -> Map:
    """Its B5 to B7 have `epsilon` 1e-3, the others 1e-5; all are padded symmetrically."""
    rows = _conv_norm("stem", "features.0.0", "features.0.1")
    for i, spec in enumerate(module.stages, 1):
        block, there = f"stage{i}_block{{j}}", f"features.{i}.{{j}}.block"
        wide = int(spec.expand != 1)
        names = [f"{there}.{k}" for k in range(wide, wide + 3)]
        rows += [
            *_conv_norm(f"{block}/expand", f"{there}.0.0", f"{there}.0.1"),
            *_conv_norm(f"{block}/depthwise", f"{names[0]}.0", f"{names[0]}.1"),
            *_squeeze(block, f"{names[1]}.fc1", f"{names[1]}.fc2"),
            *_conv_norm(f"{block}/project", f"{names[2]}.0", f"{names[2]}.1"),
        ]
    top = f"features.{len(module.stages) + 1}"
    return Map([
        *rows, *_conv_norm("top", f"{top}.0", f"{top}.1"), *linear("params/head", "classifier.1")
    ])  # fmt: skip


def lite_pytorch(module: EfficientNet) -> Map:
    """Blocks are counted over all stages, `_blocks.N`."""
    rows, first = _conv_norm("stem", "_conv_stem", "_bn0"), 0
    for i, spec in enumerate(module.stages, 1):
        block, there = f"stage{i}_block{{j}}", f"_blocks.{{j+{first}}}"
        rows += [
            *_conv_norm(f"{block}/expand", f"{there}._expand_conv", f"{there}._bn0"),
            *_conv_norm(f"{block}/depthwise", f"{there}._depthwise_conv", f"{there}._bn1"),
            *_conv_norm(f"{block}/project", f"{there}._project_conv", f"{there}._bn2"),
        ]
        first += spec.blocks
    return Map([
        *rows, *_conv_norm("top", "_conv_head", "_bn1"), *linear("params/head", "_fc")
    ])  # fmt: skip
