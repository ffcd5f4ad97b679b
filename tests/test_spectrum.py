"""Spectra against float64 LAPACK, closed forms and direct evaluations."""

import io
import json
import os
import pickle
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, PartitionSpec
from PIL import Image
from safetensors.numpy import save_file
from scipy import sparse

from noisy_fm import spectrum
from noisy_fm.spectrum import device
from noisy_fm.spectrum.__main__ import main


def with_values(n, values, *, seed=0):
    """A random [n d] float64 matrix of known singular values."""
    rng = np.random.default_rng(seed)
    d = len(values)
    left = np.linalg.qr(rng.normal(size=(n, d)))[0]
    right = np.linalg.qr(rng.normal(size=(d, d)))[0]
    return (left * values) @ right.T


def power_law(n, d, *, exponent=0.7, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) * np.arange(1, d + 1) ** -exponent


def lapack(x):
    """SVE, LSVR (eqs. 2–3) of LAPACK's singular values in float64."""
    values = np.linalg.svd(np.asarray(x, np.float64), compute_uv=False)
    share = values / values.sum()
    share = share[share > 0]
    return -(share * np.log(share)).sum(), -np.log(share[0])


# 17,000 rows of 32 features are two full blocks and a rest.
CASES = {
    "power law": lambda: power_law(17_000, 32),
    "condition 1e6": lambda: with_values(17_000, np.logspace(0, -6, 32)),
    "condition 1e9": lambda: with_values(9_000, np.logspace(0, -9, 32)),
    "flat tail at 1e-6": lambda: with_values(17_000, np.r_[1, np.full(31, 1e-6)]),
    "flat tail at 3e-5": lambda: with_values(17_000, np.r_[1, np.full(31, 3e-5)]),
    "rank deficient": lambda: with_values(17_000, np.r_[np.ones(10), np.zeros(22)]),
    "repeated columns": lambda: np.tile(power_law(9_000, 16), 2).astype(np.float32),
    "repeated values": lambda: with_values(9_000, np.repeat([4.0, 2, 1, 0.5], 8)),
    "fewer rows than features": lambda: power_law(50, 200),
    "fewer rows, rank deficient": lambda: with_values(200, np.r_[np.ones(9), np.zeros(31)]).T,
    "dead units": lambda: np.maximum(power_law(9_000, 32), 0) * (np.arange(32) < 25),
    "tiny": lambda: with_values(9_000, np.logspace(0, -3, 32)) * 1e-200,
    "huge": lambda: with_values(9_000, np.logspace(0, -3, 32)) * 1e200,
    # σ₁ grows 1e8-fold after two blocks were certified
    "last rows spoil it": lambda: np.concatenate([power_law(16_384, 32), np.full((300, 32), 1e9)]),
}


@pytest.mark.parametrize("case", CASES)
def test_sve_and_lsvr_equal_lapack(case):
    x = CASES[case]()
    got = spectrum.summary(x)
    np.testing.assert_allclose((got["sve"], got["lsvr"]), lapack(x), rtol=1e-7)
    streamed = spectrum.Spectrum()
    for batch in np.array_split(x, 7):
        streamed.update(batch)
    assert streamed.n == len(x)
    np.testing.assert_allclose(streamed.singular_values().sum(), sum_of_values(x), rtol=1e-9)
    got = streamed.summary()
    np.testing.assert_allclose((got["sve"], got["lsvr"]), lapack(x), rtol=1e-7)


def sum_of_values(x):
    return np.linalg.svd(np.asarray(x, np.float64), compute_uv=False).sum()


def test_all_singular_values_are_given_in_order():
    x = with_values(9_000, np.logspace(0, -6, 32))
    values = spectrum.singular_values(x)
    np.testing.assert_allclose(values, np.logspace(0, -6, 32), rtol=1e-8)
    assert spectrum.singular_values(x[:20]).shape == (20,)


def test_well_conditioned_rows_take_the_fast_path_and_others_do_not():
    assert spectrum.Spectrum().update(power_law(9_000, 32)).seen.moments.gram is not None
    spoiled = spectrum.Spectrum().update(CASES["rank deficient"]())
    assert spoiled.seen.moments.gram is None


def test_closed_forms():
    rank_one = spectrum.summary(np.outer(np.arange(1.0, 51), np.arange(1.0, 9)))
    assert rank_one["sve"] == pytest.approx(0, abs=1e-10)
    assert rank_one["lsvr"] == pytest.approx(0, abs=1e-10)
    assert rank_one["numerical_rank"] == 1
    isotropic = spectrum.summary(with_values(100, np.full(8, 3.0)))
    for name, value in {
        "sve": np.log(8),
        "lsvr": np.log(8),
        "effective_rank": 8,
        "rankme": 8,
        "stable_rank": 8,
        "participation_ratio": 8,
        "numerical_rank": 8,
    }.items():
        assert isotropic[name] == pytest.approx(value, rel=1e-5)
    two = spectrum.summary(np.array([[3.0, 0], [0, 1.0]]))
    assert two["stable_rank"] == pytest.approx(10 / 9)
    assert two["participation_ratio"] == pytest.approx(100 / 82)
    assert two["lsvr"] == pytest.approx(np.log(4 / 3))


