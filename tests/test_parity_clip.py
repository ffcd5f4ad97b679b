"""CLIP against open_clip itself: towers, tokens, loss. In the environment of `make test-parity`."""

import html
import unicodedata

import numpy as np
import pytest

from noisy_fm.data import load
from noisy_fm.texts import clip_tokenizer
from noisy_fm.weights import rules
from noisy_fm.weights.maps import clip

pytestmark = pytest.mark.parity


def texts() -> list[str]:
    """Real and hard strings: names, entities, every script, broken encodings, long and empty."""
    names = [str(one) for one in load("emoji_domains").columns["caption"]]
    characters = [chr(i) for i in range(0x20, 0x3000)] + [chr(i) for i in range(0x1F300, 0x1FAFF)]
    named = [unicodedata.name(one, "") for one in characters[::7]]
    inside = [f"It's a{one}b {one}{one}'LL 4{one}2" for one in characters if one.isprintable()]
    entities = [f"a &{name} b" for name in html.entities.html5]
    broken = [one.encode().decode("latin-1") for one in ("naïve café", "«été»", "日本語", "😀 ok")]
    drawn = np.random.default_rng(0)
    # The two libraries' Unicode tables are of different years.
    old = [chr(i) for i in range(1, 0xD800) if unicodedata.category(chr(i)) != "Cn"]
    wild = ["".join(drawn.choice(old, 30)) for _ in range(500)]
    ascii_ = ["".join(map(chr, drawn.integers(1, 128, 40))) for _ in range(500)]
    special = ["<end_of_text> a", "!<start_of_text>b", "<END_OF_TEXT>x", "<end_of_text", "'ſ K Å ﬁ"]
    long = ["word " * 200, "x" * 3000, "1 2 3 " * 60, "é" * 300]
    empty = ["", " ", "\n\t", "\u200b", "&nbsp;", "\ufeff", "\x00"]
    return [*names, *named, *inside, *entities, *broken, *wild, *ascii_, *special, *long, *empty]


def test_tokens_are_open_clips():
    import torch
    from open_clip import tokenizer as reference

    given = texts()
    ours, theirs = clip_tokenizer()(given), reference.tokenize(given).numpy()
    wrong = np.flatnonzero((ours != theirs).any(1))
    assert not len(wrong), [(given[i], ours[i], theirs[i]) for i in wrong[:3]]
    assert len(given) > 15_000
    for row in ours[:2000:7]:
        inner = torch.tensor(row[1 : list(row).index(49407)], dtype=torch.long)
        assert clip_tokenizer().decode(row) == reference.decode(inner)
    np.testing.assert_array_equal(
        clip_tokenizer(16)(given), reference.tokenize(given, context_length=16).numpy()
    )


SMALL_TEXT = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2}
TOWERS = {
    "clip_resnet50": {"layers": [1, 2, 1, 1], "width": 16, "image_size": 64},
    "clip_vit_b16": {
        "layers": 2,
        "width": 64,
        "head_width": 16,
        "patch_size": 16,
        "image_size": 64,
    },
}
OURS = {
    "clip_resnet50": {"stage_sizes": (1, 2, 1, 1), "width": 16, "num_heads": 8},
    "clip_vit_b16": {"dim": 64, "depth": 2, "num_heads": 4},
}


def reference_model(name: str, quick_gelu: bool = False):
    """open_clip's model of a small width, every parameter and statistic of it random."""
    import torch
    from open_clip.model import CLIP

    torch.manual_seed(0)
    model = CLIP(48, TOWERS[name], SMALL_TEXT, quick_gelu=quick_gelu).eval()
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if not value.is_floating_point() or key == "attn_mask" or value.ndim == 0:
                continue
            noise = torch.randn_like(value)
            if key.endswith("running_var"):
                value.copy_(0.5 + torch.rand_like(value))
            elif value.ndim == 1 and key.endswith("weight"):
                value.copy_(1 + 0.2 * noise)
            else:
                scale = 0.2 if value.ndim == 1 or "embedding" in key else value[0].numel() ** -0.5
                value.copy_(scale * noise)
    return model


