"""Sharded array_record: complete, the same bytes after any interruption, verified, clear errors."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pictures
import pytest

from noisy_fm import data
from noisy_fm.data import prepare
from noisy_fm.data.storage import open_storage

TOOL = Path(__file__).parents[1] / "tools" / "prepare.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("folder")
    pictures.write_folder(root, pictures.examples(40))
    return root


def run_tool(*arguments):
    return subprocess.run(
        [sys.executable, TOOL, *map(str, arguments)], capture_output=True, text=True, check=False
    )


def contents(folder):
    return {f.name: f.read_bytes() for f in sorted(folder.iterdir()) if f.name[0] != "."}


class Stopping:
    """A storage that is killed after some reads."""

    def __init__(self, storage, reads):
        self.listing, self.where, self.storage = storage.listing, storage.where, storage
        self.left = reads

    def read(self, index):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.storage.read(index)


def test_interrupted_anywhere_it_ends_with_the_same_bytes(folder, tmp_path):
    storage = open_storage("folder", str(folder), "train")
    prepare.prepare(storage, tmp_path / "whole", "train", shard_size=9)
    whole = contents(tmp_path / "whole")
    assert len(whole) == 5 + 2
    for reads in range(1, 40, 4):
        out = tmp_path / f"stopped{reads}"
        with pytest.raises(KeyboardInterrupt):
            prepare.prepare(Stopping(storage, reads), out, "train", shard_size=9)
        with pytest.raises(FileNotFoundError, match="no finished split 'train'"):
            data.load("array_record", path=str(out), split="train")
        counting = Stopping(storage, 1000)
        prepare.prepare(counting, out, "train", shard_size=9)
        assert contents(out) == whole
        assert 1000 - counting.left == 40 - reads // 9 * 9  # finished shards are not made again


def test_a_killed_tool_goes_on(folder, tmp_path):
    line = ["folder", "--path", folder, "--split", "train", "--shard-size", "1", "--out"]
    done = run_tool(*line, tmp_path / "whole", "--verify")
    assert done.returncode == 0, done.stderr
    assert "40 images are in" in done.stdout
    process = subprocess.Popen(
        [sys.executable, TOOL, *map(str, [*line, tmp_path / "killed"])], stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "killed" / prepare.SUMS).exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "train.npz").exists()
    assert run_tool(*line, tmp_path / "killed").returncode == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_several_splits_and_sources_share_a_folder_and_its_sums(folder, tmp_path):
    pictures.write_tar(tmp_path / "tar", pictures.examples(10), "val")
    out = tmp_path / "out"
    prepare.prepare(open_storage("folder", str(folder), "train"), out, "train", shard_size=16)
    prepare.prepare(open_storage("tar", str(tmp_path / "tar"), "val"), out, "val")
    lines = (out / "SHA256SUMS").read_text().splitlines()
    assert {line.split("  ")[1]: line.split("  ")[0] for line in lines} == {
        name: hashlib.sha256(content).hexdigest()
        for name, content in contents(out).items()
        if name != "SHA256SUMS"
    }
    train = data.load("array_record", path=str(out), split="train")
    assert np.array_equal(train.ids, data.load("folder", path=str(folder), split="train").ids)
    val = data.load("array_record", path=str(out), split="val")
    assert [val.storage.read(i) for i in (0, 9)] == [
        data.load("tar", path=str(tmp_path / "tar"), split="val").storage.read(i) for i in (0, 9)
    ]


def test_what_is_damaged_is_named_and_mended_by_running_again(folder, tmp_path):
    storage = open_storage("folder", str(folder), "train")
    prepare.prepare(storage, tmp_path, "train", shard_size=16)
    assert prepare.verify(tmp_path) == []
    whole = contents(tmp_path)
    first, second = sorted(tmp_path.glob("*.array_record"))[:2]
    content = bytearray(first.read_bytes())
    content[len(content) // 2] ^= 1
    first.write_bytes(content)
    second.unlink()
    wrong = prepare.verify(tmp_path)
    assert [line.split("/")[-1] for line in wrong] == [
        f"{first.name} is not what SHA256SUMS says",
        f"{second.name} is missing",
    ]
    with pytest.raises(FileNotFoundError, match=r"00001-of-00003\.array_record of 3 shards"):
        data.load("array_record", path=str(tmp_path), split="train")
    first.unlink()
    prepare.prepare(storage, tmp_path, "train", shard_size=16)
    assert contents(tmp_path) == whole


def test_a_damaged_record_is_replaced_in_training(folder, tmp_path):
    from noisy_fm.data import loader

    prepare.prepare(open_storage("folder", str(folder), "train"), tmp_path, "train")
    shard = next(tmp_path.glob("*.array_record"))
    source = data.load("array_record", path=str(tmp_path), split="train", size=24)
    at = shard.read_bytes().index(source.storage.read(7)) + 100
    with shard.open("r+b") as file:
        file.seek(at)
        file.write(bytes(200))
    fresh = data.load("array_record", path=str(tmp_path), split="train", size=24)
    batches = loader.train_batches(fresh, batch_size=10, seed=0, stop=4)
    assert len(list(batches)) == 4
    assert batches.damage.ids == [int(fresh.ids[7])]


def test_mistakes_are_one_line(folder, tmp_path):
    storage = open_storage("folder", str(folder), "train")
    prepare.prepare(storage, tmp_path / "out", "train", shard_size=16)
    with pytest.raises(ValueError, match=r"another 'train' \(its records differ: other"):
        prepare.prepare(storage, tmp_path / "out", "train", shard_size=8)
    with pytest.raises(ValueError, match="shard_size is 0"):
        prepare.prepare(storage, tmp_path / "new", "train", shard_size=0)
    with pytest.raises(FileNotFoundError, match="no SHA256SUMS"):
        prepare.verify(tmp_path)
    here = ["--path", folder, "--out", tmp_path / "x"]
    for arguments, words in (
        (["foldr", *here], "unknown source 'foldr'; did you mean 'folder'?"),
        (["folder", "--path", folder], "--out is missing"),
        (["folder", *here, "--split", "val"], "has no folder val/ (the split); it has train/"),
        (["tfds:nothing", "--path", tmp_path], "pip install 'noisy-fm[prepare]'"),
    ):
        done = run_tool(*arguments)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert words in done.stderr
    assert not os.path.exists(tmp_path / "x")


def test_tfds_prepares_as_array_record(monkeypatch, tmp_path):
    """With TensorFlow and the network both played: what TFDS is asked for."""
    import tensorflow_datasets as tfds

    asked = []

    class Builder:
        def download_and_prepare(self):
            asked.append("prepared")

    monkeypatch.setitem(sys.modules, "tensorflow", type(sys)("tensorflow"))
    monkeypatch.setattr(
        tfds, "builder", lambda name, **options: asked.append((name, options)) or Builder()
    )
    prepare.prepare_tfds("imagenet2012", str(tmp_path))
    options = {"data_dir": str(tmp_path), "file_format": "array_record"}
    assert asked == [("imagenet2012", options), "prepared"]