def test_alpha_is_the_exponent_of_a_power_law():
    values = np.arange(1, 101) ** -0.75
    assert spectrum.from_singular_values(values)["alpha"] == pytest.approx(1.5)
    assert np.isnan(spectrum.from_singular_values(np.ones(6))["alpha"])


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(1e-30, 1e30), seed=st.integers(0, 99))
def test_scale_does_not_matter(scale, seed):
    x = power_law(40, 12, seed=seed)
    for name, value in spectrum.summary(x).items():
        if isinstance(value, float):
            assert spectrum.summary(x * scale)[name] == pytest.approx(value, rel=1e-9, nan_ok=True)


def test_sve_is_the_logarithm_of_rankme_without_its_epsilon():
    x = power_law(500, 30)
    # RankMe by its own formula, from eigenvalues of the Gram matrix and not from our values.
    values = np.sqrt(np.linalg.eigvalsh(x.T @ x))
    share = values / values.sum() + 1e-7
    rankme = np.exp(-np.sum(share * np.log(share)))
    got = spectrum.summary(x)
    assert got["rankme"] == pytest.approx(rankme, rel=1e-9)
    assert got["sve"] == pytest.approx(np.log(rankme), rel=1e-5)
    assert got["effective_rank"] == pytest.approx(np.exp(got["sve"]))


def by_hand(x, center, normalize):
    x = np.array(x, np.float64)
    if normalize:
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
    if center == "columns":
        x = x - x.mean(axis=0)
    if center == "samples":
        x = x - x.mean(axis=1, keepdims=True)
    return np.linalg.svd(x, compute_uv=False)


@settings(max_examples=25, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 120), max_size=6),
    center=st.sampled_from([False, "columns", "samples"]),
    normalize=st.booleans(),
    offset=st.sampled_from([0.0, 1e4]),
    order=st.randoms(use_true_random=False),
)
def test_any_split_merged_in_any_order_is_the_whole(cuts, center, normalize, offset, order):
    x = power_law(120, 20) + offset
    parts = np.split(x, sorted(cuts))
    order.shuffle(parts)
    whole = spectrum.Spectrum(center=center, normalize=normalize)
    for i, part in enumerate(parts):
        one = spectrum.Spectrum(center=center, normalize=normalize).update(part)
        whole = whole.merge(one) if i % 2 else one.merge(whole)
    expected = by_hand(x, center, normalize)
    # Each sample's centring leaves one exact zero: absolute to σ₁.
    np.testing.assert_allclose(
        whole.singular_values(), expected, rtol=1e-7, atol=1e-10 * expected[0]
    )


@pytest.mark.parametrize("center", [False, "columns", "samples"])
def test_merging_folded_states_is_the_whole(center):
    x = power_law(20_000, 24) + 1e3
    parts = [spectrum.Spectrum(center=center).update(p) for p in (x[:9_000], x[9_000:18_000])]
    whole = parts[0].merge(parts[1]).update(x[18_000:])
    expected = by_hand(x, center, False)
    np.testing.assert_allclose(
        whole.singular_values(), expected, rtol=1e-8, atol=1e-11 * expected[0]
    )


def test_reading_and_merging_leave_the_others_as_they_were():
    x = power_law(300, 10)
    a, b = spectrum.Spectrum().update(x[:100]), spectrum.Spectrum().update(x[100:])
    before = b.singular_values()
    a.summary()
    a.merge(b).update(x)
    np.testing.assert_array_equal(b.singular_values(), before)
    np.testing.assert_allclose(a.singular_values(), np.sqrt(2) * by_hand(x, False, False))


def test_release_convention_is_each_samples_own_mean():
    x = power_law(400, 30) + 0.3
    unit = x / np.sqrt((x**2).sum(axis=1))[:, None]
    values = np.linalg.svd(unit - unit.mean(axis=1)[:, None], compute_uv=False)
    share = values[:-1] / values.sum()  # the last is 0: every row is orthogonal to (1, …, 1)
    got = spectrum.summary(x, convention="release")
    assert got["sve"] == pytest.approx(-(share * np.log(share)).sum(), rel=1e-9)
    assert (got["center"], got["normalize"]) == ("samples", True)
    assert got["sve"] != pytest.approx(spectrum.summary(x)["sve"], rel=1e-3)


def test_masked_rows_do_not_count_whatever_is_in_them():
    x = power_law(50, 8)
    padded = np.concatenate([x, np.full((14, 8), np.nan)])
    mask = np.arange(64) < 50
    np.testing.assert_allclose(
        spectrum.singular_values(padded, mask=mask), spectrum.singular_values(x)
    )


def test_masked_rows_do_not_enter_the_class_alignment():
    x = np.random.default_rng(0).normal(size=(30, 4))
    labels, mask = np.arange(30) % 2, np.arange(30) > 1
    x[0], x[1] = np.nan, np.inf
    found = spectrum.summary(x, labels=labels, mask=mask)["class_alignment"]
    assert found == spectrum.summary(x[2:], labels=labels[2:])["class_alignment"]


