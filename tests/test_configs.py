"""Every config takes one step, shrunken."""

import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from noisy_fm import config, study, train

ROOT = Path(__file__).parent.parent / "configs"


def load(file: Path):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The ImageNet recipes take their steps, shrunken, in test_recipes.py.
@pytest.mark.slow
@pytest.mark.parametrize("file", sorted(ROOT.glob("pretrain/*emoji*.py")), ids=lambda f: f.stem)
def test_a_training_config_takes_a_step(file, tmp_path):
    module = load(file)
    assert f"--config=configs/pretrain/{file.name}" in module.__doc__
    cfg = module.get_config("noise_rate=0.1,seed=1")
    assert cfg.noise.rate == 0.1
    with cfg.unlocked():
        cfg.batch_size = 16
        cfg.epochs = 1e-6
        cfg.schedule.warmup_epochs = 0.0
    state, made, result = train.run(cfg, str(tmp_path / "run"))
    assert int(state.step) == result["steps"] == 1
    assert made.manifest.summary()["realised"] == pytest.approx(0.1, abs=1e-3)


@pytest.mark.parametrize("file", sorted(ROOT.glob("study/emoji*.py")), ids=lambda f: f.stem)
def test_a_study_config_resolves(file):
    module = load(file)
    assert f"--config=configs/study/{file.name}" in module.__doc__
    full = study.resolve(module.get_config("full"))
    assert full.model == full.pretrain.model.name
    changed = config.differences(config.plain(module.get_config()), config.plain(full))
    assert any("noise_rates" in line for line in changed)


def test_the_release_study_has_two_views():
    full = study.resolve(load(ROOT / "study/emoji.py").get_config("full,release"))
    assert (full.preset, full.second_view.name) == ("release", "flip_crop")


@pytest.mark.slow
def test_the_config_for_images_on_disk_trains_on_them(tmp_path):
    for split, name in itertools.product(("train", "val"), ("cat", "dog")):
        folder = tmp_path / "data" / split / name
        folder.mkdir(parents=True)
        for i in range(8):  # as people name them
            shade = 30 * i + 5 * (split == "val")  # no image is in both splits
            Image.fromarray(np.full((40, 30, 3), shade, np.uint8)).save(folder / f"{i}.jpg")
    file = ROOT / "pretrain/folder.py"
    cfg = load(file).get_config("noise_rate=0.25,size=32")
    cfg.data.path = str(tmp_path / "data")
    cfg.model.name = "resnet10_half"
    cfg.batch_size, cfg.epochs, cfg.schedule.warmup_epochs = 8, 1.0, 0.0
    _, made, result = train.run(cfg, str(tmp_path / "run"))
    assert result["steps"] == 2
    assert (made.source.labels != made.clean.labels).sum() == 4
