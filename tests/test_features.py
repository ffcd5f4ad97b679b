"""The feature store: whole or absent, checked when opened; prediction keeps order and size."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from noisy_fm import evaluators, features, sharding
from noisy_fm.data import augment
from noisy_fm.evaluators.evaluator import sample
from noisy_fm.tasks.classify import classify


@pytest.fixture
def store(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "features": rng.normal(size=(50, 7)).astype(np.float32),
        "ids": np.arange(50) * 3,
        "labels": {"task": rng.integers(0, 4, 50), "other": rng.integers(0, 2, 50)},
    }
    features.write_store(tmp_path / "s", **arrays, meta={"weights": "abc"})
    return tmp_path / "s", arrays


def test_a_store_gives_back_what_was_written(store):
    path, arrays = store
    got = features.open_store(path)
    np.testing.assert_array_equal(got.features, arrays["features"])
    np.testing.assert_array_equal(got.ids, arrays["ids"])
    np.testing.assert_array_equal(got.labels["other"], arrays["labels"]["other"])
    assert got.meta["weights"] == "abc"
    assert isinstance(got.features, np.memmap)


@pytest.mark.parametrize("harm", ["truncate", "flip", "remove", "version", "meta", "shape"])
def test_a_damaged_store_is_one_clear_line(store, harm):
    path, _ = store
    file, meta = path / "features.npy", path / "meta.json"
    content = bytearray(file.read_bytes())
    if harm == "truncate":
        file.write_bytes(content[:-100])
    elif harm == "flip":
        content[-5] ^= 1
        file.write_bytes(content)
    elif harm == "remove":
        file.unlink()
    elif harm == "version":
        meta.write_text(json.dumps(json.loads(meta.read_text()) | {"store_version": 99}))
    elif harm == "meta":
        meta.write_text(meta.read_text()[:40])
    elif harm == "shape":
        np.save(file, np.zeros((50, 6), np.float32))
    with pytest.raises(ValueError, match=r"features\.npy|meta\.json|version 99") as error:
        features.open_store(path)
    assert "\n" not in str(error.value)


def test_no_store_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a feature store"):
        features.open_store(tmp_path)


def test_a_store_is_replaced_whole(store):
    path, arrays = store
    features.write_store(path, features=arrays["features"][:9], ids=arrays["ids"][:9], meta={})
    got = features.open_store(path)
    assert len(got.features) == 9
    assert got.labels is None
    assert not (path / "labels.task.npy").exists()
    assert [p.name for p in path.parent.iterdir()] == ["s"]


def test_a_failed_write_leaves_nothing_and_keeps_the_old(store):
    path, arrays = store
    with pytest.raises(ValueError, match="one length"):
        features.write_store(path, features=arrays["features"][:9], ids=arrays["ids"], meta={})
    with pytest.raises(TypeError):
        features.write_store(path, features=arrays["features"], ids=arrays["ids"], meta={"x": {1}})
    few = {"features": arrays["features"][:2], "ids": arrays["ids"][:2]}
    with pytest.raises(TypeError, match="labels has dtype object"):
        features.write_store(path, **few, labels=np.array(["a", None]), meta={})
    assert features.open_store(path).meta["weights"] == "abc"
    assert [p.name for p in path.parent.iterdir()] == ["s"]


def test_prediction_is_in_order_whatever_the_batch_and_layout():
    source = toy.source_of(45)
    one = toy.one_device()
    task, _, state = toy.start(one)
    keep = ("features/pre_logits", "correct", "loss")
    got = features.predict(task, state.variables, source, keep=keep, batch_size=16, mesh=one)
    params, model_state = state.variables
    net = toy.ToyNet()
    images = augment.normalize(source.images)
    logits, named = net.apply({"params": params, **model_state}, images)
    np.testing.assert_allclose(got["features/pre_logits"], named["pre_logits"], atol=1e-5)
    np.testing.assert_array_equal(got["correct"], np.argmax(logits, -1) == source.labels)
    expected = -np.asarray(jax.nn.log_softmax(logits))[np.arange(45), source.labels]
    np.testing.assert_allclose(got["loss"], expected, atol=1e-5)
    many = sharding.make_mesh()
    spread = features.predict(task, jax.device_put(state.variables), source, keep=keep,
                              batch_size=10, mesh=one)  # fmt: skip
    np.testing.assert_allclose(spread["loss"], got["loss"], atol=1e-5)
    task, _, state = toy.start(many)
    spread = features.predict(task, state.variables, source, keep=keep, batch_size=10, mesh=many)
    np.testing.assert_allclose(spread["loss"], got["loss"], atol=1e-5)


def test_an_unknown_feature_is_named():
    one = toy.one_device()
    task, _, state = toy.start(one)
    with pytest.raises(ValueError, match=r"no output 'features/pool'.*features/pre_logits"):
        features.predict(
            task, state.variables, toy.source_of(), keep=("features/pool",), batch_size=8, mesh=one
        )


class Layered(nn.Module):
    """A model whose feature map is among its features."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        maps = nn.Conv(6, (3, 3), strides=2, name="stem")(x)
        flat = nn.Dense(5, name="wide")(maps.reshape(len(x), -1))
        return nn.Dense(4, name="head")(flat), {"stem": maps, "pre_logits": flat}


