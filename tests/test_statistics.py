import itertools

import numpy as np
import pytest
from scipy import stats
from scipy.stats import binomtest
from sklearn import metrics

from noisy_fm import statistics


@pytest.fixture
def answers():
    random = np.random.default_rng(0)
    labels = random.integers(0, 6, 300)
    return labels, np.where(random.random(300) < 0.6, labels, random.integers(0, 6, 300))


def test_metrics_agree_with_scikit_learn(answers):
    labels, predictions = answers
    ours = statistics.classification_metrics(labels, predictions, 6)
    assert ours["accuracy"] == pytest.approx(metrics.accuracy_score(labels, predictions))
    assert ours["balanced_accuracy"] == pytest.approx(
        metrics.balanced_accuracy_score(labels, predictions)
    )
    assert ours["macro_f1"] == pytest.approx(metrics.f1_score(labels, predictions, average="macro"))
    assert ours["n"] == 300
    np.testing.assert_array_equal(
        statistics.confusion_matrix(labels, predictions, 6),
        metrics.confusion_matrix(labels, predictions),
    )


def test_an_absent_class_counts_as_zero_in_macro_f1_and_not_in_balanced_accuracy(answers):
    labels, predictions = answers
    six = statistics.classification_metrics(labels, predictions, 6)
    eight = statistics.classification_metrics(labels, predictions, 8)
    assert eight["macro_f1"] == pytest.approx(six["macro_f1"] * 6 / 8)
    assert eight["balanced_accuracy"] == six["balanced_accuracy"]


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (10, 10), (3, 10), (721, 1000)])
def test_wilson_agrees_with_scipy(successes, trials):
    exact = binomtest(successes, trials).proportion_ci(method="wilson")
    assert statistics.wilson_interval(successes, trials) == pytest.approx((exact.low, exact.high))


def test_clusters_widen_the_interval_as_their_size_demands():
    random = np.random.default_rng(1)
    concept = random.random(200) < 0.7
    values, groups = np.repeat(concept, 9), np.repeat(np.arange(200), 9)
    low, high = statistics.cluster_bootstrap(values, groups, resamples=4000)
    spread = 1.96 * np.sqrt(concept.mean() * (1 - concept.mean()) / 200)
    assert (high - low) / 2 == pytest.approx(spread, rel=0.08)
    alone = statistics.cluster_bootstrap(values, np.arange(1800), resamples=4000)
    assert (high - low) / (alone[1] - alone[0]) == pytest.approx(3, rel=0.1)


def test_groups_reach_the_metrics(answers):
    groups = np.arange(300) // 3
    ours = statistics.classification_metrics(*answers, 6, groups=groups)
    assert (ours["low"], ours["high"]) == statistics.cluster_bootstrap(
        answers[0] == answers[1], groups
    )


@pytest.mark.parametrize(
    ("labels", "predictions", "words"),
    [
        ([0, 1], [0], "2 labels but 1 predictions"),
        ([0, 3], [0, 1], "labels must lie in 0..2, got 0..3"),
        ([0.5, 1.0], [0, 1], "labels must be whole numbers"),
        ([], [], "labels must be whole numbers"),
    ],
)
def test_bad_input_says_what_is_wrong(labels, predictions, words):
    with pytest.raises(ValueError, match=words):
        statistics.classification_metrics(labels, predictions, 3)


def test_intervals_refuse_nonsense():
    with pytest.raises(ValueError, match="no proportion"):
        statistics.wilson_interval(3, 2)
    with pytest.raises(ValueError, match="must be"):
        statistics.cluster_bootstrap([1, 0], [1])


def test_metric_intervals_agree_with_resampling_and_scoring_one_by_one():
    rng = np.random.default_rng(3)
    groups = rng.integers(0, 25, 120)
    labels = rng.integers(0, 4, 120)
    predictions = np.where(rng.random(120) < 0.6, labels, rng.integers(0, 4, 120))
    got = statistics.metric_intervals(labels, predictions, 5, groups=groups, seed=7, resamples=300)
    clusters = np.unique(groups)
    draws = np.random.default_rng(7).multinomial(25, np.full(25, 1 / 25), size=300)
    scores = []
    for draw in draws:
        rows = np.concatenate(
            [np.tile(np.flatnonzero(groups == c), k) for c, k in zip(clusters, draw, strict=True)]
        )
        y, p = labels[rows], predictions[rows]
        f1 = metrics.f1_score(y, p, labels=range(5), average="macro", zero_division=0)
        recall = metrics.recall_score(y, p, labels=np.unique(y), average="macro", zero_division=0)
        scores.append((np.mean(y == p), recall, f1))
    low, high = np.quantile(np.array(scores), [0.025, 0.975], axis=0)
    for i, name in enumerate(("accuracy", "balanced_accuracy", "macro_f1")):
        assert got[name]["low"] == pytest.approx(low[i])
        assert got[name]["high"] == pytest.approx(high[i])
        assert got[name]["low"] < got[name]["value"] < got[name]["high"]


def test_clustered_intervals_are_wider_when_a_cluster_stands_or_falls_together():
    groups = np.repeat(np.arange(30), 10)
    labels = np.zeros(300, int)
    predictions = (groups % 3 == 0).astype(int)
    clustered = statistics.metric_intervals(labels, predictions, 2, groups=groups)["accuracy"]
    single = statistics.metric_intervals(labels, predictions, 2)["accuracy"]
    assert clustered["high"] - clustered["low"] > 2 * (single["high"] - single["low"])


