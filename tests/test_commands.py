"""`python -m noisy_fm` and the installed command `noisy_fm`."""

import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from noisy_fm import config, study
from noisy_fm.__main__ import COMMANDS

ROOT = Path(__file__).parent.parent


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "noisy_fm", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )


def test_the_commands_are_listed():
    for arguments in ((), ("--help",)):
        done = command(*arguments)
        assert done.returncode == 0
        for name, words in COMMANDS:
            assert f"{name:<10} {words}" in done.stdout
            assert importlib.util.find_spec(f"noisy_fm.{name}")


def test_a_wrong_command_is_one_line_with_the_nearest():
    done = command("spectra", "x.npy")
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: unknown command 'spectra'; did you mean 'spectrum'? known:"
    )
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("train", "--config=configs/none.py"), 2, "there is no config file configs/none.py"),
        (("report", "nowhere"), 1, "report: "),
        (("spectrum", "none.npy"), 1, "error: no such features: none.npy"),
    ],
)
def test_a_command_runs_as_its_module_does(arguments, code, message):
    done = command(*arguments)
    assert done.returncode == code
    assert message in done.stderr


def test_the_installed_command_is_the_same():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"noisy_fm": "noisy_fm.__main__:main"}


@pytest.mark.parametrize(("name", "defaults"), [("train", config.train), ("study", study.defaults)])
def test_help_lists_every_key_with_its_default(name, defaults):
    said = command(name, "--help").stdout.splitlines()
    for key, value in config.flatten(defaults()).items():
        if not key.startswith("pretrain."):
            (line,) = (line for line in said if line.startswith(f"  --config.{key}="))
            assert line.split("=", 1)[1].startswith(repr(value)[:49])
    words = {line.split("=")[0].strip(): line for line in said}
    seeds = "pre-training seeds (initialisation, order, noise) per rate"
    assert name == "train" or words["--config.seeds"].endswith(seeds)
    assert name == "study" or words["--config.batch_size"].endswith("over all hosts and devices")
