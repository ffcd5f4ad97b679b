"""A mistake in a config is one line, before anything runs."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from noisy_fm import checkpoint, config, files, optim, study


def changed(**changes):
    return config.updated(config.train(), {k.replace("__", "."): v for k, v in changes.items()})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise__rate": 1.0}, r"noise\.rate is 1\.0; expected γ in \[0, 1\)"),
        ({"noise__rate": -0.1}, r"noise\.rate is -0\.1"),
        ({"task__loss": "sofmax"}, "did you mean 'softmax'"),
        ({"task.augment.name": "flip"}, "did you mean 'flip_crop'"),
        ({"precision": "float16"}, "did you mean '.*float"),
        ({"batch_size": 0}, "batch_size is 0; expected a positive"),
        ({"schedule__warmup_epochs": 10.0}, r"to be shorter \(--config\.schedule\.warm.*epochs"),
        ({"task__label_smoothing": 1.0}, "label_smoothing"),
        ({"epochs": float("inf")}, "epochs is inf; expected a positive number"),
        ({"optimizer__learning_rate": -0.1}, r"learning_rate is -0\.1; expected a positive number"),
        ({"schedule__min_rate": -1.0}, r"min_rate is -1\.0; expected 0 or more"),
        ({"profile": (1, 2, 3)}, "profile"),
        (
            {"task__normalize__mean": "white"},
            r"normalize\.mean is 'white'; expected one number or three",
        ),
        ({"task__normalize__mean": (1, 2)}, r"mean is \(1, 2\); expected one number or three"),
        ({"task__normalize__std": (0.1, 0.0, 0.1)}, "expected positive numbers"),
        ({"trainable": (".*", 1.0)}, r"config\.trainable has '\.\*'; expected pairs"),
        ({"trainable": ((".*", "no"),)}, r"has 'no' for '\.\*'; expected a number, or None"),
        ({"sharding": ((".*",),)}, r"config\.sharding has \('\.\*',\); expected pairs"),
    ],
)
def test_values_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        config.check_train(changed(**changes))
    assert "\n" not in str(error.value)


def test_an_unknown_key_names_the_closest():
    cfg = config.train()
    with cfg.unlocked():
        cfg.schedule.warmup_epoch = 3
    with pytest.raises(ValueError, match=r"'config\.schedule\.warmup_epoch'.*warmup_epochs"):
        config.check_train(cfg)


def test_a_missing_key_is_named():
    cfg = config.train()
    with cfg.unlocked():
        del cfg.schedule
    with pytest.raises(ValueError, match=r"config\.schedule is missing"):
        config.check_train(cfg)


def test_an_optimiser_refuses_arguments_it_does_not_read():
    cfg = config.train()
    with cfg.unlocked():
        cfg.optimizer.momentum = 0.9
    with pytest.raises(ValueError, match=r"'config\.optimizer\.momentum'; known"):
        optim.optimizer(cfg, lambda step: 0.1, multipliers={"a/kernel": 1.0})
    with cfg.unlocked():
        del cfg.optimizer.momentum
        cfg.optimizer.beta1 = 0.9
    with pytest.raises(ValueError, match=r"did you mean 'config\.optimizer\.b1'"):
        optim.optimizer(cfg, lambda step: 0.1, multipliers={"a/kernel": 1.0})


def test_parse_arg_reads_types_and_refuses_the_rest():
    got = config.parse_arg("rate=0.1,full,seed=3", rate=0.0, full=False, seed=0)
    assert got.to_dict() == {"rate": 0.1, "full": True, "seed": 3}
    with pytest.raises(ValueError, match="did you mean 'seed'"):
        config.parse_arg("sed=3", seed=0)
    with pytest.raises(ValueError, match="seed=x: expected int"):
        config.parse_arg("seed=x", seed=0)


def test_the_hash_follows_values_not_order():
    a, b = config.train(), config.train()
    assert config.hash_of(a) == config.hash_of(b)
    assert config.hash_of({"x": 1, "y": (2, 3)}) == config.hash_of({"y": [2, 3], "x": 1})
    b.noise.rate = 0.1
    assert config.hash_of(a) != config.hash_of(b)
    assert config.differences(config.plain(a), config.plain(b)) == ["noise.rate: 0.0 → 0.1"]


@pytest.mark.parametrize("table", [config.train(), study.defaults()], ids=["train", "study"])
def test_every_default_is_read_by_the_code(table):
    """A key that nothing reads would be a setting that does nothing."""
    package = Path(config.__file__).parent
    text = "".join(
        f.read_text() for f in package.rglob("*.py") if f.name not in ("config.py", "settings.py")
    )
    text += Path(config.__file__).read_text().split("def parse_arg")[1]
    unread = [key for key in table if not re.search(rf'config\.{key}\b|"{key}"', text)]
    assert not unread


def command(module, *arguments, **variables):
    return subprocess.run(
        [sys.executable, "-m", f"noisy_fm.{module}", *arguments],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, **variables},
    )


PRETRAIN = "--config=configs/pretrain/emoji.py"


# Each is a process of its own, so most are for the slow suite.
RARER_MISTAKES = (
    ((PRETRAIN, "--config.batchsize=3"), "batch_size"),
    (("--config=configs/missing.py",), "there is no config file configs/missing.py"),
    ((PRETRAIN + ":noise=0.1",), "noise_rate"),
    ((PRETRAIN, "--config.noise.rate=1.0"), "expected γ in [0, 1)"),
    ((PRETRAIN, "--config.model.name=resnet5"), "resnet"),
    ((PRETRAIN, "--config.data.name=emoji_domain"), "emoji_domains"),
    ((PRETRAIN, "--config.data.labels=categry"), "category"),
    ((PRETRAIN, "--config.seeds.order=-1"), "expected a whole number below 2³²"),
    ((PRETRAIN, "--config.optimizer.weight_decay=-1"), "weight_decay is -1.0; expected 0 or"),
    ((PRETRAIN, "--config.data.size=64", "--config.model.size=3"), "config.model.size"),
    ((PRETRAIN, "--config.optimzer.clip=1"), "no key config.optimzer.clip"),
    ((PRETRAIN, "--config.model.width=8"), "that a config file does not set is set there"),
    ((), "--config is missing"),
    ((PRETRAIN, "--wrkdir=/tmp/x"), "workdir"),
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((PRETRAIN, "--config.noise.rat=0.2"), 'no key config.noise.rat; Did you mean "rate"'),
        ((PRETRAIN, "--config.data.name=folder"), "config.data: folder: "),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in RARER_MISTAKES),
    ],
)
def test_the_command_line_words_a_mistake_in_one_line(arguments, message, tmp_path):
    workdir = () if any("wrkdir" in a for a in arguments) else (f"--workdir={tmp_path / 'run'}",)
    out = command("train", *arguments, *workdir)
    assert out.returncode == 2
    lines = out.stderr.strip().splitlines()
    assert len(lines) == 1, out.stderr
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("module", ["train", "study"])
def test_help_is_useful(module):  # what it does, the line to type, and the flags
    out = command(module, "--help")
    assert "--config=" in out.stdout
    assert "--workdir" in out.stdout
    assert f"python -m noisy_fm.{module}" in out.stdout


SHOW = """
import json
from noisy_fm import app, config
from noisy_fm.study import settings
def main(given, workdir):
    check = settings.check if "pretrain" in given else config.check_train
    given = settings.completed(given) if "pretrain" in given else given
    check(given)
    print(json.dumps(config.flatten(config.plain(given))))
