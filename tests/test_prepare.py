"""Sharded array_record: complete, the same bytes after any interruption, verified, clear errors."""

import errno
import fcntl
import hashlib
import json
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
    while not (tmp_path / "killed" / "train.SHA256SUMS").exists() and time.monotonic() < deadline:
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
    for split, count in (("train", 4), ("val", 2)):
        lines = (out / f"{split}.SHA256SUMS").read_text().splitlines()
        assert len(lines) == count
        assert {line.split("  ")[1]: line.split("  ")[0] for line in lines} == {
            name: hashlib.sha256(content).hexdigest()
            for name, content in contents(out).items()
            if name.startswith(split) and not name.endswith("SHA256SUMS")
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


@pytest.mark.slow
def test_splits_are_prepared_side_by_side_and_one_split_by_one_process(folder, tmp_path):
    pictures.write_folder(tmp_path / "in", pictures.examples(30), "val")
    out = tmp_path / "out"
    processes = [
        subprocess.Popen(
            [sys.executable, TOOL, "folder", "--path", path, "--split", split, "--out", out,
             "--shard-size", "1", "--verify"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )
        for path, split in ((folder, "train"), (tmp_path / "in", "val"))
    ]  # fmt: skip
    errors = [process.communicate()[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert len(contents(out)) == 40 + 30 + 2 * 2
    assert prepare.verify(out) == []

    class Meanwhile(Stopping):
        def read(self, index):
            with pytest.raises(ValueError, match=rf"'train' is being prepared by process {own} on"):
                prepare.prepare(self.storage, tmp_path / "one", "train")
            assert prepare.verify(tmp_path / "one") == []  # but for what is not ended yet
            return super().read(index)

    own = os.getpid()
    storage = open_storage("folder", str(folder), "train")
    prepare.prepare(Meanwhile(storage, 99), tmp_path / "one", "train")
    (tmp_path / "one" / ".train.lock").write_text("process 1 on a machine that lost its power")
    assert [line.split("/")[-1] for line in prepare.verify(tmp_path / "one")] == [
        ".train.lock is left of a preparation that did not end"
    ]
    prepare.prepare(storage, tmp_path / "one", "train")
    assert prepare.verify(tmp_path / "one") == []


def test_a_verification_at_the_same_moment_refuses_no_preparation(folder, tmp_path, monkeypatch):
    storage = open_storage("folder", str(folder), "train")
    with (tmp_path / ".train.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        unlock = lambda seconds: fcntl.flock(held, fcntl.LOCK_UN)  # noqa: E731
        monkeypatch.setattr(prepare.time, "sleep", unlock)
        assert prepare.prepare(storage, tmp_path, "train") == {}


def test_verification_names_what_is_listed_nowhere_and_what_is_left(folder, tmp_path):
    storage = open_storage("folder", str(folder), "train")
    prepare.prepare(storage, tmp_path, "train", shard_size=16)
    sums = tmp_path / "train.SHA256SUMS"
    whole, lines = contents(tmp_path), sums.read_text().splitlines(keepends=True)
    for name in (".train-00001-of-00003.array_record.tmp", ".train.plan.tmp.npz", "x.npz"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "README.md").write_text("the user's own")
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(Stopping(storage, 5), tmp_path, "again", shard_size=16)
    sums.write_text("".join(lines[1:]))
    shard = lines[0].split()[1]
    left = "is left of a preparation that did not end"
    assert [line.split("/")[-1] for line in prepare.verify(tmp_path)] == [
        f".again.plan.npz {left}",
        f".train-00001-of-00003.array_record.tmp {left}",
        f".train.plan.tmp.npz {left}",
        f"{shard} is listed in no SHA256SUMS",
        "x.npz is listed in no SHA256SUMS",
    ]
    for name in (".again.plan.npz", "x.npz", "README.md"):
        (tmp_path / name).unlink()
    (tmp_path / shard).unlink()
    assert [line.split("/")[-1] for line in prepare.verify(tmp_path)][-1] == f"{shard} is missing"
    prepare.prepare(storage, tmp_path, "train", shard_size=16)
    assert contents(tmp_path) == whole
    assert prepare.verify(tmp_path) == []
    sums.write_text("cut off\n")
    with pytest.raises(ValueError, match=r"train\.SHA256SUMS is damaged .its line 'cut off'"):
        prepare.verify(tmp_path)


def test_folders_whose_splits_share_their_sums_are_still_read_and_gone_on_with(folder, tmp_path):
    storage = open_storage("folder", str(folder), "train")
    prepare.prepare(storage, tmp_path, "train", shard_size=16)
    whole = contents(tmp_path)
    (tmp_path / "train.SHA256SUMS").rename(tmp_path / "SHA256SUMS")
    assert prepare.verify(tmp_path) == []
    shard = next(tmp_path.glob("train*record"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert prepare.verify(tmp_path) == [f"{shard} is not what SHA256SUMS says"]
    shard.unlink()
    counting = Stopping(storage, 99)
    prepare.prepare(counting, tmp_path, "train", shard_size=16)
    assert counting.left >= 99 - 16  # the other shards count as finished
    assert contents(tmp_path) == whole | {"SHA256SUMS": whole["train.SHA256SUMS"]}
    assert prepare.verify(tmp_path) == []


def test_what_cannot_be_read_keeps_its_place_and_is_replaced_in_training(tmp_path, caplog):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from noisy_fm.data import loader

    pictures.write_parquet(tmp_path / "in", pictures.examples(24), files=1)
    file = next((tmp_path / "in" / "data").iterdir())
    table = pq.read_table(file)
    images = table["image"].to_pylist()
    images[5]["bytes"] = None
    images[9] = None
    column = pa.array(images, table.schema.field("image").type)
    pq.write_table(table.set_column(0, table.schema.field("image"), column), file)
    before = data.load("parquet", path=str(tmp_path / "in"), split="train", size=24)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(Stopping(before.storage, 20), out, "train", shard_size=6)
    bad = prepare.prepare(before.storage, out, "train", shard_size=6)
    assert list(bad) == [str(before.ids[row]) for row in (5, 9)]
    assert "row 5 holds no image" in bad[str(before.ids[5])]
    assert json.loads((out / "train.unreadable.json").read_text()) == bad
    assert "row 5 holds no image" in caplog.text
    assert prepare.verify(out) == []
    with pytest.raises(ValueError, match=r"2 of 24 images .* max_bad = 0 .*row 9 holds no image"):
        prepare.prepare(before.storage, out, "train", shard_size=6, max_bad=0)
    after = data.load("array_record", path=str(out), split="train", size=24)
    assert np.array_equal(after.ids, before.ids)
    assert np.array_equal(after.labels, before.labels)
    found = []
    for source in (before, after):
        batches = loader.train_batches(source, batch_size=8, seed=0, stop=3)
        found.append(([b["id"].tolist() for b in batches], batches.damage.ids))
    assert found[0] == found[1]
    assert found[0][1] == sorted(map(int, bad))
    # What can be read later is: its shard is made again.
    pictures.write_parquet(tmp_path / "good", pictures.examples(24), files=1)
    good = data.load("parquet", path=str(tmp_path / "good"), split="train")
    good.storage.listing = good.storage.listing._replace(names=before.storage.listing.names)
    assert prepare.prepare(good.storage, out, "train", shard_size=6) == {}
    mended = data.load("array_record", path=str(out), split="train")
    assert mended.storage.read(9) == good.storage.read(9)
    assert not (out / "train.unreadable.json").exists()
    assert prepare.verify(out) == []


class Failing(Stopping):
    """A storage whose reads fail with an errno after some."""

    def __init__(self, storage, reads, number):
        super().__init__(storage, reads)
        self.number = number

    def read(self, index):
        self.left -= 1
        if self.left < 0:
            raise OSError(self.number, os.strerror(self.number))
        return self.storage.read(index)


def test_too_many_unreadable_images_and_a_lost_disk_stop_it(folder, tmp_path):
    storage = open_storage("folder", str(folder), "train")
    with pytest.raises(ValueError, match=r"4 of 40 images .* max_bad = 0\.001 \(--max-bad\); the"):
        prepare.prepare(Failing(storage, 9, errno.ENOENT), tmp_path, "train", shard_size=5)
    with pytest.raises(ValueError, match=r"1 of 40 images .* max_bad = 0 \(--max-bad\)"):
        prepare.prepare(Failing(storage, 9, errno.ENOENT), tmp_path / "0", "train", max_bad=0)
    with pytest.raises(ValueError, match=r"n0\w+/n0.* cannot be read .*the same line goes on"):
        prepare.prepare(Failing(storage, 2, errno.EIO), tmp_path, "train", shard_size=5)
    assert prepare.prepare(storage, tmp_path, "train", shard_size=5) == {}
    assert prepare.verify(tmp_path) == []


def test_a_full_disk_is_one_line_and_nothing_half_written_counts(folder, tmp_path):
    line = ["folder", "--path", folder, "--split", "train", "--shard-size", "10", "--out"]
    limited = (
        "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2);"
        "sys.argv = sys.argv[2:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    for limit, name in ((0, ".train.lock"), (1000, ".train.plan.npz"), (9000, "00000-of-00004.")):
        done = subprocess.run(
            [sys.executable, "-c", limited, str(limit), TOOL, *map(str, line), tmp_path / "out"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert f"{name}" in done.stderr
        assert "cannot be written (" in done.stderr
        assert "File too large" in done.stderr
        assert "make space, and the same line goes on" in done.stderr
        assert not list((tmp_path / "out").glob("*.*record"))
    assert run_tool(*line, tmp_path / "out", "--verify").returncode == 0
    assert len(contents(tmp_path / "out")) == 4 + 2


def test_mistakes_are_one_line(folder, tmp_path):
    storage = open_storage("folder", str(folder), "train")
    prepare.prepare(storage, tmp_path / "out", "train", shard_size=16)
    with pytest.raises(ValueError, match=r"another 'train' \(its records differ: other"):
        prepare.prepare(storage, tmp_path / "out", "train", shard_size=8)
    with pytest.raises(ValueError, match="expected a name without '/'"):
        prepare.prepare(storage, tmp_path / "new", "a/train")
    with pytest.raises(ValueError, match="max_bad is 2"):
        prepare.prepare(storage, tmp_path / "new", "train", max_bad=2)
    with pytest.raises(ValueError, match="shard_size is 0"):
        prepare.prepare(storage, tmp_path / "new", "train", shard_size=0)
    with pytest.raises(FileNotFoundError, match="no SHA256SUMS"):
        prepare.verify(tmp_path)
    here = ["--path", folder, "--out", tmp_path / "x"]
    for arguments, words in (
        (["foldr", *here], "unknown source 'foldr'; did you mean 'folder'?"),
        (["folder", "--path", folder], "--out is missing"),
        (["folder", *here, "--split", "val"], "has no folder val/ (the split); it has train/"),
        (["tfds:nothing", "--verify"], "--verify is for --out"),
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
