"""Evaluators on images of which some are damaged: those count in nothing, to the share allowed."""

import jax
import jax.numpy as jnp
import numpy as np
import pictures
import pytest
import toy

from noisy_fm import config, data, evaluators, tasks, train
from noisy_fm.train import job
from noisy_fm.train.state import init_state


@pytest.fixture
def source(tmp_path):
    """24 photographs, 8 a class; a class's last is damaged, so one of the next class stands in."""
    return damaged(tmp_path, "train", [7])


def damaged(root, split, rows):
    first = {"train": 0, "val": 50}[split]
    pictures.write_folder(root, pictures.examples(24, first), split)
    source = data.load("folder", path=str(root), split=split, size=16)
    for row in rows:
        (root / split / source.storage.listing.names[row].decode()).write_bytes(b"")
    return source


@pytest.fixture
def told(source):
    """(task, state): the features and predictions are the true label of the image that came."""
    ids, labels = jnp.asarray(source.ids.astype(np.int32)), jnp.asarray(source.labels)

    def predict_fn(params, model_state, batch):
        label = labels[jnp.argmax(batch["id"][:, None] == ids, axis=1)]
        out = {"features": {"label": jax.nn.one_hot(label, 3)}}
        return {**out, "correct": label == batch["label"]} if "label" in batch else out

    _, _, state = toy.start(toy.one_device())
    task = tasks.Task(None, None, None, predict_fn, None, ("label",), None, {}, "correct")
    return task, state


def test_what_stood_in_is_neither_memorised_nor_resisted(source, told):
    task, state = told
    noisy = source.replace(label=(source.labels + 1) % 3)
    given = toy.given(task, state.variables, source, noisy)
    found = evaluators.memorised(given, examples=100).measure(state.variables)
    assert found == {"memorised": 0.0, "resisted": 1.0}
    with pytest.raises(ValueError, match="has data of its own, which have no wrong labels"):
        evaluators.memorised(toy.given(task, state.variables, source, source), examples=100)


def test_the_probe_learns_and_tests_without_it(source, told):
    task, state = told
    given = toy.given(task, state.variables, source)
    probe = evaluators.ridge(given, feature="label", examples=100)
    assert probe.measure(state.variables) == {"": 1.0}


def test_spectra_are_of_the_others(source, told):
    task, state = told
    given = toy.given(task, state.variables, source)
    found = evaluators.spectra(given, names=["label"]).measure(state.variables)
    share = np.sqrt([7, 8, 8]) / np.sqrt([7, 8, 8]).sum()
    assert found["label/sve"] == pytest.approx(-(share * np.log(share)).sum())


def test_entries_may_be_on_data_of_their_own(tmp_path):
    cfg = config.train()
    cfg.data.domain = ("noto",)
    cfg.model = {"name": "resnet10_narrow", "width": 4}
    digits = {"name": "digits", "labels": "", "domain": ()}
    cfg.evaluators.digits = {
        "kind": "probe", "feature": "pre_logits", "data": digits, "split": "train"
    }  # fmt: skip
    cfg.evaluators.unseen = {"kind": "validation", "data": {"domain": "lineart"}}
    made = train.setup(cfg)
    state = init_state(made.plan)
    found = job.make_evaluators(cfg, made)
    assert set(found) == {"validation", "digits", "unseen"}
    assert found["digits"].measure(state.variables)[""] > 0.25
    unseen = data.load("emoji_domains", domain="lineart", split="test", labels="subcategory")
    given = toy.given(made.task, state.variables, made.clean, None, unseen, mesh=made.mesh)
    expected = evaluators.validation(given).measure(state.variables)
    assert found["unseen"].measure(state.variables) == pytest.approx(expected)
    assert evaluators.title("unseen", "accuracy") == "unseen/accuracy"
    cfg.evaluators.unseen = {"kind": "validation", "data": digits, "split": "train"}
    with pytest.raises(ValueError, match="other classes than the run's"):
        job.make_evaluators(cfg, made)
    cfg.evaluators.unseen = {"kind": "validation", "examples": 3}
    with pytest.raises(ValueError, match=r"unknown key .*unseen\.examples"):
        train.setup(cfg)
    cfg.evaluators.unseen = {"kind": "validatoin"}
    with pytest.raises(ValueError, match="did you mean 'validation'"):
        train.setup(cfg)


def test_the_share_that_may_be_damaged_is_the_configs(tmp_path):
    damaged(tmp_path, "train", [])
    damaged(tmp_path, "val", range(1, 10, 2))
    cfg = config.train()
    cfg.data = {**cfg.data, "name": "folder", "path": str(tmp_path), "labels": "", "size": 16}
    cfg.split, cfg.eval_split, cfg.task.augment.name = "train", "val", "imagenet"
    cfg.model = {"name": "resnet10_narrow", "width": 4}
    cfg.batch_size = 8
    made = train.setup(cfg)
    state = init_state(made.plan)
    with pytest.raises(ValueError, match=r"more than max_bad = 0\.001"):
        job.make_evaluators(cfg, made)["validation"].measure(state.variables)
    cfg.loader.max_bad, left_out = 0.5, {}
    found = job.make_evaluators(cfg, made, left_out)["validation"].measure(state.variables)
    assert np.isfinite(found["loss"])
    assert len(left_out) == 5


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"kind": "spectrum", "data": {"domain": ("lineart",)}}, "measures nothing: names is empt"),
        ({"kind": "probe"}, "measures nothing: feature is empty"),
        ({"kind": "memorised"}, "measures nothing: examples is 0"),
        ({"kind": "validation", "domain": "noto"}, r"'config.evaluators.x.domain'; .*\.x\.data"),
        ({"kind": "validation", "data": "lineart"}, r"x\.data is 'lineart'; expected a group"),
        ({"kind": "probe", "feature": "pre_logits", "examples": -5}, r"x\.examples is -5; expec"),
        (3, r"config\.evaluators\.x is 3; expected a group of keys"),
        ({"kind": "valid"}, r"unknown config\.evaluators\.x\.kind 'valid'; did you mean"),
    ],
)
def test_an_entry_that_cannot_be_is_one_line(entry, message):
    cfg = config.train()
    cfg.evaluators.x = entry
    with pytest.raises(ValueError, match=message) as error:
        job.make_evaluators(cfg, train.setup(cfg))
    assert "\n" not in str(error.value)


def test_validation_on_other_data_reads_no_split_to_train_on():
    cfg = config.train()
    cfg.data.labels = "category"
    cfg.evaluators.x = {"kind": "validation", "data": {"domain": ("lineart",)}, "split": "none"}
    assert "x" in job.make_evaluators(cfg, train.setup(cfg))