def test_half_precision_is_raised_before_it_is_squared():
    x = (power_law(100, 16) * 1e4).astype(np.float16)
    np.testing.assert_allclose(spectrum.singular_values(x), by_hand(x, False, False), rtol=1e-10)
    brain = jnp.asarray(x, jnp.bfloat16)
    np.testing.assert_allclose(
        spectrum.singular_values(brain), by_hand(brain, False, False), rtol=1e-10
    )


# Device mode


@pytest.mark.parametrize(
    "values",
    [np.logspace(0, -6, 24), np.arange(1, 25) ** -0.7, np.r_[np.ones(15), np.zeros(9)]],
    ids=["condition 1e6", "power law", "rank deficient"],
)
def test_float32_state_is_right_to_1e_4(values):
    x = with_values(1_024, values).astype(np.float32)
    update = jax.jit(device.update)
    state = device.init(24)
    for batch in np.split(x, 8):
        state = update(state, batch)
    got = device.to_spectrum(state).summary()
    assert state.factor.dtype == jnp.float32
    assert got["n"] == 1_024
    np.testing.assert_allclose((got["sve"], got["lsvr"]), lapack(x), rtol=1e-4)


@pytest.mark.parametrize("center", [False, "columns", "samples"])
@pytest.mark.parametrize("normalize", [False, True])
def test_psum_over_eight_devices_is_the_whole(center, normalize):
    x = (power_law(400, 12) + 0.5).astype(np.float32)
    x[-16:] = np.nan  # padding, masked
    mask = np.arange(400) < 384
    mesh = Mesh(np.array(jax.devices()), ("data",))
    rows, whole = PartitionSpec("data"), PartitionSpec()

    def local(x, mask):
        options = {"center": center, "normalize": normalize}
        state = device.update(device.init(12), x[:25], mask[:25], **options)
        state = device.update(state, x[25:], mask[25:], **options)
        return device.psum(state, "data")

    run = jax.shard_map(local, mesh=mesh, in_specs=(rows, rows), out_specs=whole, check_vma=False)
    state = jax.jit(run)(x, mask)
    got = device.to_spectrum(state, center=center, normalize=normalize)
    expected = by_hand(x[:384], center, normalize)
    assert got.n == 384
    np.testing.assert_allclose(got.singular_values(), expected, rtol=1e-5, atol=1e-6 * expected[0])
    other = spectrum.Spectrum(center=center, normalize=normalize).update(x[:384])
    doubled = np.sqrt(2) * expected
    np.testing.assert_allclose(
        got.merge(other).singular_values(), doubled, rtol=1e-5, atol=1e-6 * expected[0]
    )


def test_device_state_refuses_nan_on_the_host():
    state = device.update(device.init(4), jnp.full((8, 4), jnp.nan))
    with pytest.raises(ValueError, match="NaN"):
        device.to_spectrum(state)


def test_a_device_state_counts_the_directions_above_its_own_rounding():
    rng = np.random.default_rng(0)
    x = rng.integers(-8, 9, size=(400, 5)) @ rng.integers(-8, 9, size=(5, 24))
    state = jax.jit(device.update)(device.init(24), x.astype(np.float32))
    got = device.to_spectrum(state)
    assert np.linalg.matrix_rank(x) == 5
    assert got.summary()["numerical_rank"] == 5
    other = spectrum.Spectrum().update(x[:100])
    assert other.summary()["numerical_rank"] == 5
    assert other.merge(got).summary()["numerical_rank"] == 5
    assert got.left_vectors(x, top_k=9).shape == (400, 5)


# Labels, comparison, intervals


def test_compare_needs_as_many_directions_as_it_compares():
    x = power_law(9, 8)
    with pytest.raises(ValueError, match="top_k must be 1 to 4, the numerical rank of both, got 8"):
        spectrum.compare(x[:5], x[5:], top_k=8)
    with pytest.raises(ValueError, match="all singular values are 0"):
        spectrum.compare(x, np.zeros((3, 8)), top_k=1)


def test_compare_takes_collapsed_and_small_features_as_they_are():
    few, many = power_law(8, 32), power_law(500, 32)
    got = spectrum.compare(few, many)
    assert got["angles"].shape == (8,)
    np.testing.assert_array_equal(got["angles"], spectrum.compare(few, many, top_k=8)["angles"])
    assert got["sve_change"] == pytest.approx(
        spectrum.summary(many)["sve"] - spectrum.summary(few)["sve"]
    )
    assert spectrum.compare(many, many * 2)["angles"].shape == (10,)
    collapsed = np.outer(np.arange(1.0, 501), np.ones(32))
    assert spectrum.compare(many, collapsed)["angles"].shape == (1,)


def test_class_alignment_is_one_for_points_and_zero_by_chance():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 400)
    centres = rng.normal(size=(4, 16))
    assert spectrum.summary(centres[labels], labels=labels, center=True, top_k=2)[
        "class_alignment"
    ] == pytest.approx(1)
    chance = [
        spectrum.summary(rng.normal(size=(400, 16)), labels=labels)["class_alignment"]
        for _ in range(30)
    ]
    assert abs(np.mean(chance)) < 0.004


