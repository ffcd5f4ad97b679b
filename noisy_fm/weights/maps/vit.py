"""Vision transformers elsewhere: timm, Hugging Face, and the .npz files of Google's code."""

import numpy as np

from noisy_fm.models.vit import OF_THE_TOKEN, ViT
from noisy_fm.weights.rules import LINEAR, Layout, Map, Rule, conv, linear, norm

QUERY_KEY_VALUE = ("query", "key", "value")


def block(
    ours: str,
    theirs: str,
    *,
    norms: tuple[str, str] = ("norm1", "norm2"),
    qkv: str | tuple[str, ...] = "attn.qkv.",
    proj: str = "attn.proj",
    mlp: tuple[str, str] = ("mlp.fc1", "mlp.fc2"),
) -> list[Rule]:
    """The rows of a transformer block, by what its parts are called within `theirs`.

    qkv: up to "weight" and "bias"; three names are of queries, keys and values.
    """
    parts = (qkv,) if isinstance(qkv, str) else qkv
    return [
        *norm(f"{ours}/norm1", f"{theirs}.{norms[0]}"),
        *norm(f"{ours}/norm2", f"{theirs}.{norms[1]}"),
        Rule(f"{ours}/attn/qkv/kernel", [f"{theirs}.{part}weight" for part in parts], LINEAR),
        Rule(f"{ours}/attn/qkv/bias", [f"{theirs}.{part}bias" for part in parts]),
        *linear(f"{ours}/attn/proj", f"{theirs}.{proj}"),
        *linear(f"{ours}/mlp/fc1", f"{theirs}.{mlp[0]}"),
        *linear(f"{ours}/mlp/fc2", f"{theirs}.{mlp[1]}"),
    ]


def timm(module: ViT) -> Map:
    """timm's `VisionTransformer`: ViT, DeiT III, DINOv2, and CLIP's image towers alone.

    Of the last the head is the projection into the common space.
    """
    del module  # all fields have rows
    return Map([
        Rule("params/cls_token", "cls_token"),
        Rule("params/reg_token", "reg_token"),
        Rule("params/pos_embed", "pos_embed"),
        *conv("params/patch_embed", "patch_embed.proj", bias=True),
        *norm("params/norm_pre", "norm_pre"),
        *block("params/block{i}", "blocks.{i}"),
        Rule("params/block{i}/ls1/gamma", "blocks.{i}.ls1.gamma"),
        Rule("params/block{i}/ls2/gamma", "blocks.{i}.ls2.gamma"),
        *norm("params/norm", "norm"),
        *norm("params/fc_norm", "fc_norm"),
        *linear("params/head", "head"),
    ])  # fmt: skip


def hugging_face(module: ViT, *, prefix: str | None = None) -> Map:
    """Files of transformers: ViT (DeiT as well), and with LayerScale DINOv2, or with registers.

    prefix: of all names but the classifier's; by default what a model with a classifier writes, or
    none if there is no head. DINOv2's classifier reads the pool "token_mean", and with registers
    the class token has a position there: `class_position=True`. Raises ValueError for a module that
    has no such form.
    """
    dino = module.layer_scale > 0
    if module.pool not in OF_THE_TOKEN or module.pre_norm or (module.registers and not dino):
        raise ValueError("transformers has no such ViT: expected pool 'token' or 'token_mean'")
    if not module.class_position:
        raise ValueError("in transformers the class token has a position: class_position=True")
    if prefix is None:
        name = "dinov2_with_registers" if module.registers else "dinov2" if dino else "vit"
        prefix = f"{name}." if module.num_classes else ""
    layer = f"{prefix}encoder.layer.{{i}}"
    return Map(
        [
            Rule("params/cls_token", f"{prefix}embeddings.cls_token"),
            Rule("params/reg_token", f"{prefix}embeddings.register_tokens"),
            Rule("params/pos_embed", f"{prefix}embeddings.position_embeddings"),
            *conv(
                "params/patch_embed", f"{prefix}embeddings.patch_embeddings.projection", bias=True
            ),
            *block(
                "params/block{i}",
                layer,
                norms=("norm1", "norm2") if dino else ("layernorm_before", "layernorm_after"),
                qkv=tuple(f"attention.attention.{one}." for one in QUERY_KEY_VALUE),
                proj="attention.output.dense",
                mlp=("mlp.fc1", "mlp.fc2") if dino else ("intermediate.dense", "output.dense"),
            ),
            Rule("params/block{i}/ls1/gamma", f"{layer}.layer_scale1.lambda1"),
            Rule("params/block{i}/ls2/gamma", f"{layer}.layer_scale2.lambda1"),
            *norm("params/norm", f"{prefix}layernorm"),
            *linear("params/head", "classifier"),
        ],
        # What is masked in pretraining, and a layer that only a model without a head has.
        ignored=(r".*\.?mask_token", r"(.*\.)?pooler\.dense\.(weight|bias)"),
    )


