"""Vision transformers, Swin and CLIP against timm, transformers and open_clip.

What the parity suite compares with the libraries themselves, the default suite compares with their
frozen outputs, see `zoo_transformers`.
"""

import json
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from zoo_transformers import CASES, FROZEN, our_swin, our_vit

from noisy_fm import models
from noisy_fm.models.swin import MASKED, Swin, relative_positions, shift_mask, windows_of
from noisy_fm.models.vit import ViT, resize_positions
from noisy_fm.weights import rules
from noisy_fm.weights.maps import clip, swin, vit

# Programs of their own that differ least from another's.
SLOW = ("vit_gap", "vit_norm_gap", "clip_tower", "face_dinov2", "npz_big_vision_token")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CASES]
)
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


GRIDS = [((4, 4), (7, 7)), ((7, 7), (4, 4)), ((5, 6), (9, 4))]


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


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: our_vit(registers=-1), "registers is -1; expected a number of tokens"),
        (lambda: our_swin(num_heads=(2,)), "depths has 2 stages, num_heads 1"),
        (
            lambda: our_swin(num_heads=(2, 3)),
            "dim 32 of stage 2 is not a multiple of its num_heads",
        ),
        (lambda: our_swin(drop_path=1.0), "drop_path is 1.0; expected a rate"),
        (
            lambda: zoo.shapes_of(our_swin(), 30),
            "images are 30×30; expected multiples of the patch",
        ),
        (lambda: vit.hugging_face(our_vit(pool="gap")), "transformers has no such ViT: expected"),
        (lambda: vit.hugging_face(our_vit(registers=1)), "transformers has no such ViT: expected"),
        (
            lambda: vit.hugging_face(our_vit(class_position=False)),
            "the class token has a position: class_position=True",
        ),
        (
            lambda: clip.hugging_face(models.create_clip("clip_resnet50")),
            "transformers has no CLIP with a ResNet; expected a ViT",
        ),
    ],
)
def test_mistakes_are_one_line(call, line):
    with pytest.raises(ValueError, match=line) as error:
        call()
    assert "\n" not in str(error.value)


def test_files_of_other_heads_are_refused():
    """Of arrays that have the heads as an axis, which those of other libraries do not."""
    module, other = our_vit(), our_vit(num_heads=8)
    there = zoo.names_and_shapes(other, 32, vit.vision_transformer(other))
    state = {name: np.zeros(shape, np.float32) for name, shape in there.items()}
    with pytest.raises(ValueError, match=r"of another shape: .*query/bias \[8, 4\]"):
        rules.to_ours(state, zoo.shapes_of(module, 32), vit.vision_transformer(module))


def test_registers_stand_between_the_class_token_and_the_patches():
    for placed in (True, False):
        module = our_vit(registers=3, class_position=placed, depth=1)
        variables = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), zoo.shapes_of(module, 32))
        params = variables["params"]
        params["cls_token"][:], params["reg_token"][:], params["pos_embed"][:] = 1, 2, 10
        _, features = jax.jit(module.apply)(variables, zoo.images(32, 1))
        embed = np.asarray(features["embed"])[0, :, 0]
        np.testing.assert_array_equal(embed, [1 + 10 * placed, 2, 2, 2, *[10] * 16])


@pytest.mark.parametrize(("size", "window"), [((8, 12), (4, 4)), ((9, 6), (3, 3))])
def test_shifted_windows_see_neighbours_only(size, window):
    """Two places of a window see each other where they are less than a window apart."""
    shift = tuple(w // 2 for w in window)
    places = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1)[None]
    places = windows_of(np.roll(places, (-shift[0], -shift[1]), (1, 2)), window)[0]
    apart = np.abs(places[:, :, None] - places[:, None])
    expected = np.where((apart < window).all(-1), 0, MASKED)
    np.testing.assert_array_equal(shift_mask(size, window, shift), expected)


def test_a_smaller_window_reads_the_middle_of_the_table():
    offsets = np.stack(np.meshgrid(*[np.arange(-4, 5)] * 2, indexing="ij"), -1).reshape(-1, 2)
    found = offsets[relative_positions((2, 3), 5)]
    places = np.array([(y, x) for y in range(2) for x in range(3)])
    np.testing.assert_array_equal(found, places[:, None] - places)


def test_a_swin_takes_images_of_any_size_and_has_maps_of_each_stage():
    module = our_swin(window=4)
    variables = zoo.shapes_of(module, 32)
    for h, w in ((8, 8), (28, 44)):  # maps smaller than a window, and maps padded
        image = jax.ShapeDtypeStruct((1, h, w, 3), np.float32)
        logits, features = jax.eval_shape(module.apply, variables, image)
        assert logits.shape == (1, 10)
        assert features["stage1"].shape == features["embed"].shape == (1, h // 4, w // 4, 16)
        assert features["stage2"].shape == (1, -(-h // 8), -(-w // 8), 32)
        assert {"stage1/block1", "stage2/block0"} < features.keys()


@pytest.mark.slow
def test_a_swin_trains_alike_with_less_memory_and_draws_only_in_training():
    small = partial(our_swin, dim=8, depths=(2, 1), window=2)
    plain, x = small(), zoo.images(16)
    drawn = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda s: drawn.normal(size=s.shape).astype(np.float32) * 0.3, zoo.shapes_of(plain, 16)
    )

    def gradient(module, train):
        def loss(v):
            rngs = {"dropout": jax.random.key(1)}
            return (module.apply(v, x, train=train, rngs=rngs)[0] ** 2).sum()

        return jax.jit(jax.value_and_grad(loss))(variables)

    def assert_alike(found, expected):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), found, expected
        )

    expected = gradient(plain, train=False)
    dropping, again = small(drop_path=0.5), small(drop_path=0.5, remat="full")
    assert_alike(gradient(dropping, train=False), expected)
    dropped = gradient(dropping, train=True)
    assert abs(dropped[0] - expected[0]) > 1e-4
    assert_alike(gradient(again, train=True), dropped)
    logits, features = jax.jit(small(dtype=jnp.bfloat16).apply)(variables, x)
    assert features["stage2"].dtype == jnp.bfloat16
    assert logits.dtype == features["pre_logits"].dtype == jnp.float32
    exact = jax.jit(plain.apply)(variables, x)[0]
    np.testing.assert_allclose(logits, exact, atol=0.04 * float(jnp.abs(exact).max()))


@pytest.mark.parity
def test_the_authors_names_of_a_swin_are_those_that_timm_renames():
    import torch
    from timm.models.swin_transformer import checkpoint_filter_fn
    from zoo_transformers import timm_swin

    module = our_swin(window=4)
    there = zoo.names_and_shapes(module, 32, swin.original(module))
    state = {name: torch.from_numpy(zoo.drawn(name, shape)) for name, shape in there.items()}
    renamed = checkpoint_filter_fn(dict(state), timm_swin(32, 4))
    ours = rules.to_ours(
        {name: value.numpy() for name, value in state.items()},
        zoo.shapes_of(module, 32),
        swin.original(module),
    )
    found = rules.to_theirs(ours, swin.timm(module))
    assert found.keys() == renamed.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(value, renamed[name].numpy())
