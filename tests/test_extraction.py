"""Features of a whole data set: streamed to a store that is the same however often it is killed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pictures
import pytest
import toy

from noisy_fm import data, features, model, spectrum
from noisy_fm.data import decode
from noisy_fm.features import __main__ as command
from noisy_fm.features import extraction, store
from noisy_fm.tasks.classify import classify


@pytest.fixture(scope="module")
def net():
    """The toy as a model of 16×16 images, evaluated on as images on disk are."""
    module = toy.ToyNet(width=24)
    task = {"loss": "softmax", "label_smoothing": 0.0, "normalize": {"mean": 0.5, "std": 0.5}}
    meta = {
        "config": {"model": {"name": "toy"}, "task": task},
        "info": {"label_names": ["a", "b", "c", "d"]},
        **{"step": 3, "weights": "abc", "config_hash": "def", "manifest_hash": "012"},
    }
    variables = module.init(jax.random.key(0), np.zeros((1, 16, 16, 3)))
    preprocess = model.Preprocess(decode.fitted(16), 0.5, 0.5)
    task = classify(module, 4, normalize=meta["config"]["task"]["normalize"])
    return model.Model(module, dict(variables), preprocess, "pre_logits", meta, task)


@pytest.fixture
def source(tmp_path):
    """24 photographs in a folder; the eighth and the last cannot be read."""
    pictures.write_folder(tmp_path / "images", pictures.examples(24), "train")
    source = data.load("folder", path=str(tmp_path / "images"), split="train", size=32)
    for row in (7, 23):
        file = source.storage.listing.names[row].decode()
        (tmp_path / "images/train" / file).write_bytes(b"no image")
    return source


def extract(net, source, path, **options):
    options = {"data": {"name": "folder"}, "batch_size": 8, "max_bad": 0.1, **options}
    return extraction.extract(net, source, path, **options)


def content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


READABLE = [row for row in range(24) if row not in (7, 23)]


def test_a_store_has_the_features_of_all_images_that_can_be_read(net, source, tmp_path):
    left_out = extract(net, source, tmp_path / "store")
    assert sorted(map(int, left_out)) == sorted(source.ids[[7, 23]].tolist())
    opened = features.open_store(tmp_path / "store")
    np.testing.assert_array_equal(opened.ids, source.ids[READABLE])
    np.testing.assert_array_equal(opened.labels, source.labels[READABLE])
    images = [decode.decode(source.storage.read(row)) for row in READABLE]
    np.testing.assert_allclose(opened.features, net.features(images), atol=1e-5)
    assert opened.meta["left_out"] == left_out
    assert opened.meta["label_names"] == list(source.label_names)
    assert all(source.name(row) in left_out[str(source.ids[row])] for row in (7, 23))
    np.testing.assert_array_equal(spectrum.load_features(tmp_path / "store"), opened.features)
    assert [path.name for path in tmp_path.iterdir() if "store" in path.name] == ["store"]


def stopped_after(monkeypatch, blocks: int, then=lambda grown: None):
    """Has a store's writer interrupted once it has so many more blocks, and `then(store)` done."""
    append = store.GrowingStore.append

    def stopped(self, *arguments, **options):
        nonlocal blocks
        append(self, *arguments, **options)
        blocks -= 1
        if blocks == 0:
            then(self)
            raise KeyboardInterrupt

    monkeypatch.setattr(store.GrowingStore, "append", stopped)