def layered(source, names=("stem", "pre_logits"), **options):
    """(measure, variables) of the layered toy on one device."""
    task = classify(Layered(), 4)
    variables = task.init_fn(jax.random.key(0), source.read(np.arange(2)))
    given = toy.given(task, variables, source, batch_size=16)
    return evaluators.spectra(given, names=names, **options).measure, variables


def test_tracked_spectra_are_of_the_pooled_features_of_the_same_rows():
    source = toy.source_of(45)
    tracker, variables = layered(source, examples=30)
    got = tracker(variables)
    chosen = sample(np.arange(45), 30)
    images = augment.normalize(source.images[chosen])
    _, named = Layered().apply({"params": variables[0]}, images)
    for name, x in (("stem", named["stem"].mean((1, 2))), ("pre_logits", named["pre_logits"])):
        values = np.linalg.svd(np.asarray(x, np.float64), compute_uv=False)
        p = values / values.sum()
        assert got[f"{name}/sve"] == pytest.approx(-(p * np.log(p)).sum(), abs=1e-5)
        assert got[f"{name}/lsvr"] == pytest.approx(-np.log(p[0]), abs=1e-5)
    assert all(type(value) is float for value in got.values())
    np.testing.assert_equal(tracker(variables), got)  # α of five values is NaN
    dead = jax.tree.map(jnp.zeros_like, variables)
    assert np.isnan(tracker(dead)["stem/sve"])


def test_a_tracker_follows_training_and_is_compiled_once():
    source, one = toy.source_of(40), toy.one_device()
    task, _, state = toy.start(one)
    traced = []

    def predict(*arguments):
        traced.append(1)
        return task.predict_fn(*arguments)

    given = toy.given(task._replace(predict_fn=predict), state.variables, source, batch_size=16)
    tracker = evaluators.spectra(given, names=["pre_logits"]).measure
    before = tracker(state.variables)
    calls = len(traced)
    after = tracker(toy.fit(one, 3, source=source)[0].variables)
    assert len(traced) == calls
    assert before["pre_logits/sve"] != after["pre_logits/sve"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"names": ("stemm",)},
            "unknown config.evaluators.spectrum.names 'stemm'; did you mean 'stem'",
        ),
        ({"examples": 1}, "at least 2 rows; got 1 .* of the 45"),
    ],
)
def test_a_tracker_that_cannot_work_is_refused_when_made(options, message):
    with pytest.raises(ValueError, match=message):
        layered(toy.source_of(45), **options)
