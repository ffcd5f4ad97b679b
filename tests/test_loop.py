"""The loop's care: what is not finite is skipped, stalls are named, saves come in time."""

import threading
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from noisy_fm import models, optim, progress, sharding
from noisy_fm.data import loader
from noisy_fm.train import flops, loop
from noisy_fm.train.state import make_step


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted():
    kept = {}
    state, losses = toy.fit(
        toy.one_device(), 12, poison=(4,), max_skipped=3, ema=0.5,
        on_skip=lambda step, batch: kept.update({step: batch["id"]}),
    )  # fmt: skip
    assert int(state.step) == 12
    assert int(state.skipped) == len(kept) == 1
    assert list(kept) == [4]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(toy.host(state.params)))
    assert np.isfinite(toy.host(state.ema["params"])["head/kernel"]).all()
    # A log line a step here: the skipped one has no mean, the others are not touched by it.
    assert np.flatnonzero(~np.isfinite(losses)).tolist() == [3]


def test_one_skipped_step_too_many_names_the_step_the_examples_and_the_file():
    with pytest.raises(FloatingPointError) as error:
        toy.fit(
            toy.one_device(), 20, poison=(2, 4), max_skipped=1,
            on_skip=lambda step, batch: f"batch{step}.npz",
        )  # fmt: skip
    ids = next(b["id"] for i, b in enumerate(batches(4)) if i == 3)
    message = str(error.value)
    assert "step 4" in message
    assert "batch4.npz" in message
    assert " ".join(map(str, ids[:8])) in message


def batches(stop):
    return loader.train_batches(toy.source_of(), batch_size=16, seed=0, stop=stop)


def test_a_skipped_step_leaves_every_bit_of_the_model():
    task, tx, state = toy.start(toy.one_device())
    task = toy.poisoned(task, (1,))
    before = toy.host(state)
    step = make_step(task, tx, state)
    state, loss = step(state, sharding.to_global(next(iter(batches(1))), toy.one_device()))
    assert np.isnan(float(loss))
    after = toy.host(state)
    for name in ("params", "model_state", "opt_state", "metrics", "key"):
        jax.tree.map(np.testing.assert_array_equal, getattr(before, name), getattr(after, name))
    assert (int(after.step), int(after.skipped)) == (1, 1)


