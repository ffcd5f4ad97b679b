"""Exports in the libraries that they are for. In the environment of `make test-parity`."""

import json

import exports
import numpy as np
import pytest
from test_export import HEADS, PIXELS, features, ran

from noisy_fm.data import decode, load
from noisy_fm.export import ParityError, export, export_head, network, to_hf, to_onnx, to_timm
from noisy_fm.texts import clip_tokenizer

pytestmark = pytest.mark.parity

VIT, TOWER, TEXT = exports.VIT, exports.TOWER, exports.TEXT
VIT4 = {**VIT, "dim": 32, "num_heads": 4, "depth": 2}
DINO = {**VIT4, "name": "dinov2_s14_reg"}
SWIN = {"name": "swin_t", "dim": 16, "depths": (2, 2), "num_heads": (2, 4), "window": 4}
CONVNEXT = {"name": "convnext_tiny", "stage_sizes": (1, 1, 1, 1), "width": 8}
RESNET = {"name": "resnet18", "stage_sizes": (1, 1, 1, 1)}
RESNET50 = {**RESNET, "name": "resnet50"}
BIT = {"name": "resnetv2_50x1_bit", "stage_sizes": (1, 1), "width": 32}
CLIP_RESNET = {"name": "clip_resnet50", "embed_dim": 16, "stage_sizes": (1, 1, 1, 1), "width": 16,
               "num_heads": 8, "text": TEXT}  # fmt: skip
QUICK = {**TOWER, "activation": "quick_gelu", "text": {**TEXT, "activation": "quick_gelu"}}
# name → (fields, size); of each format those that it has
MODELS = {
    "vit": (VIT4, 16),
    "vit_gap": ({**VIT4, "pool": "gap", "layer_scale": 0.1, "activation": "quick_gelu"}, 16),
    "vit_norm_gap": ({**VIT4, "pool": "norm_gap"}, 16),
    "vit_fixed": ({**VIT4, "position": "sincos2d"}, 16),
    "vit_mean": ({**VIT4, "pool": "token_mean", "layer_scale": 0.1}, 16),
    "deit3": ({**VIT4, "name": "deit3_s16"}, 16),
    "dinov2": ({**VIT4, "name": "dinov2_s14"}, 16),
    "dinov2_reg": (DINO, 16),
    "swin": (SWIN, 32),
    "swin_small_maps": ({**SWIN, "window": 7}, 32),
    "convnext": (CONVNEXT, 64),
    "convnext_mlp": ({**CONVNEXT, "name": "convnext_large_mlp", "head_width": 24}, 64),
    "resnet": (RESNET, 64),
    "resnet_bottleneck": (RESNET50, 64),
    "wide_resnet": ({**RESNET, "name": "wide_resnet50_2"}, 64),
    "resnet_narrow": ({**RESNET, "width": 16}, 64),
    "resnet_cifar": ({"name": "resnet10_narrow", "width": 4}, 16),
    "bit": (BIT, 64),
    "bit_whole": ({"name": "resnetv2_50x1_bit"}, 64),
    "efficientnet": ({"name": "efficientnet_b0"}, 64),
    "tf_efficientnet": ({"name": "tf_efficientnet_b0"}, 64),
    "lite": ({"name": "efficientnet_lite0"}, 64),
    "clip": (TOWER, 16),
    "clip_quick": (QUICK, 16),
    "clip_resnet": (CLIP_RESNET, 64),
}
FORMATS = {
    "timm": (
        *("vit", "vit_gap", "vit_norm_gap", "vit_fixed", "deit3", "dinov2", "dinov2_reg", "swin"),
        *("swin_small_maps", "convnext", "convnext_mlp", "resnet", "resnet_bottleneck"),
        *("wide_resnet", "bit_whole", "efficientnet", "tf_efficientnet", "lite", "clip"),
    ),
    "torchvision": ("convnext", "resnet", "resnet_bottleneck", "wide_resnet", "efficientnet"),
    "hf": (
        *("vit", "vit_fixed", "vit_mean", "deit3_placed", "dinov2", "dinov2_reg", "swin"),
        *("convnext", "resnet", "resnet_bottleneck", "resnet_narrow", "bit", "clip", "clip_quick"),
    ),
    "open_clip": ("clip", "clip_quick", "clip_resnet"),
    "onnx": (
        *("vit", "vit_mean", "dinov2_reg", "swin", "swin_small_maps", "convnext", "resnet_narrow"),
        *("resnet_cifar", "bit", "lite", "tf_efficientnet", "clip", "clip_resnet"),
    ),
}
MODELS["deit3_placed"] = ({**VIT4, "class_position": False}, 16)


