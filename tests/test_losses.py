"""Losses against float64 evaluations of their definitions."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from noisy_fm import losses

ROWS, CLASSES = 7, 5
rng = np.random.default_rng(0)
LOGITS = rng.normal(size=(ROWS, CLASSES)) * 3
LABELS = rng.integers(0, CLASSES, ROWS)
SOFT = rng.dirichlet(np.ones(CLASSES), ROWS)


def log_softmax(x):
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def binary(x, y):
    p = 1 / (1 + np.exp(-x))
    return -(y * np.log(p) + (1 - y) * np.log(1 - p))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("labels", [LABELS, SOFT], ids=["integer", "soft"])
def test_softmax_cross_entropy(labels, smoothing):
    y = np.eye(CLASSES)[labels] if labels.ndim == 1 else labels
    y = y * (1 - smoothing) + smoothing / CLASSES
    expected = -(y * log_softmax(LOGITS)).sum(axis=1)
    got = losses.softmax_cross_entropy(LOGITS, labels, label_smoothing=smoothing)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("sum_classes", [False, True])
def test_binary_cross_entropy_smooths_integers_only(sum_classes):
    kwargs = {"label_smoothing": 0.1, "sum_classes": sum_classes}
    factor = CLASSES if sum_classes else 1
    smooth = np.eye(CLASSES)[LABELS] * 0.9 + 0.1 / CLASSES
    for labels, y in ((LABELS, smooth), (SOFT, SOFT)):
        got = losses.binary_cross_entropy(LOGITS, labels, **kwargs)
        np.testing.assert_allclose(got, factor * binary(LOGITS, y).mean(axis=1), rtol=1e-5)


def test_binary_threshold():
    got = losses.binary_cross_entropy(LOGITS, SOFT, threshold=0.3)
    np.testing.assert_allclose(got, binary(LOGITS, (SOFT > 0.3) * 1.0).mean(axis=1), rtol=1e-5)


@pytest.mark.parametrize("loss", [losses.softmax_cross_entropy, losses.binary_cross_entropy])
def test_mask_is_removal_and_stops_nan(loss):
    logits = np.concatenate([LOGITS, np.full((2, CLASSES), np.nan)])
    labels = np.concatenate([LABELS, [0, 1]])
    mask = np.arange(ROWS + 2) < ROWS
    rows = loss(logits, labels)
    kept = losses.mean(loss(LOGITS, LABELS))
    np.testing.assert_allclose(losses.mean(rows, mask), kept, rtol=1e-6)
    assert losses.mean(rows, np.zeros(ROWS + 2)) == 0
    _, gradient = jax.value_and_grad(lambda x: losses.mean(loss(x, labels), mask))(logits)
    assert np.isfinite(np.asarray(gradient)[:ROWS]).all()


def test_large_logits_and_half_precision_stay_finite():
    logits = jnp.asarray([[1e4, -1e4], [-1e4, 1e4]], jnp.bfloat16)
    for loss in (losses.softmax_cross_entropy, losses.binary_cross_entropy):
        value, gradient = jax.value_and_grad(
            lambda x, loss=loss: losses.mean(loss(x, jnp.array([1, 1])))
        )(logits)
        assert value.dtype == jnp.float32
        assert np.isfinite(value)
        assert np.isfinite(np.asarray(gradient, np.float32)).all()


@pytest.mark.parametrize("labels", [np.zeros(3, int), np.zeros(ROWS), np.zeros((ROWS, 2))])
def test_wrong_labels_say_what_was_expected(labels):
    with pytest.raises(ValueError, match="expected integers"):
        losses.softmax_cross_entropy(LOGITS, labels)


TIMM = np.load(Path(__file__).parent / "references/timm.npz")
BCE, SOFTMAX = losses.binary_cross_entropy, losses.softmax_cross_entropy


@pytest.mark.parametrize(
    ("name", "loss", "labels", "arguments"),
    [
        ("bce", BCE, "labels", {}),
        ("bce_smooth", BCE, "labels", {"label_smoothing": 0.1}),
        ("bce_soft", BCE, "soft", {"label_smoothing": 0.1}),
        ("bce_soft_threshold", BCE, "soft", {"label_smoothing": 0.1, "threshold": 0.2}),
        ("bce_threshold", BCE, "labels", {"label_smoothing": 0.1, "threshold": 0.2}),
        ("bce_sum", BCE, "labels", {"label_smoothing": 0.1, "sum_classes": True}),
        ("bce_soft_sum", BCE, "soft", {"label_smoothing": 0.1, "sum_classes": True}),
        ("softmax", SOFTMAX, "labels", {}),
        ("softmax_smooth", SOFTMAX, "labels", {"label_smoothing": 0.1}),
        ("softmax_soft", SOFTMAX, "soft", {}),
    ],
)
def test_losses_are_timms(name, loss, labels, arguments):
    logits, labels = np.float32(TIMM["loss/logits"]), TIMM[f"loss/{labels}"]
    labels = labels if labels.ndim == 1 else np.float32(labels)
    got = float(losses.mean(loss(logits, labels, **arguments)))
    assert got == pytest.approx(TIMM[f"loss/{name}"], rel=1e-6)