def vision_transformer(module: ViT, *, prefix: str = "") -> Map:
    """.npz files of google-research/vision_transformer, AugReg's among them."""
    return _google(module, prefix, "Transformer/posembed_input/", (0, 1, 2, 3))


def big_vision(module: ViT, *, prefix: str = "params/") -> Map:
    """.npz files of big_vision: pool "norm_gap", or "token" with `class_position=False`."""
    return _google(module, prefix, "", (0, 0, 1, 0))


def _google(module: ViT, prefix: str, posembed: str, numbers: tuple[int, int, int, int]) -> Map:
    """numbers: of the first norm, attention, second norm and MLP in a block's names."""
    first, attention, second, mlp = numbers
    ours, theirs = "params/block{i}", f"{prefix}Transformer/encoderblock_{{i}}"
    attends = f"{theirs}/MultiHeadDotProductAttention_{attention}"
    qkv, out = f"{ours}/attn/qkv", f"{attends}/out"
    parts = [f"{attends}/{one}" for one in QUERY_KEY_VALUE]
    first_axis, second_axis = (_heads(module.num_heads, axis) for axis in (0, 1))
    rows = [
        Rule("params/cls_token", f"{prefix}cls"),
        Rule("params/pos_embed", f"{prefix}{posembed}pos_embedding"),
        *_same("params/patch_embed", f"{prefix}embedding"),
        *_same(f"{ours}/norm1", f"{theirs}/LayerNorm_{first}", "scale"),
        *_same(f"{ours}/norm2", f"{theirs}/LayerNorm_{second}", "scale"),
        Rule(f"{qkv}/kernel", [f"{part}/kernel" for part in parts], second_axis),
        Rule(f"{qkv}/bias", [f"{part}/bias" for part in parts], first_axis),
        Rule(f"{ours}/attn/proj/kernel", f"{out}/kernel", first_axis),
        Rule(f"{ours}/attn/proj/bias", f"{out}/bias"),
        *_same(f"{ours}/mlp/fc1", f"{theirs}/MlpBlock_{mlp}/Dense_0"),
        *_same(f"{ours}/mlp/fc2", f"{theirs}/MlpBlock_{mlp}/Dense_1"),
        *_same("params/norm", f"{prefix}Transformer/encoder_norm", "scale"),
        *_same("params/head", f"{prefix}head"),
    ]
    return Map(rows, ignored=())


def _same(ours: str, theirs: str, leaf: str = "kernel") -> list[Rule]:
    return [Rule(f"{ours}/{one}", f"{theirs}/{one}") for one in (leaf, "bias")]


def _heads(count: int, axis: int) -> Layout:
    """[… heads d/heads …] ↔ [… d …], the heads at `axis`."""

    def joined(x: np.ndarray) -> np.ndarray:
        if x.shape[axis] != count:
            raise ValueError(f"{x.shape[axis]} heads; expected {count}")
        return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])

    def split(x: np.ndarray) -> np.ndarray:
        return x.reshape(*x.shape[:axis], count, -1, *x.shape[axis + 1 :])

    return Layout(joined, split)
