"""The operations on the device against Pillow's, and the whole pipeline against Pillow's path."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image

from noisy_fm.data import augment, sources
from noisy_fm.data.augment import geometry, pillow, pixels, policies

REFERENCE = np.load(Path(__file__).parent / "references" / "augment.npz")
RAND = "rand-m7-mstd0.5-inc1"
FILL = (124, 116, 104)
H, W = 72, 88
ARGUMENTS = {
    "Identity": (0.0,),
    "AutoContrast": (0.0,),
    "Equalize": (0.0,),
    "Invert": (0.0,),
    "Posterize": (0, 1, 2, 3, 4),
    "Solarize": (0, 77, 128, 256),
    "SolarizeAdd": (0, 61, 110),
    "Contrast": (0.1, 0.37, 1.0, 1.63, 1.9),
    "Brightness": (0.1, 0.37, 1.0, 1.63, 1.9),
    "Color": (0.0, 0.1, 0.37, 1.0, 1.63, 1.9),
    "Sharpness": (0.1, 0.37, 1.0, 1.63, 1.9),
    "GaussianBlur": (0.1, 0.35, 0.7, 1.0, 1.2247449, 1.5, 1.99),
    "Rotate": (-30.0, -7.3, 0.0, 11.1, 30.0),
    "ShearX": (-0.3, 0.0, 0.21),
    "ShearY": (-0.21, 0.0, 0.3),
    "TranslateX": (-0.45, 0.0, 0.313),
    "TranslateY": (-0.317, 0.0, 0.45),
}


@pytest.fixture(scope="module")
def images():
    """Noise, dim noise, one colour, a few values, and real drawings with and without grain."""
    rng = np.random.default_rng(0)
    drawings = sources.load("emoji_domains", domain="noto", size=32).images[[5, 100, 700, 1000]]
    real = [
        np.asarray(Image.fromarray(drawing).resize((W, H), Image.Resampling.BICUBIC))
        for drawing in drawings
    ]
    grainy = np.clip(real[0] + rng.normal(0, 8, (H, W, 3)), 0, 255).astype(np.uint8)
    return np.stack(
        [
            rng.integers(0, 256, (H, W, 3), dtype=np.uint8),
            rng.integers(40, 197, (H, W, 3), dtype=np.uint8),
            np.broadcast_to(np.uint8([10, 200, 77]), (H, W, 3)),
            rng.choice(np.uint8([0, 3, 250]), (H, W, 3)),
            *real,
            grainy,
        ]
    )


@pytest.fixture(scope="module")
def canvases():
    """Crops of many shapes at the top left of 80×80, random beside them: images and extents."""
    rng = np.random.default_rng(1)
    extents = [(80, 80), (80, 33), (20, 70), (79, 50), (48, 48), (1, 3), (33, 80), (47, 49)]
    drawing = Image.fromarray(sources.load("emoji_domains", domain="noto", size=32).images[5])
    canvases = rng.integers(0, 256, (16, 80, 80, 3), dtype=np.uint8)
    for canvas, (h, w) in zip(canvases, extents, strict=False):
        canvas[:h, :w] = drawing.resize((w, h), Image.Resampling.BICUBIC)
    return canvases, np.array(extents * 2, np.int32)


OPERATE = jax.jit(
    jax.vmap(
        lambda op, argument, bicubic, image: policies.apply_op(
            op, argument, bicubic, image, fill=FILL
        ),
        (None, None, None, 0),
    )
)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_operation_gives_pillows_image(images, name):
    """Exactly; resampling but for the truncations that `affine` names."""
    assert set(ARGUMENTS) == set(policies.OPS)
    resampled = name in policies.SHIFTS
    for argument in np.float32(ARGUMENTS[name]):
        for bicubic in (False, True) if resampled else (False,):
            ours = np.asarray(OPERATE(policies.OPS.index(name), argument, bicubic, images))
            theirs = np.stack(
                [
                    np.asarray(
                        pillow.apply_op(name, argument, bicubic, Image.fromarray(image), fill=FILL)
                    )
                    for image in images
                ]
            )
            difference = np.abs(ours.astype(int) - theirs)
            if resampled and argument:
                assert difference.max() <= 1
                rare = 0.002 if bicubic else 0.03
                assert (difference > 0).mean() < rare
            else:
                np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("count", [pixels.histogram_by_scatter, pixels.histogram_by_product])
def test_histograms_are_pillows(images, count):
    """The form of a TPU, and that of other processors."""
    ours = np.asarray(jax.jit(jax.vmap(count))(images))
    theirs = [Image.fromarray(image).histogram() for image in images]
    np.testing.assert_array_equal(ours, np.reshape(theirs, (-1, 3, 256)))


@pytest.mark.parametrize("look_up", [pixels.look_up_by_gather, pixels.look_up_by_product])
def test_every_value_is_looked_up(images, look_up):
    rng = np.random.default_rng(0)
    images = np.concatenate([images, images])
    images[-1].reshape(-1, 3)[:256] = np.arange(256)[:, None]
    tables = rng.integers(0, 256, (len(images), 3, 256), dtype=np.uint8)
    tables[-1] = 255 - np.arange(256)
    theirs = [
        np.asarray(Image.fromarray(image).point(table.reshape(-1).tolist()))
        for image, table in zip(images, tables, strict=True)
    ]
    np.testing.assert_array_equal(jax.jit(jax.vmap(look_up))(images, tables), theirs)


def test_a_tpus_affine_transform_is_the_gathered_one(images):
    """All of RandAugment's displacements and beyond: bit for bit."""
    shifts = [
        [jnp.float32(value) for value in policies.SHIFTS[name](argument, H, W)]
        for name in policies.SHIFTS
        for argument in (*ARGUMENTS[name], 0.6 if name.startswith("Shear") else 0.5)
    ]
    shifts += [policies.SHIFTS["Rotate"](degrees, H, W) for degrees in (-44.0, -41.0, 20.0, 44.0)]
    shifts = jnp.asarray(shifts, jnp.float32)
    noise = jnp.broadcast_to(images[0], (len(shifts), H, W, 3))
    results = []
    for rows_about in (geometry.rows_by_gather, geometry.rows_by_products):
        one = partial(geometry.affine_from, rows_about, fill=FILL)
        results.append(jax.jit(jax.vmap(one))(noise, shifts, jnp.arange(len(shifts)) % 3 > 0))
    np.testing.assert_array_equal(*results)


