"""Image–text training: steps beside open_clip's, its tokenizer, the loss in chunks, swaps at scale.

    python tools/bench.py clip [--model clip_vit_b16 --size 96 --batch 16]

Steps are whole ones (forward, loss, backward, AdamW) on one resident batch, ours and open_clip's
model under torch.compile in turn. The chunked loss is beside the whole one, on one device: its
value and gradient, and what the compiler says each holds. open_clip is imported only here.
"""

import argparse
import os
import time
import unicodedata

import jax
import jax.numpy as jnp
import numpy as np
from bench import Case

from benchmarks.train import torch_steps
from noisy_fm import config as config_lib
from noisy_fm import data, losses, noise, sharding, train
from noisy_fm.texts import clip_tokenizer
from noisy_fm.train.state import init_state, make_step

OPEN_CLIP = {"clip_resnet50": "RN50", "clip_vit_b16": "ViT-B-16", "clip_vit_b32": "ViT-B-32"}
IDS = 27_000_000  # YFCC15M and CC12M


def run(measure, argv) -> list[Case]:
    parser = argparse.ArgumentParser(prog="bench.py clip")
    parser.add_argument("--model", choices=OPEN_CLIP, default="clip_vit_b32")
    parser.add_argument("--steps", type=int, default=2, help="steps a round")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=96, help="pixels a side")
    parser.add_argument("--precision", choices=config_lib.PRECISIONS, default="float32")
    parser.add_argument("--pairs", type=int, nargs="*", default=(8192, 32768))
    parser.add_argument("--only", choices=("step", "tokenizer", "loss", "swaps"))
    args = parser.parse_args(argv)
    parts = {
        "step": lambda: [step_case(measure, args)],
        "tokenizer": lambda: [tokenizer_case(measure)],
        "loss": lambda: [loss_case(measure, pairs) for pairs in args.pairs],
        "swaps": lambda: [swap_case()],
    }
    return [case for name, part in parts.items() if args.only in (None, name) for case in part()]


def step_case(measure, args) -> Case:
    config = config_lib.train("contrast")
    with config.unlocked():
        config.model = {"name": args.model}
        config.precision, config.batch_size = args.precision, args.batch
        config.task.augment.name = "none"
        config.optimizer.learning_rate = 1e-5
    drawn = np.random.default_rng(0)
    images = drawn.integers(0, 256, (args.batch, args.size, args.size, 3)).astype(np.uint8)
    tokens = clip_tokenizer()([f"a photo of the number {i}" for i in range(args.batch)])
    batch = {"image": images, "tokens": tokens}
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    task = train.make_task(config, {"encoded": False, "label_names": []})
    plan = train.plan_training(config, task, batch, mesh=mesh, num_examples=100 * args.batch)
    state, resident = init_state(plan), sharding.to_global(batch, mesh)
    step = make_step(task, plan.tx, state)

    def ours():
        nonlocal state
        with jax.set_mesh(mesh):
            for _ in range(args.steps):
                state, loss = step(state, resident)
            float(loss)

    case = measure(args.model, ours, {"open_clip": open_clip_step(args, batch)})
    done = args.steps * args.batch
    return Case(
        f"{args.model} {args.size}×{args.size}, batch {args.batch}, {args.precision}",
        ours=done / case.ours,
        unit="pairs/s",
        peers={"open_clip": done / case.peers["open_clip"]},
        ratios=case.ratios,
        target={"open_clip": 1.0},
    )


def open_clip_step(args, batch):
    """The same step in PyTorch: open_clip's model and loss, AdamW, autocast, compiled."""
    import open_clip
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = open_clip.get_model_config(OPEN_CLIP[args.model])
    settings["vision_cfg"]["image_size"] = args.size
    model = open_clip.model.CLIP(**settings).to(device).train()
    images = torch.from_numpy(batch["image"]).to(device).permute(0, 3, 1, 2)
    images = (images.float() / 255 - 0.5) / 0.5
    tokens = torch.from_numpy(batch["tokens"]).long().to(device)
    loss_fn = open_clip.loss.ClipLoss()
    mixed = args.precision == "bfloat16"

    def loss_of(images, tokens):
        with torch.autocast(device, dtype=torch.bfloat16, enabled=mixed):
            return loss_fn(*model(images, tokens)[:3])

    return torch_steps(model, torch.compile(loss_of), (images, tokens), steps=args.steps)


def tokenizer_case(measure) -> Case:
    """Strings a second: names of emoji and of characters in sentences, a tenth not ASCII."""
    from open_clip import tokenizer as reference

    names = [str(one) for one in data.load("emoji_domains").columns["caption"][:4000]]
    texts = [f"a photo of a {one}, number {i} of my collection" for i, one in enumerate(names)]
    texts[::10] = [f"{chr(0xC0 + i % 400)} {unicodedata.lookup('SNOWMAN')} {t}"
                   for i, t in enumerate(texts[::10])]  # fmt: skip
    ours = clip_tokenizer()
    assert (ours(texts) == reference.tokenize(texts).numpy()).all()
    case = measure(
        "tokenizer", lambda: ours(texts), {"open_clip": lambda: reference.tokenize(texts)}
    )
    return Case(
        "tokenizer, 4,000 captions",
        ours=len(texts) / case.ours,
        unit="strings/s",
        peers={"open_clip": len(texts) / case.peers["open_clip"]},
        ratios=case.ratios,
        target={"open_clip": 5.0},
    )


def loss_case(measure, pairs: int) -> Case:
    """Value and gradient of so many pairs of 512 numbers."""
    drawn = np.random.default_rng(0)
    x, y = (jnp.asarray(drawn.normal(size=(pairs, 512)) / 512**0.5, jnp.float32) for _ in range(2))
    chunk = 1024

    def compiled(chunk):
        def value(x, y):
            return losses.contrastive(x, y, scale=30.0, chunk=chunk)[0].mean()

        return jax.jit(jax.value_and_grad(value, (0, 1))).lower(x, y).compile()

    part, whole = compiled(chunk), compiled(0)
    memory = [one.memory_analysis().temp_size_in_bytes / 2**30 for one in (part, whole)]
    note = f"{memory[0]:.2f} GiB against {memory[1]:.2f} GiB"
    if memory[1] > 12:
        began = time.perf_counter()
        jax.block_until_ready(part(x, y))
        seconds = time.perf_counter() - began
        return Case(f"loss of {pairs:,} pairs, chunks of {chunk}", seconds,
                    note=f"{note}; the whole one was not run")  # fmt: skip
    case = measure(
        "loss",
        lambda: jax.block_until_ready(part(x, y)),
        {"whole": lambda: jax.block_until_ready(whole(x, y))},
    )
    return Case(
        f"loss of {pairs:,} pairs, chunks of {chunk}", case.ours, peers=case.peers,
        ratios=case.ratios, note=note,
    )  # fmt: skip


def swap_case() -> Case:
    """Captions displaced among 27 million ids, once."""
    ids = np.arange(IDS)
    began = time.perf_counter()
    noise.swap_captions(ids, 0.3)
    return Case(f"30 % of {IDS:,} captions displaced", time.perf_counter() - began)
