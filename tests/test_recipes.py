"""The ImageNet recipes: their values, and ten steps of their shrunken selves."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from noisy_fm import config, sharding, train
from noisy_fm.data import augment, imagenet
from noisy_fm.train.state import init_state, make_step

ROOT = Path(__file__).parent.parent / "configs/pretrain"
# The paper's table, as shared by both or (ResNet-50, ViT-B/16).
TABLE = {
    "epochs": (600, 300),
    "batch_size": (2048, 4096),
    "optimizer.name": ("lamb", "lamb"),
    "optimizer.learning_rate": (5e-3, 5e-3),
    "optimizer.weight_decay": (0.01, 0.02),
    "schedule.name": ("cosine", "cosine"),
    "schedule.warmup_epochs": (5, 5),
    "task.loss": ("bce", "bce"),
    "task.label_smoothing": (0.1, 0.0),
    "model.name": ("resnet50", "vit_b16"),
    "model.drop_path": (0.05, 0.2),
    "repeats": (3, 3),
    "clip": (1.0, 1.0),
    "task.mix.mixup": (0.2, 0.8),
    "task.mix.cutmix": (1.0, 1.0),
    "task.augment.policy": ("rand-m7-mstd0.5-inc1", "3a"),
    "data.size": (224, 224),
    "precision": ("bfloat16", "bfloat16"),
}
RECIPES = ("resnet50_in1k", "vit_b16_in1k")
# Losses of the first ten steps on two CPU cores, 32×32, noise 10 %.
GOLDEN: dict[str, list[float]] = {
    "resnet50_in1k": [
        0.69892,
        0.70134,
        0.69092,
        0.67645,
        0.65584,
        0.62396,
        0.5892,
        0.55436,
        0.52688,
        0.50108,
    ],
    "vit_b16_in1k": [
        0.69788,
        0.69802,
        0.68668,
        0.66669,
        0.64188,
        0.61838,
        0.60195,
        0.59122,
        0.5844,
        0.57669,
    ],
}


def get_config(recipe, arg=""):
    spec = importlib.util.spec_from_file_location(recipe, ROOT / f"{recipe}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert f"--config=configs/pretrain/{recipe}.py:noise_rate=0.1" in module.__doc__
    return module.get_config(arg)


@pytest.mark.parametrize("recipe", RECIPES)
def test_values_are_those_of_the_table(recipe):
    cfg = get_config(recipe, "noise_rate=0.2,seed=3")
    config.check_train(cfg)
    flat = config.flatten(cfg)
    assert {key: flat[key] for key in TABLE} == {
        key: value[RECIPES.index(recipe)] for key, value in TABLE.items()
    }
    assert cfg.noise.to_dict() == {"kind": "symmetric", "rate": 0.2}
    assert set(cfg.seeds.values()) == {3}
    assert flat.get("model.drop_rule", "linear") == ("linear", "uniform")[RECIPES.index(recipe)]
    given = {k: v for k, v in cfg.task.augment.items() if k != "name"}
    assert augment.imagenet(size=cfg.data.size, **given).size == 224


@pytest.mark.parametrize("recipe", RECIPES)
def test_asymmetric_noise_names_the_synonyms(recipe):
    for rule in imagenet.RULES:
        cfg = get_config(recipe, f"noise_rate=0.05,noise_kind=subset,synonyms={rule}")
        config.check_train(cfg)
        assert cfg.noise.kind == "subset"
        assert tuple(cfg.noise.classes) == imagenet.cifar100_synonyms(rule)
    with pytest.raises(ValueError, match="unknown config argument 'noise'"):
        get_config(recipe, "noise=0.1")


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_shrunken_recipe_keeps_what_makes_it_one(recipe):
    full, small = (config.flatten(get_config(recipe, arg)) for arg in ("", "debug"))
    changed = {key for key in TABLE if full[key] != small[key]}
    assert changed <= {"epochs", "batch_size", "data.size", "precision",
                       "schedule.warmup_epochs", "model.drop_path"}  # fmt: skip


def ten_losses(recipe, monkeypatch):
    """The losses of ten steps of `:debug`, the learning rate at its peak after five."""
    monkeypatch.delenv("NOISY_FM_EMOJI", raising=False)
    cfg = get_config(recipe, "debug,noise_rate=0.1")
    cfg.schedule.per_epoch, cfg.schedule.warmup_epochs = False, 5 / 77
    one = sharding.make_mesh(devices=jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", lambda **axes: one)
    made = train.setup(cfg)
    assert made.manifest.summary()["realised"] == pytest.approx(0.1, abs=1e-3)
    state, losses = init_state(made.plan), []
    step = make_step(made.task, made.plan.tx, state)
    batches = train.train_batches(cfg, made, start=0, stop=10)
    for _, batch in zip(range(10), batches, strict=False):
        state, loss = step(state, sharding.to_global(batch, made.mesh))
        losses.append(float(loss))
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_ten_steps_have_the_recorded_losses(recipe, monkeypatch):
    losses = ten_losses(recipe, monkeypatch)
    np.testing.assert_allclose(losses, GOLDEN[recipe], rtol=1e-3)
