"""Vision transformers, Swin and CLIP against timm, transformers and open_clip.

What the parity suite compares with the libraries themselves, the default suite compares with their
outputs in `references/zoo_transformers.json`, which `tools/reference_zoo_transformers.py` writes.
"""

import json
import math
import tempfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from zoo import Small

from noisy_fm import models
from noisy_fm.models.swin import Swin
from noisy_fm.models.vit import ViT, resize_positions
from noisy_fm.weights import rules
from noisy_fm.weights.maps import clip, swin, vit

FROZEN = Path(__file__).parent / "references" / "zoo_transformers.json"

our_vit = partial(ViT, 10, patch=8, dim=32, depth=2, num_heads=4)
our_swin = partial(Swin, 10, dim=16, depths=(2, 2, 1), num_heads=(2, 4, 8))


def timm_vit(size: int = 32, **fields):
    from timm.models.vision_transformer import VisionTransformer

    shape = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
    return VisionTransformer(size, num_classes=10, **{**shape, **fields})


def timm_swin(size: int, window: int):
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(
        size, num_classes=10, embed_dim=16, depths=(2, 2, 1), num_heads=(2, 4, 8),
        window_size=window,
    )  # fmt: skip


def timm_clip_tower():
    import torch

    norm = partial(torch.nn.LayerNorm, eps=1e-5)
    return timm_vit(pre_norm=True, norm_layer=norm, act_layer="quick_gelu")


TIMM = {
    "vit": Small(our_vit, timm_vit, vit.timm, 32),
    "vit_gap": Small(
        partial(our_vit, pool="gap"),
        partial(timm_vit, class_token=False, global_pool="avg"),
        vit.timm,
        32,
    ),
    "vit_norm_gap": Small(
        partial(our_vit, pool="norm_gap"),
        partial(timm_vit, class_token=False, global_pool="avg", fc_norm=False),
        vit.timm,
        32,
    ),
    "deit3": Small(
        partial(our_vit, class_position=False, layer_scale=1e-6),
        partial(timm_vit, no_embed_class=True, init_values=1e-6),
        vit.timm,
        32,
    ),
    "dinov2_reg": Small(
        partial(our_vit, patch=14, class_position=False, layer_scale=1e-5, registers=4),
        partial(timm_vit, 56, patch_size=14, no_embed_class=True, init_values=1e-5, reg_tokens=4),
        vit.timm,
        56,
    ),
    "clip_tower": Small(
        partial(our_vit, pre_norm=True, epsilon=1e-5, activation="quick_gelu"),
        timm_clip_tower,
        vit.timm,
        32,
    ),
    # Maps of 16, 8 and 4 places a side in windows of 4: two stages shift, the last is one window.
    "swin": Small(partial(our_swin, window=4), partial(timm_swin, 64, 4), swin.timm, 64),
    # Maps of 14, 7 and 4 in windows of 3: every map is padded, and one is merged of odd size.
    "swin_padded": Small(partial(our_swin, window=3), partial(timm_swin, 56, 3), swin.timm, 56),
}


def face_vit(kind: str, eps: float, size: int = 32, patch: int = 8, **fields):
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        image_size=size, patch_size=patch, num_labels=10, layer_norm_eps=eps, **fields,
    )  # fmt: skip
    return getattr(transformers, f"{kind}ForImageClassification")(config)


def face_swin():
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(
        image_size=64, embed_dim=16, depths=[2, 2, 1], num_heads=[2, 4, 8], window_size=4,
        num_labels=10,
    )  # fmt: skip
    return SwinForImageClassification(config)


our_dinov2 = partial(our_vit, patch=14, layer_scale=1.0, pool="token_mean")
HUGGING_FACE = {
    # The published files' epsilon is 1e-12.
    "face_vit": Small(
        partial(our_vit, epsilon=1e-12), partial(face_vit, "ViT", 1e-12), vit.hugging_face, 32
    ),
    "face_dinov2": Small(
        our_dinov2, partial(face_vit, "Dinov2", 1e-6, 56, 14), vit.hugging_face, 56
    ),
    "face_dinov2_reg": Small(
        partial(our_dinov2, registers=3),
        partial(face_vit, "Dinov2WithRegisters", 1e-6, 56, 14, num_register_tokens=3),
        vit.hugging_face,
        56,
    ),
    "face_swin": Small(partial(our_swin, window=4), face_swin, swin.hugging_face, 64),
}


