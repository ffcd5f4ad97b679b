"""Several processes joined into one run: real ones, on this machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import multihost
import numpy as np
import pytest
import test_contrast
import toy

from noisy_fm import hosts

ROOT = Path(__file__).parent.parent
# Sums in another order, in float32, through ten Adam steps; seen: 2e-7 in the losses.
RELATIVE = 5e-6
CLUSTER = ("JAX_", "SLURM_", "OMPI_", "KUBERNETES_", "TPU_", "MEGASCALE_")


def alone() -> dict[str, str]:
    """This environment without what could be taken for a cluster."""
    return {k: v for k, v in os.environ.items() if not k.startswith(CLUSTER)} | {
        "JAX_PLATFORMS": "cpu"
    }


def joined(command: list[str], *, processes: int = 2) -> list[subprocess.Popen]:
    """Several processes of one run, started."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=alone()
            | {
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(index),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(processes)
    ]


def together(plan: list[dict], folder: Path) -> list[dict]:
    """What process 0 says of `plan`, run by two processes of two devices each."""
    file = folder / "plan.json"
    file.write_text(json.dumps(plan))
    started = joined([multihost.__file__, str(file)])
    try:
        said = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (_, errors) in zip(started, said, strict=True):
        assert process.returncode == 0, errors[-3000:]
    # Gloo prints to the same place, in pieces.
    printed = [
        [line[line.index("[{") :] for line in out.splitlines() if "[{" in line] for out, _ in said
    ]
    assert not any(printed[1:])  # one host speaks for all
    return json.loads(printed[0][-1])


def agree(ours, theirs) -> None:
    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=RELATIVE, atol=1e-7)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=RELATIVE, atol=1e-7), ours, theirs
    )


@pytest.fixture(scope="module")
def reference():
    """Ten steps on one device of one process."""
    return multihost.train_toy({"data": 1}, 10)


def test_the_toy_draws_and_learns(reference):
    assert reference["losses"][-1] < reference["losses"][0]
    other = multihost.train_toy({"data": 1}, 2)
    assert other["losses"] == reference["losses"][:2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "axes",
    [
        {"data": 2},
        {"fsdp": 2, "tensor": 2},
        {"data": 2, "fsdp": 2, "tensor": 2},
    ],
    ids=str,
)
def test_one_process_gives_the_same_on_2_4_and_8_devices(reference, axes):
    agree(multihost.train_toy(axes, 10), reference)


@pytest.mark.slow
def test_two_processes_give_the_same(reference, tmp_path):
    """Their rows do not stand together, as on a TPU slice."""
    plan = [{"axes": {"data": 2, "fsdp": 2}, "steps": 4, "order": [0, 2, 1, 3]}]
    agree(together(plan, tmp_path)[0]["losses"], reference["losses"][:4])


@pytest.mark.slow
def test_two_processes_contrast_all_pairs_of_a_batch(tmp_path):
    """Each sees the other's images and captions as rivals."""
    plan = [{"kind": "pairs", "axes": axes} for axes in ({"data": 4}, {"data": 2, "fsdp": 2})]
    expected = test_contrast.trained(toy.one_device())
    for found in together(plan, tmp_path):
        np.testing.assert_allclose(found["losses"], expected, rtol=1e-4)


@pytest.mark.slow
def test_two_processes_save_and_resume_across_meshes_and_processes(reference, tmp_path):
    mixed = {"data": 2, "fsdp": 2}
    multihost.train_toy({"data": 2, "fsdp": 4}, 6, save=str(tmp_path / "one"))
    resumed, whole = together(
        [
            {"axes": mixed, "steps": 10, "restore": str(tmp_path / "one")},
            {"axes": mixed, "steps": 6, "save": str(tmp_path / "two")},
        ],
        tmp_path,
    )
    agree(whole["losses"], reference["losses"][:6])
    agree({**resumed, "losses": None}, {**reference, "losses": None})
    agree(resumed["losses"], reference["losses"][6:])
    back = multihost.train_toy({"data": 1, "fsdp": 8}, 10, restore=str(tmp_path / "two"))
    agree({**back, "losses": whole["losses"] + back["losses"]}, reference)


@pytest.mark.slow
def test_two_processes_give_the_same_on_every_axis_and_any_order_of_devices(reference, tmp_path):
    axes = [{"data": 4}, {"fsdp": 4}, {"tensor": 4}, {"data": 2, "tensor": 2}]
    plan = [{"axes": a, "steps": 10} for a in axes]
    plan.append({"axes": {"data": 4}, "steps": 10, "order": [0, 2, 1, 3]})
    plan.append({"axes": {"data": 2, "tensor": 2}, "steps": 10, "order": [0, 2, 1, 3]})
    for result in together(plan, tmp_path):
        agree(result, reference)


def connect(**variables) -> subprocess.CompletedProcess:
    code = "import jax; from noisy_fm import hosts; hosts.connect(seconds=3); "
    code += "print(jax.process_count(), hosts.first(), jax.distributed.is_initialized())"
    return subprocess.run(
        [sys.executable, "-c", code], env=alone() | variables, capture_output=True, text=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("told", [0, 1])
def test_a_preempted_host_stops_all_at_one_saved_step_and_they_go_on(told, tmp_path):
    workdir = tmp_path / "run"
    command = [
        *("-m", "noisy_fm.train", "--config=configs/pretrain/emoji.py:noise_rate=0.2"),
        *(f"--workdir={workdir}", "--config.data.domain=('noto',)", "--config.epochs=6.0"),
        "--config.checkpoint_every=20",
    ]

    def steps():
        names = [path.name for path in (workdir / "checkpoints").glob("*")]
        return sorted(int(name) for name in names if name.isdigit())

    started = joined(command)
    while not steps() and all(process.poll() is None for process in started):
        time.sleep(0.05)
    started[told].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [143, 143], said
    assert 20 <= steps()[-1] < 156
    saved = steps()[-1]
    started = joined(command)
    said = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert json.loads((workdir / "result.json").read_text())["resumed_at"] == saved


def test_alone_nothing_is_joined():
    assert connect().stdout.split() == ["1", "True", "False"]


def test_a_cluster_is_detected_without_being_told():
    variables = {"JOB_ID": "77", "STEP_NODELIST": "localhost", "NTASKS": "1"}
    variables |= {"PROCID": "0", "LOCALID": "0"}
    joined = connect(**{f"SLURM_{name}": value for name, value in variables.items()})
    assert joined.stdout.split() == ["1", "True", "True"], joined.stderr[-2000:]


@pytest.mark.parametrize(
    ("count", "index", "message"),
    [
        ("2", "", "(missing: JAX_PROCESS_ID)"),
        ("2", "one", "JAX_PROCESS_ID is 'one'; expected a whole number"),
        ("2", "2", "JAX_PROCESS_ID is 2 and JAX_NUM_PROCESSES 2; expected ids from 0"),
    ],
)
def test_what_is_missing_or_wrong_is_one_line(count, index, message):
    given = ("localhost:1", count, index)
    said = connect(**dict(zip(hosts.VARIABLES, given, strict=True))).stderr.splitlines()[-1]
    assert said.startswith("ValueError: ")
    assert message in said
