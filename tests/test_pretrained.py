"""Models of other libraries by `load_model`: what they compute, how they see, what is refused."""

import json
import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import zoo as small
from PIL import Image
from sklearn.datasets import load_sample_images

from noisy_fm import data, load_model, models, pretrained
from noisy_fm.data import decode
from noisy_fm.features import __main__ as features_command
from noisy_fm.features import extraction, open_store
from noisy_fm.weights import files, lite0, rules, zoo
from noisy_fm.weights.maps import vit

ROW = zoo.Row("vit_tiny", 16, {"pool": "token", "depth": 1, "dim": 16, "num_heads": 2})
OTHER = zoo.Row("vit_tiny", 16, {"pool": "token", "depth": 2, "dim": 16, "num_heads": 2})
CFG = {"input_size": [3, 16, 16], "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3],
       "crop_pct": 0.9, "interpolation": "bilinear"}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder as timm's hub has them, of a network so small that its row is made up."""
    rows = {**zoo.TIMM, "tiny": ROW, "less_tiny": OTHER}
    monkeypatch.setitem(zoo.ROWS, "timm", rows)
    state = state_of(ROW)
    files.write(tmp_path / "m" / "model.safetensors", state)
    config = {"architecture": "tiny", "num_classes": 5, "pretrained_cfg": CFG}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    return tmp_path / "m"


def state_of(row: zoo.Row, size: int = 16) -> dict:
    module = models.create(row.model, 5, **row.fields)
    shapes = small.names_and_shapes(module, size, vit.timm(module))
    return {name: small.drawn(name, shape) for name, shape in shapes.items()}


def photographs(count: int = 3) -> list[np.ndarray]:
    drawn = np.random.default_rng(0)
    return [drawn.integers(0, 256, (20 + 9 * i, 41 - 7 * i, 3), np.uint8) for i in range(count)]


def test_a_folder_of_timm_is_a_model(folder):
    model = load_model(folder)
    assert "5 classes" in repr(model)
    images = photographs()
    views = [decode.view(image, decode.Fit(16, 17, filter="bilinear")) for image in images]
    x = (np.stack(views) / 255 - CFG["mean"]) / CFG["std"]
    module = models.create(ROW.model, 5, **ROW.fields)
    shapes = small.shapes_of(module, 16)
    variables = rules.to_ours(state_of(ROW), shapes, vit.timm(module))
    logits, features = module.apply(variables, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(model.features(images), features["pre_logits"], atol=1e-5)
    np.testing.assert_allclose(model.predict(images), jax.nn.softmax(logits), atol=1e-5)
    older = load_model(folder, rounding="ceil")  # 16 / 0.9 is 17.8
    assert older.preprocess.fit == decode.Fit(16, 18, filter="bilinear")
    assert load_model("timm/tiny.x", path=folder).meta["weights"] == model.meta["weights"]
    assert model.meta["source"] == {
        "name": str(folder), "library": "timm", "file": str(folder / "model.safetensors")
    }  # fmt: skip


def test_heads_are_kept_or_dropped_and_positions_resized(folder):
    whole, images = load_model(folder), photographs()
    bare = load_model(folder, head="drop")
    np.testing.assert_array_equal(bare.features(images), whole.features(images))
    assert bare.label_names == ()
    with pytest.raises(ValueError, match="the model has no classifier"):
        bare.predict(images)
    larger = load_model(folder, size=24)
    assert larger.preprocess.size == 24
    assert larger.variables["params"]["pos_embed"].shape == (1, 37, 16)
    assert larger.features(images).shape == (3, 16)
    assert load_model(folder, head="drop", size=24).meta["weights"] != larger.meta["weights"]
    with pytest.raises(ValueError, match="size is 22; expected a multiple of the patch size 4"):
        load_model(folder, size=22)


def test_narrow_weights_are_used_in_float32_and_said(folder, capsys):
    narrow = {name: value.astype(ml_dtypes.bfloat16) for name, value in state_of(ROW).items()}
    files.write(folder / "model.safetensors", narrow)
    model = load_model(folder)
    assert "model.safetensors: bfloat16 weights, used in float32" in capsys.readouterr().out
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(model.variables))


