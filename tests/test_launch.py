"""The launch files: their shape, their shell, and what the scripts do when training is stopped."""

import re
import shutil
import subprocess
import time
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "tools" / "launch"
TASKS = sorted(LAUNCH.glob("*.sky.yaml"))
SLURM = LAUNCH / "slurm.sbatch"
LINE = 'python -m noisy_fm.train --config="$CONFIG"'


def shell_check(script: str) -> None:
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "--shell=bash", "-"], input=script, text=True, check=True)


@pytest.mark.parametrize("file", TASKS, ids=lambda file: file.name)
def test_a_skypilot_task_has_its_parts(file):
    task = yaml.safe_load(file.read_text())
    known = {"name", "num_nodes", "workdir", "resources", "envs", "setup", "run"}
    assert set(task) <= known
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [143]
    assert task["envs"]["WORKDIR"] is None  # SkyPilot then asks for it
    for part in ("setup", "run"):
        shell_check("#!/bin/bash\n" + task[part])
    assert task["run"].count(LINE) == 1
    used = set(re.findall(r"\$\{?([A-Z_]+)", task["run"]))
    assert {name for name in used if not name.startswith("SKYPILOT_")} == set(task["envs"])
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert set(re.search(r'"\.\[([\w,-]+)\]"', task["setup"]).group(1).split(",")) <= set(extras)


def test_gpu_nodes_are_told_who_they_are():
    run = yaml.safe_load((LAUNCH / "gpu.sky.yaml").read_text())["run"]
    probe = run[: run.index("exec python")] + "env | grep ^JAX_ | sort"
    variables = {"SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.8", "SKYPILOT_NUM_NODES": "2"}
    done = subprocess.run(
        ["/bin/bash", "-c", probe],
        env={"PATH": "/usr/bin:/bin", **variables, "SKYPILOT_NODE_RANK": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [
        "JAX_COORDINATOR_ADDRESS=10.0.0.7:8476",
        "JAX_NUM_PROCESSES=2",
        "JAX_PROCESS_ID=1",
    ]


def test_the_slurm_script_is_sound_shell():
    shell_check(SLURM.read_text())
    assert SLURM.read_text().count(LINE) == 1


@pytest.mark.parametrize("code", [0, 2, 143])
def test_slurm_requeues_a_training_that_saved_and_left_and_nothing_else(tmp_path, code):
    """With stand-ins for `srun`, which leaves with `code`, and `scontrol`."""
    log = tmp_path / "log"
    for name, body in {"srun": f"exit {code}", "scontrol": "exit 0"}.items():
        file = tmp_path / name
        file.write_text(f'#!/bin/bash\necho {name} "$@" >> {log}\n{body}\n')
        file.chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "42"}
    given = {"CONFIG": "a.py:noise_rate=0.1", "WORKDIR": "gs://b/run", "DATA_DIR": "/data"}
    done = subprocess.run(["/bin/bash", str(SLURM)], env=env | given)
    assert done.returncode == code
    lines = log.read_text().splitlines()
    train = f"{LINE.split(' --')[0]} --config=a.py:noise_rate=0.1 --config.data.path=/data"
    assert lines[0].endswith(f"{train} --workdir=gs://b/run")
    assert lines[1:] == (["scontrol requeue 42"] if code == 143 else [])


def test_slurm_says_what_is_missing():
    done = subprocess.run(
        ["/bin/bash", str(SLURM)], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert done.returncode
    assert "CONFIG: expected a config file" in done.stderr


ARRAY = LAUNCH / "study_array.sbatch"


@pytest.mark.parametrize("code", [0, 2, 143])
def test_an_array_runs_the_line_of_its_cell_as_one_process(tmp_path, code):
    shell_check(ARRAY.read_text())
    (tmp_path / "scontrol").write_text(f'#!/bin/bash\necho scontrol "$@" >> {tmp_path}/log\n')
    (tmp_path / "cell").write_text(
        f'#!/bin/bash\necho "$@" $(compgen -e | grep -c ^SLURM_) >> {tmp_path}/log\nexit {code}\n'
    )
    for name in ("scontrol", "cell"):
        (tmp_path / name).chmod(0o755)
    (tmp_path / "cells.txt").write_text("cell a  # done\ncell b --x='1 2'  # left: probes\n")
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_PROCID": "0"}
    env |= {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_JOB_ID": "42"}
    done = subprocess.run(["/bin/bash", str(ARRAY), str(tmp_path / "cells.txt")], env=env)
    assert done.returncode == code
    requeued = ["scontrol requeue 42_2"] if code == 143 else []
    assert (tmp_path / "log").read_text().splitlines() == ["b --x=1 2 0", *requeued]


def test_an_array_lets_its_cell_save_when_its_time_is_up(tmp_path):
    cell = f"trap 'sleep 1; echo saved > {tmp_path}/saved; exit 143' TERM; echo > {tmp_path}/up; "
    cell += "while true; do sleep 0.1; done"
    (tmp_path / "cell").write_text(f"#!/bin/bash\n{cell}\n")
    (tmp_path / "scontrol").write_text("#!/bin/bash\n")
    for name in ("scontrol", "cell"):
        (tmp_path / name).chmod(0o755)
    (tmp_path / "cells.txt").write_text("cell a  # left: pretrain\n")
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    env |= {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_JOB_ID": "42"}
    job = subprocess.Popen(["/bin/bash", str(ARRAY), str(tmp_path / "cells.txt")], env=env)
    while not (tmp_path / "up").exists():
        time.sleep(0.05)
    job.terminate()
    assert job.wait(30) == 143
    assert (tmp_path / "saved").exists()
