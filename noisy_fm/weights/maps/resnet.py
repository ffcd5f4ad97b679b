"""Names of ResNets' weights: timm's and torchvision's, which are the same, and Hugging Face's."""

from noisy_fm.models.resnet import ResNet
from noisy_fm.weights.rules import Map, batch_norm, conv, linear


def timm(module: ResNet) -> Map:
    block, there = "layer{i}/block{j}", "layer{i}.{j}"
    return Map([
        *conv("params/stem/conv", "conv1"),
        *batch_norm("stem/norm", "bn1"),
        *conv(f"params/{block}/conv{{k}}", f"{there}.conv{{k}}"),
        *batch_norm(f"{block}/norm{{k}}", f"{there}.bn{{k}}"),
        *conv(f"params/{block}/downsample/conv", f"{there}.downsample.0"),
        *batch_norm(f"{block}/downsample/norm", f"{there}.downsample.1"),
        *linear("params/head", "fc"),
    ])  # fmt: skip


torchvision = timm


def hugging_face(module: ResNet) -> Map:
    block, there = "layer{i}/block{j}", "resnet.encoder.stages.{i-1}.layers.{j}"
    stem = "resnet.embedder.embedder"
    return Map([
        *conv("params/stem/conv", f"{stem}.convolution"),
        *batch_norm("stem/norm", f"{stem}.normalization"),
        *conv(f"params/{block}/conv{{k}}", f"{there}.layer.{{k-1}}.convolution"),
        *batch_norm(f"{block}/norm{{k}}", f"{there}.layer.{{k-1}}.normalization"),
        *conv(f"params/{block}/downsample/conv", f"{there}.shortcut.convolution"),
        *batch_norm(f"{block}/downsample/norm", f"{there}.shortcut.normalization"),
        *linear("params/head", "classifier.1"),
    ])  # fmt: skip
