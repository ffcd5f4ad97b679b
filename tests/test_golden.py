"""Every training config still learns what it did when tests/references/golden.json was recorded.

    PYTHONPATH=tests python tests/test_golden.py CONFIG …

That line records some of them anew, where a change is meant, once XLA_FLAGS is what `FULLY` says.
Twenty steps a config: on the machine that recorded, the same bits; elsewhere, what float32 carries.
"""

import hashlib
import importlib.util
import itertools
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from board import events
from PIL import Image

from noisy_fm import checkpoint, train
from noisy_fm import config as config_lib

ROOT = Path(__file__).parent.parent
FILE = ROOT / "tests" / "references" / "golden.json"
STEPS = 20
# As programs are compiled outside of the tests.
FULLY = "--xla_backend_optimization_level=3 --xla_cpu_use_fusion_emitters=true"
CONFIGS = {
    "clip_emoji": "noise_rate=0.1",
    "clip_folder": "noise_rate=0.1,size=32,captions=captions.csv:title",
    "clip_resnet50_yfcc15m": "noise_rate=0.1,debug",
    "clip_vit_b16_yfcc_cc12m": "noise_rate=0.1,debug",
    "emoji": "noise_rate=0.1",
    "folder": "noise_rate=0.1,size=32",
    "resnet50_in1k": "noise_rate=0.1,debug",
    "vit_b16_in1k": "noise_rate=0.1,debug",
}

pytestmark = pytest.mark.slow


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def machine() -> str:
    """What the bits depend on: the processor's model and the instructions that it has."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return digest(platform.processor())
    wanted = ("model name", "flags")
    return digest("".join(sorted({line for line in lines if line.startswith(wanted)})))


def images(folder: Path) -> None:
    """Two classes of small photographs of noise, 64 to train on and 16 to validate."""
    random = np.random.default_rng(0)
    for split, name in itertools.product(("train", "val"), ("cat", "dog")):
        place = folder / split / name
        place.mkdir(parents=True)
        for i in range(64 if split == "train" else 16):
            pixels = random.integers(0, 160, (48, 40, 3)) + 90 * (name == "dog")
            Image.fromarray(pixels.astype(np.uint8)).save(place / f"{split}{i}.jpg")


def learned(name: str, arg: str, folder: Path) -> dict:
    """The losses of the first steps of a config, and a digest of the parameters after them."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs/pretrain" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(arg)
    if name.endswith("folder"):
        images(folder / "data")
        files = sorted(file.relative_to(folder / "data") for file in folder.rglob("*.jpg"))
        rows = [f"{file},a {file.parent.name} called {i}" for i, file in enumerate(files)]
        (folder / "data" / "captions.csv").write_text("\n".join(["file,title", *rows]) + "\n")
        config.data.path, config.batch_size = str(folder / "data"), 32
        config.model.name = "resnet10_half"
    rows = 128 if name.endswith("folder") else 2910 if name.startswith("clip") else 4962
    config.epochs = STEPS / (rows // config.batch_size)
    config.schedule.warmup_epochs = config.epochs / 4
    config.log_every = 1
    usual = config_lib.train(config.task.name).evaluators
    config.evaluators = {name: one for name, one in config.evaluators.items() if name in usual}
    state, made, result = train.run(config, str(folder / "run"))
    assert made.steps == STEPS
    return {
        "losses": [value for _, value in sorted(events(folder / "run")["train/loss"])],
        "eval": result["eval"],
        "digest": digest(json.dumps(checkpoint.digests(state.params))),
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_learns_what_it_learned(name, tmp_path):
    recorded = json.loads(FILE.read_text())
    variables = {**os.environ, "XLA_FLAGS": FULLY, "PYTHONPATH": os.pathsep.join(sys.path)}
    line = [sys.executable, __file__, name, str(tmp_path)]
    out = subprocess.run(line, env=variables, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr[-2000:]
    found, before = json.loads(out.stdout.splitlines()[-1]), recorded[name]
    if machine() == before.pop("machine"):
        assert found == before
    np.testing.assert_allclose(found["losses"][0], before["losses"][0], rtol=1e-6)
    np.testing.assert_allclose(found["losses"], before["losses"], rtol=1e-3)


def test_every_training_config_is_here():
    assert set(CONFIGS) == {file.stem for file in (ROOT / "configs/pretrain").glob("*.py")}


if __name__ == "__main__":
    import tempfile

    import conftest  # noqa: F401  the devices and precision of the tests

    if len(sys.argv) == 3 and Path(sys.argv[2]).is_dir():
        print(json.dumps(learned(sys.argv[1], CONFIGS[sys.argv[1]], Path(sys.argv[2]))))
        sys.exit()
    made = json.loads(FILE.read_text())
    for name in sys.argv[1:] or CONFIGS:
        with tempfile.TemporaryDirectory() as folder:
            made[name] = {"machine": machine(), **learned(name, CONFIGS[name], Path(folder))}
    FILE.write_text(json.dumps(dict(sorted(made.items())), indent=1) + "\n")