def changed(state: dict, **changes) -> dict:
    return {**state, **{name.replace("__", "."): value for name, value in changes.items()}}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (state_of(OTHER), r"12 of no use: blocks\.1.*; it is timm's less_tiny"),
        (changed(state_of(ROW), norm__bias=np.full(16, np.nan, "f4")),
         "1 arrays hold NaN or infinity, as params/norm/bias"),
        (changed(state_of(ROW), norm__bias=np.zeros(16, "i4")),
         r"1 no floats: norm\.bias \(int32\)"),
        ({k: v for k, v in state_of(ROW).items() if k != "norm.bias"}, "1 missing: norm.bias"),
        (changed(state_of(ROW), head__weight=np.zeros((4, 16), "f4")), "1 of another shape: head"),
        (changed(state_of(ROW), pos_embed=np.zeros((1, 16, 16), "f4")), "are no square of patches"),
    ],
)  # fmt: skip
def test_files_of_another_network_are_refused(folder, state, message):
    files.write(folder / "model.safetensors", state)
    with pytest.raises(ValueError, match=message) as error:
        load_model(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "tinny"}, "unknown model of timm 'tinny'; did you mean 'tiny'"),
        ({"pretrained_cfg": {**CFG, "crop_mode": "border"}}, "unknown .*crop_mode 'border'"),
        ({"pretrained_cfg": {**CFG, "interpolation": "area"}}, "unknown filter 'area'"),
        ({"pretrained_cfg": {"mean": 0}}, r"has no pretrained_cfg\.input_size"),
        ({"pretrained_cfg": {**CFG, "mean": [123.0, 116.0, 103.0]}}, "mean is .*three numbers, of"),
        ({"pretrained_cfg": {**CFG, "std": [0.0, 0.0, 0.0]}}, "std is .*three numbers, of"),
        ({"pretrained_cfg": {**CFG, "mean": [0.5, 0.5]}}, "mean is .*three numbers, of"),
        ({"pretrained_cfg": {**CFG, "input_size": [1, 16, 16]}}, "input_size is .*3, pixels"),
        ({"pretrained_cfg": {**CFG, "input_size": [3, 16, 24]}}, "input_size is .*3, pixels"),
        ({"pretrained_cfg": None}, "is not as expected"),
        ({"label_names": [1, 2, 3, 4, 5]}, "expected a text for each"),
        ({"model_args": {"depth": 3}}, r"model_args\.depth is 3, which is not read"),
        ({"num_classes": 7}, "has 5 classes, its config 7"),
    ],
)
def test_configs_that_are_not_ours_are_refused(folder, change, message):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ValueError, match=message):
        load_model(folder)


@pytest.mark.slow
def test_sizes_tell_networks_apart():
    """`weights/sizes.json` is what `tools/reference_sizes.py` counts."""
    sizes = json.loads(pretrained.SIZES.read_text())
    assert sizes.keys() == {f"{lib}/{n}" for lib in ("timm", "torchvision") for n in zoo.ROWS[lib]}
    for name in ("timm/vit_tiny_patch16_384", "timm/tf_efficientnet_b1", "torchvision/resnet18"):
        library, architecture = name.split("/")
        row = zoo.row(library, architecture)
        module = models.create(row.model, 1, **row.fields)
        table = zoo.table(library, module)
        shapes = zoo.names_and_shapes(module, row.size, table)
        body = [s for n, s in shapes.items() if n not in pretrained.head_names(table)]
        assert sizes[name] == [len(body), sum(map(math.prod, body))]


