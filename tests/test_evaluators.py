"""Evaluators on images of which some are damaged: those count in nothing, to the share allowed."""

import jax
import numpy as np
import pictures
import pytest
import toy

from noisy_fm import config, data, tasks, train
from noisy_fm.train import evaluators, job
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


@pytest.fixture(scope="module")
def told():
    """(task, state): the features and predictions are the label that came with the image."""

    def predict_fn(params, model_state, batch):
        label = batch["label"]
        return {"prediction": label, "features": {"label": jax.nn.one_hot(label, 3)}}

    _, _, state = toy.start(toy.one_device())
    return tasks.Task(None, None, None, predict_fn, None, ("label",), None), state


LAYOUT = {"batch_size": 10, "mesh": toy.one_device()}


def test_what_stood_in_is_neither_memorised_nor_resisted(source, told):
    task, state = told
    noisy = source.replace(label=(source.labels + 1) % 3)
    measure = evaluators.memorised(task, source, noisy, most=100, **LAYOUT)
    assert measure(0, state) == {"memorised": 0.0, "resisted": 1.0}


def test_the_probe_learns_and_tests_without_it(source, told):
    task, state = told
    measure = evaluators.probe(
        task, source, source, feature="label", variables=state.variables, most=100, **LAYOUT
    )
    assert measure(0, state) == {"probe": 1.0}


def test_spectra_are_of_the_others(tmp_path, source, told):
    task, state = told
    measure = evaluators.spectra(task, source, ["label"], variables=state.variables, **LAYOUT)
    share = np.sqrt([7, 8, 8]) / np.sqrt([7, 8, 8]).sum()
    assert measure(0, state)["spectrum/label/sve"] == pytest.approx(-(share * np.log(share)).sum())


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
        job.make_evaluators(cfg, made)[0](0, state)
    cfg.loader.max_bad = 0.5
    assert np.isfinite(job.make_evaluators(cfg, made)[0](0, state)["loss"])
