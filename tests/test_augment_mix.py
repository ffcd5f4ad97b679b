"""Mixup and CutMix against timm's numbers, and what they draw."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy import stats

from noisy_fm.data.augment.mix import Mix, apply_mix, mix

REFERENCE = np.load(Path(__file__).parent / "references" / "augment.npz")


def batch(n=8, size=12, classes=5, seed=0):
    """Images and one-hot targets."""
    rng = np.random.default_rng(seed)
    images = rng.uniform(0, 255, (n, size, size, 3)).astype(np.float32)
    return images, np.eye(classes, dtype=np.float32)[rng.integers(0, classes, n)]


@pytest.mark.parametrize("name", ["mixup_batch", "cutmix_batch", "both_elem"])
def test_the_same_draw_gives_timms_batch(name):
    images, labels = REFERENCE["mix/images"], REFERENCE["mix/labels"]
    of = {part: REFERENCE[f"mix/{name}/{part}"] for part in ("ratio", "cut", "centre")}
    targets = optax.smooth_labels(jax.nn.one_hot(labels, 5), 0.1)
    mixed, mixed_targets = jax.jit(apply_mix)(Mix(**of), images, targets)
    assert np.abs(mixed - images).max() > 1
    np.testing.assert_allclose(mixed, REFERENCE[f"mix/{name}/mixed"], rtol=1e-6, atol=1e-4)
    np.testing.assert_allclose(mixed_targets, REFERENCE[f"mix/{name}/targets"], atol=1e-6)


def ratios(mode="elem", **arguments):
    """λ of many rows: the target of class 0 where the partners have class 1."""
    n = 4000
    targets = np.eye(2, dtype=np.float32)[(np.arange(n) >= n // 2).astype(int)]
    images = np.zeros((n, 16, 16, 1), np.float32)
    images[n // 2 :] = 1
    mixed, soft = mix(jax.random.key(0), images, targets, mode=mode, **arguments)
    soft = np.asarray(soft)
    np.testing.assert_allclose(soft.sum(1), 1, rtol=1e-6)
    # The images say the same: the mean is the share of the second half's.
    np.testing.assert_allclose(np.asarray(mixed).mean((1, 2, 3)), soft[:, 1], atol=1e-5)
    return soft[np.arange(n), (np.arange(n) >= n // 2).astype(int)], np.asarray(mixed)


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.2, 0.8])
def test_mixup_ratios_are_beta(alpha):
    drawn, _ = ratios(mixup=alpha)
    assert stats.kstest(drawn, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


@pytest.mark.slow
def test_cutmix_pastes_boxes_of_the_drawn_area():
    drawn, mixed = ratios(cutmix=1.0)
    assert set(np.unique(mixed)) <= {0, 1}
    rng = np.random.default_rng(0)
    side = np.floor(16 * np.sqrt(1 - rng.uniform(size=20_000))).astype(int)
    length = []
    for _ in range(2):
        centre = rng.integers(0, 16, 20_000)
        low, high = centre - side // 2, centre + (side + 1) // 2
        length.append(np.clip(high, 0, 16) - np.clip(low, 0, 16))
    expected = 1 - length[0] * length[1] / 256
    assert abs(drawn.mean() - expected.mean()) < 0.02
    assert stats.ks_2samp(drawn, expected).pvalue > 1e-3
    pasted = mixed[:2000, ..., 0]
    rows, columns = pasted.max(2).sum(1), pasted.max(1).sum(1)
    np.testing.assert_array_equal(rows * columns, pasted.sum((1, 2)))  # they are rectangles


def test_probabilities_of_mixing_and_of_cutmix():
    drawn, mixed = ratios(mixup=0.8, cutmix=1.0, probability=0.6, switch_probability=0.3)
    untouched = drawn == 1
    assert abs(untouched.mean() - 0.4) < 0.04
    blended = ((mixed > 0) & (mixed < 1)).any((1, 2, 3))
    assert abs(blended.mean() - 0.6 * 0.7) < 0.04


def test_a_batch_shares_one_draw():
    images, targets = batch()
    run = jax.jit(lambda key: mix(key, images, targets, mixup=0.8, mode="batch"))
    mixed, soft = run(jax.random.key(1))
    ratio = np.median((np.asarray(mixed) - images[::-1]) / (images - images[::-1]))
    assert 0.001 < ratio < 0.999
    np.testing.assert_allclose(mixed, images * ratio + images[::-1] * (1 - ratio), atol=0.05)
    np.testing.assert_allclose(soft, targets * ratio + targets[::-1] * (1 - ratio), atol=1e-4)
    again = run(jax.random.key(1))
    np.testing.assert_array_equal(mixed, again[0])
    assert np.abs(mixed - run(jax.random.key(2))[0]).max() > 1


@pytest.mark.parametrize("mode", ["batch", "elem"])
def test_groups_keep_rows_on_their_device(mode):
    images, targets = batch(n=16)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data"))

    def run(key, images, targets):
        return mix(key, images, targets, mixup=0.8, cutmix=1.0, mode=mode, groups=8)

    key = jax.random.key(1)
    shared = jax.device_put((images, targets), rows)
    sharded = jax.jit(run, out_shardings=(rows, rows)).lower(key, *shared).compile()
    collectives = ("all-gather", "all-to-all", "all-reduce", "collective-permute")
    assert not [name for name in collectives if name in sharded.as_text()]
    alone = jax.jit(run)(key, images, targets)
    for one, other in zip(sharded(key, *shared), alone, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    swapped = images.reshape(8, 2, 12, 12, 3)[:, ::-1].reshape(images.shape)
    between = np.minimum(images, swapped) - 1e-3, np.maximum(images, swapped) + 1e-3
    assert ((alone[0] >= between[0]) & (alone[0] <= between[1])).all()


@pytest.mark.slow
def test_an_element_does_not_depend_on_the_others_draws():
    images, targets = batch(n=8)
    key = jax.random.key(0)
    whole, _ = mix(key, images, targets, mixup=0.8, cutmix=1.0, mode="elem", groups=4)
    part, _ = mix(key, images[:4], targets[:4], mixup=0.8, cutmix=1.0, mode="elem", groups=2)
    np.testing.assert_array_equal(whole[:4], part)


def test_nothing_to_mix_leaves_images_and_smooths_targets():
    images, targets = batch()
    same, soft = mix(jax.random.key(0), images, targets, label_smoothing=0.1)
    np.testing.assert_array_equal(same, images)
    np.testing.assert_allclose(soft, targets * 0.9 + 0.1 / 5, rtol=1e-6)
    never = mix(jax.random.key(0), images, targets, mixup=0.8, probability=0.0)
    np.testing.assert_array_equal(never[0], images)
    np.testing.assert_array_equal(never[1], targets)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "pair"}, "mode is 'pair'; expected one of batch, elem"),
        ({"mixup": -1.0}, "mixup is -1.0"),
        ({"mixup": 0.2, "probability": 1.2}, "probability is 1.2"),
        ({"mixup": 0.2, "groups": 3}, "groups is 3; expected a divisor of the batch size 8"),
    ],
)
def test_a_mistake_gets_one_line(arguments, message):
    images, targets = batch()
    with pytest.raises(ValueError, match=message):
        mix(jax.random.key(0), images, targets, **arguments)
    with pytest.raises(ValueError, match=r"targets have shape \(8,\): expected \(8, classes\)"):
        mix(jax.random.key(0), images, jnp.arange(8), mixup=0.2)
