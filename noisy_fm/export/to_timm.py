"""timm's models: a folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` reads."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from noisy_fm import files
from noisy_fm.export import equal
from noisy_fm.export.network import Network
from noisy_fm.export.target import Target
from noisy_fm.export.torch_side import runner, with_counters
from noisy_fm.models import (
    MODELS,
    ConvNeXt,
    EfficientNet,
    ModifiedResNet,
    ResNet,
    ResNetV2,
    Swin,
    ViT,
)
from noisy_fm.weights import files as weight_files
from noisy_fm.weights import rules
from noisy_fm.weights.maps import convnext, efficientnet, resnet, resnetv2, swin, vit

OTHERS = "expected one of saved_npz, stablehlo, onnx"
LIBRARIES, INSTALL = ("timm", "torch"), "pip install timm"
LOADING = """\
import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
logits = model(transform(image)[None])  # of a PIL image
"""
# our name → timm's; what timm has no name for is the nearest one with other arguments.
NAMES = {
    "vit_ti16": "vit_tiny_patch16_224",
    "vit_s32": "vit_small_patch32_224",
    "vit_s16": "vit_small_patch16_224",
    "vit_b32": "vit_base_patch32_224",
    "vit_b16": "vit_base_patch16_224",
    "vit_b8": "vit_base_patch8_224",
    "vit_l32": "vit_large_patch32_224",
    "vit_l16": "vit_large_patch16_224",
    "vit_l14": "vit_large_patch14_224",
    "vit_h14": "vit_huge_patch14_224",
    "deit3_s16": "deit3_small_patch16_224",
    "deit3_m16": "deit3_medium_patch16_224",
    "deit3_b16": "deit3_base_patch16_224",
    "deit3_l16": "deit3_large_patch16_224",
    "deit3_h14": "deit3_huge_patch14_224",
    "dinov2_s14": "vit_small_patch14_dinov2",
    "dinov2_b14": "vit_base_patch14_dinov2",
    "dinov2_l14": "vit_large_patch14_dinov2",
    "dinov2_s14_reg": "vit_small_patch14_reg4_dinov2",
    "dinov2_b14_reg": "vit_base_patch14_reg4_dinov2",
    "dinov2_l14_reg": "vit_large_patch14_reg4_dinov2",
    "clip_vit_b32": "vit_base_patch32_clip_224",
    "clip_vit_b16": "vit_base_patch16_clip_224",
    "clip_vit_l14": "vit_large_patch14_clip_224",
    "swin_t": "swin_tiny_patch4_window7_224",
    "swin_s": "swin_small_patch4_window7_224",
    "swin_b": "swin_base_patch4_window7_224",
    "swin_b_384": "swin_base_patch4_window12_384",
    "swin_l": "swin_large_patch4_window7_224",
    "swin_l_384": "swin_large_patch4_window12_384",
    "efficientnet_lite0": "tf_efficientnet_lite0",
}
# Images that timm's row is made for, where they are not of 224 pixels a side.
SIZES = {"dinov2": 518, "384": 384}
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


def row_of(module, like: Callable[[dict], bool] = lambda own: True) -> str:
    """The name in `MODELS` of the module's class that deviates least, of those that are `like`."""
    own, found = fields(module), {}
    for name, make in MODELS.items():
        if make.func is type(module) and like(theirs := fields(make(num_classes=0))):
            found[name] = sum(theirs[key] != own[key] for key in own)
    if not found:
        raise ValueError(f"timm has no {type(module).__name__} like this; {OTHERS}")
    return min(found, key=found.__getitem__)


def _deviating(module, row: str, names: dict[str, str]) -> dict[str, Any]:
    """{timm's argument: value} of the fields that are not the row's; refuses one without a name."""
    own, theirs = fields(module), fields(MODELS[row](num_classes=0))
    changed = {key: value for key, value in own.items() if value != theirs[key]}
    if odd := [key for key in changed if key not in names]:
        shown = f"{odd[0]}={changed[odd[0]]!r}"
        raise ValueError(f"timm has no {type(module).__name__} with {shown}; {OTHERS}")
    return {names[key]: value for key, value in changed.items() if names[key]}


