"""Diagnoses of features whose answer is known."""

import numpy as np
import pytest
from scipy import stats
from sklearn.model_selection import RepeatedStratifiedKFold, cross_val_score

from noisy_fm import LinearProbe, diagnose


@pytest.fixture(scope="module")
def curved():
    """Two classes told apart by the sign of a product: nothing for a linear probe."""
    random = np.random.default_rng(0)
    x = random.normal(size=(240, 6)).astype(np.float32)
    y = np.where(x[:, 0] * x[:, 1] > 0, "same", "other")
    return x, y, diagnose(x, y, cv=3, repeats=2)


def test_a_curved_boundary_is_worth_it(curved):
    _, _, found = curved
    over = found.comparisons["low"]
    assert over["NMTune - linear probe"] > 0
    assert found.worthwhile == (over["NMTune - MLP tuning"] > 0)
    assert found.table.loc["NMTune", "accuracy"] > 0.85
    assert found.table.loc["linear probe", "accuracy"] < 0.65
    head = "NMTune" if found.worthwhile else "A nonlinear head"
    assert f"{head} is worth it here" in found.verdict


def test_scores_are_those_of_cross_validation(curved):
    x, y, found = curved
    folds = RepeatedStratifiedKFold(n_splits=3, n_repeats=2, random_state=0)
    expected = cross_val_score(LinearProbe(random_state=0), x, y, cv=folds)
    np.testing.assert_allclose(found.scores["linear probe"], expected, atol=0.013)


def test_intervals_are_nadeau_and_bengios(curved):
    _, _, found = curved
    difference = found.scores["NMTune"] - found.scores["linear probe"]
    error = np.sqrt(difference.var(ddof=1) * (1 / 6 + 80 / 160))
    low, high = stats.t.interval(0.95, df=5, loc=difference.mean(), scale=error)
    row = found.comparisons.loc["NMTune - linear probe"]
    np.testing.assert_allclose([row["low"], row["high"]], [low, high])
    statistic = difference.mean() / error
    assert row["p"] == pytest.approx(2 * stats.t.cdf(-abs(statistic), df=5))


def test_an_interval_of_accuracies_stays_within_0_and_1():
    random = np.random.default_rng(0)
    y = np.repeat([0, 1], 30)
    x = random.normal(size=(60, 4)) + 3.5 * y[:, None] * [1, 0, 0, 0]
    table = diagnose(x.astype(np.float32), y, cv=3).table
    assert table["low"].min() < table["accuracy"].max() < 1  # else nothing was cut off
    assert table["high"].max() == 1


def test_spectrum_and_text(curved):
    x, y, found = curved
    sigma = np.linalg.svd(x.astype(float), compute_uv=False)
    p = sigma / sigma.sum()
    assert found.spectrum["sve"] == pytest.approx(-(p * np.log(p)).sum())
    text = str(found)
    assert "240 examples, 6 features, 2 classes" in text
    assert f"{p[0]:.1%} of the sum of singular values" in text
    assert f"{max(np.mean(y == 'same'), np.mean(y == 'other')):.1%}" in text


def test_the_spread_of_few_features_is_named(curved):
    x, y, found = curved
    assert "spread out, the energy of 6 equal directions out of 6" in str(found)
    with pytest.warns(UserWarning, match="features are constant"):
        flat = diagnose(np.ones((240, 4)), y, cv=2, repeats=1, epochs=1, min_steps=0)
    assert "concentrated, the energy of 1 direction out of 4" in str(flat)
    with pytest.warns(UserWarning, match="set standardize=True") as said:
        diagnose(x + 1e4, y, cv=2, repeats=1, epochs=1, min_steps=0)
    assert said[0].filename == __file__


def test_plot_shows_both_panels(curved):
    _, _, found = curved
    figure = found.plot()
    assert figure._repr_png_().startswith(b"\x89PNG")  # what a notebook shows
    left, right = figure.axes
    drawn = left.lines[0].get_ydata()
    np.testing.assert_allclose(drawn, found.singular_values / found.singular_values.sum())
    intervals = [line.get_xdata() for line in right.lines if len(line.get_xdata()) == 2]
    np.testing.assert_allclose(intervals, 100 * found.table[["low", "high"]])


def test_a_method_that_diverges_is_told():
    random = np.random.default_rng(1)
    x, y = 1e19 * random.normal(size=(120, 6)), random.integers(0, 2, 120)
    with pytest.warns() as said:
        found = diagnose(x, y, cv=2, repeats=1, epochs=3, min_steps=0)
    (told,) = (w for w in said if "training diverged" in str(w.message))
    assert "of 6 fits, which count as accuracy 0: " in str(told.message)
    assert "NMTune" in str(told.message)
    assert told.filename == __file__
    assert (found.scores["NMTune"] == 0).any()


def test_labels_of_chance_are_not_worth_it():
    random = np.random.default_rng(1)
    found = diagnose(
        random.normal(size=(120, 6)), random.integers(0, 2, 120), cv=3, epochs=2, min_steps=0
    )
    assert not found.worthwhile
    assert "No clear gain of NMTune" in found.verdict or "not worth it" in found.verdict


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        (np.ones((6, 2)), np.zeros(6, int), {}, "got 1 class"),
        (np.ones((6, 2)), [0, 1, 0, 1, 0, 1], {}, "class 0 has 3 rows, fewer than cv=5"),
        (np.ones((6, 2)), [0, 1, 0, 1, 0, 1], {"cv": 1}, "cv must be a whole number ≥ 2"),
        (np.full((6, 2), np.nan), [0, 1, 0, 1, 0, 1], {}, "NaN"),
        (np.full((6, 2), 1e300), [0, 1, 0, 1, 0, 1], {"cv": 3}, "must fit float32"),
        (np.ones((6, 2)), [0, 1, 0, 1, 0, 2], {"cv": 2}, "class 2 has 1 row, every fold needs"),
        (np.ones((6, 2)), [0, 1, 0, 1, 0, 1], {"standardize": "yes"}, "standardize must be True"),
        (np.ones((6, 2)), [0, 1, 0, 1, 0, 1], {"cv": True}, "cv must be a whole number"),
    ],
)
def test_bad_input(x, y, options, message):
    with pytest.raises(ValueError, match=message) as error:
        diagnose(x, y, **options)
    assert "\n" not in str(error.value)
