"""Child processes: what they are told, what is told of them, and that none outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from concurrent import futures

import pytest

from noisy_fm import children

CHILD = """
import os, sys, time
from noisy_fm import children
{before}
children.die_with_parent()
open(sys.argv[1], "w").write(str(os.getpid()))
time.sleep(60)
"""
PARENT = """
import os, pathlib, sys
from noisy_fm import children
children.run(sys.argv[1:], folder=".", variables=os.environ, log=pathlib.Path("log.txt"))
"""


def run(*line, folder, **options):
    return children.run(
        line, folder=str(folder), variables=dict(os.environ), log=folder / "log.txt", **options
    )


def test_the_environment_of_a_cell_is_one_process_with_one_device():
    machine = {
        **{"PATH": "/bin", "HOME": "/home/worker", "OMP_NUM_THREADS": "1"},
        **{"SLURM_PROCID": "3", "OMPI_COMM_WORLD_RANK": "1", "PMI_RANK": "1"},
        **{
            "JAX_PLATFORMS": "cuda",
            "JAX_COORDINATOR_ADDRESS": "a:1",
            "CUDA_VISIBLE_DEVICES": "4,5",
        },
    }
    asked = {"HOME": "/home/client", "NOISY_FM_EMOJI": "/data", "JAX_PLATFORMS": "cpu"}
    asked |= {"OMP_NUM_THREADS": "8", "SLURM_JOB_ID": "7", "PATH": "/client"}
    made = children.environment(machine, asked, device="5", children=2)
    assert made == {
        **{"PATH": "/bin", "HOME": "/home/worker", "JAX_PLATFORMS": "cuda"},
        **{"NOISY_FM_EMOJI": "/data", "OMP_NUM_THREADS": "8"},
        **{"CUDA_VISIBLE_DEVICES": "5", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.450"},
    }
    assert children.devices(machine) == ["4", "5"]
    assert children.devices({"CUDA_VISIBLE_DEVICES": ""}) == []


def test_children_share_the_cores_and_take_turns_at_the_devices(monkeypatch):
    monkeypatch.setattr(children, "available_cores", lambda: [0, 2, 4, 6])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert children.shares(3) == [
        children.Share((0,), "0", 2),
        children.Share((2,), "1", 2),  # as many each, and one core for none
        children.Share((4,), "0", 2),
    ]
    assert [one.cores for one in children.shares(2)] == [(0, 2), (4, 6)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert [one.cores for one in children.shares(6)] == [(0,), (2,), (4,), (6,), (0,), (2,)]
    assert {one.device for one in children.shares(6)} == {None}


def test_a_thread_keeps_what_it_starts_to_its_cores(tmp_path):
    cores = children.available_cores()
    code = "import os; print(sorted(os.sched_getaffinity(0)))"

    def start():
        children.keep_to(cores[-1:])
        return run(sys.executable, "-c", code, folder=tmp_path)

    with futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(start).result() == 0
    assert children.tail(tmp_path / "log.txt", 1) == str(cores[-1:])
    assert children.available_cores() == cores  # this thread has all of them still


def test_a_child_says_how_it_ended_and_why(tmp_path):
    code = "import sys; print('so far'); sys.exit('no luck')"
    assert run(sys.executable, "-c", code, folder=tmp_path) == 1
    assert children.tail(tmp_path / "log.txt", 1) == "no luck"
    assert run(sys.executable, "-c", "raise SystemExit(143)", folder=tmp_path) == 143
    assert "so far" in children.tail(tmp_path / "log.txt")  # the log of all tries


def test_a_child_that_is_not_wanted_any_more_may_save_first(tmp_path):
    code = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(143));"
        "open('up', 'w'); time.sleep(60)"
    )
    wanted = lambda: not (tmp_path / "up").exists()  # noqa: E731
    assert run(sys.executable, "-c", code, folder=tmp_path, wanted=wanted) == 143


@pytest.mark.parametrize("platform", ["linux", "elsewhere"])
def test_a_child_dies_with_its_parent(platform, tmp_path):
    before = "" if platform == "linux" else "sys.platform = 'darwin'"
    line = [sys.executable, "-c", CHILD.format(before=before), str(tmp_path / "pid")]
    parent = subprocess.Popen([sys.executable, "-c", PARENT, *line], cwd=tmp_path)
    pid = int(_waited(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text()))
    assert _lives(pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert _waited(lambda: not _lives(pid))


def _lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _waited(condition, seconds: float = 30):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("it never came")
