"""Throughput of training: the embedded run's loop, or the step of an ImageNet model beside timm's.

Without --model: the embedded pre-training, and the share of time spent waiting for data. The peer
is the same compiled step fed one resident batch: what the step alone can do. The ratio is
loop / resident, so 1 means the input pipeline and the loop cost nothing.

With --model resnet50, vit_b16 or vit_s16: whole steps (forward, backward, AdamW) on one resident
batch, ours and timm's model under torch.compile in turn, and the model FLOPs utilisation: of the
chip's bf16 peak, on a CPU of the rate of one large float32 matrix product. timm is imported only
here; torch and torchvision must be there for it.
"""

import argparse
import importlib.util
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from bench import Case

from noisy_fm import config as config_lib
from noisy_fm import sharding, train
from noisy_fm.data import loader
from noisy_fm.data.source import numbered
from noisy_fm.train import flops
from noisy_fm.train.state import init_state, make_step

TIMM = {
    "resnet50": "resnet50",
    "vit_b16": "vit_base_patch16_224",
    "vit_s16": "vit_small_patch16_224",
}
CONFIG = Path(__file__).parents[2] / "configs" / "pretrain" / "emoji.py"


def run(measure, argv) -> list[Case]:
    parser = argparse.ArgumentParser(prog="bench.py train")
    parser.add_argument("--steps", type=int, default=0, help="steps a round (default 60, or 2)")
    parser.add_argument("--model", choices=TIMM, help="an ImageNet model, beside timm's")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=96, help="pixels a side (default 96)")
    parser.add_argument("--precision", choices=config_lib.PRECISIONS, default="float32")
    parser.add_argument("--eager", action="store_true", help="timm without torch.compile")
    args = parser.parse_args(argv)
    args.steps = args.steps or (2 if args.model else 60)
    return [step_case(measure, args)] if args.model else loop_cases(measure, args)


def step_case(measure, args) -> Case:
    """Images a second of our whole step and of timm's."""
    config = config_lib.train()
    with config.unlocked():
        config.model = {"name": args.model}
        config.precision, config.batch_size = args.precision, args.batch
        config.task.augment.name = "none"
        config.optimizer.learning_rate = 1e-5
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (args.batch, args.size, args.size, 3)).astype(np.uint8)
    batch = {"image": images, "label": random.integers(0, 1000, args.batch).astype(np.int32)}
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    task = train.make_task(config, numbered(1000))
    plan = train.plan_training(config, task, batch, mesh=mesh, num_examples=100 * args.batch)
    state, resident = init_state(plan), sharding.to_global(batch, mesh)
    step = make_step(task, plan.tx, state)
    forward = lambda variables: task.predict_fn(*variables, batch)["logits"]  # noqa: E731
    operations = 3 * flops.count(forward, state.variables)

    def ours():
        nonlocal state
        with jax.set_mesh(mesh):
            for _ in range(args.steps):
                state, loss = step(state, resident)
            float(loss)

    case = measure(args.model, ours, {"timm": timm_step(args, batch)})
    rate = operations * args.steps / case.ours
    chip = flops.peak(jax.devices()[0])
    whole = chip or matmul_rate()
    images_done = args.steps * args.batch
    return Case(
        f"{args.model} {args.size}×{args.size}, batch {args.batch}, {args.precision}",
        ours=images_done / case.ours,
        unit="images/s",
        peers={"timm": images_done / case.peers["timm"]},
        ratios=case.ratios,
        target={"timm": 1.0},
        note=f"{rate / 1e12:.3g} TFLOP/s, {rate / whole:.0%} of "
        + ("the chip's peak" if chip else f"a matrix product's {whole / 1e12:.3g}"),
    )


def timm_step(args, batch):
    """The same step in PyTorch: timm's model, cross-entropy, AdamW, autocast, channels last."""
    import os

    import timm
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sized = {"img_size": args.size} if args.model.startswith("vit") else {}
    model = timm.create_model(TIMM[args.model], num_classes=1000, **sized).to(device).train()
    model = model.to(memory_format=torch.channels_last)
    images = torch.from_numpy(batch["image"]).to(device).permute(0, 3, 1, 2)
    images = ((images.float() / 255 - 0.5) / 0.5).contiguous(memory_format=torch.channels_last)
    labels = torch.from_numpy(batch["label"]).long().to(device)
    mixed = args.precision == "bfloat16"

    def loss_of(images, labels):
        with torch.autocast(device, dtype=torch.bfloat16, enabled=mixed):
            return torch.nn.functional.cross_entropy(model(images), labels)

    loss_fn = loss_of if args.eager else torch.compile(loss_of)
    return torch_steps(model, loss_fn, (images, labels), steps=args.steps)


def torch_steps(model, loss_fn, inputs, *, steps: int):
    """Runs whole steps in PyTorch: loss, gradient, AdamW."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=1e-4, fused=True)

    def run():
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            loss = loss_fn(*inputs)
            loss.backward()
            optimizer.step()
        float(loss.detach())

    return run


def matmul_rate(n: int = 2048) -> float:
    """FLOP/s of an n×n float32 matrix product: what a CPU's step is compared with."""
    a = jax.random.normal(jax.random.key(0), (n, n))
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        product(a, a).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return 2 * n**3 / min(seconds)


def loop_cases(measure, args) -> list[Case]:
    """The embedded run: its loop beside its step alone, and the share of waiting."""
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
        )
        state = init_state(made.plan)
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
        state = init_state(made.plan)
        with jax.set_mesh(made.mesh):
            for _ in range(args.steps):
                state, loss = step(state, fixed)
                float(loss)

    step = make_step(made.task, made.plan.tx, made.plan.shapes)
    fixed = sharding.to_global(made.source.read(np.arange(config.batch_size)), made.mesh)
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
