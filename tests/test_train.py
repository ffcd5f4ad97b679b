"""The loop: layouts agree, resuming is exact, frozen is frozen, and something is learned."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from noisy_fm import checkpoint, config, optim, sharding, signals, train
from noisy_fm.data import loader

# orbax leaves the other reads of a damaged checkpoint to the garbage collector, some time later.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <coroutine:pytest.PytestUnraisableExceptionWarning"
)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, toy.host(a), toy.host(b))


def test_a_small_set_is_learned_by_heart():
    state, losses = toy.fit(toy.one_device(), 60)
    assert losses[0] > 1.0
    assert losses[-1] < 0.05
    assert int(state.step) == 60


@pytest.mark.parametrize(
    "axes",
    [
        pytest.param({"data": 8}, marks=pytest.mark.slow),
        pytest.param({"data": 1, "fsdp": 8}, marks=pytest.mark.slow),
        {"data": 2, "fsdp": 4},
    ],
)
def test_losses_do_not_depend_on_the_layout(axes):
    mesh = sharding.make_mesh(**axes)
    state, losses = toy.fit(mesh, 20, augment="flip_crop")
    _, alone = toy.fit(toy.one_device(), 20, augment="flip_crop")
    np.testing.assert_allclose(losses, alone, rtol=1e-5)
    wide = state.params["wide/kernel"]
    shards = {shard.data.shape for shard in wide.addressable_shards}
    assert shards == {(wide.shape[0], wide.shape[1]) if axes.get("fsdp", 1) == 1 else
                      _divided(wide.shape, axes["fsdp"])}  # fmt: skip
    moments = [
        leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)
        if "wide/kernel" in sharding.path_of(path)
    ]  # fmt: skip
    assert len(moments) == 2
    assert all(m.sharding == wide.sharding for m in moments)


def _divided(shape, ways):
    axis = int(np.argmax(shape))
    return tuple(n // ways if i == axis else n for i, n in enumerate(shape))


def test_resuming_from_a_checkpoint_is_exact(tmp_path):
    mesh = sharding.make_mesh(data=2, fsdp=4)
    whole, losses = toy.fit(mesh, 20, augment="flip_crop")

    saver = checkpoint.Checkpointer(tmp_path / "ckpt")
    _, first = toy.fit(
        mesh, 11, augment="flip_crop",
        save=lambda step, state: saver.save(step, state, {"note": "x"}), save_every=11,
    )  # fmt: skip
    saver.wait()
    _, _, fresh = toy.start(mesh, augment="flip_crop")
    state, meta = saver.restore(train.abstract(fresh))
    saver.close()
    assert int(state.step) == 11
    assert meta["note"] == "x"
    resumed, rest = toy.fit(mesh, 20, augment="flip_crop", state=state)
    same(whole, resumed)
    assert first + rest == losses


def test_a_damaged_checkpoint_is_passed_over_and_all_damaged_is_an_error(tmp_path):
    mesh = toy.one_device()
    saver = checkpoint.Checkpointer(tmp_path / "ckpt", keep=3)
    toy.fit(mesh, 4, save=lambda step, state: saver.save(step, state, {}), save_every=2)
    saver.close()
    _, _, fresh = toy.start(mesh)

    def damage(step):
        for file in (tmp_path / "ckpt" / str(step)).rglob("*"):
            if file.is_file():
                file.write_bytes(file.read_bytes()[: max(0, file.stat().st_size // 2)])

    damage(4)
    saver = checkpoint.Checkpointer(tmp_path / "ckpt")
    state, _ = saver.restore(train.abstract(fresh))
    assert int(state.step) == 2
    saver.save(3, state, {})  # the damaged one is newer, and yet not in the way
    saver.save(4, state, {"again": True})  # takes the damaged one's place
    saver.wait()
    assert saver.steps == [3, 4]
    assert saver.restore(train.abstract(fresh), step=4)[1]["again"]
    saver.close()
    damage(4)
    damage(3)
    saver = checkpoint.Checkpointer(tmp_path / "ckpt")
    with pytest.raises(ValueError, match="can be read"):
        saver.restore(train.abstract(fresh))
    saver.close()
    gc.collect()


@pytest.mark.slow
def test_a_checkpoint_with_one_changed_bit_is_passed_over_wherever_it_is(tmp_path, caplog):
    mesh = sharding.make_mesh(data=2, fsdp=4)
    saver = checkpoint.Checkpointer(tmp_path, keep=2)
    last, _ = toy.fit(
        mesh, 4, save=lambda step, state: saver.save(step, state, {"note": 1}), save_every=2
    )
    saver.wait()
    _, _, fresh = toy.start(mesh)
    newest = max((tmp_path / "4" / "state").rglob("*"), key=lambda f: f.stat().st_size)
    note = next((tmp_path / "4" / "meta").glob("metadata"))
    whole, passed = newest.read_bytes(), []
    for place in np.linspace(0, len(whole) - 1, 20).astype(int):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        newest.write_bytes(changed)
        restored, meta = saver.restore(train.abstract(fresh))
        assert meta == {"schema": checkpoint.SCHEMA, "note": 1}
        if int(restored.step) == 4:  # a byte that holds nothing
            same(restored, last)
        else:
            passed.append(place)
    assert len(passed) >= 15
    assert "arrays are not what was saved, as " in caplog.text
    newest.write_bytes(whole)
    assert int(saver.restore(train.abstract(fresh))[0].step) == 4
    note.write_text(note.read_text().replace('"note": 1', '"note": 3'))
    assert int(saver.restore(train.abstract(fresh))[0].step) == 2
    assert "its meta is not what was saved" in caplog.text
    saver.close()
    gc.collect()  # here, where it is expected


def test_a_digest_is_of_the_bits_and_not_of_their_place_on_devices():
    random = np.random.default_rng(0)
    tree = {
        "f": random.normal(size=(16, 24)).astype(np.float32),
        "h": random.normal(size=(8, 4)).astype(jnp.bfloat16),
        "i": np.arange(8, dtype=np.int8),
        "b": np.array([True, False]),
        "s": np.float32(-0.0),
        "none": np.zeros((0, 3), np.float32),
    }
    mesh = sharding.make_mesh(data=2, fsdp=4)
    whole = checkpoint.digests(jax.device_put(tree, jax.devices()[0]))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp")))
    split = {name: jax.device_put(tree[name], rows) for name in ("f", "h", "i")}
    assert checkpoint.digests(split) == {name: whole[name] for name in split}
    for name, value in tree.items():
        flat = np.array(value).reshape(-1).view(np.uint8)
        for place in range(0, len(flat), 7):
            flat[place] ^= 1
            changed = flat.view(value.dtype).reshape(value.shape)
            assert checkpoint.digests({name: changed}) != {name: whole[name]}
            flat[place] ^= 1
    swapped = tree["f"].copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    assert checkpoint.digests({"f": swapped})["f"] != whole["f"]


def test_frozen_parameters_and_statistics_do_not_change_by_a_bit():
    mesh = toy.one_device()
    rules = (("^(head|wide|norm2)/", 1.0), (".*", None))
    _, _, before = toy.start(mesh, trainable=rules)
    before = toy.host(before)
    state, losses = toy.fit(mesh, 30, trainable=rules)
    assert losses[-1] < losses[0]
    assert set(state.frozen) == {"stem/kernel", "stem/bias", "norm/scale", "norm/bias"}
    same(before.frozen, state.frozen)
    statistics = toy.host(state.model_state)["batch_stats"]
    same(before.model_state["batch_stats"]["norm"], statistics["norm"])
    assert not np.array_equal(
        before.model_state["batch_stats"]["norm2"]["mean"], statistics["norm2"]["mean"]
    )
    moments = [sharding.path_of(p) for p, _ in jax.tree_util.tree_leaves_with_path(state.opt_state)]
    assert not any("stem" in path for path in moments)


def test_a_frozen_batchnorm_normalises_with_its_stored_statistics():
    mesh = toy.one_device()
    rules = (("^(head|wide|norm2)/", 1.0), (".*", None))
    task, _, state = toy.start(mesh, trainable=rules)
    batch = toy.source_of().read(np.arange(8))
    params, model_state = state.variables
    far = jax.tree.map(lambda x: x, model_state)
    far["batch_stats"]["norm"]["mean"] = model_state["batch_stats"]["norm"]["mean"] + 3.0
    near_loss, _ = task.loss_fn(params, model_state, batch, jax.random.key(0))
    far_loss, _ = task.loss_fn(params, far, batch, jax.random.key(0))
    assert abs(float(near_loss) - float(far_loss)) > 1e-3  # the stored mean is what counts


def test_learning_rate_multipliers_scale_a_parameters_updates():
    cfg = config.train()
    cfg.optimizer.weight_decay = 0.0
    params = {"a/kernel": np.ones(3, np.float32), "b/kernel": np.ones(3, np.float32)}
    tx = optim.optimizer(cfg, lambda step: 0.1, multipliers={"a/kernel": 1.0, "b/kernel": 0.25})
    grads = {name: np.full(3, 2.0, np.float32) for name in params}
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(updates["b/kernel"], 0.25 * np.asarray(updates["a/kernel"]))


def test_a_loss_that_is_not_finite_stops_the_run_and_nothing_is_saved_after_it():
    saved = []
    with pytest.raises(FloatingPointError, match="at step 7"):
        toy.fit(
            toy.one_device(),
            20,
            learning_rate=lambda count: jnp.where(count < 6, 1e-2, jnp.nan),  # the 7th update
            save_every=1,
            save=lambda step, state: saved.append(step),
        )
    assert saved == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("number", [*signals.STOP, signal.SIGINT])
def test_a_signal_saves_the_step_it_came_at_and_then_stops(number):
    source, saved = toy.source_of(), []

    def batches():
        for step in range(1, 50):
            if step == 9:
                os.kill(os.getpid(), number)
            yield source.read(np.arange(16))

    before = signal.getsignal(number)
    if number != signal.SIGINT:  # under nohup SIGHUP is ignored, and stays so
        signal.signal(number, signal.SIG_DFL)
    handler = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else signals.Terminated):
        toy.fit(
            toy.one_device(), 50, batches=batches(), save_every=1000,
            save=lambda step, state: saved.append((step, int(state.step))),
        )  # fmt: skip
    # Batches are read ahead: the signal came with the ninth, while an earlier step was running.
    assert len(saved) == 1
    assert saved[0][0] == saved[0][1] <= 9
    assert signal.getsignal(number) is handler
    signal.signal(number, before)


def test_batches_are_a_function_of_seed_and_step():
    source = toy.source_of(50)

    def ids(**options):
        args = {"batch_size": 8, "seed": 3, "stop": 30, **options}
        return [b["id"] for b in loader.train_batches(source, **args)]

    whole = ids()
    np.testing.assert_array_equal(whole[17:], ids(start=17))
    np.testing.assert_array_equal(whole, ids(threads=3))
    halves = [ids(rows=np.arange(8)[4 * i : 4 * i + 4]) for i in range(2)]
    np.testing.assert_array_equal(
        whole, [np.concatenate(pair) for pair in zip(*halves, strict=True)]
    )
    assert not np.array_equal(whole, ids(seed=4))
    epoch = np.concatenate(whole)[:50]
    assert sorted(epoch) == sorted(source.ids)
    assert not np.array_equal(epoch, np.concatenate(whole)[50:100])


def test_eval_batches_hold_every_example_once():
    source = toy.source_of(13)
    parts = [
        list(loader.eval_batches(source, batch_size=4, rows=np.array([2 * i, 2 * i + 1])))
        for i in range(2)
    ]
    ids = [
        np.concatenate([b["id"][b["mask"] > 0] for b in pair]) for pair in zip(*parts, strict=True)
    ]
    np.testing.assert_array_equal(np.concatenate(ids), source.ids)


@pytest.mark.slow
def test_a_run_killed_many_times_ends_with_the_same_bits(tmp_path):
    def command(workdir):
        return [
            *(sys.executable, "-m", "noisy_fm.train", "--config=configs/pretrain/emoji.py"),
            f"--workdir={workdir}",
            *("--config.data.domain=('noto',)", "--config.epochs=2", "--config.noise.rate=0.2"),
            *("--config.checkpoint_every=5", "--config.schedule.warmup_epochs=0.5"),
        ]

    root = Path(__file__).parent.parent
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(whole), cwd=root, check=True, capture_output=True)

    def reached():
        names = [path.name for path in (killed / "checkpoints").glob("*")]
        return max((int(name) for name in names if name.isdigit()), default=0)

    # 21 kills, each once a checkpoint of some step is there; the first ones before any is.
    rng = np.random.default_rng(0)
    wanted = np.linspace(-10, 45, 21)
    numbers = [signal.SIGTERM, signal.SIGKILL, signal.SIGINT] * 7
    log = tmp_path / "killed.log"
    for number, step in zip(numbers, wanted, strict=True):
        with log.open("w") as out:
            process = subprocess.Popen(command(killed), cwd=root, stdout=out, stderr=out)
        while process.poll() is None and reached() < step:
            time.sleep(0.02)
        time.sleep(float(rng.uniform(0, 5 if step < 0 else 0.3)))
        assert process.poll() is None, log.read_text()
        importing = not log.stat().st_size  # nothing said yet; Ctrl-C there can even abort Python
        process.send_signal(number)
        codes = {signal.SIGTERM: {143}, signal.SIGKILL: set(), signal.SIGINT: {130}}[number]
        anyhow = importing and number == signal.SIGINT
        assert process.wait() in {0, -number} | codes or anyhow, log.read_text()
    subprocess.run(command(killed), cwd=root, check=True, capture_output=True)

    cfg = config.train()
    cfg.data.domain = ("noto",)
    fresh = train.setup(cfg).plan.shapes

    def final(workdir):
        saver = checkpoint.Checkpointer(workdir / "checkpoints")
        state, _ = saver.restore(fresh, step=52)
        saver.close()
        return state

    same(final(whole), final(killed))
