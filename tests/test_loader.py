"""The pipeline over images on disk: one order on any hosts and workers, damage, prefetching."""

import io
import json
import os
import signal
import threading
import time

import grain
import jax
import numpy as np
import pictures
import pytest
from PIL import Image

from noisy_fm import data, sharding
from noisy_fm.data import decode, loader
from noisy_fm.data.damage import Damage
from noisy_fm.data.source import View


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("folder")
    pictures.write_folder(root, pictures.examples(20))
    return data.load("folder", path=str(root), split="train", size=24, canvas=96)


@pytest.fixture
def own(tmp_path):
    """A source whose files a test may damage, and their paths in its order."""
    pictures.write_folder(tmp_path, pictures.examples(20))
    source = data.load("folder", path=str(tmp_path), split="train", size=24)
    return source, [tmp_path / "train" / n.decode() for n in source.storage.listing.names]


def train(source, start=0, stop=8, **options):
    batches = loader.train_batches(
        source, **{"batch_size": 6, "seed": 3, "start": start, "stop": stop, **options}
    )
    found = list(batches)
    batches.close()
    return found


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert set(one) == set(other)
        for name in one:
            assert np.array_equal(one[name], other[name]), name


def side_by_side(hosts):
    return [{k: np.concatenate([b[k] for b in parts]) for k in parts[0]} for parts in zip(*hosts)]  # noqa: B905


def test_a_batch_is_crops_in_the_corner_of_a_canvas(source):
    batch = train(source, 2, 3)[0]
    shapes = {name: (value.shape, value.dtype) for name, value in batch.items()}
    assert shapes == {
        "image": ((6, 96, 96, 3), np.uint8),
        "extent": ((6, 2), np.int32),
        "label": ((6,), np.int32),
        "id": ((6,), np.int64),
    }
    rows = {int(id_): i for i, id_ in enumerate(source.ids)}
    for i in range(6):
        row = rows[int(batch["id"][i])]
        assert batch["label"][i] == source.labels[row]
        content = source.storage.read(row)
        # Box and pixels anew, by PIL: its place is 2 × 6 + i.
        box = decode.random_box(96, 128, decode.uniforms(3, 12 + i, 1)[0])
        crop = Image.open(io.BytesIO(content)).crop(
            (box.left, box.top, box.left + box.width, box.top + box.height)
        )
        if max(box[2:]) <= 96:
            assert tuple(batch["extent"][i]) == box[2:]
            assert np.array_equal(batch["image"][i, : box.height, : box.width], np.asarray(crop))
        height, width = batch["extent"][i]
        assert batch["image"][i, :height, :width].any()
        assert not batch["image"][i, height:].any()
        assert not batch["image"][i, :, width:].any()


def test_memory_is_used_again_but_never_a_batch_that_is_held(source):
    kept = train(source, 0, 12)
    copies = loader.train_batches(source, batch_size=6, seed=3, stop=12)
    addresses = []
    for batch, copy in zip(kept, copies, strict=True):
        assert_same([copy], [batch])
        addresses.append(copy["image"].ctypes.data)
        row = copy["image"][0]  # a view holds its batch too
        held = row.copy()
        del copy
        next_one = source.read([1, 2], View(places=np.arange(2), seed=9))
        assert next_one["image"].any()
        assert np.array_equal(row, held)
        del row
    assert len({batch["image"].ctypes.data for batch in kept}) == 12
    assert len(set(addresses)) < 12


def test_the_order_is_that_of_grain_and_every_epoch_is_a_permutation(source):
    ids = np.concatenate([batch["id"] for batch in train(source, 0, 10)])
    order = grain.MapDataset.range(20).shuffle(seed=3).repeat()
    assert np.array_equal(ids, source.ids[[order[i] for i in range(60)]])
    for epoch in range(3):
        assert set(ids[20 * epoch : 20 * epoch + 20]) == set(source.ids)
    crops = [{tuple(e) for e in b["extent"]} for b in train(source, 0, 8)]
    assert len(set().union(*crops)) > 40  # another crop each time


def share(batch_size, host, hosts):
    """The rows of one of `hosts` hosts that share a batch in order."""
    return np.array_split(np.arange(batch_size), hosts)[host]


@pytest.mark.parametrize("hosts", [1, 2, 3])
def test_resuming_on_other_hosts_and_threads_gives_the_same_batches(source, hosts):
    expected = train(source)
    for start in (0, 3, 7):
        shares = [
            train(source, start, rows=share(6, h, hosts), threads=1 + h, buffer=1 + h)
            for h in range(hosts)
        ]
        assert_same(side_by_side(shares), expected[start:])


def test_rows_that_do_not_stand_together_are_cropped_as_in_the_whole_batch(source):
    rows = np.array([0, 2, 5])
    share = [{name: value[rows] for name, value in batch.items()} for batch in train(source)]
    assert_same(train(source, rows=rows), share)


