"""One process at a time in a folder: refused, taken over, fenced off, given back."""

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import threading
import time

import pytest
from etils import epath

from noisy_fm import lease

FAST = {"beat": 0.1, "stale": 0.6}


def read(folder):
    return json.loads((folder / lease.NAME).read_text())


def write(folder, **changes):
    """The lease of a process elsewhere, seen just now."""
    folder.mkdir(exist_ok=True)
    other = {"token": 7, "holder": "x", "host": "elsewhere", "pid": 4242, "started": "1"}
    content = {**other, "seen": time.time(), **changes}
    with (folder / f".{lease.NAME}.lock").open("a") as lock:  # between two beats, as who takes over
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / lease.NAME).write_text(json.dumps(content))
    return content


@contextlib.contextmanager
def holder(folder):
    """A process that holds the lease until its standard input ends."""
    code = "import sys; from noisy_fm import lease\nwith lease.held(sys.argv[1]): "
    code += "print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process


def test_a_folder_is_held_by_one_process_until_that_ends_or_dies(tmp_path):
    run = tmp_path / "run"
    with holder(run) as process:
        refused = rf"run is in use by process {process.pid} on .*; wait until it has ended, or"
        with pytest.raises(ValueError, match=refused), lease.held(run):
            pass
    with lease.held(run) as mine:
        mine.check()
        assert read(run)["token"] == 2
    with holder(run) as process:
        process.kill()  # gives nothing back
    with lease.held(run):
        assert read(run)["token"] == 4
    assert read(run)["holder"] is None


def read_host(folder):
    """How this machine names itself in a lease."""
    with lease.held(folder / "own"):
        return read(folder / "own")["host"]


def test_a_process_id_that_was_given_out_anew_is_not_the_holder(tmp_path):
    write(tmp_path, host=read_host(tmp_path), pid=os.getpid(), started="long ago")
    with lease.held(tmp_path) as mine:
        mine.check()


def test_a_holder_elsewhere_lives_as_long_as_its_heart_beats(tmp_path, capsys):
    content = write(tmp_path)
    done = threading.Event()

    def beat():
        while not done.wait(0.1):
            (tmp_path / lease.NAME).write_text(json.dumps({**content, "seen": time.time()}))

    heart = threading.Thread(target=beat)
    heart.start()
    try:
        refused = "in use by process 4242 on elsewhere"
        with pytest.raises(ValueError, match=refused), lease.held(tmp_path, **FAST):
            pass
    finally:
        done.set()
        heart.join()
    assert "waiting for a sign of life" in capsys.readouterr().out
    with lease.held(tmp_path, **FAST) as mine:  # it has stopped
        mine.check()
        assert read(tmp_path)["token"] == 8


def test_who_was_taken_over_saves_no_more_and_leaves_the_lease_alone(tmp_path):
    with lease.held(tmp_path, **FAST) as mine:
        before = read(tmp_path)["seen"]
        time.sleep(0.3)
        assert read(tmp_path)["seen"] > before  # it beats
        write(tmp_path)
        time.sleep(0.3)
        with pytest.raises(lease.TakenOverError, match="taken over by process 4242 on elsewhere"):
            mine.check()
    assert read(tmp_path)["host"] == "elsewhere"


def test_of_many_at_once_one_gets_it(tmp_path):
    won, refused = [], []
    start = threading.Barrier(8)

    def race():
        mine = lease.Lease(epath.Path(tmp_path))
        start.wait()
        try:
            mine.acquire()
            won.append(mine)
        except ValueError:
            refused.append(mine)

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(refused)) == (1, 7)
    won[0].release()


def test_a_lease_that_was_deleted_is_written_again(tmp_path):
    with lease.held(tmp_path, **FAST) as mine:
        (tmp_path / lease.NAME).unlink()
        mine.check()
        time.sleep(0.4)
        assert read(tmp_path)["pid"] == os.getpid()


ODD = '{"holder": "x", "host": "h", "pid": 1, "started": "1", "seen": null, "token": "a"}'


@pytest.mark.parametrize("content", ["", "{", "[]", '{"holder": "x"}', ODD])
def test_a_lease_that_says_nothing_is_nobodys(content, tmp_path):
    (tmp_path / lease.NAME).write_text(content)
    with lease.held(tmp_path) as mine:
        mine.check()


def test_a_folder_that_cannot_be_one_is_named(tmp_path):
    (tmp_path / "file").touch()
    refused = "file is a file; expected a folder"
    with pytest.raises(ValueError, match=refused), lease.held(tmp_path / "file"):
        pass


def test_who_has_patience_gets_it_when_the_holder_leaves(tmp_path):
    with contextlib.ExitStack() as first:
        first.enter_context(lease.held(tmp_path))
        timer = threading.Timer(0.5, first.close)
        timer.start()
        with pytest.raises(ValueError, match="in use by"), lease.held(tmp_path):
            pass
        with lease.held(tmp_path, patience=20) as mine:
            assert not timer.is_alive()
            mine.check()
