"""The second view of a study's images: what is stored, who reads it, and when it is refused."""

import json
import shutil

import jax
import numpy as np
import pytest
import small_study as small

from noisy_fm import load_model, study
from noisy_fm.data import augment, load
from noisy_fm.features import open_store
from noisy_fm.study import cells, settings, stages, views

CELL = "noise0-seed0"


def config(**changes):
    made = small.get_config("tiny")
    made.noise_rates, made.methods, made.preset = (0.0,), ("lp", "nmtune"), "release"
    for key, value in changes.items():
        made[key] = value
    return made


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A study of one view, and the same one gone on with two."""
    one, two = (tmp_path_factory.mktemp("views") / name for name in ("one", "two"))
    study.run(config(), str(one))
    shutil.copytree(one, two)
    study.run(config(second_view={"name": "flip_crop", "pad": 2}), str(two))
    return one, two


def stores(folder, split):
    found = (folder / "cells" / CELL / "features").glob(f"digits-{split}-*")
    return sorted(map(open_store, found), key=lambda store: store.features.ndim)


def heads(folder):
    rows = map(json.loads, (folder / "records.jsonl").read_text().splitlines())
    return {(row["method"], row["metric"]): row["value"] for row in rows if row["stage"] == "probe"}


@pytest.mark.slow
def test_images_that_heads_are_tuned_on_have_a_second_view_beside_the_first(runs):
    one, two = runs
    (before,), (single, double) = stores(one, "train"), stores(two, "train")
    n, d = before.features.shape
    assert single.path.name == before.path.name  # what was stored without it stays as it is
    assert double.features.shape == (n, 2, d)
    np.testing.assert_array_equal(double.features[:, 0], before.features)
    np.testing.assert_array_equal(double.ids, before.ids)
    moved = (double.features[:, 1] != before.features).any(axis=1)
    assert moved.mean() > 0.9
    assert double.meta["second_view"] == {"name": "flip_crop", "pad": 2}
    assert "second_view" not in before.meta
    (tested,) = stores(two, "test")
    assert tested.features.ndim == 2


@pytest.mark.slow
def test_the_second_view_is_the_models_of_the_augmented_images(runs):
    double = stores(runs[1], "train")[-1]
    source = load("digits", split="train", size=32)
    rows = np.arange(40)
    read = source.read(rows, None, columns=())
    images = views.drawn(augment.AUGMENTATIONS["flip_crop"](pad=2), read["image"], read["id"], 0)
    model = load_model(runs[1] / "cells" / CELL / "train")
    expected = model.features(np.asarray(images).astype(np.uint8))
    np.testing.assert_array_equal(double.ids[rows], read["id"])
    np.testing.assert_allclose(double.features[rows, 1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_draw_of_an_image_does_not_depend_on_its_batch():
    images = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)
    ids = np.array([3, 2**31 + 5, 2**62 + 1, 7, 11, 13])
    for name, arguments in (("flip_crop", {}), ("imagenet", {"size": 16, "policy": "3a"})):
        made = augment.AUGMENTATIONS[name](**arguments)
        drawn = jax.jit(lambda x, i, made=made: views.drawn(made, x, i.astype(np.uint32), 4))
        whole, part = drawn(images, ids), drawn(images[::-1][:2], ids[::-1][:2])
        np.testing.assert_array_equal(whole[::-1][:2], part)
        assert len(np.unique(whole.reshape(6, -1), axis=0)) == 6
    assert not np.array_equal(
        views.drawn(made, images, ids.astype(np.uint32), 4),
        views.drawn(made, images, ids.astype(np.uint32), 5),
    )


@pytest.mark.slow
def test_heads_of_the_release_preset_read_it_and_nothing_is_trained_again(runs):
    one, two = runs
    before, after = heads(one), heads(two)
    assert before.keys() == after.keys()
    words = "tuned on two views of each image, the second augmented (flip_crop)"
    pages = [(folder / "report" / "index.html").read_text() for folder in runs]
    assert [words in page for page in pages] == [False, True]
    assert before["nmtune", "train_loss"] != after["nmtune", "train_loss"]
    for stage in ("pretrain", "spectra"):
        a, b = (json.loads((f / "cells" / CELL / f"{stage}.json").read_text()) for f in (one, two))
        assert (a.get("metrics"), a.get("rows")) == (b.get("metrics"), b.get("rows"))
        assert (a["key"] == b["key"]) == (stage == "pretrain")  # new stores, the same spectra


@pytest.mark.slow
def test_run_again_it_does_nothing(runs):
    made = config(second_view={"name": "flip_crop", "pad": 2})
    stamps = {path: path.stat().st_mtime_ns for path in (runs[1] / "cells").rglob("*.json")}
    study.run(made, str(runs[1]))
    assert stamps == {path: path.stat().st_mtime_ns for path in (runs[1] / "cells").rglob("*.json")}


@pytest.mark.slow
def test_a_study_without_it_has_the_keys_that_it_always_had(runs):
    made = settings.completed(config())
    cell = cells.grid(made, runs[0])[0]
    found = stages.STAGES[1].key(cell, made)["stores"]
    assert not [one for one in found if "second_view" in one]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "paper"}, "heads of preset 'release' read .*config.preset is 'paper'"),
        ({"methods": ("ridge",)}, r"config.methods are \('ridge',\)"),
        ({"second_view": {"name": "flip_corp"}}, "config.second_view.name .*flip_crop"),
        ({"second_view": {"name": "flip_crop", "pda": 2}}, "did you mean 'config.second_view.pad'"),
        ({"second_view": {"name": "imagenet", "erase": 2.0}}, "erase is 2.0"),
        ({"second_view": {"name": "imagenet", "size": 8}}, "config.second_view.size"),
        ({"second_view": {"pad": 2}}, "config.second_view.name is missing"),
    ],
)
def test_a_second_view_that_cannot_be_is_refused(changes, message):
    made = config(**{"second_view": {"name": "flip_crop"}, **changes})
    with pytest.raises(ValueError, match=message) as caught:
        settings.check(settings.completed(made))
    assert "\n" not in str(caught.value)