class Plain(nn.Module):
    """No BatchNorm, so that parts of a batch and the whole are the same function."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.relu(nn.Dense(32, name="wide")(x.reshape(len(x), -1)))
        return nn.Dense(4, name="head")(x), {"pre_logits": x}


def test_microbatches_are_the_large_batch():
    options = {"model": Plain(), "augment": "flip_crop"}
    whole, losses = toy.fit(toy.one_device(), 10, **options)
    parts, same = toy.fit(sharding.make_mesh(data=2, fsdp=2, devices=jax.devices()[:4]), 10,
                          microbatches=4, **options)  # fmt: skip
    np.testing.assert_allclose(same, losses, rtol=1e-5)
    for name, value in toy.host(whole.params).items():
        np.testing.assert_allclose(toy.host(parts.params)[name], value, rtol=1e-4, atol=1e-6)


def test_the_average_follows_the_parameters_and_is_what_is_used():
    seen = []
    state, _ = toy.fit(
        toy.one_device(), 6, ema=0.8, save_every=1,
        save=lambda step, state: seen.append(toy.host(state.params)["head/kernel"].copy()),
    )  # fmt: skip
    average = seen[0]
    for value in seen[1:]:
        average = 0.8 * average + 0.2 * value
    used = state.variables[0]["head"]["kernel"]
    np.testing.assert_allclose(used, average, rtol=1e-5, atol=1e-8)
    assert not np.allclose(used, state.params["head/kernel"])
    trained = optim.join(state.params, state.frozen)["head"]["kernel"]
    np.testing.assert_array_equal(trained, state.params["head/kernel"])


def test_the_average_begins_with_the_first_step_that_is_not_skipped():
    state, _ = toy.fit(toy.one_device(), 2, poison=(1,), max_skipped=1, ema=0.9)
    ema, params = toy.host(state.ema["params"]), toy.host(state.params)
    assert int(state.skipped) == 1
    np.testing.assert_allclose(ema["head/kernel"], params["head/kernel"], atol=1e-6)


def test_a_save_is_made_when_its_minutes_have_passed():
    saved = []

    def slow():
        for batch in batches(8):
            time.sleep(0.12)
            yield batch

    toy.fit(
        toy.one_device(), 8, batches=slow(), save_every=1000, save_minutes=0.3 / 60,
        save=lambda step, state: saved.append(step),
    )  # fmt: skip
    assert 2 <= len(saved) <= 5
    assert saved[-1] == 8


@pytest.mark.parametrize("late", [True, False])
def test_a_stall_of_the_input_is_named(late, capsys):
    reached = threading.Event()

    def some():
        for i, batch in enumerate(batches(6)):
            if late and i == 5:  # read ahead of the loop, which has then nothing left to do
                reached.wait(60)
                time.sleep(1.5)
            yield batch

    toy.fit(
        toy.one_device(), 6, batches=some(), stall_seconds=0.6, eval_every=5,
        evaluate=lambda step, state: reached.set() or ("", False),
    )  # fmt: skip
    lines = [line for line in capsys.readouterr().err.splitlines() if "for input" in line]
    assert bool(lines) == late
    assert all("at step 6" in line for line in lines)


def test_a_device_that_does_not_answer_is_named(capsys):
    with loop.Watchdog(0.2) as watchdog:
        watchdog.waits_for("the device, or another host", 7)
        time.sleep(0.5)
    assert "for the device, or another host at step 7" in capsys.readouterr().err


def test_chosen_steps_are_traced(tmp_path):
    toy.fit(toy.one_device(), 6, profile=loop.Profile(tmp_path, 3, 4))
    traces = list(tmp_path.rglob("*.xplane.pb"))
    assert traces
    assert all(trace.stat().st_size > 1000 for trace in traces)


def test_a_trace_is_closed_when_training_ends_or_fails_in_it(tmp_path):
    toy.fit(toy.one_device(), 4, profile=loop.Profile(tmp_path / "end", 3, 9))
    with pytest.raises(FloatingPointError):
        toy.fit(toy.one_device(), 9, poison=(4,),
                profile=loop.Profile(tmp_path / "fail", 3, 9))  # fmt: skip
    for name in ("end", "fail"):
        assert list((tmp_path / name).rglob("*.xplane.pb"))


# GMACs at 224 × 224 as published with the models (timm's and fvcore's counts agree to 1 %).
@pytest.mark.parametrize(("name", "gmacs"), [("resnet50", 4.11), ("vit_b16", 17.58)])
def test_operations_agree_with_published_counts(name, gmacs):
    model = models.create(name, 1000)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    forward = lambda variables, x: model.apply(variables, x, train=False)[0]  # noqa: E731
    init = lambda x: model.init(jax.random.key(0), x, train=False)  # noqa: E731
    variables = jax.eval_shape(init, image)
    assert flops.count(forward, variables, image) / 2e9 == pytest.approx(gmacs, rel=0.01)


def test_operations_of_loops_groups_and_branches():
    a = jnp.ones((8, 8))
    assert flops.count(lambda a: a @ a, a) == 2 * 8**3
    assert flops.count(jax.jit(lambda a: a @ a), a) == 2 * 8**3
    looped = lambda a: jax.lax.scan(lambda c, _: (c @ a, None), a, length=5)[0]  # noqa: E731
    assert flops.count(looped, a) == 5 * 2 * 8**3
    either = lambda a: jax.lax.cond(a[0, 0] > 0, lambda: a, lambda: a @ a)  # noqa: E731
    assert flops.count(either, a) == 2 * 8**3
    conv = nn.Conv(6, (3, 3), feature_group_count=2, use_bias=False)
    x = jnp.ones((1, 5, 5, 4))
    variables = conv.init(jax.random.key(0), x)
    assert flops.count(lambda x: conv.apply(variables, x), x) == 2 * 25 * 6 * 9 * 2


def test_the_peak_is_known_of_accelerators_only():
    class Chip:
        device_kind = "TPU v5 lite"

    assert flops.peak(Chip()) == 197e12
    assert flops.peak(jax.devices()[0]) is None


def test_the_time_left_does_not_count_what_is_compiled_first(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with progress.Progress("run", 101) as bar:
        for seconds in (100.0, 4.0, 4.0, 4.0, 4.0):
            now[0] += seconds
            bar.update()
    first, second, end = capsys.readouterr().out.splitlines()
    assert "s left" not in first  # nothing is known yet
    assert second.endswith("384 s left")  # 96 steps of 4 s
    assert end.endswith("116.0 s")
