"""Which of timm's models a network of ours is: its name there, arguments, weights' names."""

import dataclasses
from collections.abc import Callable
from typing import Any

from noisy_fm.export.target import OTHERS
from noisy_fm.models import MODELS, ConvNeXt, EfficientNet, ResNet, ResNetV2, Swin, ViT
from noisy_fm.weights import zoo

# our name → (timm's, its images' size); what timm has no name for is the nearest one with other
# arguments.
NAMES: dict[str, tuple[str, int]] = {
    row.model: (name, row.size) for name, row in reversed(zoo.TIMM.items()) if not row.fields
}
NAMES |= {
    "efficientnet_lite0": ("tf_efficientnet_lite0", 224),
    "vit_l32": ("vit_large_patch32_224", 224),
    "vit_l14": ("vit_large_patch14_224", 224),
    "vit_h14": ("vit_huge_patch14_224", 224),
}
# Fields that say how a network is trained or computed.
TRAINING = (
    *("parent", "name", "num_classes", "dtype", "remat", "scan", "drop_path", "drop_rule"),
    *("dropout", "kernel_init", "zero_init_last"),
)


def fields(module) -> dict[str, Any]:
    """What a module computes, by its fields; sequences as tuples."""
    found = {f.name: getattr(module, f.name) for f in dataclasses.fields(module)}
    plain = {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}
    return {name: value for name, value in plain.items() if name not in TRAINING}


def row_of(module, own_name: str, like: Callable[[dict], bool] = lambda own: True) -> str:
    """`own_name`, a key of `MODELS`, if timm has it and it is `like`; else what deviates least."""
    own, found = fields(module), {}
    for name in NAMES:
        make = MODELS[name]
        if make.func is type(module) and like(theirs := fields(make(num_classes=0))):
            found[name] = sum(theirs[key] != own[key] for key in own)
    if not found:
        raise ValueError(f"timm has no {type(module).__name__} like this; {OTHERS}")
    return own_name if own_name in found else min(found, key=found.__getitem__)


def _deviating(module, row: str, names: dict[str, str]) -> dict[str, Any]:
    """{timm's argument: value} of the fields that are not the row's; refuses one without a name."""
    own, theirs = fields(module), fields(MODELS[row](num_classes=0))
    changed = {key: value for key, value in own.items() if value != theirs[key]}
    if odd := [key for key in changed if key not in names]:
        shown = f"{odd[0]}={changed[odd[0]]!r}"
        raise ValueError(f"timm has no {type(module).__name__} with {shown}; {OTHERS}")
    return {names[key]: value for key, value in changed.items() if names[key]}


def _vit(module: ViT, name: str) -> tuple[str, dict]:
    if module.pool == "token_mean":
        raise ValueError(f"timm has no ViT with pool='token_mean'; {OTHERS}, hf")
    # timm's rows hold the norm's ε, which has no argument: its CLIP towers' is 1e-5.
    row = row_of(
        module, name, lambda own: own["epsilon"] == module.epsilon and own["pool"] == "token"
    )
    names = {
        "patch": "patch_size", "dim": "embed_dim", "depth": "depth", "num_heads": "num_heads",
        "mlp_ratio": "mlp_ratio", "registers": "reg_tokens", "layer_scale": "init_values",
        "pre_norm": "pre_norm", "activation": "act_layer", "class_position": "", "pool": "",
    }  # fmt: skip
    arguments = _deviating(module, row, names)
    if arguments.get("init_values") == 0:
        arguments["init_values"] = None
    if module.pool != "token":
        arguments |= {"class_token": False, "global_pool": "avg"}
        arguments["fc_norm"] = module.pool == "gap"
    elif module.class_position != MODELS[row](num_classes=0).class_position:
        arguments["no_embed_class"] = not module.class_position
    return row, arguments


def _resnet(module: ResNet, name: str) -> tuple[str, dict]:
    row = row_of(
        module, name, lambda own: own["block"] == module.block and own["stem"] == "imagenet"
    )
    arguments = _deviating(module, row, {"stage_sizes": "layers"})
    if len(module.stage_sizes) != 4:
        raise ValueError(f"timm's ResNets have 4 stages, this {len(module.stage_sizes)}; {OTHERS}")
    return row, arguments


def _convnext(module: ConvNeXt, name: str) -> tuple[str, dict]:
    if module.layer_scale <= 0:
        raise ValueError(f"timm has no ConvNeXt with layer_scale=0; {OTHERS}")
    row = row_of(module, name, lambda own: bool(own["head_width"]) == bool(module.head_width))
    names = {
        "stage_sizes": "depths", "width": "dims", "head_width": "head_hidden_size",
        "epsilon": "norm_eps", "layer_scale": "",
    }  # fmt: skip
    arguments = _deviating(module, row, names)
    if {"dims", "depths"} & set(arguments):
        dims = [module.width * 2**i for i in range(len(module.stage_sizes))]
        arguments |= {"dims": dims, "depths": module.stage_sizes}
    return row, arguments


def _swin(module: Swin, name: str) -> tuple[str, dict]:
    names = {
        "dim": "embed_dim", "depths": "depths", "num_heads": "num_heads", "window": "window_size",
        "patch": "patch_size", "mlp_ratio": "mlp_ratio",
    }  # fmt: skip
    row = row_of(module, name)
    return row, _deviating(module, row, names)


def _row(module, name: str) -> tuple[str, dict]:
    """Of those that timm builds by their name alone."""
    row = row_of(module, "")
    return row, _deviating(module, row, {})


# class → (row and arguments of a module and its name here, {our feature: timm's submodule})
KINDS: dict[type, tuple[Callable, Callable[[Any], dict[str, str]]]] = {
    ViT: (_vit, lambda m: {f"block{i}": f"blocks.{i}" for i in range(m.depth)}),
    Swin: (_swin, lambda m: {f"stage{i + 1}": f"layers.{i}" for i in _of(m.depths)}),
    ConvNeXt: (
        _convnext,
        lambda m: {f"stage{i + 1}": f"stages.{i}" for i in _of(m.stage_sizes)},
    ),
    ResNet: (_resnet, lambda m: {f"layer{i + 1}": f"layer{i + 1}" for i in _of(m.stage_sizes)}),
    ResNetV2: (_row, lambda m: {f"layer{i + 1}": f"stages.{i}" for i in _of(m.stage_sizes)}),
    EfficientNet: (_row, lambda m: {f"stage{i + 1}": f"blocks.{i}" for i in _of(m.stages)}),
}


def _of(stages) -> range:
    return range(len(stages))