@pytest.mark.slow
def test_resuming_with_other_workers_gives_the_same_batches(source):
    expected = train(source)
    two = loader.train_batches(source, batch_size=6, seed=3, stop=8, workers=2)
    assert_same([next(two) for _ in range(3)], expected[:3])
    two.close()  # stopped after step 3; gone on by three workers on one of two hosts
    shares = [
        train(source, 3, rows=share(6, 0, 2), workers=3),
        train(source, 3, rows=share(6, 1, 2)),
    ]
    assert_same(side_by_side(shares), expected[3:])


def test_repeats_are_in_the_same_batch_with_other_crops(source):
    plain = np.concatenate([b["id"] for b in train(source, 0, 10)]).reshape(3, 20)
    batches = train(source, 0, 10, repeats=3)
    ids = np.concatenate([b["id"] for b in batches]).reshape(3, 20)
    for epoch in range(3):  # an epoch is as long: the first third of the permutation, thrice
        assert np.array_equal(ids[epoch], np.repeat(plain[epoch, :7], 3)[:20])
    images = batches[0]["image"]
    assert len(set(batches[0]["id"])) == 2
    assert len({image.tobytes() for image in images}) == 6
    shares = [train(source, 4, 10, repeats=3, rows=share(6, h, 2)) for h in range(2)]
    assert_same(side_by_side(shares), batches[4:])


def test_evaluation_sees_every_example_once_on_any_number_of_hosts(source):
    expected = source.read(np.arange(20))
    for hosts in (1, 2):
        shares = [
            list(loader.eval_batches(source, batch_size=8, rows=share(8, h, hosts)))
            for h in range(hosts)
        ]
        batches = side_by_side(shares)
        assert [b["mask"].sum() for b in batches] == [8, 8, 4]
        for name in expected:
            value = np.concatenate([b[name] for b in batches])
            assert np.array_equal(value[:20], expected[name])
    rest = loader.eval_batches(source, batch_size=8, start=13)
    ids = np.concatenate([batch["id"][batch["mask"] == 1] for batch in rest])
    assert ids.tolist() == source.ids[13:20].tolist()


def test_labels_are_corrupted_by_id(source):
    noisy = source.replace(label=(source.labels + 1) % 3)
    for workers in (0, 1):
        batch = train(noisy, 0, 1, workers=workers)[0]
        rows = [int(np.flatnonzero(source.ids == id_)[0]) for id_ in batch["id"]]
        assert np.array_equal(batch["label"], (source.labels[rows] + 1) % 3)


def harm(paths, rows):
    """Cuts, empties, overwrites and removes the files at `rows` in turn."""
    for i, row in enumerate(rows):
        content = paths[row].read_bytes()
        if i % 4 == 3:
            paths[row].unlink()
        else:
            paths[row].write_bytes((content[: len(content) // 2], b"", b"\xff\xd8no image")[i % 3])


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_replaced_by_the_next_and_listed(own, workers):
    source, paths = own
    whole = train(source, 0, 4)
    bad = [3, 4, 11, 19]
    harm(paths, bad)
    damage = Damage(max_bad=0.5)
    found = train(source, 0, 4, workers=workers, damage=damage)
    stands_in = {3: 5, 4: 5, 11: 12, 19: 0}
    row_of = {int(id_): i for i, id_ in enumerate(source.ids)}
    drawn = set()
    for step, (batch, before) in enumerate(zip(found, whole, strict=True)):
        for i, id_ in enumerate(before["id"]):
            row = row_of[int(id_)]
            drawn.add(row)
            used = stands_in.get(row, row)
            assert batch["id"][i] == source.ids[used]
            assert batch["label"][i] == source.labels[used]
            draws = decode.uniforms(3, 6 * step + i, 1)[0]
            out = np.zeros((48, 48, 3), np.uint8)
            extent = decode.random_crop(source.storage.read(used), draws, out)
            assert tuple(batch["extent"][i]) == extent
            assert np.array_equal(batch["image"][i], out)
    assert drawn == set(range(20))
    assert damage.ids == sorted(int(source.ids[row]) for row in bad)
    assert damage.count == 4
    assert str(damage) == "4 of 20 examples cannot be read, replaced by the next"
    for row in bad:
        assert str(paths[row]).split("train/")[1] in damage.names[int(source.ids[row])]
    again = Damage(0.5, json.loads(json.dumps(damage.record)))
    assert (again.ids, again.count, again.record) == (damage.ids, 4, damage.record)
    train(source, 3, 4, damage=again)  # goes on elsewhere: what was known is counted once
    assert again.record == damage.record
    assert len(again.found) < 4


def test_too_many_unreadable_images_stop_the_run(own):
    source, paths = own
    harm(paths, [1, 6, 11])
    batches = loader.train_batches(source, batch_size=4, seed=0, stop=10)
    assert len(list(batches)) == 10  # a few are never too many
    assert batches.damage.count == 3
    with pytest.raises(ValueError, match=r"1 of \d+ examples .* max_bad = 0; the last"):
        train(source, damage=loader.Damage(max_bad=0))  # unless none was allowed
    harm(paths, [16])
    with pytest.raises(ValueError, match=r"4 of \d+ examples .* max_bad = 0\.001; the last: .*/n0"):
        train(source)
    assert len(train(source, damage=Damage(max_bad=0.9))) == 8
    known = {str(id_): "known" for id_ in range(100)}  # do not stop whoever goes on
    assert len(train(source, 0, 1, damage=Damage(0.9, known))) == 1
    with pytest.raises(ValueError, match=r"1 of \d+ examples .* max_bad = 0; the last"):
        train(source, damage=Damage(max_bad=0))
    with pytest.raises(ValueError, match="max_bad is 2"):
        Damage(max_bad=2)
    for path in paths:
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="100 images in a row cannot be read"):
        train(source)


def test_an_unreadable_image_is_masked_in_evaluation(own, caplog):
    source, paths = own
    harm(paths, [5])
    batches = loader.eval_batches(source, batch_size=8)
    batch = next(batches)
    assert batch["mask"].tolist() == [1, 1, 1, 1, 1, 0, 1, 1]
    assert batch["id"][5] == source.ids[6]
    assert batches.damage.ids == [int(source.ids[5])]
    assert "cannot be read, left out of evaluation: " in caplog.text


def test_an_example_is_had_from_any_source_whose_first_is_damaged(own):
    source, paths = own
    harm(paths, [0, 1])
    batch = loader.example(source)
    assert batch["id"].tolist() == [source.ids[2]]
    assert loader.example(data.load("digits"))["image"].shape == (1, 32, 32, 3)


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="only Linux has it")
def test_workers_for_which_shared_memory_is_too_small_are_not_begun(source):
    free = os.statvfs("/dev/shm").f_bavail * os.statvfs("/dev/shm").f_frsize
    rows = free // (96 * 96 * 3)  # a batch that alone would fill it; nothing is read yet
    with pytest.raises(OSError, match=r"/dev/shm has .* MB free of .* need .*--shm-size") as error:
        loader.train_batches(source, batch_size=rows, workers=2, seed=0, stop=9)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="only Linux has it")