def test_class_alignment_is_the_adjusted_r_squared_of_a_regression():
    from sklearn.linear_model import LinearRegression

    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 90)
    x = rng.normal(size=(90, 6)) + rng.normal(size=(3, 6))[labels]
    left = np.linalg.svd(x, full_matrices=False)[0][:, :3]
    one_hot = np.eye(3)[labels]
    r2 = [LinearRegression().fit(one_hot, u).score(one_hot, u) for u in left.T]
    expected = np.mean([1 - (1 - r) * 89 / 87 for r in r2])
    got = spectrum.summary(x, labels=labels)["class_alignment"]
    assert got == pytest.approx(expected)


def test_compare_finds_the_direction_that_grew():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4_000, 6)) * [6, 5, 4, 3, 2, 1]
    grown = x * [1, 1, 1, 1, 1, 20.0]
    a, b = spectrum.Spectrum().update(x), spectrum.Spectrum().update(grown)
    got = spectrum.compare(a, b, top_k=1)
    assert got["growth"].argmax() == 5
    assert got["angles"][0] > 1.4
    assert got["energy_before"].sum() == pytest.approx(1)
    assert got["energy_in_before"].sum() == pytest.approx(1)
    same = spectrum.compare(a, spectrum.Spectrum().update(x * 7), top_k=3)
    np.testing.assert_allclose(same["growth"], 0, atol=1e-9)
    assert same["overlap"] == pytest.approx(1)
    assert same["sve_change"] == pytest.approx(0, abs=1e-12)


def test_compare_takes_features_with_the_settings_of_a_spectrum():
    a, b = power_law(60, 7), power_law(60, 7, seed=1)
    release = [spectrum.Spectrum(convention="release").update(x) for x in (a, b)]
    plain = [spectrum.Spectrum().update(x) for x in (a, b)]
    for mixed, made in (((a, b), plain), ((release[0], b), release), ((a, release[1]), release)):
        found, expected = (spectrum.compare(*s, top_k=3) for s in (mixed, made))
        assert found["sve_change"] == expected["sve_change"]
        np.testing.assert_array_equal(found["angles"], expected["angles"])


def test_a_refused_batch_leaves_nothing_behind():
    state = spectrum.Spectrum()
    with pytest.raises(ValueError, match="NaN or infinite values in 3 of 3 rows"):
        state.update(np.full((3, 5), np.nan))
    assert (state.n, state.d) == (0, 0)
    assert state.update(power_law(60, 7)).d == 7


def test_a_spectrum_says_what_it_is_and_merges_only_its_like():
    state = spectrum.Spectrum(center="columns").update(power_law(60, 7))
    assert repr(state) == "Spectrum(60 rows, d=7, center='columns', normalize=False)"
    with pytest.raises(TypeError, match="merge takes a Spectrum, got ndarray: give rows to upd"):
        state.merge(np.ones((3, 7)))


def test_compare_of_few_rows_completes_the_directions():
    a = spectrum.Spectrum().update(power_law(5, 9, seed=0))
    b = spectrum.Spectrum().update(power_law(5, 9, seed=1))
    got = spectrum.compare(a, b, top_k=2)
    assert got["energy_in_before"].shape == (9,)
    assert got["energy_in_before"].sum() == pytest.approx(1)


@pytest.mark.parametrize("center", [False, "columns"])
@pytest.mark.parametrize("shape", [(80, 6), (24, 40)])
def test_jackknife_is_brute_force_deletion(shape, center):
    x = power_law(*shape) + 0.2
    groups = np.arange(len(x)) // 4
    count = len(x) // 4
    got = spectrum.jackknife(x, groups=groups, blocks=count, center=center)
    left_out = [spectrum.summary(x[groups != g], center=center)["sve"] for g in range(count)]
    error = np.sqrt((count - 1) * np.var(left_out))
    assert got["sve"].value == pytest.approx(spectrum.summary(x, center=center)["sve"])
    assert got["sve"].error == pytest.approx(error, rel=1e-6)
    assert got["sve"].low < got["sve"].value < got["sve"].high


