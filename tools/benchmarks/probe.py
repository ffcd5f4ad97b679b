"""Grids of probe heads against PyTorch, one head after another.

N = 10,000, D = 512, C = 100, 30 epochs, batch 64. PyTorch trains each head for some steps and is
scaled to the whole grid (said in the notes); ours trains the whole grid, compile not counted.

    python tools/bench.py probe [--part lp nmtune stream] [--repeats 3]
"""

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from bench import Case

ROWS, WIDTH, CLASSES, EPOCHS, BATCH = 10_000, 512, 100, 30, 64
FRACTIONS, SEEDS = (0.1, 0.25, 0.5, 0.75, 1.0), (0, 1, 2)


def run(measure, argv) -> list[Case]:
    parser = argparse.ArgumentParser(prog="bench.py probe")
    parser.add_argument("--part", nargs="*", choices=PARTS, default=list(PARTS))
    chosen = parser.parse_args(argv).part
    return [PARTS[name](measure) for name in chosen]


def linear_grid(measure) -> Case:
    """15 LP heads: 5 fractions × 3 seeds."""
    from noisy_fm import probe

    features, labels = _data()
    heads = [probe.Head("lp", seed=s, fraction=p) for p in FRACTIONS for s in SEEDS]
    steps = sum(EPOCHS * -(-round(p * ROWS) // BATCH) for p in FRACTIONS) * len(SEEDS)

    def ours():
        probe.fit_heads(features, labels, heads, num_classes=CLASSES)

    first = _seconds(ours)
    peers = {
        "release": _torch_linear(features, labels, loader=True),
        "tensors": _torch_linear(features, labels, loader=False),
    }
    case = measure("15 LP heads", ours, peers, target={"release": 6.0, "tensors": 2.5})
    sample = _scaled(case, steps, STEPS)
    case.note = (
        f"{case.ours / steps * 1e3:.3f} ms a head and step; first call {first:.1f} s; "
        f"PyTorch: {sample}"
    )
    return case


def nmtune_heads(measure) -> Case:
    """8 NMTune heads, release preset, and the matrix products alone as the roofline."""
    from noisy_fm import probe

    epochs = 1
    features, labels = _data()
    heads = [probe.Head("nmtune", preset="release", seed=s, epochs=epochs) for s in range(8)]
    steps = epochs * -(-ROWS // BATCH) * len(heads)

    def ours():
        probe.fit_heads(features, labels, heads, num_classes=CLASSES)

    first = _seconds(ours)
    shapes = _step_products()
    peers = {
        "release": _torch_nmtune(features, labels),
        "products (torch)": _torch_products(shapes),
        "products (XLA)": _xla_products(shapes),
    }
    target = {"release": 2.0, "products (torch)": 0.7, "products (XLA)": 0.7}
    case = measure("8 NMTune heads", ours, peers, target=target)
    _scaled(case, steps, dict.fromkeys(peers, PRODUCT_STEPS) | {"release": 8})
    total = sum(2 * m * k * n for m, k, n in shapes) * steps / 1e9
    rates = {name: total / case.peers[name] for name in peers if name != "release"}
    case.note = (
        f"{epochs} epoch, {case.ours / steps * 1e3:.2f} ms a head and step; first call "
        f"{first:.1f} s; Gflop/s: ours {total / case.ours:.0f}, the step's matrix products alone "
        + ", ".join(f"{rate:.0f} {name[9:]}" for name, rate in rates.items())
        + "; PyTorch: 8 steps, scaled"
    )
    return case


def streamed(measure) -> Case:
    """One LP head on 2,048-wide float16 features in a mapped file, a part of 1.28 M rows."""
    from noisy_fm import probe

    rows, width, full = 2**16, 2048, 1_280_000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.npy"
        mapped = np.lib.format.open_memmap(path, "w+", np.float16, (rows, width))
        for first in range(0, rows, 4096):
            random = np.random.default_rng(first)
            mapped[first : first + 4096] = random.standard_normal((4096, width), np.float32)
        mapped.flush()
        features, labels = np.load(path, mmap_mode="r"), np.arange(rows) % 1000
        head = probe.Head("lp", epochs=1, batch_size=256)

        def ours():
            probe.fit_heads(
                features, labels, [head], num_classes=1000, memory_budget=features.nbytes
            )

        case = measure("stream 65,536 × 2,048", ours, {})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    hours = case.ours / rows * full * 30 / 3600
    case.note = f"peak {peak:.2f} GiB; 30 epochs of 1.28 M rows would take {hours:.2f} h"
    return case


STEPS = {"release": 157, "tensors": 628}
PRODUCT_STEPS = 80


def _data(rows: int = ROWS):
    random = np.random.default_rng(0)
    labels = np.arange(rows) % CLASSES
    centres = random.normal(size=(CLASSES, WIDTH))
    features = centres[labels] + 2 * random.normal(size=(rows, WIDTH))
    return features.astype(np.float32), labels


def _seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _scaled(case: Case, steps: int, sample: dict[str, int]) -> str:
    """Scales what the peers took for their sample of steps to `steps`; in place."""
    for name, taken in sample.items():
        case.peers[name] *= steps / taken
        case.ratios[name] *= steps / taken
    return ", ".join(f"{name} {taken} steps" for name, taken in sample.items()) + ", scaled"


def _torch():
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return torch


def _torch_linear(features, labels, *, loader: bool):
    """One linear head at a time with AdamW and a per-step cosine schedule."""
    torch = _torch()
    x, y = torch.from_numpy(features), torch.from_numpy(labels)
    data = torch.utils.data.TensorDataset(x, y)

    def batches():
        if loader:
            yield from torch.utils.data.DataLoader(data, batch_size=BATCH, shuffle=True)
            return
        order = torch.randperm(len(x))
        for first in range(0, len(x), BATCH):
            rows = order[first : first + BATCH]
            yield x[rows], y[rows]

    def train():
        head = torch.nn.Linear(WIDTH, CLASSES)
        optimizer = torch.optim.AdamW(
            head.parameters(), lr=0.01, weight_decay=0.0, fused=not loader
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * 157)
        step, wanted = 0, STEPS["release" if loader else "tensors"]
        while step < wanted:
            for f, labels_ in batches():
                loss = torch.nn.functional.cross_entropy(head(f), labels_)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                step += 1

    return train


def _torch_nmtune(features, labels):
    """The release's form: residual MLP head, D×D covariance, `torch.svd`, two equal views' rows."""
    torch = _torch()
    x, y = torch.from_numpy(features[: 8 * BATCH]), torch.from_numpy(labels[: 8 * BATCH])
    nn = torch.nn

    def train():
        mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH),
            nn.BatchNorm1d(4 * WIDTH),
            nn.ReLU(),
            nn.Linear(4 * WIDTH, WIDTH),
        )
        head, scale = nn.Linear(WIDTH, CLASSES), nn.Parameter(torch.ones(WIDTH))
        parameters = [*mlp.parameters(), *head.parameters(), scale]
        optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1e-4)
        for first in range(0, len(x), BATCH):
            f, labels_ = x[first : first + BATCH], y[first : first + BATCH]
            z = scale * mlp(f) + f
            loss = nn.functional.cross_entropy(head(z), labels_)
            unit = nn.functional.normalize
            loss = loss + nn.functional.mse_loss(unit(z), unit(f))
            covariance = torch.cov(z.T)
            off_diagonal = covariance - torch.diag(torch.diagonal(covariance))
            loss = loss + 0.04 * off_diagonal.pow(2).sum() / WIDTH
            singular = torch.svd(z)[1]
            loss = loss - 0.001 * (singular / singular.sum())[:5].mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return train