def test_a_tpu_neither_gathers_nor_scatters_pixels(images):
    """Lowered for a TPU, where both are slow; other processors gather."""
    pipeline = augment.imagenet(size=W, policy=RAND)
    batch = {"image": np.zeros((2, W, W, 3), np.uint8)}
    text = jax.export.export(jax.jit(pipeline), platforms=["tpu"])(jax.random.key(0), batch)
    moved = [
        line for line in text.mlir_module().splitlines() if "gather" in line or "scatter" in line
    ]
    assert not [line for line in moved if f"{W}x{W}" in line]
    gathered = jax.export.export(jax.jit(pipeline))(jax.random.key(0), batch).mlir_module()
    assert [line for line in gathered.splitlines() if "gather" in line and f"{W}x{W}" in line]


def test_autocontrast_is_exact_for_every_range():
    """All 32,640 pairs of a lowest and a highest value, against Pillow's own arithmetic."""
    low, high = np.triu_indices(256, 1)
    counts = np.zeros((len(low), 1, 256), np.int32)
    counts[np.arange(len(low)), 0, low] = counts[np.arange(len(low)), 0, high] = 1
    counts = np.repeat(counts, 3, axis=1).reshape(-1, 3, 256)
    ours = np.asarray(jax.jit(jax.vmap(pixels.autocontrast_table))(counts))[:, 0]
    scale = 255.0 / (high - low)
    theirs = (np.arange(256) * scale[:, None] - (low * scale)[:, None]).astype(int)
    occurs = (np.arange(256) >= low[:, None]) & (np.arange(256) <= high[:, None])
    np.testing.assert_array_equal(ours[occurs], theirs[occurs])