def _vit(module: ViT) -> tuple[str, dict]:
    if module.pool == "token_mean":
        raise ValueError(f"timm has no ViT with pool='token_mean'; {OTHERS}, hf")
    # timm's rows hold the norm's ε, which has no argument: its CLIP towers' is 1e-5.
    row = row_of(module, lambda own: own["epsilon"] == module.epsilon and own["pool"] == "token")
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


def _resnet(module: ResNet) -> tuple[str, dict]:
    row = row_of(module, lambda own: own["block"] == module.block and own["stem"] == "imagenet")
    arguments = _deviating(module, row, {"stage_sizes": "layers"})
    if len(module.stage_sizes) != 4:
        raise ValueError(f"timm's ResNets have 4 stages, this {len(module.stage_sizes)}; {OTHERS}")
    return row, arguments


def _convnext(module: ConvNeXt) -> tuple[str, dict]:
    if module.layer_scale <= 0:
        raise ValueError(f"timm has no ConvNeXt with layer_scale=0; {OTHERS}")
    row = row_of(module, lambda own: bool(own["head_width"]) == bool(module.head_width))
    names = {
        "stage_sizes": "depths", "width": "dims", "head_width": "head_hidden_size",
        "epsilon": "norm_eps", "layer_scale": "",
    }  # fmt: skip
    arguments = _deviating(module, row, names)
    if {"dims", "depths"} & set(arguments):
        dims = [module.width * 2**i for i in range(len(module.stage_sizes))]
        arguments |= {"dims": dims, "depths": module.stage_sizes}
    return row, arguments


def _swin(module: Swin) -> tuple[str, dict]:
    names = {
        "dim": "embed_dim", "depths": "depths", "num_heads": "num_heads", "window": "window_size",
        "patch": "patch_size", "mlp_ratio": "mlp_ratio",
    }  # fmt: skip
    row = row_of(module)
    return row, _deviating(module, row, names)


def _row(module) -> tuple[str, dict]:
    """Of those that timm builds by their name alone."""
    row = row_of(module)
    return row, _deviating(module, row, {})


# class → (row and arguments of a module, its table of names, {our feature: timm's submodule})
KINDS: dict[type, tuple[Callable, Callable, Callable[[Any], dict[str, str]]]] = {
    ViT: (_vit, vit.timm, lambda m: {f"block{i}": f"blocks.{i}" for i in range(m.depth)}),
    Swin: (_swin, swin.timm, lambda m: {f"stage{i + 1}": f"layers.{i}" for i in _of(m.depths)}),
    ConvNeXt: (
        _convnext,
        convnext.timm,
        lambda m: {f"stage{i + 1}": f"stages.{i}" for i in _of(m.stage_sizes)},
    ),
    ResNet: (
        _resnet,
        resnet.timm,
        lambda m: {f"layer{i + 1}": f"layer{i + 1}" for i in _of(m.stage_sizes)},
    ),
    ResNetV2: (
        _row,
        resnetv2.timm,
        lambda m: {f"layer{i + 1}": f"stages.{i}" for i in _of(m.stage_sizes)},
    ),
    EfficientNet: (
        _row,
        efficientnet.timm,
        lambda m: {f"stage{i + 1}": f"blocks.{i}" for i in _of(m.stages)},
    ),
}


def _of(stages) -> range:
    return range(len(stages))


