"""NMTune's terms against PyTorch in the release's form and naive JAX; a whole step against MLP.

    python tools/bench.py nmtune [--only terms|step] [--heads 16]

Peers of the terms do what the formulas say: an SVD of Z and a D×D covariance. `step` trains the
release's head (D → 4D → D, BatchNorm, residual; batch 128, 100 classes, AdamW) with its three
terms, against the same head without any; there the target 1/1.10 is of the ratio "mlp step".
"""

import argparse
import functools
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from noisy_fm import nmtune

SHAPES = ((128, 512), (128, 768), (128, 2048), (512, 1024))
STEP_SLACK = {512: 1.15, 768: 1.10, 2048: 1.10}


def run(measure, argv):
    parser = argparse.ArgumentParser(prog="bench.py nmtune")
    parser.add_argument("--only", choices=("terms", "step"))
    parser.add_argument("--heads", type=int, default=16, help="heads at once in the vmapped steps")
    parser.add_argument("--dimensions", type=int, nargs="+", default=list(STEP_SLACK))
    args = parser.parse_args(argv)
    cases = []
    if args.only != "step":
        cases += [_terms(measure, *shape) for shape in SHAPES]
    if args.only != "terms":
        for d in args.dimensions:
            cases += [_step(measure, d, 1, kind) for kind in ("relu", "decaying")]
            if 1 < args.heads <= 12288 // d:  # AdamW's state of 16 heads at 2048 takes gigabytes
                cases.append(_step(measure, d, args.heads, "relu"))
    return cases


def _features(m, d, kind):
    """Non-negative activations, or Gaussian rows with variances falling as 1/i and a mean."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(m, d))
    if kind == "relu":
        return np.maximum(z, 0).astype(np.float32)
    z *= np.arange(1, d + 1) ** -0.5
    z += 0.2 * rng.normal(size=d)
    return (z / z.std()).astype(np.float32)


def _terms(measure, m, d):
    z = _features(m, d, "relu")
    weights = {"cov": 0.04, "svd": 0.001}

    def ours(z):
        return nmtune.nmtune_loss(z, None, "release", weights=weights)

    def naive(z):
        centred = z - z.mean(axis=0)
        c = centred.T @ centred / (m - 1)
        cov = (jnp.sum(c**2) - jnp.sum(jnp.diag(c) ** 2)) / d
        s = jnp.linalg.svd(z, full_matrices=False)[1]
        return 0.04 * cov - 0.001 * jnp.mean(s[:5] / s.sum())

    values = [float(loss(z)) for loss in (ours, naive)]
    np.testing.assert_allclose(*values, rtol=1e-4)
    peers = {"naive jax": _blocking(naive, z), "torch, release": _torch_terms(z)}
    target = dict.fromkeys(peers, 5.0)
    return measure(
        f"COV + SVD value and gradient {m}×{d}", _blocking(ours, z), peers, target=target
    )


def _blocking(loss, z):
    compiled = jax.jit(jax.value_and_grad(loss))
    z = jnp.asarray(z)
    return lambda: jax.block_until_ready(compiled(z))


def _torch_terms(array):
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    z = torch.tensor(array, requires_grad=True)
    m, d = z.shape

    def once():
        z.grad = None
        centred = z - z.mean(dim=0)
        c = centred.T @ centred / (m - 1)
        off = c - torch.diag(torch.diag(c))
        s = torch.linalg.svd(z, full_matrices=False)[1]
        (0.04 * (off**2).sum() / d - 0.001 * (s / s.sum())[:5].mean()).backward()

    return once


class _Head(nn.Module):
    @nn.compact
    def __call__(self, f):
        d = f.shape[-1]
        h = nn.Dense(4 * d)(f)
        h = nn.Dense(d)(nn.relu(nn.BatchNorm(use_running_average=False)(h)))
        z = self.param("scale", nn.initializers.ones, (d,)) * h + f
        return nn.Dense(100)(z), z


def _step(measure, d, heads, kind):
    f = jnp.asarray(_features(128, d, kind))
    slack = STEP_SLACK.get(d, 1.10)
    contestants = [_trainer(f, heads, regularised=on) for on in (True, False)]
    # Quick steps are timed in runs of a few, so that one round is longer than the clock's jitter.
    times = max(1, 2**22 // (d * d * heads))
    case = measure(
        f"step D={d} {kind}" + (f", {heads} heads at once" if heads > 1 else ""),
        functools.partial(contestants[0], times),
        {"mlp step": functools.partial(contestants[1], times)},
        target={"mlp step": round(1 / slack, 3)},
    )
    case.note = f"nmtune/mlp {1 / case.ratios['mlp step']:.3f}, bar {slack:.2f}; {times} steps"
    return case


def _trainer(f, heads, *, regularised):
    """f(n): n AdamW steps of `heads` heads on the rows f, the state carried from call to call."""
    head, optimiser = _Head(), optax.adamw(1e-3, weight_decay=1e-4)
    labels = jnp.arange(len(f)) % 100

    def loss(params, statistics):
        variables = {"params": params, "batch_stats": statistics}
        (logits, z), new = head.apply(variables, f, mutable=["batch_stats"])
        total = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        if regularised:
            total += nmtune.nmtune_loss(z, f, "release")
        return total, new["batch_stats"]

    def init(key):
        variables = head.init(key, f)
        return variables["params"], variables["batch_stats"], optimiser.init(variables["params"])

    def step(state):
        params, statistics, momenta = state
        (_, statistics), gradient = jax.value_and_grad(loss, has_aux=True)(params, statistics)
        updates, momenta = optimiser.update(gradient, momenta, params)
        return optax.apply_updates(params, updates), statistics, momenta

    if heads == 1:
        state = [init(jax.random.key(0))]
    else:
        state = [jax.vmap(init)(jax.random.split(jax.random.key(0), heads))]
        step = jax.vmap(step)
    compiled = jax.jit(step, donate_argnums=0)

    def train(times):
        for _ in range(times):
            state[0] = compiled(state[0])
        jax.block_until_ready(state[0])

    return train
