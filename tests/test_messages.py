"""What is shown may be lost; the work goes on."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from noisy_fm import messages, progress
from noisy_fm.train import writers

ROOT = Path(__file__).parent.parent


def test_what_the_terminal_lacks_is_spelled():
    raw = io.BytesIO()
    terminal = io.TextIOWrapper(raw, encoding="cp1252", newline="\n")
    messages.say("γ = 0.1 − é 火", file=terminal)
    assert raw.getvalue() == b"gamma = 0.1 - \xe9 ?\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is Linux'")
def test_neither_a_full_disk_nor_a_closed_file_under_the_log_is_an_error(monkeypatch):
    full = io.TextIOWrapper(io.FileIO("/dev/full", "w"), write_through=True)
    messages.say("lost", file=full)
    monkeypatch.setattr(sys, "stdout", full)
    with progress.Progress("work", 2) as bar:
        bar.update()
    full.close()
    messages.say("lost", file=full)


class Terminal(io.StringIO):
    """One that has gone away."""

    def isatty(self):
        return True

    def write(self, *text):
        raise OSError(5, "Input/output error")

    flush = write


def test_a_bar_on_a_terminal_that_is_gone_is_not_drawn(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress.Progress("work", 3) as bar:
        for _ in range(3):
            bar.update(note="x")
    assert bar.done == 3


def test_a_writer_that_fails_is_named_once_and_left_out(tmp_path, capsys):
    board = writers.Writers(("tensorboard",), tmp_path, config={})
    board.scalars(1, {"loss": 1.0})
    board.writers["tensorboard"].events.close()  # what it writes to is gone
    for step in (2, 3):
        board.scalars(step, {"loss": 0.5})
    board.close()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("warning: tensorboard is given no more values (ValueError")


def test_a_writer_that_cannot_be_made_is_named_and_left_out(tmp_path, capsys):
    (tmp_path / "file").touch()
    board = writers.Writers(("tensorboard",), tmp_path / "file", config={})
    board.scalars(1, {"loss": 1.0})
    board.close()
    assert capsys.readouterr().err.count("warning: tensorboard is given no more values") == 1


@pytest.mark.slow
def test_training_ends_well_though_nobody_reads_what_it_prints(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "noisy_fm.train", "--config=configs/pretrain/emoji.py"),
            *(f"--workdir={tmp_path}", "--config.data.domain=noto", "--config.epochs=0.3"),
            *("--config.log_every=1", "--config.schedule.warmup_epochs=0.0"),
        ],
        cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "result.json").exists()