def read_by_transformers(model, folder: str):
    """The model anew from a file as it writes it, of drawn arrays; all of whose names it knows."""
    from safetensors.numpy import load_file, save_file

    model.save_pretrained(folder)
    (file,) = Path(folder).glob("*.safetensors")
    state = {name: zoo.drawn(name, value.shape) for name, value in load_file(file).items()}
    save_file(state, file, metadata={"format": "pt"})
    found, said = type(model).from_pretrained(folder, output_loading_info=True)
    assert not any(said[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return found.eval()


def face_outputs(small: Small) -> dict[str, np.ndarray]:
    import torch

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model = read_by_transformers(small.theirs(), folder)
        read = []
        model.classifier.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
        x = torch.from_numpy(zoo.images(small.size).transpose(0, 3, 1, 2).copy())
        return {"logits": model(x).logits.numpy(), "pre_logits": read[0].numpy()}


NPZ = {
    "npz": Small(our_vit, timm_vit, vit.vision_transformer, 32),
    "npz_big_vision": Small(
        TIMM["vit_norm_gap"].ours, TIMM["vit_norm_gap"].theirs, vit.big_vision, 32
    ),
    "npz_big_vision_token": Small(
        partial(our_vit, class_position=False),
        partial(timm_vit, no_embed_class=True),
        vit.big_vision,
        32,
    ),
}


def npz_outputs(small: Small) -> dict[str, np.ndarray]:
    """Of timm's network, from a file that its own reader knows."""
    import torch

    module = small.ours()
    names = zoo.names_and_shapes(module, small.size, small.rules_of(module))
    model = small.theirs().eval()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = f"{folder}/weights.npz"
        np.savez(path, **{name: zoo.drawn(name, shape) for name, shape in names.items()})
        model.load_pretrained(path)
        x = torch.from_numpy(zoo.images(small.size).transpose(0, 3, 1, 2).copy())
        found = model.forward_features(x)
        return {
            "logits": model.forward_head(found).numpy(),
            "pre_logits": model.forward_head(found, pre_logits=True).numpy(),
        }


VOCABULARY, CONTEXT, EMBED = 40, 8, 24
TEXT = {"dim": 32, "depth": 2, "num_heads": 4, "context": CONTEXT, "vocabulary": VOCABULARY}
TOKENS = np.array([[38, 5, 9, 39, 0, 0, 0, 0], [38, 39, 7, 7, 7, 7, 7, 7], [38, *range(6), 39]])


def our_clip(image: str, activation: str = "gelu", **fields):
    text = TEXT | {"activation": activation}
    return models.create_clip(image, embed_dim=EMBED, text=text, **fields)


our_clip_resnet = partial(
    our_clip, "clip_resnet50", stage_sizes=(1, 2, 1, 1), width=16, num_heads=8
)
our_clip_vit = partial(our_clip, "clip_vit_b16", dim=32, depth=2, num_heads=4, patch=8)


def our_clip_quick():
    quick = {"activation": "quick_gelu"}
    tower = {"dim": 32, "depth": 2, "num_heads": 4, "patch": 8}
    return models.create_clip("clip_vit_b16", embed_dim=EMBED, text=TEXT | quick, **tower, **quick)


def open_clip_model(kind: str, vision: dict):
    import open_clip.model

    text = {
        "context_length": CONTEXT, "vocab_size": VOCABULARY, "width": 32, "heads": 4, "layers": 2,
    }  # fmt: skip
    return getattr(open_clip.model, kind)(EMBED, {"image_size": 64, **vision}, text)


def face_clip():
    from transformers import CLIPConfig, CLIPModel

    both = {
        "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }  # fmt: skip
    text = both | {
        "vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, "eos_token_id": 39,
    }  # fmt: skip
    vision = both | {"image_size": 64, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=EMBED))


RESNET = {"layers": [1, 2, 1, 1], "width": 16}
TOWER = {"layers": 2, "width": 32, "head_width": 8, "patch_size": 8}
CLIP = {
    "open_clip_resnet": Small(
        our_clip_resnet, partial(open_clip_model, "CLIP", RESNET), clip.open_clip, 64
    ),
    "open_clip_vit": Small(
        our_clip_vit, partial(open_clip_model, "CLIP", TOWER), clip.open_clip, 64
    ),
    "open_clip_custom": Small(
        our_clip_vit,
        partial(open_clip_model, "CustomTextCLIP", TOWER),
        partial(clip.open_clip, text="text."),
        64,
    ),
    "face_clip": Small(our_clip_quick, face_clip, clip.hugging_face, 64),
}


def both_outputs(small: Small) -> dict[str, np.ndarray]:
    """Of ours, for images and tokens."""
    module, images = small.ours(), zoo.images(small.size)
    table = small.rules_of(module)
    shapes = jax.eval_shape(module.init, jax.random.key(0), images, TOKENS)
    zeros = jax.tree.map(lambda s: np.broadcast_to(np.float32(0), s.shape), shapes)
    state = {n: zoo.drawn(n, v.shape) for n, v in rules.to_theirs(zeros, table).items()}
    variables = rules.to_ours(state, shapes, table)
    back = rules.to_theirs(variables, table)
    assert back.keys() == state.keys()
    for name, value in back.items():
        np.testing.assert_array_equal(value, state[name])
        assert value.shape == state[name].shape
    _, features = jax.jit(module.apply)(variables, images, TOKENS)
    scale = np.exp(variables["params"]["logit_scale"])
    image, text = (np.asarray(features[f"{one}normalized"]) for one in ("", "text/"))
    return {"image": scale * image, "text": text}


def open_clip_outputs(small: Small) -> dict[str, np.ndarray]:
    import torch

    model = small.theirs().eval()
    state = {
        name: torch.from_numpy(zoo.drawn(name, tuple(value.shape)))
        for name, value in model.state_dict().items()
        if value.is_floating_point() and not name.endswith("attn_mask")
    }
    model.load_state_dict(state, strict=False)
    with torch.no_grad():
        x = torch.from_numpy(zoo.images(small.size).transpose(0, 3, 1, 2).copy())
        image, text, scale = (one.numpy() for one in model(x, torch.from_numpy(TOKENS)))
        return {"image": scale * image, "text": text}


def face_clip_outputs(small: Small) -> dict[str, np.ndarray]:
    import torch

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model = read_by_transformers(small.theirs(), folder)
        x = torch.from_numpy(zoo.images(small.size).transpose(0, 3, 1, 2).copy())
        found = model(input_ids=torch.from_numpy(TOKENS), pixel_values=x)
        image, text = found.image_embeds, found.text_embeds
        return {"image": (model.logit_scale.exp() * image).numpy(), "text": text.numpy()}


# name → the small network, what gives ours of it, and what gives the library's
CASES = {
    **{name: (small, zoo.outputs, zoo.reference_outputs) for name, small in TIMM.items()},
    **{name: (small, zoo.outputs, face_outputs) for name, small in HUGGING_FACE.items()},
    **{name: (small, zoo.outputs, npz_outputs) for name, small in NPZ.items()},
    **{name: (small, both_outputs, open_clip_outputs) for name, small in CLIP.items()},
    "face_clip": (CLIP["face_clip"], both_outputs, face_clip_outputs),
}


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_as_frozen(name):
    small, ours, _ = CASES[name]
    zoo.assert_equal(ours(small), json.loads(FROZEN.read_text())[name])


@pytest.mark.parity
@pytest.mark.parametrize("name", CASES)
def test_outputs_are_the_librarys(name):
    small, ours, theirs = CASES[name]
    found, expected = ours(small), theirs(small)
    for one, value in expected.items():
        print(f"{name} {one}: {np.abs(found[one] - value).max():.1e}")
    zoo.assert_equal(found, expected)
    zoo.assert_equal(expected, json.loads(FROZEN.read_text())[name])


# our row → timm's name; the same with 1000 classes, at the size of its images
FULL = {
    "vit_ti16": ("vit_tiny_patch16_224", 224),
    "vit_s32": ("vit_small_patch32_224", 224),
    "vit_s16": ("vit_small_patch16_224", 224),
    "vit_b32": ("vit_base_patch32_224", 224),
    "vit_b16": ("vit_base_patch16_224", 224),
    "vit_b8": ("vit_base_patch8_224", 224),
    "vit_l32": ("vit_large_patch32_224", 224),
    "vit_l16": ("vit_large_patch16_224", 224),
    "vit_l14": ("vit_large_patch14_224", 224),
    "vit_h14": ("vit_huge_patch14_224", 224),
    "deit3_s16": ("deit3_small_patch16_224", 224),
    "deit3_m16": ("deit3_medium_patch16_224", 224),
    "deit3_b16": ("deit3_base_patch16_384", 384),
    "deit3_l16": ("deit3_large_patch16_224", 224),
    "deit3_h14": ("deit3_huge_patch14_224", 224),
    "dinov2_s14": ("vit_small_patch14_dinov2", 518),
    "dinov2_b14": ("vit_base_patch14_dinov2", 518),
    "dinov2_l14": ("vit_large_patch14_dinov2", 518),
    "dinov2_s14_reg": ("vit_small_patch14_reg4_dinov2", 518),
    "dinov2_b14_reg": ("vit_base_patch14_reg4_dinov2", 518),
    "dinov2_l14_reg": ("vit_large_patch14_reg4_dinov2", 518),
    "clip_vit_b32": ("vit_base_patch32_clip_224", 224),
    "clip_vit_b16": ("vit_base_patch16_clip_224", 224),
    "clip_vit_l14": ("vit_large_patch14_clip_224", 224),
    "swin_t": ("swin_tiny_patch4_window7_224", 224),
    "swin_s": ("swin_small_patch4_window7_224", 224),
    "swin_b": ("swin_base_patch4_window7_224", 224),
    "swin_b_384": ("swin_base_patch4_window12_384", 384),
    "swin_l": ("swin_large_patch4_window7_224", 224),
    "swin_l_384": ("swin_large_patch4_window12_384", 384),
}
PUBLISHED = {"swin_l": 196.53, "clip_vit_l14": 304.2, "vit_b16": 86.57}  # millions of parameters


def test_every_row_is_compared_in_full_size():
    rows = {
        name
        for name, row in models.MODELS.items()
        if row.func in (ViT, Swin) and name != "vit_tiny"
    }
    assert rows == FULL.keys()


def full_names(name: str) -> dict[str, tuple]:
    module = models.create(name, 1000)
    table = swin if isinstance(module, Swin) else vit
    return zoo.names_and_shapes(module, FULL[name][1], table.timm(module))


@pytest.mark.parity
@pytest.mark.parametrize("name", FULL)
def test_full_networks_have_timms_names_and_shapes(name):
    import timm
    import torch

    with torch.device("meta"):
        reference = timm.create_model(FULL[name][0], num_classes=1000)
    assert full_names(name) == {k: tuple(v.shape) for k, v in reference.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_many_as_published(name):
    digits = len(str(PUBLISHED[name]).split(".")[1])
    count = sum(map(math.prod, full_names(name).values()))
    assert round(count / 1e6, digits) == PUBLISHED[name]


GRIDS = [((4, 4), (7, 7)), ((7, 7), (4, 4)), ((5, 6), (9, 4)), ((3, 3), (3, 3))]


@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_positions_are_resized_as_by_jax(old, new):
    table = np.random.default_rng(0).normal(size=(1, 2 + old[0] * old[1], 6)).astype(np.float32)
    found = resize_positions(table, old, new, prefix=2)
    np.testing.assert_array_equal(found[:, :2], table[:, :2])
    grid = jnp.asarray(table[0, 2:].reshape(*old, 6))
    expected = jax.image.resize(grid, (*new, 6), "cubic", antialias=True)
    np.testing.assert_allclose(found[0, 2:], expected.reshape(-1, 6), atol=1e-5)
    for antialias in (True, False):
        same = resize_positions(np.ones_like(table), old, new, prefix=2, antialias=antialias)
        np.testing.assert_allclose(same, 1, atol=1e-6)
    with pytest.raises(ValueError, match=r"has \d+ rows; expected 1 and"):
        resize_positions(table, old, new)


@pytest.mark.parity
@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_positions_are_resized_as_by_timm_and_dinov2(old, new):
    import torch
    from timm.layers import resample_abs_pos_embed

    table = np.random.default_rng(0).normal(size=(1, 1 + old[0] * old[1], 6)).astype(np.float32)
    expected = resample_abs_pos_embed(torch.from_numpy(table), list(new), list(old)).numpy()
    np.testing.assert_allclose(resize_positions(table, old, new), expected, atol=1e-5)
    grid = torch.from_numpy(table[:, 1:].reshape(1, *old, 6).transpose(0, 3, 1, 2).copy())
    plain = torch.nn.functional.interpolate(grid, size=new, mode="bicubic", align_corners=False)
    found = resize_positions(table, old, new, antialias=False)[:, 1:].reshape(*new, 6)
    np.testing.assert_allclose(found, plain[0].numpy().transpose(1, 2, 0), atol=1e-5)
