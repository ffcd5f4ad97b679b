"""Small vision transformers, Swins and CLIPs: ours, and the same in timm, transformers, open_clip.

`CASES` says what gives the outputs of each; `tools/reference_zoo_transformers.py` freezes those of
the libraries in `references/zoo_transformers.json`.
"""

import tempfile
from functools import partial
from pathlib import Path

import jax
import numpy as np
import zoo
from zoo import Small

from noisy_fm import models
from noisy_fm.models.swin import Swin
from noisy_fm.models.vit import ViT
from noisy_fm.weights import rules
from noisy_fm.weights.maps import clip, swin, vit

FROZEN = Path(__file__).parent / "references" / "zoo_transformers.json"

our_vit = partial(ViT, 10, patch=8, dim=32, depth=2, num_heads=4)
our_swin = partial(Swin, 10, dim=16, depths=(2, 2), num_heads=(2, 4))


def timm_vit(size: int = 32, **fields):
    from timm.models.vision_transformer import VisionTransformer

    shape = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
    return VisionTransformer(size, num_classes=10, **{**shape, **fields})


def timm_swin(size: int, window: int):
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(
        size, num_classes=10, embed_dim=16, depths=(2, 2), num_heads=(2, 4),
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
    # Maps of 8 and 4 places a side in windows of 4: the second is one window, which does not shift.
    "swin": Small(partial(our_swin, window=4), partial(timm_swin, 32, 4), swin.timm, 32),
    # Maps of 7 and 4 in windows of 3: both are padded, and the first is merged with a row of zeros.
    "swin_padded": Small(partial(our_swin, window=3), partial(timm_swin, 28, 3), swin.timm, 28),
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
        image_size=32, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4,
        num_labels=10,
    )  # fmt: skip
    return SwinForImageClassification(config)


our_dinov2 = partial(our_vit, patch=14, layer_scale=1.0, pool="token_mean")
HUGGING_FACE = {
    # Published files say 1e-12: `epsilon=1e-12`.
    "face_vit": Small(our_vit, partial(face_vit, "ViT", 1e-6), vit.hugging_face, 32),
    "face_dinov2": Small(
        our_dinov2, partial(face_vit, "Dinov2", 1e-6, 56, 14), vit.hugging_face, 56
    ),
    "face_dinov2_reg": Small(
        partial(our_dinov2, registers=3),
        partial(face_vit, "Dinov2WithRegisters", 1e-6, 56, 14, num_register_tokens=3),
        vit.hugging_face,
        56,
    ),
    "face_swin": Small(partial(our_swin, window=4), face_swin, swin.hugging_face, 32),
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
TEXT = {"dim": 32, "depth": 1, "num_heads": 4, "context": CONTEXT, "vocabulary": VOCABULARY}
TOKENS = np.array([[38, 5, 9, 39, 0, 0, 0, 0], [38, 39, 7, 7, 7, 7, 7, 7], [38, *range(6), 39]])


our_clip = partial(models.create_clip, embed_dim=EMBED, text=TEXT)
our_clip_resnet = partial(
    our_clip, "clip_resnet50", stage_sizes=(1, 1, 1, 1), width=16, num_heads=8
)
our_clip_vit = partial(our_clip, "clip_vit_b16", dim=32, depth=2, num_heads=4, patch=8)


def open_clip_model(kind: str, vision: dict):
    import open_clip.model

    text = {
        "context_length": CONTEXT, "vocab_size": VOCABULARY, "width": 32, "heads": 4, "layers": 1,
    }  # fmt: skip
    return getattr(open_clip.model, kind)(EMBED, {"image_size": 64, **vision}, text)


def face_clip():
    from transformers import CLIPConfig, CLIPModel

    both = {
        "hidden_size": 32, "intermediate_size": 128, "num_attention_heads": 4,
        "hidden_act": "gelu",
    }  # fmt: skip
    text = both | {
        "vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, "eos_token_id": 39,
        "num_hidden_layers": 1,
    }  # fmt: skip
    vision = both | {"image_size": 64, "patch_size": 8, "num_hidden_layers": 2}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=EMBED))


RESNET = {"layers": [1, 1, 1, 1], "width": 16}
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
    "face_clip": Small(our_clip_vit, face_clip, clip.hugging_face, 64),
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