def test_interrupted_anywhere_it_ends_the_same(net, source, tmp_path, monkeypatch):
    whole = extract(net, source, tmp_path / "whole")
    replace, left = os.replace, tmp_path / "left"
    for count, every in ((1, 0.0), (1, 1e9), (2, 0.0)):  # saved, lost, and all read
        with monkeypatch.context() as patched:
            patched.setattr(store.GrowingStore, "SAVE_SECONDS", every)
            stopped_after(patched, count, lambda grown: shutil.copytree(grown.folder, left))
            with pytest.raises(KeyboardInterrupt):
                extract(net, source, tmp_path / "killed")
        # What a process that is killed leaves: the folder as it was, and bytes never made safe.
        shutil.rmtree(tmp_path / "killed.part")
        replace(left, tmp_path / "killed.part")
        with (tmp_path / "killed.part/features.npy").open("ab") as file:
            file.write(b"torn")
    monkeypatch.setattr(store.GrowingStore, "append", None)  # there is nothing more to append

    def at_the_end(source, target, **options):
        if Path(target) == tmp_path / "killed":
            raise ZeroDivisionError
        replace(source, target, **options)

    monkeypatch.setattr(os, "replace", at_the_end)
    with pytest.raises(ZeroDivisionError):
        extract(net, source, tmp_path / "killed")
    monkeypatch.undo()
    assert not (tmp_path / "killed").exists()
    assert extract(net, source, tmp_path / "killed") == whole
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert extract(net, source, tmp_path / "killed") == whole  # as it is there already


def test_an_unreadable_image_may_be_all_that_is_left(net, source, tmp_path, monkeypatch):
    source = source.select([*READABLE[:16], 23])
    stopped_after(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        extract(net, source, tmp_path / "store")
    monkeypatch.undo()
    left_out = extract(net, source, tmp_path / "store")
    assert list(left_out) == [str(source.ids[16])]


def test_going_on_does_not_make_room_for_more_unreadable_images(net, source, tmp_path, monkeypatch):
    for row in (1, 9, 17, 18):  # with 7 and 23 six; three are let pass
        file = source.storage.listing.names[row].decode()
        (tmp_path / "images/train" / file).write_bytes(b"no image")
    stopped_after(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        extract(net, source, tmp_path / "store", max_bad=1.0)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="6 of 24 examples cannot be read, left out"):
        extract(net, source, tmp_path / "store")


def test_what_is_something_elses_is_left_alone(net, source, tmp_path, monkeypatch):
    extract(net, source, tmp_path / "store")
    before = content(tmp_path / "store")
    other = net._replace(meta={**net.meta, "weights": "another"})
    with pytest.raises(ValueError, match=r"something else \(weights 'abc', now 'another'\)"):
        extract(other, source, tmp_path / "store")
    with pytest.raises(ValueError, match=r"something else \(feature 'pre_logits', now 'stem'\)"):
        features.GrowingStore(tmp_path / "store", made_from={"feature": "stem"})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").touch()
    with pytest.raises(ValueError, match="is no feature store"):
        extract(net, source, tmp_path / "mine")
    (tmp_path / "mine").rename(tmp_path / "yours.part")
    with pytest.raises(ValueError, match=r"a store would grow, and has thesis\.tex"):
        extract(net, source, tmp_path / "yours")
    assert [path.name for path in (tmp_path / "yours.part").iterdir()] == ["thesis.tex"]
    assert content(tmp_path / "store") == before
    with pytest.raises(ValueError, match=r"unknown feature 'x'; .*pre_logits"):
        extract(net, source, tmp_path / "x", feature="x")
    assert not list(tmp_path.glob("x*"))


ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)


def test_a_growing_store_is_written_by_one_process_and_checked(tmp_path):
    with features.GrowingStore(tmp_path / "s", made_from={"a": (1,)}) as one:
        one.append(ROWS, read=5, left_out={"7": "why"})
        with pytest.raises(ValueError, match="is being written by another process"):
            features.GrowingStore(tmp_path / "s", made_from={"a": [1]})
    with features.GrowingStore(tmp_path / "s", made_from={"a": [1]}) as one:
        assert (one.read, one.left_out) == (5, {"7": "why"})
    with (tmp_path / "s.part/features.npy").open("r+b") as file:
        file.seek(-5, 2)
        file.write(b"\x13")
    with pytest.raises(ValueError, match=r"features\.npy is damaged; delete .*s\.part"):
        features.GrowingStore(tmp_path / "s", made_from={"a": [1]})