@pytest.mark.parametrize("method", [spectrum.jackknife, spectrum.bootstrap])
def test_intervals_cover_the_expected_value(method):
    """95 % intervals about E[SVE] of 100 grouped rows hold it in 88 to 100 % of 80 draws."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(50), 2)

    def draw():
        centre = rng.normal(size=(50, 8)).repeat(2, axis=0)
        return (centre + 0.3 * rng.normal(size=(100, 8))) * np.arange(1, 9) ** -1.0

    samples = [spectrum.summary(draw())["sve"] for _ in range(400)]
    truth, spread = np.mean(samples), np.std(samples)
    found = [method(draw(), groups=groups)["sve"] for _ in range(80)]
    assert np.mean([i.low <= truth <= i.high for i in found]) >= 0.88
    assert 0.8 < np.mean([i.error for i in found]) / spread < 1.35


def test_band_is_the_deletion_jackknife_of_log_shares():
    x = power_law(60, 5)
    low, high = spectrum.band(x, blocks=60)
    shares = []
    for row in range(60):
        values = np.linalg.svd(np.delete(x, row, axis=0), compute_uv=False)
        shares.append(values / values.sum())
    error = np.sqrt(59 * np.log(shares).var(axis=0))
    values = np.linalg.svd(x, compute_uv=False)
    np.testing.assert_allclose(np.sqrt(low * high), values / values.sum(), rtol=1e-9)
    np.testing.assert_allclose(
        np.log(high / low), 2 * 2.0009954 * error, rtol=1e-6
    )  # t₅₉ at 97.5 %


def test_track_names_layers_and_survives_a_collapse():
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(30, 4, 4, 5))
    got = spectrum.track({"stage1": maps, "dead": np.zeros((30, 5)), "nan": maps[:, 0, 0] * np.nan})
    assert got["stage1/sve"] == pytest.approx(lapack(maps.mean((1, 2)))[0])
    assert np.isnan(got["dead/sve"])
    assert np.isnan(got["nan/lsvr"])


def test_plot_shows_every_spectrum():
    features = {"clean": power_law(300, 20), "noisy": power_law(300, 20, exponent=0.2)}
    bounds = {"clean": spectrum.jackknife(features["clean"])}
    band = spectrum.band(features["clean"])
    figure = spectrum.plot(features, intervals=bounds, bands={"clean": band})
    decay, gathered = figure.axes
    assert len(decay.lines) == len(gathered.lines) == 2
    assert len(decay.collections) == 1
    values = spectrum.singular_values(features["noisy"])
    np.testing.assert_allclose(decay.lines[1].get_ydata(), values / values.sum())
    np.testing.assert_allclose(gathered.lines[1].get_ydata()[-1], 1)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "±" in labels[0]
    assert "±" not in labels[1]


def test_a_tracked_run_is_a_line_a_layer():
    history = {
        10 * step: {f"spectrum/{layer}/{name}": step + len(layer) for name in ("sve", "lsvr")}
        | {"spectrum/out/alpha": 1.0, "train/loss": 2.0}
        for step in range(4)
        for layer in ("stem",)
    }
    history[20] |= {"spectrum/late/sve": 7.0}
    history[10]["spectrum/stem/lsvr"] = float("nan")
    figure = spectrum.plot_track(history, prefix="spectrum/")
    sve, lsvr = figure.axes
    assert [line.get_label() for line in sve.lines] == ["stem", "late"]
    assert sve.lines[0].get_xdata().tolist() == [0, 10, 20, 30]
    assert sve.lines[0].get_ydata().tolist() == [4, 5, 6, 7]
    np.testing.assert_array_equal(sve.lines[1].get_ydata(), [np.nan, np.nan, 7, np.nan])
    np.testing.assert_array_equal(lsvr.lines[0].get_ydata(), [4, np.nan, 6, 7])
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["stem", "late"]
    with pytest.raises(ValueError, match=r"no 'LAYER/METRIC' of rankme in 4 steps"):
        spectrum.plot_track(history, metrics=("rankme",))


def test_a_figure_is_shown_without_pyplot():
    values = power_law(30, 4)
    for figure in (spectrum.plot(values), spectrum.plot_track({0: {"a/sve": 1.0, "a/lsvr": 1.0}})):
        with Image.open(io.BytesIO(figure._repr_png_())) as image:
            assert image.format == "PNG"
            assert np.asarray(image.convert("L")).std() > 5


# Bad input


NAN = np.where(np.arange(60).reshape(20, 3) == 21, np.nan, 1.0)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.ones(5), ValueError, r"2-D \[n, d\], got shape \(5,\)"),
        (np.ones((1, 5)), ValueError, "at least 2 rows, got 1"),
        (np.ones((5, 0)), ValueError, "no columns"),
        (NAN, ValueError, "in 1 of 20 rows, the first at row 7"),
        (np.where(np.isnan(NAN), -np.inf, NAN), ValueError, "in 1 of 20 rows, the first at row 7"),
        (np.zeros((9, 4)), ValueError, "all singular values are 0"),
        (np.full((9, 4), "a"), TypeError, "real numbers, got dtype <U1"),
        (np.ones((9, 4), complex), TypeError, "real numbers"),
    ],
)
def test_bad_features_get_one_line(x, error, message):
    with pytest.raises(error, match=message) as caught:
        spectrum.summary(x)
    assert "\n" not in str(caught.value)


TABLE = pd.DataFrame({"a": [1.0, 2, 3], "name": list("xyz"), "b": [1, 0, 1]})


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (sparse.csr_matrix(np.eye(4)), r"must be dense, got a sparse csr_matrix: x\.toarray"),
        ("a.npy", r"got the path 'a\.npy': read it with spectrum\.load_features"),
        (TABLE, "not so in column name:"),
        ([np.eye(3), np.eye(3)], r"one matrix, got a list of 2: .*\{\"a\": X, \"b\": Y\}"),
        (pd.Series([[1, 2], [3, 4], [5]]), "rows of one length, got list at row 2 of length 1, "),
        (pd.Series([[1, 2], None]), "rows of one length, got NoneType at row 1$"),
    ],
)
@pytest.mark.parametrize("call", [spectrum.summary, spectrum.jackknife, spectrum.plot])
def test_what_is_no_matrix_gets_one_line(x, message, call):
    if call is spectrum.plot and isinstance(x, list):
        message = "plot takes several spectra by name, got a list of 2"
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        call(x)
    assert "\n" not in str(caught.value)


def test_tables_and_columns_of_lists_are_features():
    x = power_law(12, 10)
    found = spectrum.summary(x)
    assert spectrum.summary(pd.DataFrame(x)) == found
    assert spectrum.summary(pd.DataFrame(x).convert_dtypes()) == found
    assert spectrum.summary(pd.Series(list(x))) == found
    assert spectrum.summary(pd.Series(x.tolist()), labels=[0, 1] * 6) == (
        spectrum.summary(x, labels=pd.Series(["a", "b"] * 6, dtype="category"))
    )
    missing = pd.DataFrame(x, dtype="Float64")
    missing.iloc[3, 1] = pd.NA
    with pytest.raises(ValueError, match="in 1 of 12 rows, the first at row 3"):
        spectrum.summary(missing)


@pytest.mark.parametrize(
    "labels",
    [
        [0.0, 1.0, np.nan] * 4,
        ["a", "b", None] * 4,
        ["a", "b", np.nan] * 4,
        pd.array([0, 1, None] * 4, dtype="Int64"),
        np.array(["2020-01-01", "2020-01-02", "NaT"] * 4, "datetime64[D]"),
    ],
)
def test_missing_labels_are_counted_unless_masked(labels):
    x, mask = power_law(12, 10), [1, 1, 0] * 4
    with pytest.raises(
        ValueError, match=r"labels are missing .* in 4 of 12 rows, the first at row 2"
    ):
        spectrum.summary(x, labels=labels)
    assert spectrum.summary(x, labels=labels, mask=mask) == (
        spectrum.summary(x, labels=[5, 6, 7] * 4, mask=mask)
    )


def test_an_overflow_of_float16_is_said():
    x = np.ones((5, 3), np.float32)
    x[2, 1] = 1e5
    with np.errstate(over="ignore"), pytest.raises(ValueError, match=r"overflow of float16\?\)$"):
        spectrum.summary(x.astype(np.float16))
    assert spectrum.summary(x)["n"] == 5


def test_rows_are_counted_over_the_whole_stream_and_a_bad_batch_is_not():
    state = spectrum.Spectrum().update(np.ones((30, 3)))
    with pytest.raises(ValueError, match="the first at row 37"):
        state.update(NAN)
    assert state.n == 30


def test_constant_features_have_one_direction_or_none_when_centred():
    constant = np.full((50, 6), 0.1)
    assert spectrum.summary(constant)["sve"] == pytest.approx(0, abs=1e-10)
    for center in ("columns", "samples"):
        with pytest.raises(ValueError, match="all singular values are 0"):
            spectrum.summary(constant, center=center)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: spectrum.summary(x, convention="mine"), "one of paper, release"),
        (lambda x: spectrum.summary(x, convention="paper", center=True), "not both"),
        (lambda x: spectrum.summary(x, center="rows"), "'columns'"),
        (lambda x: spectrum.summary(x, labels=[0, 1]), r"labels must be \[12\]"),
        (lambda x: spectrum.summary(x, labels=["a", 1] * 6), "of one type, got int, str"),
        (lambda x: spectrum.compare(x, x[:, 1:], top_k=2), "of 4 and 3 features"),
        (lambda x: spectrum.plot([spectrum.Spectrum().update(x)]), "by name, got a list of 1"),
        (lambda x: spectrum.summary(x, labels=np.zeros(12)), "got 1 class in 12 rows"),
        (lambda x: spectrum.singular_values(x, mask=[True]), r"mask must be \[12\]"),
        (lambda x: spectrum.Spectrum().update(x).update(x[:, 1:]), "batch has 3 features"),
        (lambda x: spectrum.Spectrum().merge(spectrum.Spectrum(center=True)), "cannot merge"),
        (lambda x: spectrum.jackknife(x, groups=np.zeros(3)), r"groups must be \[12\]"),
        (lambda x: spectrum.bootstrap(x, groups=np.zeros(12)), "at least 3 blocks"),
        (lambda x: spectrum.plot({"zero": x * 0}), "cannot plot"),
    ],
)
def test_bad_arguments_get_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call(power_law(12, 4))
    assert "\n" not in str(caught.value)


# Files and the command


def write_all(folder, x):
    np.save(folder / "a.npy", x)
    np.savez(folder / "b.npz", features=x, labels=np.zeros(len(x)))
    save_file({"train": x, "test": x[:9]}, folder / "c.safetensors")
    pd.DataFrame({"id": range(len(x)), "embedding": list(x)}).to_parquet(folder / "d.parquet")
    pd.DataFrame({f"f{i}": c for i, c in enumerate(x.T)}).to_parquet(folder / "e.parquet")
    (folder / "store").mkdir()
    np.save(folder / "store" / "features.npy", np.stack([x, -x], axis=1))
    (folder / "store" / "meta.json").write_text(json.dumps({}))
    names = ("a.npy", "b.npz", "c.safetensors:train", "d.parquet", "e.parquet", "store")
    return [str(folder / name) for name in names]


def test_every_format_gives_the_same_features(tmp_path):
    x = power_law(40, 7).astype(np.float32)
    for source in write_all(tmp_path, x):
        np.testing.assert_array_equal(spectrum.load_features(source), x)


@pytest.mark.parametrize("kind", ["list_view", "large_list_view"])
def test_list_views_in_parquet_are_features(kind, tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    x = power_law(6, 4)
    column = pa.array(list(x), getattr(pa, kind)(pa.float64()))
    column = column.take(pa.array([3, 1, 2, 0, 5, 4]))  # rows that are not in their order
    table = pa.table({"features": pa.chunked_array([column[:2], column[2:]])})
    pq.write_table(table, tmp_path / "x.parquet")
    found = spectrum.load_features(tmp_path / "x.parquet")
    np.testing.assert_array_equal(found, x[[3, 1, 2, 0, 5, 4]])


def test_large_lists_in_parquet_are_features(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    x = np.random.default_rng(0).normal(size=(5, 3))
    column = pa.array(list(x), pa.large_list(pa.float64()))
    pq.write_table(pa.table({"features": column}), tmp_path / "x.parquet")
    np.testing.assert_array_equal(spectrum.load_features(tmp_path / "x.parquet"), x)


def test_a_column_of_lists_is_picked_by_name_and_has_no_gaps(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    a, tags = pa.array(list(x), pa.list_(pa.float32(), 3)), pa.array([["t"]] * 5)
    gaps = pa.array([*x[:2].tolist(), None, None, [1, 2, 3]])
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"a": a, "b": list(2 * x), "gaps": gaps, "tags": tags}), path)
    np.testing.assert_array_equal(spectrum.load_features(f"{path}:b"), 2 * x)
    for source, message in {
        path: "name one as FILE:NAME; it has a, b, gaps$",
        f"{path}:c": "no column of lists 'c': it has a, b, gaps$",
        f"{path}:gaps": r"'gaps' has no list \(null\) in 2 of 5 rows, the first at row 2",
    }.items():
        with pytest.raises(ValueError, match=message):
            spectrum.load_features(source)
    pq.write_table(pa.table({"a": a, "tags": tags}), path)
    np.testing.assert_array_equal(spectrum.load_features(path), x)


def test_command_says_which_plain_columns_are_features(tmp_path, capsys):
    frame = pd.DataFrame(power_law(60, 7), columns=[f"f{i}" for i in range(7)])
    frame.assign(label="cat").to_parquet(tmp_path / "x.parquet")
    assert main(["--no-intervals", str(tmp_path / "x.parquet")]) == 0
    assert capsys.readouterr().err.splitlines()[0] == (
        "x.parquet: no column of lists; features are all 7 floating-point columns (f0 … f6); "
        "left out: label"
    )


def test_damaged_and_wrong_files_get_one_line(tmp_path):
    x = power_law(400, 7)
    for source in write_all(tmp_path, x):
        path = source.removesuffix(":train")
        if os.path.isfile(path):
            with open(path, "r+b") as file:
                file.truncate(os.path.getsize(path) // 2)
        else:
            os.remove(path + "/features.npy")
        with pytest.raises(ValueError, match=r"unreadable or truncated|not a feature store") as bad:
            spectrum.load_features(source)
        assert "\n" not in str(bad.value)
        assert os.path.basename(path) in str(bad.value)
    with pytest.raises(FileNotFoundError, match="no such features"):
        spectrum.load_features(tmp_path / "none.npy")
    (tmp_path / "x.tsv").write_text("1\t2")
    with pytest.raises(ValueError, match=r"expected \.npy"):
        spectrum.load_features(tmp_path / "x.tsv")
    np.savez(tmp_path / "two.npz", a=x, b=x)
    with pytest.raises(ValueError, match="a \\(400, 7\\), b \\(400, 7\\)"):
        spectrum.load_features(tmp_path / "two.npz")


OBJECTS = np.array([["a", 1], ["b", None]], object)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("o.npy", OBJECTS, "holds Python objects, not numbers"),
        ("o.npz", {"x": OBJECTS}, "array 'x' holds Python objects, not numbers"),
        ("p.npy", pickle.dumps([1, 2, 3]), "not a .npy file, but pickled"),
        ("g.npy", b"neither of them", "not a .npy file$"),
        ("g.npz", b"neither of them", "not an .npz file$"),
        ("e.npy", b"", "unreadable or truncated"),
    ],
)
def test_pickles_are_refused_without_the_advice_to_load_them(tmp_path, name, content, message):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **content) if isinstance(content, dict) else np.save(path, content)
    with pytest.raises(ValueError, match=message) as bad:
        spectrum.load_features(path)
    assert "allow_pickle" not in str(bad.value)
    assert "\n" not in str(bad.value)


def test_a_store_of_another_version_is_refused(tmp_path):
    store = write_all(tmp_path, power_law(40, 7))[-1]
    (tmp_path / "store" / "meta.json").write_text(json.dumps({"store_version": 99}))
    with pytest.raises(ValueError, match="a store of version 99; this noisy_fm reads version 1"):
        spectrum.load_features(store)


def test_command_names_files_that_share_a_name_by_their_paths(tmp_path, capsys):
    sources = [str(tmp_path / folder / "x.npy") for folder in "abc"]
    for source in sources:
        os.mkdir(os.path.dirname(source))
        np.save(source, power_law(60, 7))
    assert main(["--no-intervals", *sources[:2], f"mine={sources[2]}"]) == 0
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:5]]
    assert rows == [*sources[:2], "mine"]
    assert main([sources[0], sources[0]]) == 1
    assert "given twice" in capsys.readouterr().err


def test_command_checks_the_page_before_the_work(tmp_path, capsys):
    np.save(tmp_path / "a.npy", power_law(60, 7))
    assert main(["missing.npy", "--out", str(tmp_path / "new" / "r.html")]) == 1
    assert capsys.readouterr().err.endswith(
        f"there is no folder {tmp_path / 'new'}; make it first\n"
    )
    assert not (tmp_path / "new").exists()
    for out in (tmp_path, tmp_path / "a.npy" / "r.html"):
        assert main(["missing.npy", "--out", str(out)]) == 1
        error = capsys.readouterr().err
        assert "missing.npy" not in error
        assert error.startswith(f"error: {out}")
        assert error.count("\n") == 1


def test_a_page_overwrites_no_features_and_a_failed_run_leaves_none(tmp_path, capsys):
    x = power_law(60, 7)
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", x)
    a, b = str(tmp_path / "a.npy"), str(tmp_path / "b.npy")
    for sources, message in {(b,): "ends in .html or .htm", (a, b): "is one of the inputs"}.items():
        assert main([*sources, "--out", a]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"error: {a}")
        assert message in error
        assert error.count("\n") == 1
    (tmp_path / "link.html").symlink_to(a)
    with pytest.raises(ValueError, match="is one of the inputs"):
        spectrum.report({"a": spectrum.load_features(a)}, tmp_path / "link.html")
    with pytest.raises(ValueError, match=r"ends in \.html or \.htm"):
        spectrum.report(x, a)
    np.testing.assert_array_equal(np.load(a), x)
    assert main([str(tmp_path / "missing.npy"), "--out", str(tmp_path / "r.html")]) == 1
    assert not (tmp_path / "r.html").exists()
    (tmp_path / "r.html").write_text("an earlier page")
    assert main([str(tmp_path / "missing.npy"), "--out", str(tmp_path / "r.html")]) == 1
    assert (tmp_path / "r.html").read_text() == "an earlier page"


def test_command_gives_intervals_and_says_that_features_are_constant(tmp_path, capsys):
    x = power_law(60, 7)
    np.save(tmp_path / "a.npy", x)
    np.save(tmp_path / "same.npy", np.full((60, 7), 0.3))
    assert main([str(tmp_path / "a.npy"), str(tmp_path / "same.npy")]) == 0
    printed, warned = capsys.readouterr()
    found = spectrum.jackknife(x)["sve"]
    assert f"±{found.high - found.value:.2g} " in printed
    assert "e-1" not in printed.split("same.npy")[1].split("\n")[0]
    assert warned.startswith("warning: same.npy: rank 1, every row is a multiple of one")


def test_command_prints_a_table_and_writes_a_page(tmp_path, capsys):
    x = power_law(60, 7)
    sources = write_all(tmp_path, x)
    sources[0] = "γ = 0=" + sources[0]
    assert main([*sources, "--out", str(tmp_path / "r.html")]) == 0
    printed = capsys.readouterr().out
    expected = f"{lapack(x)[0]:.4g}"
    assert printed.count(expected) == len(sources)
    page = (tmp_path / "r.html").read_text()
    # Panels of their own, which a phone stacks: two of spectra, SVE's differences, LSVR's.
    assert page.count("<figure><svg") == 4
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]*)', page)) <= set(ids)
    legend = page.partition('<ul class="legend">')[2].partition("</ul>")[0]
    assert legend.count("<li>") == len(sources)
    assert "γ = 0" in legend
    assert page.count(expected) >= len(sources)
    assert "default-src 'none'" in page
    assert "src=" not in page
    assert "<script" not in page


def test_command_says_what_is_wrong_in_one_line(tmp_path, capsys):
    np.save(tmp_path / "bad.npy", NAN)
    assert main([str(tmp_path / "bad.npy")]) == 1
    error = capsys.readouterr().err
    assert error == "error: bad.npy: features have NaN or infinite values in 1 of 20 rows, " + (
        "the first at row 7\n"
    )


def test_module_runs_and_imports_cold(tmp_path):
    np.save(tmp_path / "a.npy", power_law(60, 7))
    done = subprocess.run(
        [sys.executable, "-m", "noisy_fm.spectrum", str(tmp_path / "a.npy"), "--no-intervals"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "SVE" in done.stdout
    heavy = "{'jax', 'scipy', 'matplotlib', 'pandas', 'pyarrow', 'tensorflow', 'absl'}"
    code = f"import sys, noisy_fm.spectrum; print(sorted(set(sys.modules) & {heavy}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