def test_t_test_agrees_with_scipy():
    values = np.random.default_rng(4).normal(0.5, 1, 7)
    expected = stats.ttest_1samp(values, 0)
    interval = expected.confidence_interval(0.95)
    assert statistics.t_test(values) == pytest.approx(
        (values.mean(), interval.low, interval.high, expected.pvalue, 6)
    )
    assert statistics.t_test(np.zeros(4)).p == 1
    assert statistics.t_test(np.ones(4)).p == 0


@pytest.mark.parametrize("n", [4, 10, 14])
def test_several_contrasts_are_tested_at_once(n):
    rng = np.random.default_rng(5)
    table = rng.normal(0, 1, (n, 3)) + rng.normal(0, 2, (n, 1)) + [2.0, 0.3, 0.0]
    found = statistics.max_t(table)
    alone = stats.ttest_1samp(table, 0)
    np.testing.assert_allclose([test.effect for test in found], table.mean(axis=0))
    half = [(test.high - test.low) / 2 for test in found]
    far = half / (table.std(axis=0, ddof=1) / np.sqrt(n))  # the same for all of them
    np.testing.assert_allclose(far, far[0])
    p = np.array([test.p for test in found])
    assert (p >= alone.pvalue * 0.5).all()
    assert (p <= 1).all()
    if n < statistics.SIGNS:
        np.testing.assert_allclose(p, np.minimum(1, 3 * alone.pvalue))
        np.testing.assert_allclose(far[0], stats.t.isf(0.025 / 3, n - 1))
    elif n == 10:  # SciPy's test, which knows all changes of sign, one contrast at a time
        one = stats.permutation_test(
            (table[:, 0],), lambda x: abs(x.mean()), permutation_type="samples",
            n_resamples=np.inf, alternative="greater", vectorized=False,
        )  # fmt: skip
        assert one.pvalue <= p[0] <= 3 * one.pvalue + 1e-9
    else:  # 10,000 drawn signs find what all 2ⁿ do
        np.testing.assert_allclose(p, brute_force(table), atol=0.02)
    assert statistics.max_t(table[:, :1])[0] == statistics.t_test(table[:, 0])


def brute_force(table):
    """p of the largest |t| over every change of sign of the rows."""
    n = len(table)
    observed = np.abs(stats.ttest_1samp(table, 0).statistic)
    signs = np.array(list(itertools.product([1, -1], repeat=n)))
    largest = [np.abs(stats.ttest_1samp(s[:, None] * table, 0).statistic).max() for s in signs[::7]]
    return [np.mean(np.array(largest) >= t - 1e-9) for t in observed]


@pytest.mark.parametrize("n", [5, 10])
def test_one_of_several_null_contrasts_is_rarely_seen_and_intervals_hold_all(n):
    rng = np.random.default_rng(6)
    studies, seen, held = 600, 0, 0
    for _ in range(studies):
        found = statistics.max_t(rng.normal(0, 1, (n, 3)) + rng.normal(0, 1, (n, 1)))
        seen += min(test.p for test in found) < 0.05
        held += all(test.low <= 0 <= test.high for test in found)
    assert seen / studies <= 0.08
    assert held / studies >= 0.92


def test_slopes_and_correlations_agree_with_scipy():
    rng = np.random.default_rng(7)
    x, y, z = np.array([0, 0.05, 0.1, 0.3]), rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    expected = [stats.linregress(x, row).slope for row in y]
    assert statistics.slope(x, y) == pytest.approx(expected)
    expected = [stats.pearsonr(*rows)[0] for rows in zip(y, z, strict=True)]
    assert statistics.correlations(y, z) == pytest.approx(expected)
    assert np.isnan(statistics.correlations(np.ones((1, 4)), z[:1])).all()


def test_holm_agrees_with_its_definition():
    np.testing.assert_allclose(statistics.holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    assert len(statistics.holm([])) == 0


@pytest.mark.parametrize("df", [1, 2, 4, 14, 200])
def test_the_smallest_effect_has_the_power_asked_for(df):
    effect = statistics.smallest_effect(np.sqrt(df + 1), df + 1)  # standard error 1
    chi = np.random.default_rng(8).chisquare(df, 200_000)
    t = np.random.default_rng(9).normal(effect, 1, 200_000) / np.sqrt(chi / df)
    assert np.mean(t > stats.t.isf(0.025, df)) == pytest.approx(0.8, abs=0.005)


@pytest.mark.parametrize("values", [[1.0], [[1.0, 2.0]], [1.0, np.nan]])
def test_tests_refuse_what_has_no_spread(values):
    with pytest.raises(ValueError, match="at least two finite numbers"):
        statistics.t_test(values)
    with pytest.raises(ValueError, match=r"finite \[n k\]"):
        statistics.max_t(values)


@pytest.mark.parametrize("clusters", [1, 7, 36])
def test_where_all_are_alike_the_interval_is_clopper_and_pearsons(clusters):
    groups = np.repeat(np.arange(clusters), 4)
    for hits in (0, 1):
        exact = stats.binomtest(hits * clusters, clusters).proportion_ci(method="exact")
        values = np.full(len(groups), hits)
        found = statistics.cluster_bootstrap(values, groups, bounds=(0.0, 1.0))
        assert found == pytest.approx((exact.low, exact.high), abs=1e-12)
        labels = np.arange(len(groups)) % 4
        metrics = statistics.metric_intervals(labels, (labels + 1 - hits) % 4, 4, groups=groups)
        for one in metrics.values():
            assert (one["low"], one["high"]) == pytest.approx((exact.low, exact.high), abs=1e-12)
    change = statistics.cluster_bootstrap(np.zeros(len(groups)), groups, bounds=(-1.0, 1.0))
    assert change == pytest.approx((exact.low - 1, 1 - exact.low), abs=1e-12)