def arrays(state) -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in state.items()}


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", TOWERS)
def test_towers_are_open_clips(name, quick):
    import jax
    import jax.numpy as jnp
    import torch

    from noisy_fm import models

    reference = reference_model(name, quick_gelu=quick and "vit" in name)
    text = {"dim": 32, "depth": 2, "num_heads": 4, "context": 24}
    quickly = {"activation": "quick_gelu"} if quick else {}
    image = quickly if "vit" in name else {}
    if "vit" not in name and quick:
        pytest.skip("its image tower has ReLU; the text tower is tested beside the ViT")
    ours = models.create_clip(name, embed_dim=48, text={**text, **quickly}, **OURS[name], **image)
    drawn = np.random.default_rng(1)
    images = drawn.normal(size=(5, 64, 64, 3)).astype(np.float32)
    tokens = clip_tokenizer(24)(["a cat", "", "two dogs, and a very long " * 9, "été", "x"])
    shapes = jax.eval_shape(lambda: ours.init(jax.random.key(0), images, tokens))
    state = arrays(reference.state_dict())
    variables = rules.to_ours(state, shapes, clip.open_clip(ours))
    counted = sum(p.numel() for p in reference.parameters())
    assert sum(np.size(x) for x in jax.tree.leaves(variables["params"])) == counted
    with jax.default_matmul_precision("highest"):
        _, features = ours.apply(variables, images, jnp.asarray(tokens))
        scale = float(jnp.exp(variables["params"]["logit_scale"]))
    with torch.no_grad():
        pictures = torch.tensor(images.transpose(0, 3, 1, 2))
        given = torch.tensor(tokens, dtype=torch.long)
        for normal, kind in ((False, "projected"), (True, "normalized")):
            theirs = reference.encode_image(pictures, normalize=normal).numpy()
            np.testing.assert_allclose(features[kind], theirs, atol=1e-4)
            theirs = reference.encode_text(given, normalize=normal).numpy()
            np.testing.assert_allclose(features[f"text/{kind}"], theirs, atol=1e-4)
        theirs = reference.get_logits(pictures, given)[0].numpy()
    logits = scale * features["normalized"] @ features["text/normalized"].T
    np.testing.assert_allclose(logits, theirs, atol=1e-4)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("clip_resnet50", "RN50"), ("clip_vit_b16", "ViT-B-16"), ("clip_vit_b32", "ViT-B-32"),
     ("clip_vit_l14", "ViT-L-14")],
)  # fmt: skip
def test_full_towers_have_open_clips_shapes(ours, theirs):
    import jax
    import jax.numpy as jnp
    import open_clip
    import torch

    from noisy_fm import models

    with torch.device("meta"):
        reference = open_clip.model.CLIP(**open_clip.get_model_config(theirs))
    model = models.create_clip(ours)
    image, tokens = jnp.zeros((1, 224, 224, 3)), jnp.zeros((1, 77), jnp.int32)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), image, tokens))
    zeros = jax.tree.map(lambda s: np.broadcast_to(np.float32(0), s.shape), shapes)
    found = {k: v.shape for k, v in rules.to_theirs(zeros, clip.open_clip(model)).items()}
    expected = {k: tuple(v.shape) for k, v in reference.state_dict().items()}
    assert found == {k: v for k, v in expected.items() if "num_batches" not in k}
    parameters = sum(p.numel() for p in reference.parameters())
    assert sum(x.size for x in jax.tree.leaves(shapes["params"])) == parameters


@pytest.mark.parametrize("masked", [False, True])
def test_the_losses_are_open_clips(masked):
    import jax
    import torch
    from open_clip.loss import ClipLoss, SigLipLoss

    from noisy_fm import losses

    drawn = np.random.default_rng(2)
    x, y = (drawn.normal(size=(24, 16)).astype(np.float32) for _ in range(2))
    kept = np.arange(24) % 5 != 0 if masked else np.ones(24, bool)
    for ours, theirs, more in (
        (losses.contrastive, ClipLoss(), ()),
        (losses.sigmoid_contrastive, SigLipLoss(), (-3.0,)),
    ):

        def value(x, y, scale, bias=None, ours=ours):
            unit = (x / jax.numpy.linalg.norm(x, axis=1, keepdims=True) for x in (x, y))
            known = {} if bias is None else {"bias": bias}
            found, _ = ours(*unit, scale=scale, mask=kept, chunk=7, **known)
            return losses.mean(found, kept)

        gradient = jax.value_and_grad(value, argnums=tuple(range(3 + len(more))))
        loss, gradients = gradient(x, y, 20.0, *more)
        tensors = [torch.tensor(a, requires_grad=True) for a in (x, y, 20.0, *more)]
        normal = [torch.nn.functional.normalize(t[kept], dim=-1) for t in tensors[:2]]
        expected = theirs(*normal, *tensors[2:])
        expected.backward()
        np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
        for mine, tensor in zip(gradients, tensors, strict=True):
            np.testing.assert_allclose(mine, tensor.grad.numpy(), atol=1e-5)
