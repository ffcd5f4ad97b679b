"""Convolutional networks beside timm's, torchvision's and Hugging Face's, and their names."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
import zoo_conv
from zoo_conv import CLASSES, SMALLS, STAGES

from noisy_fm import models
from noisy_fm.models.convnext import ConvNeXt
from noisy_fm.models.efficientnet import SYMMETRIC, EfficientNet
from noisy_fm.models.resnet import ResNet
from noisy_fm.models.resnetv2 import ResNetV2
from noisy_fm.weights import rules
from noisy_fm.weights.maps import convnext, efficientnet, resnet, resnetv2

TIMM = {
    ResNet: resnet.timm,
    EfficientNet: efficientnet.timm,
    ConvNeXt: convnext.timm,
    ResNetV2: resnetv2.timm,
}
OWN = ("resnet20", "resnet18_cifar", "resnet10_narrow", "resnet10_half")  # nobody else's
VARIANTS = [name for name, row in models.MODELS.items() if row.func in TIMM and name not in OWN]


@pytest.mark.parametrize("name", SMALLS)
def test_outputs_are_those_of_timm(name):
    zoo.assert_equal(zoo.outputs(SMALLS[name]), zoo.frozen(name))


@pytest.mark.parity
@pytest.mark.parametrize("name", SMALLS)
def test_outputs_are_those_of_timm_itself(name):
    theirs = zoo.reference_outputs(SMALLS[name])
    zoo.assert_equal(zoo.outputs(SMALLS[name]), theirs)
    zoo.assert_equal(zoo.frozen(name), theirs, atol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_has_the_names_and_shapes_of_timm(name):
    import timm
    import torch

    there = {"efficientnet_lite0": "tf_efficientnet_lite0"}.get(name, name)
    with torch.device("meta"):
        theirs = timm.create_model(there)
    module = models.create(name, 1000)
    table = TIMM[type(module)](module)
    assert zoo.names_and_shapes(module, 64, table) == shapes_of(theirs.state_dict())
    # Of norms, and of standardised convolutions: what outputs hardly show.
    epsilons = {layer.eps for layer in theirs.modules() if hasattr(layer, "eps")}
    fixed = {ResNet: {1e-5}, ResNetV2: {1e-5, 1e-8}}
    assert epsilons == fixed.get(type(module)) or epsilons == {module.epsilon}


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "millions"),
    [("tf_efficientnet_b3", 12.23), ("resnetv2_152x2_bit", 236.34), ("convnext_large_mlp", 200.13)],
)
def test_parameters_are_as_many_as_published(name, millions):
    params = zoo.shapes_of(models.create(name, 1000), 64)["params"]
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    assert round(count / 1e6, 2) == millions


def shapes_of(state) -> dict:
    return {k: tuple(v.shape) for k, v in state.items() if not k.endswith("num_batches_tracked")}


def torchvision_efficientnet():
    import torch
    from torchvision.models.efficientnet import EfficientNet as Theirs
    from torchvision.models.efficientnet import MBConvConfig

    settings, width = [], 16
    for spec in STAGES:
        settings.append(
            MBConvConfig(spec.expand, spec.kernel, spec.stride, width, spec.features, spec.blocks)
        )
        width = spec.features
    model = Theirs(settings, 0.0, num_classes=CLASSES, last_channel=40)
    return with_head(model, lambda x: torch.flatten(model.avgpool(x), 1))


def torchvision_convnext():
    from torchvision.models.convnext import CNBlockConfig
    from torchvision.models.convnext import ConvNeXt as Theirs

    settings = [CNBlockConfig(8, 16, 1), CNBlockConfig(16, 32, 2), CNBlockConfig(32, None, 1)]
    model = Theirs(settings, num_classes=CLASSES)
    return with_head(model, lambda x: model.classifier[:2](model.avgpool(x)))


def torchvision_resnet():
    import torch
    import torchvision

    model = torchvision.models.ResNet(
        torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=CLASSES
    )
    trunk = torch.nn.Sequential(*list(model.children())[:-2])
    return with_head(model, lambda x: x.mean((2, 3)), trunk, model.fc)


def with_head(model, pooled, trunk=None, head=None):
    """torchvision's network with timm's two halves of its forward pass."""

    def forward_head(x, pre_logits=False):
        x = pooled(x)
        return x if pre_logits else (head or model.classifier[-1])(x)

    object.__setattr__(model, "forward_features", trunk or model.features)
    object.__setattr__(model, "forward_head", forward_head)
    return model


TORCHVISION = {
    "efficientnet": zoo.Small(
        partial(zoo_conv.effnet, **SYMMETRIC),
        torchvision_efficientnet,
        efficientnet.torchvision,
        30,
    ),
    "convnext": zoo.Small(
        partial(ConvNeXt, CLASSES, (1, 2, 1), width=8),
        torchvision_convnext,
        convnext.torchvision,
        64,
    ),
    "resnet": zoo.Small(
        partial(ResNet, CLASSES, (1, 1, 1, 1), "bottleneck"),
        torchvision_resnet,
        resnet.torchvision,
        40,
    ),
}


@pytest.mark.parity
@pytest.mark.parametrize("name", TORCHVISION)
def test_outputs_are_those_of_torchvision(name):
    small = TORCHVISION[name]
    zoo.assert_equal(zoo.outputs(small), zoo.reference_outputs(small))


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "table"),
    [
        *((f"efficientnet_b{i}", efficientnet.torchvision) for i in range(8)),
        *((f"convnext_{size}", convnext.torchvision) for size in ("tiny", "small", "base")),
        *(("convnext_large", convnext.torchvision), ("wide_resnet101_2", resnet.torchvision)),
    ],
)
def test_names_and_shapes_are_those_of_torchvision(name, table):
    import torch
    import torchvision

    with torch.device("meta"):
        theirs = torchvision.models.get_model(name)
    module = models.create(name, 1000)
    assert zoo.names_and_shapes(module, 64, table(module)) == shapes_of(theirs.state_dict())


def hugging_face_networks() -> dict:
    """{name: (theirs, ours, its map)}, of the same small sizes."""
    import transformers as hf

    widths = {"hidden_sizes": [8, 16], "depths": [1, 2], "num_labels": CLASSES}
    wide = {**widths, "hidden_sizes": [32, 64], "embedding_size": 8}
    bit = {**widths, "hidden_sizes": [128, 256], "embedding_size": 32}
    return {
        "convnext": (
            hf.ConvNextForImageClassification(hf.ConvNextConfig(num_stages=2, **widths)),
            ConvNeXt(CLASSES, (1, 2), width=8),
            convnext.hugging_face,
        ),
        "resnet_basic": (
            hf.ResNetForImageClassification(
                hf.ResNetConfig(embedding_size=8, layer_type="basic", **widths)
            ),
            ResNet(CLASSES, (1, 2), width=8),
            resnet.hugging_face,
        ),
        "resnet_bottleneck": (
            hf.ResNetForImageClassification(hf.ResNetConfig(**wide)),
            ResNet(CLASSES, (1, 2), "bottleneck", width=8),
            resnet.hugging_face,
        ),
        "bit": (
            hf.BitForImageClassification(hf.BitConfig(**bit)),
            ResNetV2(CLASSES, (1, 2), width=32),
            resnetv2.hugging_face,
        ),
    }


@pytest.mark.parity
@pytest.mark.parametrize("name", ["convnext", "resnet_basic", "resnet_bottleneck", "bit"])
def test_saved_weights_of_hugging_face_give_its_outputs(name, tmp_path):
    import torch
    from safetensors.numpy import load_file

    theirs, ours, rules_of = hugging_face_networks()[name]
    theirs.eval()
    with torch.no_grad():
        for path, value in theirs.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.from_numpy(zoo.drawn(path, tuple(value.shape))))
        theirs.save_pretrained(tmp_path)
        x = torch.from_numpy(zoo.images(48).transpose(0, 3, 1, 2).copy())
        expected = {
            "logits": theirs(x).logits.numpy(),
            "pre_logits": theirs.base_model(x).pooler_output.flatten(1).numpy(),
        }
    state, table = load_file(tmp_path / "model.safetensors"), rules_of(ours)
    variables = rules.to_ours(state, zoo.shapes_of(ours, 48), table)
    logits, features = jax.jit(ours.apply)(variables, zoo.images(48))
    zoo.assert_equal({"logits": logits, **features}, expected)
    back = rules.to_theirs(variables, table)
    assert {k: v.shape for k, v in back.items()} == shapes_of(state)
    for path, value in back.items():
        np.testing.assert_array_equal(value, state[path])


@pytest.mark.parity
def test_timm_reads_what_is_named_as_in_googles_files(tmp_path):
    small = SMALLS["resnetv2_bit"]
    module = small.ours()
    table = small.rules_of(module)
    names = zoo.names_and_shapes(module, small.size, table)
    state = {name: zoo.drawn(name, shape) for name, shape in names.items()}
    variables = rules.to_ours(state, zoo.shapes_of(module, small.size), table)
    np.savez(tmp_path / "bit.npz", **rules.to_theirs(variables, resnetv2.bit_npz(module)))
    theirs = small.theirs()
    theirs.load_pretrained(str(tmp_path / "bit.npz"))
    for name, value in theirs.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), state[name])


def test_names_in_googles_files():
    module = ResNetV2(CLASSES, (1, 10), width=32)
    table, shapes = resnetv2.bit_npz(module), zoo.shapes_of(module, 16)
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    there = rules.to_theirs(variables, table)
    unit = "resnet/block2/unit10"
    assert {name: value.shape for name, value in there.items() if name.startswith(unit)} == {
        f"{unit}/a/group_norm/beta": (256,),
        f"{unit}/a/group_norm/gamma": (256,),
        f"{unit}/a/standardized_conv2d/kernel": (1, 1, 256, 64),
        f"{unit}/b/group_norm/beta": (64,),
        f"{unit}/b/group_norm/gamma": (64,),
        f"{unit}/b/standardized_conv2d/kernel": (3, 3, 64, 64),
        f"{unit}/c/group_norm/beta": (64,),
        f"{unit}/c/group_norm/gamma": (64,),
        f"{unit}/c/standardized_conv2d/kernel": (1, 1, 64, 256),
    }
    assert there["resnet/block1/unit01/a/proj/standardized_conv2d/kernel"].shape == (1, 1, 32, 128)
    assert there["resnet/root_block/standardized_conv2d/kernel"].shape == (7, 7, 3, 32)
    assert there["resnet/head/conv2d/kernel"].shape == (1, 1, 256, CLASSES)
    back = rules.to_ours(there, shapes, table)
    assert jax.tree.map(np.shape, back) == jax.tree.map(lambda leaf: leaf.shape, shapes)


TINY = {
    "convnext_tiny": {"width": 4, "stage_sizes": (1, 1), "layer_scale": 1.0},
    "resnetv2_50x1_bit": {"width": 32, "stage_sizes": (1, 1)},
    "tf_efficientnet_b0": {"stages": STAGES[:2], "stem_width": 8, "top_width": 8},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_drop_path_precision_and_rematerialisation(name):
    images = jnp.asarray(zoo.images(16, 8))
    make = partial(models.create, name, 5, **TINY[name])
    variables = jax.jit(make().init)(jax.random.key(0), images)

    def train(module, seed=0):
        def loss(params):
            rngs = {"dropout": jax.random.key(seed)}
            state = {**variables, "params": params}
            out = module.apply(state, images, train=True, mutable=["batch_stats"], rngs=rngs)
            return (out[0][0] ** 2).sum()

        return jax.jit(jax.value_and_grad(loss))(variables["params"])

    plain, dropped = train(make()), [train(make(drop_path=0.5), seed)[0] for seed in (0, 1)]
    assert len({float(plain[0]), *map(float, dropped)}) == 3
    if "efficientnet" not in name:
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4),
            train(make(remat="full")),
            plain,
        )
    exact, _ = jax.jit(make().apply)(variables, images)
    logits, features = jax.jit(make(dtype=jnp.bfloat16).apply)(variables, images)
    assert features["stem"].dtype == jnp.bfloat16
    assert logits.dtype == features["pre_logits"].dtype == jnp.float32
    np.testing.assert_allclose(logits, exact, atol=0.05 * float(jnp.abs(exact).max()))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("name", "overrides", "line"),
    [
        ("tf_efficientnet_b0", {"padding": "valid"}, "unknown padding 'valid'; known: same, symm"),
        ("tf_efficientnet_b0", {"activation": "gelu"}, "unknown activation 'gelu'; .*relu6"),
        ("resnetv2_50x1_bit", {"width": 48}, "width is 48; expected a multiple of 32"),
        ("convnext_tiny", {"drop_path": 1.0}, "drop_path is 1.0; expected a rate"),
        ("convnext_tiny", {"remat": "all"}, "unknown remat 'all'"),
    ],
)
def test_mistakes_are_one_line(name, overrides, line):
    with pytest.raises(ValueError, match=line):
        models.create(name, 10, **overrides)