def test_what_is_nowhere_is_one_line(tmp_path, folder):
    alone = tmp_path / "alone" / "model.safetensors"
    files.write(alone, state_of(ROW))
    with pytest.raises(FileNotFoundError, match="is not a run's folder"):
        load_model(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_model("timm/resnet50.a1_in1k", path=tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match=r"how timm/resnet50\.x sees images is not known"):
        load_model("timm/resnet50.x", path=alone)
    with pytest.raises(ValueError, match="holds timm's vit_tiny, not timm/resnet50"):
        load_model("timm/resnet50.a1_in1k", path=folder)
    with pytest.raises(ValueError, match="torchvision/resnet50 needs path"):
        load_model("torchvision/resnet50")
    with pytest.raises(ValueError, match=r"how open_clip/ViT-B-16 sees images is not known"):
        load_model("open_clip/ViT-B-16", path=alone)
    for wrong in (0, -16, 16.0, True):
        with pytest.raises(ValueError, match="expected pixels a side, 1 or more"):
            load_model(folder, size=wrong)
    with pytest.raises(ValueError, match="unknown rounding 'up'"):
        load_model(folder, rounding="up")
    with pytest.raises(ValueError, match="is no run, and has no step"):
        load_model(folder, step=3)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"is not a run's folder|has no config\.json"):
        load_model(folder)


def test_lite0_is_a_model_like_any_other():
    images = load_sample_images().images
    model = load_model("lite_pytorch/efficientnet_lite0", path=lite0.packaged_weights())
    named = [model.label_names[i] for i in model.predict(images).argmax(1)]
    assert named == ["palace", "daisy"]
    module, variables = lite0.load_lite0()
    _, features = module.apply(variables, model.preprocess(images))
    np.testing.assert_allclose(model.features(images), features["pre_logits"], atol=1e-4)


def test_a_store_is_of_one_preprocessing(folder, tmp_path):
    source = data.load("digits", split="test").select(np.arange(5))
    extraction.extract(load_model(folder), source, tmp_path / "store", data={})
    with pytest.raises(ValueError, match="preprocess"):
        extraction.extract(load_model(folder, rounding="ceil"), source, tmp_path / "store", data={})


def test_features_of_a_folder_by_the_command(folder, tmp_path, capsys):
    for i, image in enumerate(photographs(4)):
        place = tmp_path / "images" / f"class{i % 2}" / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place)
    features_command.main([
        f"--model={folder}", "--data=folder", f"--data.path={tmp_path / 'images'}",
        f"--out={tmp_path / 'store'}",
    ])  # fmt: skip
    store = open_store(tmp_path / "store")
    files_there = sorted((tmp_path / "images").rglob("*.png"))
    expected = load_model(folder).features([np.asarray(Image.open(p)) for p in files_there])
    np.testing.assert_allclose(np.sort(store.features, 0), np.sort(expected, 0), atol=1e-5)


# What the libraries themselves make of the same files and images.