def test_operations_give_timms_images():
    image = jnp.asarray(REFERENCE["image"])[None]
    names = [name for name in REFERENCE.files if name.startswith("operation/")]
    assert len(names) == 60
    for entry in names:
        _, timm_name, level, resample = entry.split("/")
        name = timm_name.removesuffix("Increasing").removesuffix("Rel")
        arguments = policies.level_arguments(jnp.float32(level), jnp.array(False), increasing=True)
        op = policies.OPS.index(name)
        ours = np.asarray(OPERATE(op, arguments[name], resample == "BICUBIC", image)[0])
        difference = np.abs(ours.astype(int) - REFERENCE[entry])
        assert difference.max() <= (name in policies.SHIFTS), entry
        assert (difference > 0).mean() < 0.02, entry


@pytest.mark.parametrize("increasing", [False, True])
def test_levels_mean_what_they_mean_in_timm(increasing):
    prefix = f"level/{int(increasing)}/"
    names = [name.removeprefix(prefix) for name in REFERENCE.files if name.startswith(prefix)]
    ours = [name.removesuffix("Increasing").removesuffix("Rel") for name in names]
    assert set(ours) == set(policies.RANDOM_OPS)
    assert len(ours) == len(policies.RANDOM_OPS)
    for negative in (False, True):
        levels = jnp.asarray(REFERENCE["levels"])
        arguments = policies.level_arguments(levels, jnp.array(negative), increasing=increasing)
        for name, timm_name in zip(ours, names, strict=True):
            expected = REFERENCE[prefix + timm_name][:, int(negative)]
            np.testing.assert_allclose(arguments[name], expected, rtol=3e-7, atol=1e-7)


@pytest.mark.parametrize("size", [24, 48, 64, 96])
def test_resize_gives_pillows_image(canvases, size):
    """Pillow 13's: within 1 of each pass in turn; what lies beyond the extent does not matter."""
    resize = jax.jit(jax.vmap(lambda image, extent: geometry.resize_crop(image, extent, size)))
    ours = np.asarray(resize(*canvases))
    for image, (h, w), result in zip(*canvases, ours, strict=True):
        picture = Image.fromarray(image[:h, :w])
        bicubic = Image.Resampling.BICUBIC
        columns_first = h > size and 2 * w < h + size
        halfway = picture.resize((w, size) if columns_first else (size, h), bicubic)
        theirs = np.asarray(halfway.resize((size, size), bicubic)).astype(int)
        assert np.abs(result - theirs).max() <= 1
        assert (result != theirs).mean() < 0.002
        if int(Image.__version__.split(".")[0]) >= 13:
            whole = np.asarray(picture.resize((size, size), bicubic)).astype(int)
            np.testing.assert_array_equal(whole, theirs)


PIPELINES = {
    "plain": {},
    "rand": {"policy": RAND},
    "3a": {"policy": "3a", "color_jitter": 0.3},
    "jitter": {"color_jitter": (0.4, 0.0, 0.9), "flip": 1.0},
    "erase": {"erase": 1.0, "erase_mode": "pixel", "erase_count": 2},
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if number else name
        for number, name in enumerate(PIPELINES)
    ],
)
def test_the_pipeline_gives_pillows_images(canvases, name):
    """The same draw on the device and through Pillow, resize included."""
    pipeline = augment.imagenet(size=48, **PIPELINES[name])
    images, extents = canvases
    key = jax.random.key(3)
    ours = np.asarray(jax.jit(pipeline)(key, {"image": images, "extent": extents})["image"])
    assert ours.dtype == np.float32
    assert ours.shape == (16, 48, 48, 3)
    draws = jax.jit(jax.vmap(pipeline.draw))(pipeline.keys(key, 16))
    theirs = np.stack(
        [
            pillow.apply(pipeline, jax.tree.map(lambda x, i=i: x[i], draws), images[i], extents[i])
            for i in range(16)
        ]
    )
    difference = np.abs(ours - theirs)
    # An operation can widen the resize's rare difference of 1, and carry it to a whole channel.
    assert (difference > 1e-3).mean() < 0.002
    assert np.median(difference.reshape(16, -1).max(1)) <= 1
    if name != "erase":
        assert ours.min() >= 0
        assert ours.max() <= 255
        np.testing.assert_array_equal(ours, np.round(ours))


