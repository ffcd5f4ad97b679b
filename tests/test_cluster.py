"""A study's cells side by side: here, on Dask's workers, some killed, on processes of a pod."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_hosts import joined

from noisy_fm import children
from noisy_fm.study import cluster

ROOT = Path(__file__).parent.parent
ROUNDS = 4
TINY = "--config=tests/small_study.py:tiny,seeds=2"


def records(folder) -> pd.DataFrame:
    lines = (folder / "records.jsonl").read_text().splitlines()
    rows = pd.DataFrame([json.loads(line) for line in lines])
    return rows.drop(columns=["duration_s", "commit"])  # of the checkout, which may change


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    """The tiny study's records, its cells run one after another in one process like theirs."""
    folder = tmp_path_factory.mktemp("serial") / "run"
    line = [sys.executable, "-m", "noisy_fm.study", TINY, f"--workdir={folder}"]
    subprocess.run(line, cwd=ROOT, check=True, capture_output=True)
    return records(folder)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ("local", "expected local:N"),
        ("local:0", "expected local:N"),
        ("host", "as tcp://host:8786"),
    ],
)
def test_a_scheduler_that_is_none_is_one_line(scheduler, message):
    with pytest.raises(ValueError, match=message):
        cluster.check(scheduler)


def test_without_dask_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ValueError, match=r"pip install 'noisy-fm\[cluster\]'"):
        cluster.check("tcp://host:8786")
    cluster.check("local:2")  # takes no Dask


def study_line(folder, *more, cores) -> list[str]:
    """A study on some cores of this machine."""
    keep = f"import os, sys; os.sched_setaffinity(0, {set(cores)})"
    keep += "; os.execv(sys.argv[1], sys.argv[1:])"
    line = [sys.executable, "-m", "noisy_fm.study", TINY, f"--workdir={folder}", *more]
    return [sys.executable, "-c", keep, *line]


@pytest.mark.slow
def test_cells_side_by_side_give_what_they_do_alone_on_as_many_cores(tmp_path):
    cores = children.available_cores()[:2]
    alone, beside = tmp_path / "alone", tmp_path / "beside"
    subprocess.run(study_line(alone, cores=cores[:1]), cwd=ROOT, check=True, capture_output=True)
    line = study_line(beside, "--scheduler=local:2", cores=cores)
    done = subprocess.run(line, cwd=ROOT, check=True, capture_output=True, text=True)
    assert "4 of 4 cells to run, 2 at a time" in done.stdout
    assert done.stdout.count(": done in ") == 4
    pd.testing.assert_frame_equal(records(beside), records(alone), check_exact=True)


def workers_of(nannies: list[subprocess.Popen]) -> list:
    """Dask's workers, which their nannies start again."""
    import psutil

    return [
        one
        for nanny in nannies
        for one in psutil.Process(nanny.pid).children()
        if "spawn_main" in " ".join(one.cmdline())
    ]


@pytest.mark.slow
def test_workers_killed_at_random_change_nothing(serial, tmp_path):
    pytest.importorskip("distributed")
    folder, log = tmp_path / "run", tmp_path / "log"
    line = [sys.executable, "-m", "noisy_fm.study", TINY, f"--workdir={folder}"]
    rng, killed = random.Random(0), 0
    with deployed(tmp_path / "dask", 3) as (address, _, nannies), log.open("w") as out:
        process = subprocess.Popen(
            [*line, f"--scheduler={address}"], cwd=ROOT, stdout=out, stderr=subprocess.STDOUT
        )
        while process.poll() is None:
            time.sleep(rng.uniform(3, 12))
            if killed < ROUNDS and process.poll() is None and (found := workers_of(nannies)):
                rng.choice(found).kill()
                killed += 1
    assert process.returncode == 0, log.read_text()[-3000:]
    assert killed == ROUNDS
    pd.testing.assert_frame_equal(records(folder), serial, check_exact=True)


@contextlib.contextmanager
def deployed(folder, count=2):
    """(Address, process, workers) of a Dask scheduler, each started by its own line."""
    folder.mkdir()
    file = folder / "scheduler.json"

    def dask(*line):
        own = ["--no-dashboard", f"--scheduler-file={file}"]
        with (folder / "log").open("a") as out:
            return subprocess.Popen(
                [sys.executable, "-m", "dask", *line, *own], cwd=folder, stdout=out, stderr=out
            )

    started = [dask("scheduler", "--host=localhost", "--port=0")]
    try:
        while not file.exists():
            assert started[0].poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        started += [dask("worker", "--nthreads=1", "--memory-limit=0") for _ in range(count)]
        yield json.loads(file.read_text())["address"], started[0], started[1:]
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(60)


