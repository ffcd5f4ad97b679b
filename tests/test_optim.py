"""Optimisers, schedules, microbatches and averages against what timm and PyTorch computed."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from noisy_fm import config, optim, sharding

TIMM = np.load(Path(__file__).parent / "references/timm.npz")
PATHS = ("a/kernel", "b/kernel", "zero/kernel", "a/bias")
OPTIMIZERS = {
    "lamb": ({"name": "lamb", "weight_decay": 0.02}, 0.0),
    "lamb_clipped": ({"name": "lamb", "weight_decay": 0.02}, 1.0),
    "lamb_no_decay": ({"name": "lamb", "weight_decay": 0.0}, 0.0),
    "lamb_always_adapt": ({"name": "lamb", "weight_decay": 0.02, "always_adapt": True}, 0.0),
    "lamb_trust_clip": ({"name": "lamb", "weight_decay": 0.02, "trust_clip": True}, 0.0),
    "adamw": ({"name": "adamw", "weight_decay": 0.05}, 0.0),
    "sgd": ({"name": "sgd", "weight_decay": 0.01, "momentum": 0.9, "nesterov": True}, 0.0),
}


def recorded(prefix):
    """{name: array} of what lies under `prefix` in the reference."""
    return {key.removeprefix(prefix): TIMM[key] for key in TIMM if key.startswith(prefix)}


def make(arguments, clip=0.0, multipliers=None):
    cfg = config.train()
    with cfg.unlocked():
        cfg.optimizer = {"learning_rate": 0.02, **arguments}
    cfg.clip = clip
    return optim.optimizer(
        cfg, lambda step: 0.02, multipliers=multipliers or dict.fromkeys(PATHS, 1.0)
    )


def trajectory(tx, dtype):
    """Parameters after each step of the recorded gradients, {path: [steps, …]}."""
    params = {path: jnp.asarray(v, dtype) for path, v in recorded("optimizer/start/").items()}
    gradients = {path: jnp.asarray(v, dtype) for path, v in recorded("optimizer/gradient/").items()}

    def step(carry, gradient):
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    return jax.lax.scan(step, (params, tx.init(params)), gradients)[1]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_step_as_timm_and_pytorch(name):
    with jax.enable_x64(True):
        got = trajectory(make(*OPTIMIZERS[name]), np.float64)
    for path, wanted in recorded(f"optimizer/{name}/").items():
        np.testing.assert_allclose(got[path], wanted, rtol=1e-6, atol=1e-8, err_msg=path)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_lose_little_in_float32(name):
    got = trajectory(make(*OPTIMIZERS[name]), np.float32)
    for path, wanted in recorded(f"optimizer/{name}/").items():
        np.testing.assert_allclose(got[path], wanted, atol=2e-5, err_msg=path)


def test_the_recorded_cases_differ():
    """A case that another's settings would pass would test nothing."""
    ends = {name: recorded(f"optimizer/{name}/") for name in OPTIMIZERS}
    for name, end in ends.items():
        for other in ends:
            gap = max(np.abs(end[path] - ends[other][path]).max() for path in PATHS)
            assert other == name or gap > 1e-4, (name, other)


def test_lamb_is_not_that_of_optax():
    """Were it to become so, ours could go."""

    def end(tx):
        return trajectory(tx, np.float32)["a/bias"]

    mask = {path: path.endswith("kernel") for path in PATHS}
    theirs = end(optax.lamb(0.02, weight_decay=0.02, mask=mask))
    ours = end(optim.lamb(0.02, weight_decay=0.02, mask=mask))
    adapted = end(optim.lamb(0.02, weight_decay=0.02, mask=mask, always_adapt=True))
    assert np.abs(theirs - ours).max() > 1e-3
    np.testing.assert_allclose(theirs, adapted, atol=1e-6)


