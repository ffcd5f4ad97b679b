"""Classification losses of logits [n c], one value a row [n]; `mean` reduces them."""

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
