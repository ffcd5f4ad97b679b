"""Names of BiT ResNets' weights: timm's, Hugging Face's and those of Google's .npz files."""

from noisy_fm.models.resnetv2 import ResNetV2
from noisy_fm.weights.rules import PIXEL, Layout, Map, Rule, conv, linear, norm

CENTRE = Layout(lambda x: x[0, 0], lambda x: x[None, None])  # [1 1 in out] ↔ [in out]


def timm(module: ResNetV2) -> Map:
    block, there = "params/layer{i}/block{j}", "stages.{i-1}.blocks.{j}"
    return Map([
        *conv("params/stem", "stem.conv"),
        *norm(f"{block}/norm{{k}}", f"{there}.norm{{k}}"),
        *conv(f"{block}/conv{{k}}", f"{there}.conv{{k}}"),
        *conv(f"{block}/downsample", f"{there}.downsample.conv"),
        *norm("params/norm", "norm"),
        Rule("params/head/kernel", "head.fc.weight", PIXEL),
        Rule("params/head/bias", "head.fc.bias"),
    ])  # fmt: skip


def hugging_face(module: ResNetV2) -> Map:
    block, there = "params/layer{i}/block{j}", "bit.encoder.stages.{i-1}.layers.{j}"
    return Map([
        *conv("params/stem", "bit.embedder.convolution"),
        *norm(f"{block}/norm{{k}}", f"{there}.norm{{k}}"),
        *conv(f"{block}/conv{{k}}", f"{there}.conv{{k}}"),
        *conv(f"{block}/downsample", f"{there}.downsample.conv"),
        *norm("params/norm", "bit.norm"),
        *linear("params/head", "classifier.1"),
    ])  # fmt: skip


def bit_npz(module: ResNetV2) -> Map:
    """Kernels lie there as here; units are counted from 1 in two digits, layers by a, b, c."""
    rows = [Rule("params/stem/kernel", "resnet/root_block/standardized_conv2d/kernel")]
    block, there = "params/layer{i}/block{j}", "resnet/block{i}/unit{j+1:02}"
    for k, letter in enumerate("abc", 1):
        inner = f"{there}/{letter}"
        rows += [
            Rule(f"{block}/conv{k}/kernel", f"{inner}/standardized_conv2d/kernel"),
            Rule(f"{block}/norm{k}/scale", f"{inner}/group_norm/gamma"),
            Rule(f"{block}/norm{k}/bias", f"{inner}/group_norm/beta"),
        ]
    return Map([
        *rows,
        Rule(f"{block}/downsample/kernel", f"{there}/a/proj/standardized_conv2d/kernel"),
        Rule("params/norm/scale", "resnet/group_norm/gamma"),
        Rule("params/norm/bias", "resnet/group_norm/beta"),
        Rule("params/head/kernel", "resnet/head/conv2d/kernel", CENTRE),
        Rule("params/head/bias", "resnet/head/conv2d/bias"),
    ])  # fmt: skip
