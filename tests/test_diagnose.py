"""Diagnoses of features whose answer is known."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics
from sklearn.model_selection import RepeatedStratifiedKFold, cross_val_score

from noisy_fm import LinearProbe, diagnose
from noisy_fm.estimator.scores import SCORINGS, compare, score


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
    assert found.advice == []


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


@pytest.mark.slow
def test_an_interval_of_accuracies_stays_within_0_and_1():
    random = np.random.default_rng(0)
    y = np.repeat([0, 1], 30)
    x = random.normal(size=(60, 4)) + 3.5 * y[:, None] * [1, 0, 0, 0]
    table = diagnose(x.astype(np.float32), y, cv=3).table
    assert table["low"].min() < table["accuracy"].max() < 1  # else nothing was cut off
    assert table["high"].max() == 1


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("weighted", [False, True])
def test_scores_are_scikit_learns(scoring, weighted):
    random = np.random.default_rng(0)
    labels, found = random.integers(0, 5, 200), random.integers(2, 7, 200)  # 0, 1 are never named
    found = np.where(random.random(200) < 0.5, labels, found)
    weights = random.integers(1, 4, 200) if weighted else None
    expected = {
        "accuracy": metrics.accuracy_score,
        "balanced_accuracy": metrics.recall_score,
        "f1_macro": metrics.f1_score,
    }[scoring]
    options = {} if scoring == "accuracy" else {"average": "macro", "zero_division": 0}
    if scoring == "balanced_accuracy":
        options["labels"] = np.unique(labels)
    wanted = expected(labels, found, sample_weight=weights, **options)
    assert score(scoring, labels, found, weights) == pytest.approx(wanted)
    assert score(scoring, labels, np.where(np.arange(200) == 7, -1, found)) == 0


def test_unseen_rows_are_scored_by_the_fits_of_the_folds(curved):
    x, y, found = curved
    random = np.random.default_rng(3)
    far = random.normal(size=(90, 6)) + 0.5
    truth = np.where(
        random.random(90) < 0.8, np.where(far[:, 0] > far[:, 1], "same", "other"), "same"
    )
    both = diagnose(x, y, cv=3, repeats=2, scoring="balanced_accuracy", X_test=far, y_test=truth)
    folds = list(RepeatedStratifiedKFold(n_splits=3, n_repeats=2, random_state=0).split(x, y))
    fits = [LinearProbe(random_state=0).fit(x[train], y[train]) for train, _ in folds]
    expected = [metrics.balanced_accuracy_score(truth, fit.predict(far)) for fit in fits]
    np.testing.assert_allclose(both.test.scores["linear probe"], expected, atol=0.02)
    assert both.table.loc["linear probe", "balanced_accuracy"] == pytest.approx(
        np.mean([metrics.balanced_accuracy_score(y[t], fit.predict(x[t])) for fit, (_, t) in
                 zip(fits, folds, strict=True)]), abs=0.02,
    )  # fmt: skip
    text = str(both)
    assert "Balanced accuracy, 2 x 3-fold cross-validation (95 % intervals)" in text
    assert "Balanced accuracy on the 90 rows of X_test, by the same 6 fits of each method" in text
    assert both.test.verdict in text
    gain = both.comparisons.loc["NMTune - linear probe", "low"] > 0
    assert ("LogisticRegressionCV" in text) is not bool(gain)
    assert "on X_test" in both.test.verdict
    assert both.plot().axes[1].get_title(loc="left").endswith("hollow: X_test")
    alone = diagnose(x, y, cv=3, repeats=2, X_test=far, y_test=truth)
    for name, scores in found.scores.items():  # the rows beside are in nobody's way
        np.testing.assert_array_equal(alone.scores[name], scores)


def test_the_interval_on_unseen_rows_knows_that_they_are_a_sample():
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 400)
    wrong = [(random.random(400) < 0.3) ^ (random.random((4, 400)) < 0.02) for _ in range(3)]
    predictions = [np.where(each, 1 - labels, labels) for each in wrong]
    found = compare("accuracy", [labels] * 4, predictions, ratio=0.5, fixed=True)
    difference = 1.0 * wrong[0] - wrong[2]  # NMTune's hits less the linear probe's
    variance = difference.mean(axis=1).var(ddof=1) * (1 / 4 + 0.5)
    rows = difference.mean(axis=0).var() / 400
    half = stats.t.ppf(0.975, df=3) * np.sqrt(variance + rows)
    row = found["comparisons"].loc["NMTune - linear probe"]
    assert row["difference"] == pytest.approx(difference.mean())
    assert (row["high"] - row["low"]) / 2 == pytest.approx(half, rel=0.1)
    assert half > 1.2 * stats.t.ppf(0.975, df=3) * np.sqrt(variance)  # or the test says nothing


def test_groups_stay_together():
    random = np.random.default_rng(0)
    group = np.repeat(np.arange(24), 10)
    x = random.normal(size=(24, 6))[group] + 0.01 * random.normal(size=(240, 6))
    y = random.integers(0, 2, 24)[group]  # nothing to learn but who is who
    names = np.array([f"patient {i}" for i in range(24)])[group]
    apart = diagnose(x, y, cv=3, repeats=1)
    together = diagnose(x, y, cv=3, repeats=1, groups=names)
    assert apart.table.loc["MLP tuning", "accuracy"] > 0.95
    assert together.table.loc["MLP tuning", "accuracy"] < 0.75
    assert "cross-validation, groups kept together (95 % intervals)" in str(together)


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
    assert "of 6 fits, which score 0: " in str(told.message)
    assert "NMTune" in str(told.message)
    assert told.filename == __file__
    assert (found.scores["NMTune"] == 0).any()


def test_labels_of_chance_are_not_worth_it():
    random = np.random.default_rng(1)
    found = diagnose(
        random.normal(size=(120, 6)), random.integers(0, 2, 120), cv=3, epochs=2, min_steps=0
    )
    assert not found.worthwhile
    assert "Next, tune the penalty of a linear head" in str(found).splitlines()[-1]
    assert "No clear gain of NMTune" in found.verdict or "not worth it" in found.verdict


PAIR = (np.ones((6, 2)), [0, 1, 0, 1, 0, 1])


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
        (*PAIR, {"scoring": "f1"}, "unknown scoring 'f1'; did you mean 'f1_macro'"),
        (*PAIR, {"X_test": np.ones((2, 2))}, "are given together, one of them is missing"),
        (*PAIR, {"X_test": np.ones((2, 3)), "y_test": [0, 1]}, "X_test has 3 features, X has 2"),
        (
            *PAIR,
            {"X_test": np.ones((2, 2)), "y_test": [0, 7]},
            "y_test has 1 rows of classes that y lacks, the first is 7 at row 1",
        ),
        (*PAIR, {"X_test": np.full((2, 2), np.nan), "y_test": [0, 1]}, "X_test must be finite"),
        (*PAIR, {"groups": [0, 1]}, r"groups must be \[6\], one a row, got shape \(2,\)"),
        (*PAIR, {"groups": [0, 1] * 3}, "cv=3 folds need 3 groups at least, got 2"),
        (*PAIR, {"groups": [0, 1, 0, 2, 0, 3]}, "class 0 lies in 1 group, so that no fold can"),
    ],
)
def test_bad_input(x, y, options, message):
    with pytest.raises(ValueError, match=message) as error:
        diagnose(x, y, **({"cv": 3} if x is PAIR[0] else {}) | options)
    assert "\n" not in str(error.value)