@pytest.mark.parametrize(
    ("number", "words"),
    [(signal.SIGBUS, "SIGBUS: /dev/shm, of .* was full; .*--shm-size"),
     (signal.SIGKILL, "SIGKILL, as a machine does that runs out of memory")],
)  # fmt: skip
def test_a_worker_that_was_ended_is_one_line(source, number, words):
    class Ends:
        def __len__(self):
            return len(source)

        def __getitem__(self, rows):
            os.kill(os.getpid(), number)

    batches = loader.train_batches(
        source.replace(label=Ends()), batch_size=6, seed=0, stop=4, workers=1
    )
    with pytest.raises(OSError, match=f"one of 1 loader workers was ended by {words}") as error:
        next(batches)
    assert "\n" not in str(error.value)
    batches.close()


def test_mistakes_are_one_line(source):
    with pytest.raises(ValueError, match="expected positions in a batch of 6"):
        train(source, rows=np.arange(4, 8))
    with pytest.raises(ValueError, match="repeats is 0"):
        train(source, repeats=0)


def test_an_array_source_is_batched_as_before():
    digits = data.load("digits", split="train")
    batch = train(digits, 200, 201, rows=np.array([0, 3, 5]))[0]
    order = grain.MapDataset.range(len(digits)).shuffle(seed=3).repeat()
    rows = [order[i] for i in (1200, 1203, 1205)]
    assert_same([batch], [digits.read(rows)])


def test_to_device_reads_ahead_and_keeps_the_order():
    taken, release = [], threading.Event()

    def batches():
        for i in range(6):
            taken.append(i)
            yield {"x": np.full(8, i)}

    mesh = sharding.make_mesh()
    stream = loader.to_device(batches(), lambda batch: sharding.to_global(batch, mesh), ahead=2)
    first = next(stream)
    assert isinstance(first["x"], jax.Array)
    assert len(first["x"].sharding.device_set) == 8
    deadline = time.monotonic() + 10
    while len(taken) < 4 and time.monotonic() < deadline:  # two wait, one more is in hand
        release.wait(0.01)
    assert taken == [0, 1, 2, 3]
    assert [int(b["x"][0]) for b in stream] == [1, 2, 3, 4, 5]


def test_to_device_passes_errors_on_and_ends_when_closed():
    def failing():
        yield {"x": 1}
        raise ValueError("no more disks")

    stream = loader.to_device(failing(), dict)
    assert next(stream) == {"x": 1}
    with pytest.raises(ValueError, match="no more disks"):
        next(stream)
    endless = loader.to_device(iter(lambda: {"x": 1}, None), dict)
    next(endless)
    before = threading.active_count()
    endless.close()
    assert threading.active_count() == before - 1
