"""Spectra shared by threads, copied and masked; arguments that would be misread."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest

from noisy_fm import spectrum

X = np.random.default_rng(0).normal(size=(60, 8))


@pytest.mark.parametrize("center", [False, "columns"])
def test_threads_share_a_spectrum(center):
    batches = np.random.default_rng(0).normal(size=(24, 9_000, 16))
    shared, alone = (spectrum.Spectrum(center=center) for _ in range(2))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(shared.update, batches))
        list(
            pool.map(
                shared.merge,
                [spectrum.Spectrum(center=center).update(X[:, :1] + batches[0, :60])] * 8,
            )
        )
    for batch in batches:
        alone.update(batch)
    for _ in range(8):
        alone.update(X[:, :1] + batches[0, :60])
    assert shared.n == alone.n == 24 * 9_000 + 8 * 60
    np.testing.assert_allclose(shared.singular_values(), alone.singular_values(), rtol=1e-10)


def test_a_copy_is_equal_and_its_own():
    state = spectrum.Spectrum(center="columns").update(X)
    for other in (copy.deepcopy(state), copy.copy(state), pickle.loads(pickle.dumps(state))):
        assert other.summary() == state.summary()
        assert other.update(X).n == 120
    assert state.n == 60
    assert state.merge(state).n == 120


def test_a_pickle_of_another_version_is_refused_where_it_is_read():
    state = spectrum.Spectrum().update(X)
    with pytest.raises(ValueError, match="pickled by another version of noisy_fm; make it anew"):
        spectrum.Spectrum.__new__(spectrum.Spectrum).__setstate__({"n": state.n, "center": False})


def test_masked_values_are_refused_and_unmasked_arrays_are_plain():
    hidden = np.ma.masked_equal(np.where(np.arange(480).reshape(60, 8) == 37, 9999, X), 9999)
    message = "masked in 1 of 60 rows, the first at row 4"
    for x in (hidden, list(hidden), pd.Series(list(hidden), dtype=object)):
        for call in (spectrum.summary, spectrum.jackknife, spectrum.plot):
            with pytest.raises(ValueError, match=message):
                call(x)
    assert spectrum.summary(np.ma.masked_equal(X, 9999)) == spectrum.summary(X)
    labels = np.ma.masked_equal(np.arange(60) % 3, 2)
    with pytest.raises(ValueError, match=r"labels are missing .* in 20 of 60 rows"):
        spectrum.summary(X, labels=labels)
    mask = ~np.ma.getmaskarray(labels)
    plain = spectrum.summary(X[mask], labels=np.asarray(labels)[mask])
    assert spectrum.summary(X, labels=labels, mask=mask) == plain


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spectrum.jackknife(X, level=95), "level must lie between 0 and 1 .*got 95"),
        (lambda: spectrum.band(X, level=0), "level must lie between 0 and 1"),
        (lambda: spectrum.bootstrap(X, level=np.nan), "level must lie between 0 and 1"),
        (lambda: spectrum.bootstrap(X, replicates=0), "replicates must be a whole number ≥ 2"),
        (lambda: spectrum.jackknife(X, blocks=9.5), "blocks must be a whole number"),
        (lambda: spectrum.jackknife(X, seed=-1), "seed must be a whole number ≥ 0, got -1"),
        (lambda: spectrum.jackknife(X, groups=np.r_[np.nan, np.arange(59)]), "groups are missing"),
        (lambda: spectrum.summary(X, top_k=2), "give labels"),
        (lambda: spectrum.summary(X, labels=np.arange(60) % 2, top_k=2.0), "top_k must be a whole"),
        (lambda: spectrum.compare(X, X, top_k=1.5), "top_k must be a whole number"),
        (lambda: spectrum.summary(X, normalize="no"), "normalize must be True or False, got 'no'"),
        (lambda: spectrum.summary(X, mask=np.full(60, 0.5)), "mask must hold 0"),
        (lambda: spectrum.track({"a": X}, center="rows"), "center must be"),
        (lambda: spectrum.plot({"a": X}, bands={"b": [[0], [1]]}), "unknown name in bands 'b'"),
        (lambda: spectrum.plot_track({0: {"a/sve": 1.0}}), "of lsvr in 1 steps"),
    ],
)
def test_arguments_that_would_be_misread_get_one_line(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_numpy_scalars_mean_what_they_print_as():
    found = spectrum.jackknife(
        X, level=np.float32(0.9), blocks=np.int8(10), seed=np.uint8(3), center=np.True_
    )
    assert found == spectrum.jackknife(X, level=0.9, blocks=10, seed=3, center=True)
    assert spectrum.Spectrum(convention="release", center=np.False_).settings["center"] == "samples"


@pytest.mark.parametrize("center", [False, "columns"])
def test_intervals_of_many_rows_are_those_of_the_definition(center):
    """Rows that need several blocks of memory: delete-a-group by hand."""
    x = (np.random.default_rng(1).normal(size=(300_000, 4)) * [4, 3, 2, 1] + 1).astype(np.float32)
    groups = np.arange(len(x)) % 4
    found = spectrum.jackknife(x, groups=groups, center=center)
    left_out = [spectrum.summary(x[groups != g], center=center)["sve"] for g in range(4)]
    assert found["sve"].value == pytest.approx(spectrum.summary(x, center=center)["sve"], rel=1e-9)
    assert found["sve"].error == pytest.approx(np.sqrt(3 * np.var(left_out)), rel=1e-5)
