"""What every source keeps to, whatever it reads: the contract of `data.Source`."""

import pickle
from pathlib import Path

import jax
import numpy as np
import pictures
import pytest
import toy

from noisy_fm import data
from noisy_fm.corruptions import CORRUPTIONS
from noisy_fm.data import Stored, loader
from noisy_fm.data.source import View

SOURCES = {
    **{name: {"split": "train", "size": 32} for name in pictures.STORAGES},
    "emoji_domains": {"split": "test", "domain": "noto", "labels": "category"},
    "digits": {"split": "test"},
    "toy": {},
}


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    return pictures.write_all(tmp_path_factory.mktemp("photographs"))


@pytest.fixture(scope="module", params=SOURCES)
def source(request, roots):
    name = request.param
    if name == "toy":
        return toy.source_of(24)
    path = {"path": str(roots[name])} if name in roots else {}
    return data.load(name, **path, **SOURCES[name])


def training(source, rows, **options):
    return View(places=np.arange(len(rows)), seed=3, **options)


def test_columns_have_a_row_an_example(source):
    n = len(source)
    assert source.ids.dtype == np.int64
    assert len(set(source.ids.tolist())) == n
    assert {len(source.groups), len(source.origins), *map(len, source.columns.values())} == {n}
    assert source.columns["label"].dtype == np.int32
    assert source.columns["label"].max() < len(source.info["label_names"])
    assert all(source.name(row) and source.content(row) for row in (0, n - 1))
    np.testing.assert_array_equal(source.rows_of(source.ids[[5, 1]]), [5, 1])
    with pytest.raises(ValueError, match="no example has id -1"):
        source.rows_of(np.array([source.ids[0], -1]))


def test_reading_gives_images_ids_and_the_columns_asked_for(source):
    rows = [4, 0, 4]
    whole = source.read(rows)
    assert set(whole) == {"image", "label", "id"}
    assert whole["image"].dtype == np.uint8
    assert whole["image"].shape == (3, source.size, source.size, 3)
    np.testing.assert_array_equal(whole["image"][0], whole["image"][2])
    np.testing.assert_array_equal(whole["id"], source.ids[rows])
    np.testing.assert_array_equal(whole["label"], source.columns["label"][rows])
    assert set(source.read(rows, columns=())) == {"image", "id"}
    with pytest.raises(ValueError, match=r"no column 'boxes'; there are .*label"):
        source.read(rows, columns=("boxes",))
    trained = source.read(rows, training(source, rows))
    assert ("extent" in trained) == source.encoded == source.info["encoded"]
    assert trained["image"].nbytes == 3 * source.nbytes(training(source, rows))
    assert whole["image"].nbytes == 3 * source.nbytes(View())


def test_a_selection_and_a_copy_read_alike(source):
    rows = np.array([7, 2, 9])
    for other in (source.select(rows), pickle.loads(pickle.dumps(source)).select(rows)):
        for view in (View(), training(source, rows)):
            found, expected = other.read([0, 1, 2], view), source.read(rows, view)
            jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_column_is_replaced_and_goes_where_its_example_goes(source, tmp_path):
    n = len(source)
    features = np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)
    np.save(tmp_path / "features.npy", features)
    made = source.replace(label=np.arange(n), reference=Stored(tmp_path / "features.npy"))
    assert "reference" not in source.columns
    chosen = pickle.loads(pickle.dumps(made.select(np.arange(n)[::-1]))).select([2, 0])
    batch = chosen.read([1, 0], columns=("label", "reference"))
    assert batch["label"].tolist() == [n - 1, n - 3]
    np.testing.assert_array_equal(batch["reference"], features[[n - 1, n - 3]])
    with pytest.raises(ValueError, match=f"has 2 rows; expected {n}"):
        source.replace(label=np.zeros(2))


def test_noise_is_a_column_replaced(source):
    noisy, manifest = CORRUPTIONS["symmetric"](source, 0.25, seed=1)
    changed = noisy.columns["label"] != source.columns["label"]
    assert changed.sum() == len(manifest.ids) == int(len(source) * 0.25 + 0.5)
    assert set(source.ids[changed]) == set(manifest.ids)
    batches = loader.train_batches(noisy, batch_size=8, seed=0, stop=2)
    given = dict(zip(source.ids.tolist(), noisy.columns["label"].tolist(), strict=True))
    for batch in batches:
        assert batch["label"].tolist() == [given[i] for i in batch["id"].tolist()]


def test_a_stand_in_keeps_its_own_supervision(tmp_path):
    pictures.write_folder(tmp_path, pictures.examples())
    source = data.load("folder", path=str(tmp_path), split="train", size=32)
    Path(source.name(3).split(": ")[0], source.name(3).split(": ")[1]).write_bytes(b"no image")
    marked = source.replace(mark=np.arange(len(source)))
    for view in (View(damaged=[]), training(source, [3, 8], damaged=[])):
        batch = marked.read([3, 8], view, columns=("mark", "label"))
        assert batch["mark"].tolist() == [4, 8]
        assert batch["id"].tolist() == source.ids[[4, 8]].tolist()
        assert [row for row, _ in view.damaged] == [3]


def test_captions_are_swapped_among_images():
    source = data.load("emoji_domains", split="test", domain="noto", labels="category")
    noisy, manifest = CORRUPTIONS["captions"](source, 0.2, seed=0)
    assert sorted(noisy.columns["caption"]) == sorted(source.columns["caption"])
    assert (noisy.columns["caption"] != source.columns["caption"]).sum() == len(manifest.ids)
    with pytest.raises(ValueError, match="no captions"):
        CORRUPTIONS["captions"](toy.source_of(), 0.2)


def test_a_stored_column_is_read_by_workers_from_its_file(tmp_path):
    source = toy.source_of(24)
    np.save(tmp_path / "mark.npy", np.arange(24) * 10)
    made = source.replace(mark=Stored(tmp_path / "mark.npy"))
    assert len(pickle.dumps(made.columns["mark"])) < 400
    batches = loader.train_batches(
        made, batch_size=6, seed=0, stop=2, columns=("label", "mark"), workers=1
    )
    for batch in batches:
        assert batch["mark"].tolist() == [(i - 1000) * 10 for i in batch["id"].tolist()]
    batches.close()
