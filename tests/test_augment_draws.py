"""How often what is drawn, for RandAugment, 3-augment, jitter and erasing."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from noisy_fm.data.augment import erase, jitter, policies

pytestmark = pytest.mark.slow  # of the compiler, or of other libraries

REFERENCE = np.load(Path(__file__).parent / "references" / "augment.npz")
N = 20_000


def draws(draw, n=N):
    """`draw` for `n` keys, as NumPy arrays."""
    return jax.device_get(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), n)))


def test_policies_are_read_as_timm_reads_them():
    read = policies.parse_policy
    assert read("") is None
    assert read("3a") == policies.ThreeAugment()
    assert read("rand-m7-mstd0.5-inc1") == policies.RandAugment(7, 0.5, True, 2, 0.5)
    assert read("rand") == policies.RandAugment(10, 0.0, False, 2, 0.5)
    assert read("rand-n3-p0.7-m9-inc0") == policies.RandAugment(9, 0.0, False, 3, 0.7)
    assert read("rand-mstd101") == policies.RandAugment(10, math.inf, False, 2, 0.5)


def test_rand_augment_draws_each_operation_equally_often():
    layers = draws(policies.parse_policy("rand-m7-mstd0.5-inc1").draw)
    assert layers.op.shape == (N, 2)
    for layer in range(2):
        counts = np.bincount(layers.op[:, layer], minlength=len(policies.OPS))
        expected = np.full(len(policies.OPS), N / 30)
        expected[0] = N / 2
        blur = policies.OPS.index("GaussianBlur")
        assert counts[blur] == 0
        keep = np.arange(len(policies.OPS)) != blur
        assert stats.chisquare(counts[keep], expected[keep]).pvalue > 1e-3
    # The two layers are independent, drawn with replacement.
    both = np.mean((layers.op[:, 0] > 0) & (layers.op[:, 1] > 0))
    same = np.mean((layers.op[:, 0] == layers.op[:, 1]) & (layers.op[:, 0] > 0))
    assert abs(both - 0.25) < 0.015
    assert abs(same - 0.25 / 15) < 0.004
    assert abs(layers.bicubic.mean() - 0.5) < 0.015


def test_rand_augment_magnitudes_are_normal_and_signed():
    layers = draws(policies.parse_policy("rand-m7-mstd0.5-inc1-p1").draw)
    turns = layers.argument[layers.op == policies.OPS.index("Rotate")] / 3
    assert stats.kstest(np.abs(turns), stats.norm(7, 0.5).cdf).pvalue > 1e-3
    assert abs((turns < 0).mean() - 0.5) < 0.04
    factors = layers.argument[layers.op == policies.OPS.index("Color")]
    assert abs((factors < 1).mean() - 0.5) < 0.04
    wide = draws(policies.parse_policy("rand-m9-mstd4-p1").draw)
    degrees = np.abs(wide.argument[wide.op == policies.OPS.index("Rotate")])
    assert degrees.max() == 30
    assert abs((degrees == 30).mean() - stats.norm(9, 4).sf(10)) < 0.04
    uniform = draws(policies.parse_policy("rand-m8-mstd101-p1").draw)
    shears = np.abs(uniform.argument[uniform.op == policies.OPS.index("ShearX")])
    assert stats.kstest(shears, stats.uniform(0, 0.24).cdf).pvalue > 1e-3


def test_three_augment_draws_one_of_three():
    layers = draws(policies.ThreeAugment().draw)
    names = [policies.OPS[op] for op in layers.op[:, 0]]
    for name in ("Solarize", "Color", "GaussianBlur"):
        assert abs(names.count(name) / N - 1 / 3) < 0.015
    of = {name: layers.argument[np.array(names) == name, 0] for name in set(names)}
    assert set(of["Solarize"].tolist()) == {128}
    assert set(of["Color"].tolist()) == {0}
    assert stats.kstest(of["GaussianBlur"], stats.uniform(0.1, 1.9).cdf).pvalue > 1e-3


def test_jitter_draws_factors_and_every_order():
    drawn = draws(lambda key: jitter.draw_jitter(key, (0.4, 1.5, 0.0)))
    assert stats.kstest(drawn.factors[:, 0], stats.uniform(0.6, 0.8).cdf).pvalue > 1e-3
    assert stats.kstest(drawn.factors[:, 1], stats.uniform(0, 2.5).cdf).pvalue > 1e-3
    assert set(drawn.factors[:, 2].tolist()) == {1}
    orders, counts = np.unique(drawn.order, axis=0, return_counts=True)
    assert len(orders) == 6
    assert stats.chisquare(counts).pvalue > 1e-3


def test_erasing_draws_timms_boxes():
    drawn = draws(lambda key: erase.draw_erase(key, probability=0.5, count=1, size=64))
    boxes = drawn.boxes[drawn.boxes[:, 0, 2] > 0, 0]
    theirs = REFERENCE["erase/sides"].astype(int)
    assert abs(len(boxes) / N - 0.5) < 0.015
    assert abs(len(theirs) / REFERENCE["erase/images"] - 0.5) < 0.03
    for statistic in (lambda s: s[:, 0], lambda s: s[:, 1], lambda s: s[:, 0] * s[:, 1]):
        ours = statistic(boxes[:, 2:])
        assert stats.ks_2samp(ours, statistic(theirs)).pvalue > 1e-3
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:]).max() == 64
    place = boxes[:, 0] / (64 - boxes[:, 2])
    assert abs(place.mean() - 0.5) < 0.02


def test_several_boxes_share_the_area():
    drawn = draws(lambda key: erase.draw_erase(key, probability=1.0, count=3, size=64), 6000)
    numbers = (drawn.boxes[:, :, 2] > 0).sum(1)
    assert stats.chisquare(np.bincount(numbers, minlength=4)[1:]).pvalue > 1e-3
    areas = drawn.boxes[..., 2] * drawn.boxes[..., 3]
    assert areas[numbers == 3].max() <= 64 * 64 / 9 * 1.1
    assert areas[numbers == 1].max() > 64 * 64 / 4


@pytest.mark.parametrize("mode", erase.MODES)
def test_erasing_fills_the_box_and_nothing_else(mode):
    image = jnp.full((64, 64, 3), 7.0)
    boxes = jnp.array([[5, 9, 40, 50], [0, 0, 0, 0]])
    mean, std = (0.5, 0.25, 0.75), (0.2, 0.1, 0.3)
    draw = erase.Erase(boxes, jax.random.key(0))
    erased = np.asarray(erase.apply_erase(draw, image, mode=mode, mean=mean, std=std))
    inside = np.zeros((64, 64), bool)
    inside[5:45, 9:59] = True
    assert (erased[~inside] == 7).all()
    noise = (erased[inside] / 255 - mean) / std
    if mode == "const":
        np.testing.assert_allclose(noise, 0, atol=1e-5)
    elif mode == "rand":
        assert np.abs(noise - noise[0]).max() < 1e-4
        assert len(np.unique(np.round(noise[0], 3))) == 3
    else:
        assert stats.kstest(noise.ravel(), stats.norm.cdf).pvalue > 1e-3