@pytest.mark.slow
def test_an_image_does_not_depend_on_its_batch_or_on_the_devices(canvases):
    images, extents = canvases
    pipeline = augment.imagenet(size=48, policy=RAND, erase=0.5)
    run = jax.jit(lambda key, batch: pipeline(key, batch)["image"])
    key = jax.random.key(4)
    whole = np.asarray(run(key, {"image": images, "extent": extents}))
    part = run(key, {"image": images[:8], "extent": extents[:8]})
    others = {"image": images.copy(), "extent": extents}
    others["image"][1:] = 255 - images[1:]
    mesh = Mesh(np.array(jax.devices()), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    shared = jax.device_put({"image": images, "extent": extents}, rows)
    sharded = (
        jax.jit(lambda key, batch: pipeline(key, batch)["image"], out_shardings=rows)
        .lower(key, shared)
        .compile()
    )
    collectives = ("all-gather", "all-to-all", "all-reduce", "collective-permute")
    assert not [name for name in collectives if name in sharded.as_text()]
    # Erasing's noise is float arithmetic that may be fused another way.
    for other, count in ((part, 8), (run(key, others), 1), (sharded(key, shared), 16)):
        np.testing.assert_allclose(np.asarray(other)[:count], whole[:count], atol=1e-3)
    np.testing.assert_array_equal(whole, run(key, {"image": images, "extent": extents}))
    assert np.abs(whole - run(jax.random.key(5), {"image": images, "extent": extents})).max() > 50


def test_without_anything_random_images_stay():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    still = augment.imagenet(size=16, flip=0.0)
    np.testing.assert_array_equal(still(jax.random.key(0), {"image": images})["image"], images)
    mirror = augment.imagenet(size=16, flip=1.0)
    mirrored = mirror(jax.random.key(0), {"image": images, "label": np.arange(3)})
    np.testing.assert_array_equal(mirrored["image"], images[:, :, ::-1])
    assert mirrored["label"].tolist() == [0, 1, 2]
    none = augment.AUGMENTATIONS["none"]()(jax.random.key(0), {"image": images})["image"]
    np.testing.assert_array_equal(none, images)
    assert none.dtype == jnp.float32


def test_flip_crop_by_its_factory():
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    key = jax.random.key(0)
    made = augment.AUGMENTATIONS["flip_crop"](pad=2)(key, {"image": images})
    np.testing.assert_array_equal(made["image"], augment.flip_crop(images, key, pad=2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy": "rand-m7-mstd0.5-inc"}, "cannot read 'inc'"),
        ({"policy": "rand-x3"}, "cannot read 'x3'"),
        ({"policy": "rand-m11"}, r"expected m in 0 … 10"),
        ({"policy": "augmix-m3"}, "unknown augmentation policy 'augmix-m3'"),
        ({"policy": "ran-m7"}, "did you mean"),
        ({"size": 0}, "size is 0"),
        ({"flip": 1.5}, "flip is 1.5"),
        ({"erase": -0.1}, "erase is -0.1"),
        ({"erase_mode": "pixels"}, "did you mean 'pixel'"),
        ({"erase_count": 0}, "erase_count is 0"),
        ({"color_jitter": (0.1, 0.2)}, "one or three"),
    ],
)
def test_a_mistake_gets_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        augment.imagenet(**{"size": 32, **arguments})
    assert "\n" not in str(error.value)


def test_wrong_batches_get_one_line():
    key = jax.random.key(0)
    crops = {"image": np.zeros((2, 8, 8, 3), np.uint8), "extent": np.ones((2, 2), np.int32)}
    for name in ("none", "flip_crop"):
        with pytest.raises(ValueError, match="expected augment 'imagenet'"):
            augment.AUGMENTATIONS[name]()(key, crops)
    for image in (np.zeros((2, 8, 8, 1), np.uint8), np.zeros((2, 8, 8, 3), np.float32)):
        with pytest.raises(ValueError, match=r"expected uint8 \[n h w 3\]"):
            augment.imagenet(size=8)(key, {"image": image})
