"""Throughput of the embedded pre-training step, and the share of time spent waiting for data.

The peer is the same compiled step fed one resident batch: what the step alone can do. The ratio is
loop / resident, so 1 means the input pipeline and the loop cost nothing.
"""

import argparse
import importlib.util
import time
from pathlib import Path

import jax
import numpy as np
from bench import Case

from noisy_fm import sharding, train
from noisy_fm.data import loader

CONFIG = Path(__file__).parents[2] / "configs" / "pretrain" / "emoji.py"


def run(measure, argv) -> list[Case]:
    parser = argparse.ArgumentParser(prog="bench.py train")
    parser.add_argument("--steps", type=int, default=60, help="steps a round (default 60)")
    args = parser.parse_args(argv)
    spec = importlib.util.spec_from_file_location("config", CONFIG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    with config.unlocked():
        config.epochs = 1000.0
    made = train.setup(config)
    waits: list[float] = []

    def loop():
        """The real loop: loader, corruption, transfer, step, metrics."""
        batches = loader.train_batches(
            made.source,
            batch_size=config.batch_size,
            seed=0,
            stop=args.steps,
            corrupt=loader.relabel(made.source.ids, made.labels),
        )
        state = jax.tree.map(lambda leaf: leaf.copy(), made.state)
        clock, wait = time.perf_counter(), 0.0
        with jax.set_mesh(made.mesh):
            for batch in batches:
                began = time.perf_counter()
                state, loss = step(state, sharding.to_global(batch, made.mesh))
                float(loss)
                wait += time.perf_counter() - began
        total = time.perf_counter() - clock
        waits.append(1 - wait / total)

    def resident():
        """The step alone on one batch that is already on the device."""
        state = jax.tree.map(lambda leaf: leaf.copy(), made.state)
        with jax.set_mesh(made.mesh):
            for _ in range(args.steps):
                state, loss = step(state, fixed)
                float(loss)

    step = train.make_step(made.task, made.tx, made.state)
    fixed = sharding.to_global(made.source.take(np.arange(config.batch_size)), made.mesh)
    case = measure("loop", loop, {"resident batch": resident})
    images = args.steps * config.batch_size
    wait = float(np.median(waits[1:]))
    return [
        Case(
            f"{config.model.name} {config.data.size}×{config.data.size}, batch {config.batch_size}",
            ours=images / case.ours,
            unit="images/s",
            peers={"resident batch": images / case.peers["resident batch"]},
            ratios={"resident batch": case.ratios["resident batch"]},
        ),
        Case(
            "share of time waiting for data",
            ours=wait,
            unit="of 1",
            ratios={"5 % / waited": 0.05 / max(wait, 1e-9)},
            target={"5 % / waited": 1.0},
        ),
    ]