def resized(images, size=64):
    return [np.asarray(Image.fromarray(image).resize((size, 3 * size // 4))) for image in images]


@pytest.mark.parity
@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize("filter", ["bicubic", "bilinear", "lanczos"])
def test_images_are_seen_as_timm_sees_them(filter, mode):
    from timm.data import create_transform

    mean, std = zoo.IMAGENET["mean"], zoo.IMAGENET["std"]
    for size, share in ((224, 0.9), (100, 0.875), (64, 1.0)):
        theirs = create_transform(
            size, interpolation=filter, crop_pct=share, crop_mode=mode, mean=mean, std=std
        )
        fit = decode.fitted(size, share, whole=mode == "squash", filter=filter)
        for image in load_sample_images().images:
            expected = theirs(Image.fromarray(image)).numpy().transpose(1, 2, 0)
            expected = (expected * std + np.asarray(mean)) * 255
            assert np.abs(decode.view(image, fit) - expected).max() < 0.01


@pytest.mark.parity
def test_known_tags_are_timms_and_torchvisions():
    import timm
    import torchvision

    of_timm = {n.removeprefix("timm/"): i for n, i in zoo.IMAGES.items() if n.startswith("timm/")}
    assert len(of_timm) > 15
    for name, ours in of_timm.items():
        theirs = timm.get_pretrained_cfg(name)
        assert theirs is not None, name
        found = (theirs.input_size[1], theirs.crop_pct, theirs.interpolation)
        assert found == ours[:3], name
        assert (theirs.mean, theirs.std) == tuple(ours.norm.values()), name
    assert {n for n in zoo.TIMM if not timm.is_model(n)} == set()
    for name in zoo.TORCHVISION:
        for weights in torchvision.models.get_model_weights(name):
            seen = weights.transforms()
            ours = zoo.IMAGES[f"torchvision/{name}.{weights.name}"]
            fit = decode.fitted(ours.size, ours.crop_fraction, filter=ours.filter)
            found = (seen.crop_size[0], seen.resize_size[0], False, seen.interpolation.value)
            assert fit[:4] == found, name
            assert (tuple(seen.mean), tuple(seen.std)) == tuple(ours.norm.values())


@pytest.mark.parity
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18"])
def test_folders_that_timm_writes_are_read(tmp_path, name):
    import timm
    import torch
    from timm.models import save_for_hf

    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=7).eval()
    save_for_hf(theirs, tmp_path)
    model = load_model(tmp_path)
    assert len(model.label_names) == 7
    images = load_sample_images().images
    x = torch.from_numpy(np.array(model.preprocess(images)).transpose(0, 3, 1, 2).copy())
    expected = theirs(x).softmax(-1).detach().numpy()
    np.testing.assert_allclose(model.predict(images), expected, atol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18", "tf_efficientnet_b0"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth", "legacy.pth"])
def test_timms_own_files_compute_the_same(tmp_path, name, suffix):
    import timm
    import torch

    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=7).eval()
    path = tmp_path / f"model{suffix}"
    if suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(theirs.state_dict(), path)
    else:
        kept = {
            "state_dict": {f"module.{k}": v for k, v in theirs.state_dict().items()},
            "epoch": 3,
        }
        torch.save(kept, path, _use_new_zipfile_serialization=suffix == ".pth")
    cfg = {"input_size": [3, 224, 224], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.9}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": name, "pretrained_cfg": cfg}))
    model = load_model(tmp_path)
    images = load_sample_images().images
    x = torch.from_numpy(np.array(model.preprocess(images)).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        features = theirs.forward_features(x)
        expected = theirs.forward_head(features, pre_logits=True).numpy()
        logits = theirs(x).softmax(-1).numpy()
    np.testing.assert_allclose(model.features(images), expected, atol=1e-4)
    np.testing.assert_allclose(model.predict(images), logits, atol=1e-5)


def hugging_face():
    """{name: (a small model, its image processor, size)}"""
    import transformers as hf

    wide = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    wide |= {"intermediate_size": 64, "image_size": 28, "patch_size": 14, "num_labels": 3}
    stages = {"depths": [1, 2], "hidden_sizes": [16, 32], "num_labels": 3}
    norm = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.3, 0.2, 0.25]}
    cropped = {"size": {"shortest_edge": 32}, "crop_size": 28, "resample": 3, **norm}
    larger = {**cropped, "crop_size": 42, "size": {"shortest_edge": 48}}
    return {
        "vit": (hf.ViTForImageClassification(hf.ViTConfig(**wide)),
                hf.ViTImageProcessor(size={"height": 28, "width": 28}, **norm)),
        "vit_bare": (hf.ViTModel(hf.ViTConfig(**wide), add_pooling_layer=False),
                     hf.ViTImageProcessor(size={"height": 42, "width": 42}, **norm)),
        "dinov2": (hf.Dinov2Model(hf.Dinov2Config(**wide)),
                   hf.BitImageProcessor(**larger)),
        "dinov2_reg": (hf.Dinov2WithRegistersForImageClassification(
            hf.Dinov2WithRegistersConfig(**wide)), hf.BitImageProcessor(**cropped)),
        "swin": (hf.SwinForImageClassification(hf.SwinConfig(
            image_size=32, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4],
            window_size=4, num_labels=3)),
            hf.ViTImageProcessor(size={"height": 32, "width": 32}, **norm)),
        "convnext": (hf.ConvNextForImageClassification(hf.ConvNextConfig(num_stages=2, **stages)),
                     hf.ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.8, **norm)),
        "resnet": (hf.ResNetForImageClassification(
            hf.ResNetConfig(embedding_size=16, layer_type="basic", **stages)),
            hf.ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.9, **norm)),
    }  # fmt: skip