def _step_products() -> list[tuple[int, int, int]]:
    """(m, k, n) of the matrix products of one head's step: forward, then backward."""
    forward = [
        (BATCH, WIDTH, 4 * WIDTH),
        (BATCH, 4 * WIDTH, WIDTH),
        (BATCH, WIDTH, CLASSES),
    ]
    weights = [(k, m, n) for m, k, n in forward]
    inputs = [(m, n, k) for m, k, n in forward[1:]]  # the features need no gradient
    return forward + weights + inputs


def _torch_products(shapes):
    torch = _torch()
    pairs = [(torch.randn(m, k), torch.randn(k, n)) for m, k, n in shapes]

    def work():
        for _ in range(PRODUCT_STEPS):
            for a, b in pairs:
                torch.mm(a, b)

    return work


def _xla_products(shapes):
    """The same in one compiled loop; each turn hangs on the last, so that none is left out."""
    import jax
    import jax.numpy as jnp

    random = np.random.default_rng(0)
    pairs = [
        tuple(jnp.asarray(random.standard_normal(s, np.float32)) for s in ((m, k), (k, n)))
        for m, k, n in shapes
    ]

    @jax.jit
    def loop(pairs, products):
        def turn(_, old):
            return [(a * (1 + 1e-30 * c[0, 0])) @ b for (a, b), c in zip(pairs, old, strict=True)]

        return jax.lax.fori_loop(0, PRODUCT_STEPS, turn, products)

    start = [jnp.zeros((m, n)) for m, _, n in shapes]
    return lambda: jax.block_until_ready(loop(pairs, start))


PARTS = {"lp": linear_grid, "nmtune": nmtune_heads, "stream": streamed}
