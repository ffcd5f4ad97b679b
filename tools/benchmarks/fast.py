"""Each piece of models/fast.py and probe/fast.py beside the plain form that it stands for.

    python tools/bench.py fast [--only models probe] [--repeats 5]

A piece that is not faster (its ratio is below 1) is to be deleted. Networks: one gradient at
96×96. Probes: steps of batch 64 on 512 features and 100 classes, as the engine packs them.
"""

import argparse
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from bench import Case

from noisy_fm import models
from noisy_fm.models import fast as networks
from noisy_fm.probe import Head, lanes, plan
from noisy_fm.probe import fast as probes
from noisy_fm.probe.step import start_state

ROWS, WIDTH, CLASSES, BATCH = 4096, 512, 100, 64


def run(measure, argv) -> list[Case]:
    parser = argparse.ArgumentParser(prog="bench.py fast")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    return [case for name in parser.parse_args(argv).only for case in PARTS[name](measure)]


def of_networks(measure) -> list[Case]:
    """dot_general, pointwise and depthwise, each in the gradient of a network that has it."""
    return [
        _network(measure, "vit_s16", 16, dot_general=jax.lax.dot_general),
        _network(measure, "resnet50", 16, pointwise=networks.by_convolution),
        _network(measure, "efficientnet_lite0", 4, depthwise=networks.grouped_conv),
    ]


def _network(measure, name: str, batch: int, **plain) -> Case:
    model = models.create(name, 1000)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(batch, 96, 96, 3)), jnp.float32)
    variables = jax.jit(model.init)(jax.random.key(0), images)

    def contestant(**forms):
        def loss(variables):
            return jnp.square(model.apply(variables, images)[0]).mean()

        with mock.patch.dict(vars(networks), forms):
            return _compiled(jax.grad(loss), variables)

    peers = {f"without {piece}": contestant(**{piece: form}) for piece, form in plain.items()}
    return measure(f"{name}, batch {batch}", contestant(), peers, target=dict.fromkeys(peers, 1.0))


def of_probes(measure) -> list[Case]:
    """Steps of linear heads and of NMTune's MLP, each piece left out in turn."""
    return [_lanes(measure, "lp", 400), _lanes(measure, "nmtune", 40)]


def _lanes(measure, method: str, steps: int) -> Case:
    random = np.random.default_rng(0)
    features = jnp.asarray(random.normal(size=(ROWS, 1, WIDTH)), jnp.float32)
    labels = np.arange(ROWS) % CLASSES
    head = Head(method, preset="release", epochs=8)
    number = probes.CPU_LANES[head.layout]
    plans = [plan.make_plan(head, labels, CLASSES, np.arange(ROWS)) for _ in range(number)]
    run = lanes.Lanes(plans, [[lane] for lane in range(number)], BATCH)
    arrays = jax.device_put(run.arrays(steps))
    states = [start_state(head.layout, seed, WIDTH, CLASSES) for seed in range(number)]
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    preset = head.preset if head.regularized else None

    def contestant(*, unrolled=True, **forms):
        def move(*given):
            return lanes.advance.__wrapped__(*given, preset=preset, unrolled=unrolled)

        with mock.patch.dict(vars(probes), forms):
            return _compiled(move, state, features, arrays, steps)

    peers = {
        "without cross_entropy": contestant(cross_entropy=_cross_entropy),
        "without adamw": contestant(adamw=_adamw),
        "without transposed": contestant(transposed=lambda params: params),
        "without in_turn, transposed": contestant(unrolled=False),
    }
    note = f"{number} lanes, {steps} steps"
    return measure(method, contestant(), peers, target=dict.fromkeys(peers, 1.0), note=note)


def _compiled(function, *arguments):
    """A call of the function, compiled now, that blocks."""
    program = jax.jit(function).lower(*arguments).compile()
    return lambda: jax.block_until_ready(program(*arguments))


def _cross_entropy(scores, labels, mask):
    losses = optax.softmax_cross_entropy_with_integer_labels(scores, labels)
    return (losses * mask).sum() / mask.sum()


def _adamw(state, gradient, learning_rate, weight_decay, step):
    moments = optax.ScaleByAdamState((step - 1).astype(jnp.int32), state["mean"], state["square"])
    updates, moments = optax.scale_by_adam().update(gradient, moments)
    params = jax.tree.map(
        lambda p, u: p - learning_rate * (u + weight_decay[0 if p.ndim > 1 else 1] * p),
        state["params"],
        updates,
    )
    return {"params": params, "mean": moments.mu, "square": moments.nu}


PARTS = {"models": of_networks, "probe": of_probes}
