"""Names of ConvNeXts' weights: timm's, torchvision's and Hugging Face's."""

from noisy_fm.models.convnext import ConvNeXt
from noisy_fm.weights.rules import Layout, Map, Rule, conv, linear, norm

PIXELS = Layout(lambda x: x[:, 0, 0], lambda x: x[:, None, None])  # [c 1 1] ↔ [c]


def timm(module: ConvNeXt) -> Map:
    """Those of `head_width` call their hidden layer head.pre_logits.fc."""
    stage, there = "params/stage{i}", "stages.{i-1}"
    block, inner = f"{stage}/block{{j}}", f"{there}.blocks.{{j}}"
    return Map([
        *conv("params/stem", "stem.0", bias=True),
        *norm("params/stem_norm", "stem.1"),
        *norm(f"{stage}/downsample_norm", f"{there}.downsample.0"),
        *conv(f"{stage}/downsample", f"{there}.downsample.1", bias=True),
        *conv(f"{block}/conv_dw", f"{inner}.conv_dw", bias=True),
        *norm(f"{block}/norm", f"{inner}.norm"),
        *linear(f"{block}/mlp/fc{{k}}", f"{inner}.mlp.fc{{k}}"),
        Rule(f"{block}/layer_scale/gamma", f"{inner}.gamma"),
        *norm("params/norm", "head.norm"),
        *linear("params/pre_logits", "head.pre_logits.fc"),
        *linear("params/head", "head.fc"),
    ])  # fmt: skip


def torchvision(module: ConvNeXt) -> Map:
    rows = [
        *conv("params/stem", "features.0.0", bias=True),
        *norm("params/stem_norm", "features.0.1"),
    ]
    for i in range(1, len(module.stage_sizes) + 1):
        stage, there = f"params/stage{i}", f"features.{2 * i - 2}"
        block, inner = f"{stage}/block{{j}}", f"features.{2 * i - 1}.{{j}}"
        rows += [
            *norm(f"{stage}/downsample_norm", f"{there}.0"),
            *conv(f"{stage}/downsample", f"{there}.1", bias=True),
            *conv(f"{block}/conv_dw", f"{inner}.block.0", bias=True),
            *norm(f"{block}/norm", f"{inner}.block.2"),
            *linear(f"{block}/mlp/fc1", f"{inner}.block.3"),
            *linear(f"{block}/mlp/fc2", f"{inner}.block.5"),
            Rule(f"{block}/layer_scale/gamma", f"{inner}.layer_scale", PIXELS),
        ]
    return Map([
        *rows,
        *norm("params/norm", "classifier.0"),
        *linear("params/head", "classifier.2"),
    ])  # fmt: skip


def hugging_face(module: ConvNeXt) -> Map:
    """Its last norm adds 1e-12 to the variance, by its configuration, not `epsilon`."""
    stage, there = "params/stage{i}", "convnext.encoder.stages.{i-1}"
    block, inner = f"{stage}/block{{j}}", f"{there}.layers.{{j}}"
    return Map([
        *conv("params/stem", "convnext.embeddings.patch_embeddings", bias=True),
        *norm("params/stem_norm", "convnext.embeddings.layernorm"),
        *norm(f"{stage}/downsample_norm", f"{there}.downsampling_layer.0"),
        *conv(f"{stage}/downsample", f"{there}.downsampling_layer.1", bias=True),
        *conv(f"{block}/conv_dw", f"{inner}.dwconv", bias=True),
        *norm(f"{block}/norm", f"{inner}.layernorm"),
        *linear(f"{block}/mlp/fc{{k}}", f"{inner}.pwconv{{k}}"),
        Rule(f"{block}/layer_scale/gamma", f"{inner}.layer_scale_parameter"),
        *norm("params/norm", "convnext.layernorm"),
        *linear("params/head", "classifier"),
    ])  # fmt: skip