@pytest.mark.parity
@pytest.mark.parametrize("name", ["vit", "vit_bare", "dinov2", "dinov2_reg", "swin", "convnext",
                                  "resnet"])  # fmt: skip
def test_folders_of_hugging_face_compute_the_same(tmp_path, name):
    import torch

    torch.manual_seed(0)
    theirs, processor = hugging_face()[name]
    with torch.no_grad():
        for key, value in theirs.state_dict().items():
            if value.is_floating_point() and "running" not in key:
                value.copy_(torch.from_numpy(small.drawn(key, tuple(value.shape))))
    theirs.eval().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    images = [np.asarray(image) for image in resized(load_sample_images().images)]
    ours = np.array(model.preprocess(images))
    seen = np.stack([np.asarray(processor(Image.fromarray(image))["pixel_values"][0])
                     for image in images]).transpose(0, 2, 3, 1)  # fmt: skip
    assert ours.shape == seen.shape
    levels = np.abs(ours - seen) * np.asarray(processor.image_std) * 255
    assert levels.max() < 1.6  # theirs resizes tensors, and rounds on the way
    kept = {"interpolate_pos_encoding": True} if name == "vit_bare" else {}
    with torch.no_grad():
        out = theirs(torch.from_numpy(ours.transpose(0, 3, 1, 2).copy()), **kept)
    if hasattr(out, "logits"):
        expected = out.logits.softmax(-1).numpy()
        np.testing.assert_allclose(model.predict(images), expected, atol=1e-4)
    else:
        expected = out.last_hidden_state[:, 0].numpy()
        np.testing.assert_allclose(model.features(images), expected, atol=1e-4)


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["hf", "open_clip"])
def test_clips_of_others_know_texts(tmp_path, kind):
    import torch

    texts = ["a cat", "two dogs in the snow"]
    torch.manual_seed(0)
    if kind == "hf":
        import transformers as hf

        tower = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
                 "intermediate_size": 128, "hidden_act": "quick_gelu"}  # fmt: skip
        config = hf.CLIPConfig(
            vision_config={**tower, "image_size": 32, "patch_size": 16},
            text_config={**tower, "eos_token_id": 49407}, projection_dim=24,
        )  # fmt: skip
        theirs = hf.CLIPModel(config).eval()
        theirs.save_pretrained(tmp_path)
        hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(tmp_path)
    else:
        import open_clip
        from safetensors.torch import save_file

        cfg = {"embed_dim": 24, "quick_gelu": True,
               "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16},
               "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2,
                            "layers": 2}}  # fmt: skip
        theirs = open_clip.model.CLIP(**cfg).eval()
        save_file(theirs.state_dict(), tmp_path / "open_clip_model.safetensors")
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": cfg}))
    model = load_model(tmp_path)
    images = load_sample_images().images
    x = torch.from_numpy(np.array(model.preprocess(images)).transpose(0, 3, 1, 2).copy())
    from noisy_fm.texts import clip_tokenizer

    tokens = torch.from_numpy(clip_tokenizer()(texts)).long()
    with torch.no_grad():
        if kind == "hf":
            out = theirs(input_ids=tokens, pixel_values=x)
            image, text = out.image_embeds, out.text_embeds
        else:
            image = theirs.encode_image(x, normalize=True)
            text = theirs.encode_text(tokens, normalize=True)
    np.testing.assert_allclose(model.features(images, feature="normalized"), image, atol=1e-4)
    np.testing.assert_allclose(model.encode_texts(texts), text, atol=1e-4)
