"""What transformers calls a network of ours: classes, config, weights."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from noisy_fm.export import equal
from noisy_fm.export.target import OTHERS
from noisy_fm.models import Clip, ConvNeXt, ResNet, ResNetV2, Swin, ViT
from noisy_fm.weights import rules
from noisy_fm.weights.maps import clip, convnext, resnet, resnetv2, swin, vit


class Form(NamedTuple):
    """kind: of transformers' classes; arguments: of its config class.

    state: the weights by its names; stages: {our feature: its submodule}; head: the submodule that
    reads what a head reads.
    """

    kind: str
    arguments: dict[str, Any]
    state: dict[str, np.ndarray]
    stages: dict[str, str]
    head: str = ""


def _refuse(module, **expected) -> None:
    for name, value in expected.items():
        if getattr(module, name) != value:
            raise ValueError(
                f"transformers has no {type(module).__name__} with {name}="
                f"{getattr(module, name)!r}; {OTHERS}, timm"
            )


def _vit(module: ViT, variables: dict, size: int) -> Form:
    if module.pool not in ("token", "token_mean"):
        raise ValueError(f"transformers has no ViT with pool={module.pool!r}; {OTHERS}, timm")
    _refuse(module, pre_norm=False)
    module, variables = equal.learned_positions(module, variables, size)
    module, variables = equal.placed_token(module, variables)
    arguments: dict[str, Any] = {
        "hidden_size": module.dim, "num_hidden_layers": module.depth,
        "num_attention_heads": module.num_heads, "image_size": size, "patch_size": module.patch,
        "layer_norm_eps": module.epsilon, "hidden_act": module.activation,
    }  # fmt: skip
    if module.layer_scale:
        module, variables = equal.with_mean(module, variables)
        kind = "Dinov2WithRegisters" if module.registers else "Dinov2"
        if module.mlp_ratio != int(module.mlp_ratio):
            _refuse(module, mlp_ratio=int(module.mlp_ratio))
        arguments["mlp_ratio"] = int(module.mlp_ratio)
        if module.registers:
            arguments["num_register_tokens"] = module.registers
    else:
        _refuse(module, registers=0, pool="token")
        kind = "ViT"
        arguments["intermediate_size"] = int(module.dim * module.mlp_ratio)
    prefix = {"ViT": "vit", "Dinov2": "dinov2"}.get(kind, "dinov2_with_registers")
    prefix = f"{prefix}." if module.num_classes else ""
    stages = {f"block{i}": f"{prefix}encoder.layer.{i}" for i in range(module.depth)}
    state = rules.to_theirs(variables, vit.hugging_face(module))
    if kind.startswith("Dinov2"):  # a parameter of training without supervision
        state[f"{prefix}embeddings.mask_token"] = np.zeros((1, module.dim), np.float32)
    return Form(kind, arguments, state, stages, "classifier")


def _swin(module: Swin, variables: dict, size: int) -> Form:
    side = size // module.patch
    for _ in module.depths:
        if side < module.window:
            raise ValueError(
                f"transformers' Swin needs maps of at least a window ({module.window}), images of "
                f"{size} make one of {side}; {OTHERS}, timm"
            )
        side = -(-side // 2)
    arguments = {
        "image_size": size, "patch_size": module.patch, "embed_dim": module.dim,
        "depths": list(module.depths), "num_heads": list(module.num_heads),
        "window_size": module.window, "mlp_ratio": module.mlp_ratio,
    }  # fmt: skip
    state = rules.to_theirs(variables, swin.hugging_face(module))
    return Form("Swin", arguments, state, {}, "classifier")


def _convnext(module: ConvNeXt, variables: dict, size: int) -> Form:
    _refuse(module, head_width=0, epsilon=1e-6)
    sizes = [module.width * 2**i for i in range(len(module.stage_sizes))]
    arguments = {
        "num_stages": len(sizes), "hidden_sizes": sizes, "depths": list(module.stage_sizes),
        "layer_norm_eps": module.epsilon, "image_size": size,
        "layer_scale_init_value": module.layer_scale,
    }  # fmt: skip
    stages = {f"stage{i + 1}": f"convnext.encoder.stages.{i}" for i in range(len(sizes))}
    state = rules.to_theirs(variables, convnext.hugging_face(module))
    return Form("ConvNext", arguments, state, stages, "classifier")


def _resnet(module: ResNet, variables: dict, size: int) -> Form:
    _refuse(module, stem="imagenet")
    if module.block == "wide_bottleneck":
        raise ValueError(f"transformers has no wide ResNet; {OTHERS}, timm")
    wider = 4 if module.block == "bottleneck" else 1
    count = len(module.stage_sizes)
    arguments = {
        "embedding_size": module.width, "depths": list(module.stage_sizes),
        "hidden_sizes": [wider * module.width * 2**i for i in range(count)],
        "layer_type": module.block,
    }  # fmt: skip
    stages = {f"layer{i + 1}": f"resnet.encoder.stages.{i}" for i in range(count)}
    state = rules.to_theirs(variables, resnet.hugging_face(module))
    return Form("ResNet", arguments, state, stages, "classifier.1")


def _bit(module: ResNetV2, variables: dict, size: int) -> Form:
    count = len(module.stage_sizes)
    arguments = {
        "embedding_size": module.width, "depths": list(module.stage_sizes),
        "hidden_sizes": [4 * module.width * 2**i for i in range(count)],
    }  # fmt: skip
    stages = {f"layer{i + 1}": f"bit.encoder.stages.{i}" for i in range(count)}
    state = rules.to_theirs(variables, resnetv2.hugging_face(module))
    return Form("Bit", arguments, state, stages, "classifier.1")


def _clip(module: Clip, variables: dict, size: int) -> Form:
    names = clip.hugging_face(module)  # or a ValueError
    if module.logit_bias:
        raise ValueError(f"transformers' CLIP has no logit_bias (loss 'sigmoid'); {OTHERS}")
    image, text = module.image, module.text
    if not isinstance(image, ViT):
        raise ValueError(f"transformers' CLIP has a ViT, this {type(image).__name__}; {OTHERS}")
    _refuse(image, pool="token", pre_norm=True, registers=0, layer_scale=0.0, class_position=True)
    _refuse(image, position="learned")

    def tower(one, ratio: float, epsilon: float) -> dict:
        return {
            "hidden_size": one.dim, "intermediate_size": int(one.dim * ratio),
            "num_hidden_layers": one.depth, "num_attention_heads": one.num_heads,
            "hidden_act": one.activation, "layer_norm_eps": epsilon,
            "projection_dim": module.embed_dim,
        }  # fmt: skip

    seen = tower(image, image.mlp_ratio, image.epsilon)
    read = tower(text, 4, 1e-5) | {
        "vocab_size": text.vocabulary, "max_position_embeddings": text.context,
        "bos_token_id": text.vocabulary - 2, "eos_token_id": text.vocabulary - 1,
        "pad_token_id": text.vocabulary - 1,
    }  # fmt: skip
    arguments = {
        "text_config": read,
        "vision_config": seen | {"image_size": size, "patch_size": image.patch},
        "projection_dim": module.embed_dim,
    }
    stages = {f"block{i}": f"vision_model.encoder.layers.{i}" for i in range(image.depth)}
    return Form("CLIP", arguments, rules.to_theirs(variables, names), stages)


KINDS: dict[type, Callable[..., Form]] = {
    ViT: _vit, Swin: _swin, ConvNeXt: _convnext, ResNet: _resnet, ResNetV2: _bit, Clip: _clip,
}  # fmt: skip