def timm(network: Network, **unused) -> Target:
    """config.json and model.safetensors; CLIP's image tower alone, its projection the head."""
    module, variables = network.module, network.variables
    if network.texts:
        if isinstance(module.image, ModifiedResNet):
            raise ValueError(f"timm's CLIP ResNet has other names; {OTHERS}, open_clip")
        module, variables = equal.image_tower(module, variables)
    if type(module) not in KINDS:
        raise ValueError(f"timm has no {type(module).__name__}; {OTHERS}")
    if isinstance(module, ViT):
        module, variables = equal.learned_positions(module, variables, network.size)
    describe, names, stages = KINDS[type(module)]
    row, arguments = describe(module)
    architecture = NAMES.get(row, row)
    if isinstance(module, ViT | Swin):
        known = next((size for name, size in SIZES.items() if name in architecture), 224)
        arguments |= {} if network.size == known else {"img_size": network.size}
    if isinstance(module, Swin):
        variables = equal.small_windows(module, variables, network.size)
    state = with_counters(rules.to_theirs(variables, names(module)))
    about = _config(network, module, architecture, arguments, state)

    def write(folder: Path) -> None:
        weight_files.write(folder / "model.safetensors", state, about={"format": "pt"})
        files.write_json(folder / "config.json", about)

    def load(folder: Path):
        return _loaded(network, folder, stages(module))

    return Target(
        write,
        load,
        LIBRARIES,
        INSTALL,
        LOADING,
        {"config.json": "timm's name, arguments and preprocessing", "model.safetensors": "weights"},
        see=_transform,
    )


def _config(network: Network, module, architecture: str, arguments: dict, state) -> dict:
    fit, (mean, std) = network.preprocess.fit, triples(network)
    heads = ("head.fc", "head", "fc", "classifier")
    classifier = next((name for name in heads if f"{name}.weight" in state), "head")
    labels = network.label_names
    return {
        "architecture": architecture,
        "num_classes": module.num_classes,
        "num_features": width(network),
        **({"label_names": list(labels)} if len(labels) == module.num_classes else {}),
        "model_args": arguments,
        "pretrained_cfg": {
            "num_classes": module.num_classes,
            "input_size": [3, fit.size, fit.size],
            "fixed_input_size": isinstance(module, ViT | Swin),
            "interpolation": fit.filter,
            "crop_pct": crop_share(fit.size, fit.shorter),
            "crop_mode": "squash" if fit.whole else "center",
            "mean": mean,
            "std": std,
            "classifier": classifier,
            "pool_size": None,
        },
    }


def width(network: Network) -> int:
    """Of what the head reads."""
    import jax

    pixels = jax.ShapeDtypeStruct((1, network.size, network.size, 3), np.float32)
    _, features = jax.eval_shape(network.module.apply, network.variables, pixels)
    return features["pre_logits"].shape[-1]


def triples(network: Network) -> tuple[list[float], list[float]]:
    """(mean, std), a number a channel."""
    both = [np.broadcast_to(np.asarray(x, float), 3).tolist() for x in network.preprocess[1:]]
    return both[0], both[1]


def crop_share(size: int, shorter: int) -> float:
    """The share of the shorter side that is cropped, such that ⌊size / share⌋ is `shorter`."""
    for digits in (2, 3, 4):
        share = round(size / shorter, digits)
        if share and int(size / share) == shorter:
            return share
    return size / (shorter + 0.5)


def _loaded(network: Network, folder: Path, stages):
    import timm as library
    import torch

    model = library.create_model(f"local-dir:{folder}", pretrained=True)

    def forward(x):
        found = model.forward_features(x)
        read = model.forward_head(found, pre_logits=True).flatten(1)
        if not network.texts:
            logits = {"logits": model.forward_head(found)} if network.module.num_classes else {}
            return {"pre_logits": read, **logits}
        projected = model.forward_head(found)
        return {
            "projected": projected,
            "normalized": torch.nn.functional.normalize(projected, dim=-1),
        }

    last = isinstance(network.module, Swin)
    return runner(network, model, forward, stages, channels_last=last)


def _transform(folder: Path):
    import timm.data

    given = files.read_json(folder / "config.json")["pretrained_cfg"]
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, given))
    return lambda image: transform(image).numpy().transpose(1, 2, 0)