app.run_app(main)
"""
RULES = [["head", 1.0], [".*", None]]
# What the tables of defaults say that a key takes, beside the type of its default.
TRAIN_VALUES = {
    "task.normalize.mean": ("(0.5,0.4,0.3)", [0.5, 0.4, 0.3]),
    "task.normalize.std": ("0.2", 0.2),
    "data.domain": ("noto", ["noto"]),
    "trainable": ("(('head',1.0),('.*',None))", RULES),
    "sharding": ("(('bias','replicate'),('.*',('data',None)))",
                 [["bias", "replicate"], [".*", ["data", None]]]),
    "mesh.data": ("-1", -1),
    "profile": ("3,5", [3, 5]),
    "writers": ("()", []),
    "evaluators.spectrum.names": ("pre_logits", ["pre_logits"]),
    "epochs": ("3", 3.0),
    "clip": ("1", 1.0),
}  # fmt: skip
STUDY_VALUES = {
    "pretrain.task.normalize.mean": ("(0.5,0.4,0.3)", [0.5, 0.4, 0.3]),
    "weights": ("(0.1,(1,2,3))", [0.1, [1, 2, 3]]),
    "noise_rates": ("0.1", [0.1]),
    "methods": ("('lp','nmtune')", ["lp", "nmtune"]),
    "transfers.digits.split": ("test", "test"),
}
FOLDER_VALUES = {  # a config file that replaces whole groups
    "task.normalize.mean": ("0.3", 0.3),
    "task.normalize.std": ("(0.1,0.2,0.3)", [0.1, 0.2, 0.3]),
    "task.augment.color_jitter": ("(0.3,0.3,0.1)", [0.3, 0.3, 0.1]),
}


@pytest.mark.parametrize(
    ("file", "values"),
    [
        pytest.param("pretrain/emoji.py", TRAIN_VALUES, marks=pytest.mark.slow),
        ("study/emoji.py", STUDY_VALUES),
        pytest.param("pretrain/folder.py", FOLDER_VALUES, marks=pytest.mark.slow),
    ],
    ids=["emoji", "study", "folder"],
)
def test_every_documented_kind_of_value_can_be_given_on_the_command_line(file, values):
    flags = [f"--config.{key}={text}" for key, (text, _) in values.items()]
    out = subprocess.run(
        [sys.executable, "-c", SHOW, f"--config=configs/{file}", "--workdir=unused", *flags],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    assert not out.stderr
    shown = json.loads(out.stdout)
    assert {key: shown[key] for key in values} == {key: value for key, (_, value) in values.items()}


def test_numbers_are_one_or_several_in_a_config_file_too():
    cfg = config.train()
    before = config.hash_of(cfg)
    cfg.task.normalize.mean = (0.5, 0.4, 0.3)
    cfg.task.normalize.mean = 0.5
    assert config.hash_of(cfg) == before == config.hash_of(changed())
    several = {"task.normalize.mean": (0.5, 0.4, 0.3), "task.normalize.std": 0.2}
    got = config.updated(cfg, several).task.normalize.to_dict()
    assert got == {"mean": (0.5, 0.4, 0.3), "std": 0.2}
    with pytest.raises(TypeError, match="batch_size"):
        cfg.batch_size = (1, 2)


@pytest.mark.parametrize(
    ("platform", "message"),
    [
        ("cudda", "JAX_PLATFORMS is 'cudda'"),
        pytest.param(
            *("cuda", "there is no such device"),
            marks=pytest.mark.skipif(bool(shutil.which("nvidia-smi")), reason="there is one"),
        ),
    ],
)
def test_a_platform_that_is_not_there_is_one_line(platform, message):
    out = command("train", PRETRAIN, "--workdir=unused", JAX_PLATFORMS=platform)
    assert out.returncode == 2
    (line,) = out.stderr.strip().splitlines()
    assert message in line


@pytest.mark.slow
def test_a_device_without_enough_memory_is_one_line():
    code = """
import jax.numpy as jnp
from noisy_fm import app
app.run_app(lambda config, workdir: jnp.zeros(2**45).block_until_ready())
"""
    out = subprocess.run(
        [sys.executable, "-c", code, PRETRAIN, "--workdir=unused"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    assert out.returncode == 2
    assert out.stderr.splitlines()[-1].startswith("error: out of memory: ")


def test_the_home_folder_may_be_abbreviated(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.absolute("~/runs/a") == tmp_path / "runs/a"
    assert str(files.absolute("gs://bucket/~a")) == "gs://bucket/~a"
    assert files.absolute("runs/~a") == Path.cwd() / "runs/~a"


def test_a_workdir_of_another_config_is_refused(tmp_path):
    old, new = {"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}}
    checkpoint.claim(tmp_path, "config.json", old, differences=config.differences)
    checkpoint.claim(tmp_path, "config.json", old, differences=config.differences)
    with pytest.raises(ValueError, match=r"another config \(b\.c: 2 → 3\)"):
        checkpoint.claim(tmp_path, "config.json", new, differences=config.differences)
    assert json.loads((tmp_path / "config.json").read_text()) == old