def test_a_grown_store_is_as_one_written_at_once(tmp_path):
    labels = np.array(["x", "y", "z", "x"])
    with features.GrowingStore(tmp_path / "grown", made_from={}) as one:
        for part in (ROWS[:1], ROWS[1:1], ROWS[1:]):
            one.append(part, read=len(part), left_out={})
        with pytest.raises(ValueError, match="one length"):
            one.finish(ids=np.arange(3), labels=labels, meta={})
        one.finish(ids=np.arange(4), labels=labels, meta={})
    ids = np.arange(4)
    features.write_store(
        tmp_path / "once", features=ROWS, ids=ids, labels=labels, meta={"left_out": {}}
    )
    assert content(tmp_path / "grown") == content(tmp_path / "once")


def test_outputs_are_fetched_while_the_next_ones_are_computed():
    happened = []

    class Output:
        def __init__(self, number):
            self.number = number
            happened.append(f"computed {number}")

        def __array__(self, *arguments, **options):
            happened.append(f"fetched {self.number}")
            return np.array(self.number)

    assert [int(np.asarray(one)) for one in model.to_host(map(Output, range(3)))] == [0, 1, 2]
    assert happened[:3] == ["computed 0", "computed 1", "fetched 0"]


def test_arguments_of_the_data_are_passed_on(capsys):
    line = "--model=m --data=folder --out=o --data.path=/x --data.split=val --step=3"
    flags, chosen, of_model = command.parse(line.split())
    assert (flags.model, flags.step, of_model) == ("m", 3, {})
    assert chosen == {"path": "/x", "split": "val"}
    with pytest.raises(SystemExit):
        command.parse([*line.split(), "--bath-size=3"])
    assert "unknown argument --bath-size=3" in capsys.readouterr().err


# Endurance -----------------------------------------------------------------------------------

MEMORY = """
import resource, sys
import numpy as np
from noisy_fm import features

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

block = np.random.default_rng(0).normal(size=(1000, 2048)).astype(np.float32)
with features.GrowingStore(sys.argv[1], made_from={}) as store:
    store.append(block, read=1000, left_out={})
    before = peak()
    for _ in range(59):
        store.append(block, read=1000, left_out={})
    store.finish(ids=np.arange(60_000), labels=None, meta={})
print(peak() - before)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path):
    line = [sys.executable, "-c", MEMORY, str(tmp_path / "store")]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 64  # MiB, of 469
    assert features.open_store(tmp_path / "store").features.shape == (60_000, 2048)


COMMAND = """
import sys
from noisy_fm.features import __main__ as command, store
store.GrowingStore.SAVE_SECONDS = 0.0
command.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_the_command_killed_again_and_again_ends_the_same(tmp_path):
    from test_run import small

    from noisy_fm import train

    train.run(small(epochs=0.1), str(tmp_path / "run"))
    line = f"--model={tmp_path / 'run'} --data=digits --batch-size=16 --out={tmp_path}/"
    run = [sys.executable, "-c", COMMAND, *line.split()]
    whole = subprocess.run([*run[:-1], f"{run[-1]}whole"], capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    assert "1,797 × 32 features of 1,797 images" in whole.stdout
    progress = tmp_path / "killed.part/progress.json"
    kills = 0
    while kills < 3:
        before = progress.read_bytes() if progress.exists() else b""
        process = subprocess.Popen(
            [*run[:-1], f"{run[-1]}killed"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        while process.poll() is None:
            time.sleep(0.02)
            if progress.exists() and progress.read_bytes() != before:
                os.kill(process.pid, signal.SIGTERM if kills == 1 else signal.SIGKILL)
                kills += 1
                break
        assert process.wait() in ((143,) if kills == 2 else (-9,))
    end = subprocess.run([*run[:-1], f"{run[-1]}killed"], capture_output=True, text=True)
    assert end.returncode == 0, end.stderr
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    wrong = subprocess.run(
        [*run[:-1], f"{run[-1]}x", "--feature=x"], capture_output=True, text=True
    )
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines()[-1].startswith("error: unknown feature 'x'; known: ")
    assert not Path(f"{tmp_path}/x.part").exists()
