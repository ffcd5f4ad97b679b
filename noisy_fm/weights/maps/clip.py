"""CLIP elsewhere: open_clip and Hugging Face. Image towers alone: `vit.timm`."""

from typing import Any

from noisy_fm.models.clip import Clip
from noisy_fm.models.modified_resnet import ModifiedResNet
from noisy_fm.weights.maps import vit
from noisy_fm.weights.rules import (
    BATCH,
    LINEAR,
    TOKEN,
    Map,
    Rule,
    batch_norm,
    conv,
    linear,
    norm,
)

# OpenAI's files hold three numbers that are no arrays of a network.
NUMBERS = ("input_resolution", "context_length", "vocab_size")


def open_clip(module: Clip, *, text: str = "") -> Map:
    """open_clip's `CLIP`, and OpenAI's files; text: "text." for its `CustomTextCLIP`.

    The image tower is a `ModifiedResNet` or a ViT with its class token's pool.
    """
    parts: dict[str, Any] = {
        "norms": ("ln_1", "ln_2"),
        "qkv": "attn.in_proj_",
        "proj": "attn.out_proj",
        "mlp": ("mlp.c_fc", "mlp.c_proj"),
    }
    resnet = isinstance(module.image, ModifiedResNet)
    rows = [
        Rule("params/logit_scale", "logit_scale"),
        Rule("params/logit_bias", "logit_bias"),
        *(_resnet() if resnet else _vit(parts)),
        Rule("params/text/token_embed", f"{text}token_embedding.weight"),
        Rule("params/text/pos_embed", f"{text}positional_embedding"),
        *vit.block("params/text/block{i}", f"{text}transformer.resblocks.{{i}}", **parts),
        *norm("params/text/norm", f"{text}ln_final"),
        Rule("params/text_projection/kernel", f"{text}text_projection"),
    ]
    return Map(rows, ignored=(rf"({text})?attn_mask", r".*num_batches_tracked", *NUMBERS))


def _vit(parts: dict) -> list[Rule]:
    return [
        Rule("params/image/cls_token", "visual.class_embedding", TOKEN),
        Rule("params/image/pos_embed", "visual.positional_embedding", BATCH),
        *conv("params/image/patch_embed", "visual.conv1"),
        *norm("params/image/norm_pre", "visual.ln_pre"),
        *vit.block("params/image/block{i}", "visual.transformer.resblocks.{i}", **parts),
        *norm("params/image/norm", "visual.ln_post"),
        Rule("params/image_projection/kernel", "visual.proj"),
    ]


def _resnet() -> list[Rule]:
    block, there = "image/layer{i}_block{j}", "visual.layer{i}.{j}"
    pool, attention = "params/image/attention_pool", "visual.attnpool"
    return [
        *conv("params/image/stem_conv{i}", "visual.conv{i}"),
        *batch_norm("image/stem_norm{i}", "visual.bn{i}"),
        *conv(f"params/{block}/conv{{k}}", f"{there}.conv{{k}}"),
        *batch_norm(f"{block}/norm{{k}}", f"{there}.bn{{k}}"),
        *conv(f"params/{block}/downsample_conv", f"{there}.downsample.0"),
        *batch_norm(f"{block}/downsample_norm", f"{there}.downsample.1"),
        Rule(f"{pool}/pos_embed", f"{attention}.positional_embedding"),
        *linear(f"{pool}/query", f"{attention}.q_proj"),
        *linear(f"{pool}/key", f"{attention}.k_proj"),
        *linear(f"{pool}/value", f"{attention}.v_proj"),
        *linear("params/image_projection", f"{attention}.c_proj"),
    ]


def hugging_face(module: Clip) -> Map:
    """Files of transformers' `CLIPModel`, of a ViT. Raises ValueError for another image tower."""
    if isinstance(module.image, ModifiedResNet):
        raise ValueError("transformers has no CLIP with a ResNet; expected a ViT as image tower")
    parts: dict[str, Any] = {
        "norms": ("layer_norm1", "layer_norm2"),
        "qkv": tuple(f"self_attn.{one}_proj." for one in "qkv"),
        "proj": "self_attn.out_proj",
    }
    image, text = "vision_model", "text_model"
    rows = [
        Rule("params/logit_scale", "logit_scale"),
        Rule("params/image/cls_token", f"{image}.embeddings.class_embedding", TOKEN),
        Rule("params/image/pos_embed", f"{image}.embeddings.position_embedding.weight", BATCH),
        *conv("params/image/patch_embed", f"{image}.embeddings.patch_embedding"),
        *norm("params/image/norm_pre", f"{image}.pre_layrnorm"),  # so in their files
        *vit.block("params/image/block{i}", f"{image}.encoder.layers.{{i}}", **parts),
        *norm("params/image/norm", f"{image}.post_layernorm"),
        Rule("params/image_projection/kernel", "visual_projection.weight", LINEAR),
        Rule("params/text/token_embed", f"{text}.embeddings.token_embedding.weight"),
        Rule("params/text/pos_embed", f"{text}.embeddings.position_embedding.weight"),
        *vit.block("params/text/block{i}", f"{text}.encoder.layers.{{i}}", **parts),
        *norm("params/text/norm", f"{text}.final_layer_norm"),
        Rule("params/text_projection/kernel", "text_projection.weight", LINEAR),
    ]
    return Map(rows, ignored=(r".*position_ids",))
