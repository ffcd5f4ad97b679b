"""Losses, one value a row [n], which `mean` reduces: of logits [n c], and of pairs [n e]."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax


def softmax_cross_entropy(logits, labels, *, label_smoothing=0.0):
    """−Σ_c y_c log softmax(logits)_c of every row, in nats.

    labels: integers [n], or soft targets [n c] (a mixup, for instance). `label_smoothing` ε makes
    either y (1 − ε) + ε/c.
    """
    logits = _at_least_float32(logits)
    targets = optax.smooth_labels(_targets(logits, labels), label_smoothing)
    return optax.softmax_cross_entropy(logits, targets)


def binary_cross_entropy(logits, labels, *, label_smoothing=0.0, threshold=None, sum_classes=False):
    """Binary cross-entropy of each class, averaged over the classes, of every row, as timm has it.

    labels: integers [n], smoothed to (1 − ε) + ε/c and ε/c, or soft targets [n c], which are taken
    as they are: mixup smooths its own. `threshold` turns targets above it into 1 and the others
    into 0; `sum_classes` adds the classes up instead of averaging them.
    """
    logits = _at_least_float32(logits)
    targets = _targets(logits, labels)
    if jnp.ndim(labels) == 1:
        targets = optax.smooth_labels(targets, label_smoothing)
    if threshold is not None:
        targets = (targets > threshold).astype(logits.dtype)
    losses = optax.sigmoid_binary_cross_entropy(logits, targets)
    return losses.sum(axis=1) if sum_classes else losses.mean(axis=1)


def mean(values, mask=None):
    """Mean of values [n] over the rows that `mask` [n] marks, 0 if there are none."""
    if mask is None:
        return values.mean()
    keep = jnp.asarray(mask) != 0
    if keep.shape != values.shape:
        raise ValueError(f"mask has shape {keep.shape}: expected {values.shape}, one entry a row")
    # where, not a product: padding may hold NaN.
    return jnp.sum(jnp.where(keep, values, 0)) / jnp.maximum(jnp.sum(keep), 1)


def _at_least_float32(x):
    x = jnp.asarray(x)
    if x.ndim != 2:
        raise ValueError(f"logits have shape {x.shape}: expected [rows, classes]")
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _targets(logits, labels):
    labels = jnp.asarray(labels)
    if labels.shape == logits.shape[:1] and jnp.issubdtype(labels.dtype, jnp.integer):
        return jax.nn.one_hot(labels, logits.shape[1], dtype=logits.dtype)
    if labels.shape == logits.shape:
        return labels.astype(logits.dtype)
    raise ValueError(
        f"labels are {labels.dtype} {labels.shape} for logits {logits.shape}: expected integers"
        f" {logits.shape[:1]} or soft targets {logits.shape}"
    )


def contrastive(x, y, *, scale, mask=None, chunk: int = 0, gather: Callable = lambda a: a):
    """Symmetric InfoNCE (Radford et al., ICML 2021, fig. 3) of n pairs: (loss [n], correct [n]).

    Of logits l_ij = scale · x_i·y_j, x and y [n e] of length 1, the loss of pair i in nats is
    ½(log Σ_j e^{l_ij} + log Σ_j e^{l_ji}) − l_ii; correct is 1 where every other l_ij is below
    l_ii. Pairs that `mask` [n] leaves out are no one's rivals.

    `chunk` columns of the n² logits are held at a time (0: all); the gradient computes them again.
    `gather` lays the n embeddings out whole on every device, so that each takes its rows against
    all: with d of them, memory for n/d × chunk logits a device.
    """
    x, y, keep = _embeddings(x, y, mask)
    kept = gather(keep)
    own = jnp.sum(x * y, -1) * scale

    def reduce(rows, others, rivals, places):
        logits = jnp.where(rivals, scale * _products(rows, others), -jnp.inf)
        return jax.nn.logsumexp(logits, axis=1), _highest(logits, places)

    to_text, highest = _by_chunks(reduce, x, gather(y), kept, chunk)
    to_image, _ = _by_chunks(reduce, y, gather(x), kept, chunk)
    correct = jax.lax.stop_gradient(own) > highest.max(0)
    both = jax.nn.logsumexp(to_text, axis=0) + jax.nn.logsumexp(to_image, axis=0)
    return both / 2 - own, correct.astype(jnp.float32)


def sigmoid_contrastive(
    x, y, *, scale, bias, mask=None, chunk: int = 0, gather: Callable = lambda a: a
):
    """SigLIP's loss (Zhai et al., ICCV 2023, eq. 1) of n pairs: (loss [n], correct [n]).

    Of logits l_ij = scale · x_i·y_j + bias, pair i's is Σ_j −log σ(l_ij if i = j else −l_ij).
    The rest as for `contrastive`.
    """
    x, y, keep = _embeddings(x, y, mask)
    own = jnp.sum(x * y, -1) * scale + bias

    def reduce(rows, others, rivals, places):
        logits = scale * _products(rows, others) + bias
        total = jnp.where(rivals, jax.nn.softplus(logits), 0).sum(1)
        return total, _highest(jnp.where(rivals, logits, -jnp.inf), places)

    total, highest = _by_chunks(reduce, x, gather(y), gather(keep), chunk)
    correct = jax.lax.stop_gradient(own) > highest.max(0)
    return total.sum(0) - own, correct.astype(jnp.float32)  # −log σ(l) = log(1 + e^l) − l


def _products(rows, others):
    return jnp.matmul(rows, others.T, precision=jax.lax.Precision.HIGHEST)


def _highest(logits, places):
    """The largest of each row [n] but its own; `places` are the columns' numbers."""
    others = jnp.arange(len(logits))[:, None] != places
    return jax.lax.stop_gradient(jnp.where(others, logits, -jnp.inf).max(1))


def _by_chunks(reduce, rows, others, keep, chunk: int):
    """`reduce(rows, some of others, their keep and places)` by chunks of columns: [chunks n]."""
    n = len(others)
    if not chunk or chunk >= n:
        return jax.tree.map(lambda a: a[None], reduce(rows, others, keep, jnp.arange(n)))
    parts = -(-n // chunk)
    more = parts * chunk - n
    others = jnp.pad(others, ((0, more), (0, 0))).reshape(parts, chunk, -1)
    keep = jnp.pad(keep, (0, more)).reshape(parts, chunk)
    places = jnp.arange(parts * chunk).reshape(parts, chunk)
    return jax.lax.map(jax.checkpoint(lambda part: reduce(rows, *part)), (others, keep, places))


def _embeddings(x, y, mask):
    x, y = (jnp.asarray(one).astype(jnp.promote_types(one.dtype, jnp.float32)) for one in (x, y))
    if x.shape != y.shape or x.ndim != 2:
        raise ValueError(f"embeddings are {x.shape} and {y.shape}: expected pairs [n e]")
    keep = jnp.ones(len(x), bool) if mask is None else jnp.asarray(mask) != 0
    if keep.shape != (len(x),):
        raise ValueError(f"mask has shape {keep.shape}: expected ({len(x)},), one entry a pair")
    return x, y, keep
