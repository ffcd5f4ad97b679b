"""Swin transformers elsewhere: timm and Hugging Face."""

from noisy_fm.models.swin import Swin
from noisy_fm.weights.maps import vit
from noisy_fm.weights.rules import Map, Rule, conv, linear, norm

BUFFERS = (r".*relative_position_index", r".*attn_mask")  # tables that are computed


def timm(module: Swin) -> Map:
    """timm's `SwinTransformer`, in which maps are merged at the start of a stage."""
    del module  # all fields have rows
    return _named("layers.{i-1}.downsample", "head.fc")


def original(module: Swin) -> Map:
    """The authors' own files, in which maps are merged at the end of a stage."""
    del module
    return _named("layers.{i-2}.downsample", "head")


def _named(merge: str, head: str) -> Map:
    ours, blocks = "params/stage{i}_block{j}", "layers.{i-1}.blocks.{j}"
    rows = [
        *conv("params/patch_embed", "patch_embed.proj", bias=True),
        *norm("params/patch_norm", "patch_embed.norm"),
        *vit.block(ours, blocks),
        Rule(f"{ours}/attn/position_bias", f"{blocks}.attn.relative_position_bias_table"),
        *norm("params/stage{i}_merge/norm", f"{merge}.norm"),
        *linear("params/stage{i}_merge/reduction", f"{merge}.reduction", bias=False),
        *norm("params/norm", "norm"),
        *linear("params/head", head),
    ]
    return Map(rows, ignored=BUFFERS)


def hugging_face(module: Swin, *, prefix: str | None = None) -> Map:
    """Files of transformers. prefix: of all names but the classifier's; none without a head."""
    if prefix is None:
        prefix = "swin." if module.num_classes else ""
    blocks = f"{prefix}encoder.layers.{{i-1}}.blocks.{{j}}"
    merge = f"{prefix}encoder.layers.{{i-2}}.downsample"
    rows = [
        *conv("params/patch_embed", f"{prefix}embeddings.patch_embeddings.projection", bias=True),
        *norm("params/patch_norm", f"{prefix}embeddings.norm"),
        *vit.block(
            "params/stage{i}_block{j}",
            blocks,
            norms=("layernorm_before", "layernorm_after"),
            qkv=tuple(f"attention.self.{one}." for one in vit.QUERY_KEY_VALUE),
            proj="attention.output.dense",
            mlp=("intermediate.dense", "output.dense"),
        ),
        Rule(
            "params/stage{i}_block{j}/attn/position_bias",
            f"{blocks}.attention.self.relative_position_bias_table",
        ),
        *norm("params/stage{i}_merge/norm", f"{merge}.norm"),
        *linear("params/stage{i}_merge/reduction", f"{merge}.reduction", bias=False),
        *norm("params/norm", f"{prefix}layernorm"),
        *linear("params/head", "classifier"),
    ]
    return Map(rows, ignored=BUFFERS)