@pytest.mark.parametrize(
    ("to", "name"), [(to, name) for to, names in FORMATS.items() for name in names]
)
def test_each_format_gives_the_models_outputs(to, name, tmp_path, monkeypatch):
    """The comparison is the export's own; the lines of its card run, on an image."""
    fields, size = MODELS[name]
    model = exports.made(fields, size=size, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    report = export(model, to, tmp_path / "out", check="required")
    assert report["outputs"].keys() >= set(network.of(model).outputs)
    assert ("text/normalized" in report["outputs"]) == ("text" in fields and to not in
                                                        ("timm", "onnx"))  # fmt: skip
    # BiT's standardised filters amplify rounding.
    tolerance = 1e-4 if name.startswith("bit") else 1e-5
    assert all(one["relative"] < tolerance for one in report["outputs"].values())
    assert to == "onnx" or report["preprocessing"]["levels"] < 1.01
    photo = network.picture(network.photos()[0])
    ran(exports.snippet(tmp_path / "out"), tmp_path / "out", monkeypatch, image=photo)


@pytest.mark.parametrize("pixels", ["uint8", "float32"])
def test_an_onnx_graph_takes_any_batch(pixels, tmp_path):
    model = exports.made(VIT)
    export(model, "onnx", tmp_path / "out", pixels=pixels)
    run = to_onnx.session(tmp_path / "out" / "model.onnx")
    ours = network.reference(network.of(model), PIXELS)
    for count in (5, 2):
        for name, value in run(PIXELS[:count].astype(pixels)).items():
            np.testing.assert_allclose(value, ours[name][:count], atol=1e-5)


@pytest.mark.parametrize("filter", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("to", ["timm", "torchvision", "hf", "open_clip"])
def test_each_format_sees_photographs_alike(to, whole, filter, tmp_path):
    """Within a level; a filter or a crop that a format does not have is refused."""
    fields, size = {"timm": (VIT, 16), "hf": (VIT, 16), "open_clip": (TOWER, 16)}.get(
        to, (CONVNEXT, 64)
    )
    middle = "floor" if to == "hf" else "round"
    shorter = size + (0 if to == "open_clip" else 5 if not whole else 4)
    fit = decode.Fit(size, shorter, whole, filter, middle)
    model = exports.made(fields, size=size, fit=fit, mean=(0.4, 0.5, 0.6))
    if to == "open_clip" and filter == "lanczos":
        with pytest.raises(ValueError, match="open_clip resizes"):
            export(model, to, tmp_path / "out")
        return
    seen = export(model, to, tmp_path / "out")["preprocessing"]
    assert seen["exact"]
    assert seen["levels"] < 1.01


def test_a_crop_a_pixel_aside_is_accepted_if_asked(tmp_path):
    model = exports.made(VIT, fit=decode.Fit(16, 19))
    with pytest.raises(ValueError, match="transformers by 'floor'"):
        export(model, "hf", tmp_path / "out")
    seen = export(model, "hf", tmp_path / "out", nearest=True)["preprocessing"]
    assert seen["levels"] > 10
    assert seen["levels_if_placed_alike"] < 1.01
    assert "some crops begin a pixel beside" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("to", ["timm", "hf"])
def test_a_backbone_without_a_head(to, tmp_path):
    model = exports.made(DINO)
    bare = model.module.clone(num_classes=0)
    params = {k: v for k, v in model.variables["params"].items() if k != "head"}
    model = model._replace(module=bare, variables={"params": params})
    assert export(model, to, tmp_path / "out")["outputs"].keys() == {"pre_logits"}


def test_a_changed_weight_is_found_and_placed(tmp_path, monkeypatch):
    """In the second block: the report would say where, and nothing is left."""
    write = to_timm.weight_files.write

    def other(path, arrays, **more):
        arrays = dict(arrays)
        arrays["blocks.1.mlp.fc1.bias"] = arrays["blocks.1.mlp.fc1.bias"] + np.float32(0.05)
        write(path, arrays, **more)

    monkeypatch.setattr(to_timm.weight_files, "write", other)
    with pytest.raises(ParityError, match="they first differ at block1"):
        export(exports.made(VIT4), "timm", tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("head", HEADS, ids=lambda head: type(head).__name__)
def test_a_head_in_onnx(head, tmp_path):
    x = features()
    head.fit(x, np.arange(60) % 3)
    export_head(head, tmp_path / "out")
    run = to_onnx.session(tmp_path / "out" / "head.onnx")
    for rows in (1, 60):
        given = run(x[:rows])["probabilities"]
        np.testing.assert_allclose(given, head.predict_proba(x[:rows]), atol=1e-6)


def test_a_head_on_top_of_its_backbone(tmp_path):
    model, head = exports.made(VIT), HEADS[2]
    with pytest.raises(ValueError, match="reads 8 features, the model gives 16"):
        export(model, "onnx", tmp_path / "out", head=head.fit(features(), np.arange(60) % 3))
    x = model.features(np.concatenate([PIXELS] * 4))
    head.fit(x, np.arange(20) % 2).save(tmp_path / "head.safetensors")
    report = export(model, "onnx", tmp_path / "out", head=tmp_path / "head.safetensors")
    assert report["outputs"]["probabilities"]["relative"] < 1e-5


def test_the_tokenizer_of_transformers_gives_our_tokens(tmp_path):
    from transformers import AutoTokenizer

    export(exports.made(TOWER), "hf", tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path / "out"))
    texts = [str(one) for one in load("emoji_domains").columns["caption"][:500]]
    texts += ["It's 3 O'CLOCK!!", "héllo wörld 😀", "word " * 200]
    theirs = tokenizer(texts, padding="max_length", truncation=True)["input_ids"]
    for ours, given in zip(clip_tokenizer()(texts), theirs, strict=True):
        end = int(ours.argmax()) + 1
        assert ours[:end].tolist() == given[:end]


def test_transformers_config_names_the_classes(tmp_path):
    model = exports.made(VIT)
    export(model, "hf", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert list(config["id2label"].values()) == list(model.label_names)
    assert to_hf.LIBRARIES[0] == "transformers"