def checkpointed(folder: Path, count: int) -> None:
    """Waits until the cells of a study have saved so many checkpoints."""
    until = time.monotonic() + 300
    while len(set(folder.glob("cells/*/train/checkpoints/[0-9]*"))) < count:
        assert time.monotonic() < until
        time.sleep(0.2)


@pytest.mark.slow
def test_a_scheduler_and_a_client_killed_change_nothing(serial, tmp_path):
    pytest.importorskip("distributed")
    folder = tmp_path / "run"

    def study(address):
        line = [sys.executable, "-m", "noisy_fm.study", TINY, f"--workdir={folder}"]
        return subprocess.Popen(
            [*line, f"--scheduler={address}"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    with deployed(tmp_path / "one") as (address, scheduler, _):
        process = study(address)
        checkpointed(folder, 1)
        scheduler.kill()
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 2
        assert f"the scheduler {address} is gone; run the same line again" in said
    with deployed(tmp_path / "two") as (address, _, _):
        process = study(address)
        checkpointed(folder, 2)
        process.kill()
        process.communicate()
        process = study(address)
        said, _ = process.communicate(timeout=600)
        assert process.returncode == 0, said[-3000:]
    pd.testing.assert_frame_equal(records(folder), serial, check_exact=True)


@pytest.mark.slow
def test_a_terminals_interrupt_lets_the_cells_save(tmp_path):
    folder = tmp_path / "run"
    line = [sys.executable, "-m", "noisy_fm.study", TINY, f"--workdir={folder}"]
    longer = ["--config.pretrain.epochs=100", "--config.pretrain.checkpoint_every=0"]
    heed = "signal.signal(signal.SIGINT, signal.SIG_DFL)"  # CI may start its jobs without
    heed = f"import os, signal, sys; {heed}; os.execv(sys.argv[1], sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", heed, *line, *longer, "--config.seeds=1", "--scheduler=local:2"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    until = time.monotonic() + 300
    while sum("loss" in log.read_text() for log in folder.glob("cells/*/log.txt")) < 2:
        assert time.monotonic() < until
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all that it started
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)  # by one who cannot wait
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.endswith("error: interrupted; run the same line again to go on\n")
    assert len(list(folder.glob("cells/*/train/checkpoints/[0-9]*"))) == 2


@pytest.mark.slow
def test_a_cell_that_fails_has_three_tries_and_shows_its_log(tmp_path):
    config = tmp_path / "broken.py"
    config.write_text(
        "import os, sys\n"
        f"sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "import small_study\n"
        "def get_config(arg=''):\n"
        "    if any(a.startswith('--cell=noise0.3') for a in sys.argv):\n"
        "        print('the disk is full')\n"
        "        os._exit(7)\n"
        "    return small_study.get_config('tiny')\n"
    )
    line = [sys.executable, "-m", "noisy_fm.study", f"--config={config}", "--scheduler=local:2"]
    done = subprocess.run(
        [*line, f"--workdir={tmp_path / 'run'}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "noise 0.0% seed 0: done in" in done.stdout  # the others go on
    for number in (1, 2, 3):
        assert f"failed (try {number} of 3: exit code 7)" in done.stdout
    assert "\nthe disk is full\n" in done.stdout
    assert "1 of 2 cells failed 3 times: noise0.3-seed0" in done.stderr


@pytest.mark.slow
def test_the_processes_of_a_pod_train_together_and_the_first_analyses(serial, tmp_path):
    started = joined(["-m", "noisy_fm.study", TINY, f"--workdir={tmp_path / 'run'}"])
    try:
        said = [process.communicate(timeout=900) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (_, errors) in zip(started, said, strict=True):
        assert process.returncode == 0, errors[-3000:]
    assert "report: " in said[0][0]
    assert "report: " not in said[1][0]
    found = records(tmp_path / "run")
    names = ["stage", "noise_rate", "seed", "dataset", "target", "metric", "n"]
    pd.testing.assert_frame_equal(found[names], serial[names])
    accuracy = found.metric == "accuracy"
    np.testing.assert_allclose(found.value[accuracy], serial.value[accuracy], atol=0.02)