def test_lamb_takes_its_norms_over_all_shards():
    mesh = sharding.make_mesh(fsdp=8, data=1)
    tx = optim.lamb(0.1, weight_decay=0.1)
    rng = np.random.default_rng(0)
    params, gradient = ({"kernel": rng.normal(size=(16, 8)).astype("f")} for _ in range(2))

    @jax.jit
    def update(params, gradient):
        return tx.update(gradient, tx.init(params), params)[0]

    layout = NamedSharding(mesh, PartitionSpec("fsdp"))
    sharded = update(*(jax.device_put(x, layout) for x in (params, gradient)))
    np.testing.assert_allclose(
        sharded["kernel"], update(params, gradient)["kernel"], rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("name", ["step_prefix", "step", "epoch_prefix", "epoch"])
def test_schedules_are_timms(name):
    cfg = config.train()
    cfg.optimizer.learning_rate, cfg.epochs = 0.5, 10.0
    cfg.schedule.update(
        warmup_epochs=2.0,
        warmup_rate=0.01,
        min_rate=0.001,
        warmup_prefix="prefix" in name,
        per_epoch="epoch" in name,
    )
    rate = optim.schedule(cfg, steps=70, steps_per_epoch=7)
    got = np.array([rate(step) for step in range(70)])
    np.testing.assert_allclose(got, TIMM[f"schedule/{name}"], atol=1e-6)


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
def test_schedules_begin_and_end_where_they_say(name):
    cfg = config.train()
    cfg.schedule.name, cfg.schedule.min_rate, cfg.optimizer.learning_rate = name, 0.1, 0.5
    rate = optim.schedule(cfg, steps=50, steps_per_epoch=5)
    ends = [float(rate(step)) for step in (0, 25, 50, 60)]
    middle, last = (0.5, 0.5) if name == "constant" else (0.3, 0.1)
    assert ends == pytest.approx([0.5, middle, last, last])
    cfg.schedule.name = "cosin"
    with pytest.raises(ValueError, match=r"unknown config.schedule.name 'cosin'; did you mean"):
        optim.schedule(cfg, steps=50, steps_per_epoch=5)


@pytest.mark.parametrize("kind", ["plain", "warmup"])
def test_weight_averages_are_timms(kind):
    values = {name: np.float32(v) for name, v in recorded("ema/value/").items()}
    average = {name: jnp.zeros(3) for name in values}
    for step in range(12):
        now = {name: jnp.asarray(value[step]) for name, value in values.items()}
        average = optim.ema_update(average, now, 0.9, step + 1, warmup=kind == "warmup")
        for name, wanted in recorded(f"ema/{kind}/").items():
            np.testing.assert_allclose(average[name], wanted[step], atol=1e-6)


def test_a_long_average_keeps_its_decay_and_copies_whole_numbers():
    one, zero = {"x": jnp.ones(()), "n": jnp.array(7)}, {"x": jnp.zeros(()), "n": jnp.array(3)}
    after = optim.ema_update(zero, one, 0.9999, 100)
    assert float(after["x"]) == pytest.approx(1e-4, rel=1e-5)  # 1 − 0.9999 in float32: 1.0002e-4
    assert int(after["n"]) == 7


class Net(nn.Module):
    """Two layers, with or without BatchNorm between."""

    norm: bool = False

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dense(6, name="a")(x)
        if self.norm:
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x)
        return nn.Dense(2, name="b")(nn.tanh(x))


def problem(*, norm=False, rows=16, mask=True):
    rng = np.random.default_rng(0)
    batch = {"x": jnp.asarray(rng.normal(size=(rows, 3)), jnp.float32)}
    batch["y"] = jnp.asarray(rng.normal(size=(rows, 2)), jnp.float32)
    if mask:
        batch["mask"] = jnp.asarray(rng.random(rows) < 0.6)
    model = Net(norm)
    variables = dict(model.init(jax.random.key(0), batch["x"], train=False))

    def loss_fn(params, model_state, batch, key):
        predicted, new = model.apply(
            {"params": params, **model_state}, batch["x"], train=True, mutable=["batch_stats"]
        )
        each = jnp.sum((predicted - batch["y"]) ** 2, -1)
        weight = batch.get("mask", jnp.ones(len(each)))
        loss = jnp.sum(each * weight) / jnp.maximum(jnp.sum(weight), 1)
        return loss, (dict(new), {"loss": each, "row": batch["x"][:, 0], "mean": loss})

    params = variables.pop("params")
    return loss_fn, params, variables, batch, jax.random.key(1)


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("parts", [2, 4, 8])
def test_microbatches_equal_the_whole_batch(parts, mask):
    arguments = problem(mask=mask)
    whole = jax.value_and_grad(arguments[0], has_aux=True)(*arguments[1:])
    got = jax.jit(lambda: optim.accumulate(*arguments, microbatches=parts))()
    assert jax.tree.structure(got) == jax.tree.structure(whole)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, whole)


def test_unequal_masks_weigh_by_their_rows():
    """Means of means would be off: one part has nothing to learn from."""
    loss_fn, params, state, batch, key = problem()
    batch["mask"] = jnp.arange(16) % 2 == 0  # all in one of two parts
    (whole, _), _ = jax.value_and_grad(loss_fn, has_aux=True)(params, state, batch, key)
    (loss, _), _ = optim.accumulate(loss_fn, params, state, batch, key, microbatches=2)
    assert float(loss) == pytest.approx(float(whole), rel=1e-6)


def test_batchnorm_statistics_pass_from_part_to_part():
    loss_fn, params, state, batch, key = problem(norm=True, mask=False)
    (_, (after, _)), _ = optim.accumulate(loss_fn, params, state, batch, key, microbatches=4)
    wanted = state
    for part in range(4):
        rows = {name: value[part::4] for name, value in batch.items()}
        _, (wanted, _) = loss_fn(params, wanted, rows, key)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), after, wanted)


def test_parts_have_keys_of_their_own():
    def loss_fn(params, state, batch, key):
        return jnp.sum(params * 0), (state, {"draw": jax.random.uniform(key, (2,))})

    batch = {"x": jnp.zeros(8)}
    arguments = (loss_fn, jnp.ones(1), {}, batch)
    (_, (_, outputs)), _ = optim.accumulate(*arguments, jax.random.key(0), microbatches=4)
    assert len(np.unique(outputs["draw"])) == 8


def test_no_row_moves_to_another_device():
    mesh = sharding.make_mesh()
    loss_fn, params, state, batch, key = problem(rows=64)
    batch = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))

    def run(batch):
        return optim.accumulate(loss_fn, params, state, batch, key, microbatches=4)

    text = jax.jit(run).lower(batch).compile().as_text()
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert f" {collective}" not in text


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"has 16 rows, config\.microbatches is 3"):
        optim.accumulate(*problem(), microbatches=3)
