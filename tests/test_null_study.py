"""How often the report says "Seen" of made-up studies, with no effect and with one put in."""

from collections import Counter

import null_study
import numpy as np
import pytest
from scipy import stats

from noisy_fm import statistics
from noisy_fm.report import questions

PAIRS = ("mlp lp", "nmtune mlp", "rectified")
OF_METHODS = {f"{pair} {shift}" for pair in PAIRS for shift in ("id", "ood")}
OF_NOISE = {"pretrain", "slight", "relation", "ood", "sve", "lsvr", "lsvr ood"}


def verdicts(bones, studies: int, *, seed: int, effects=None, truth=None):
    """Counts by key of "seen", p < 5 % and intervals that hold the truth (0); and of any seen."""
    rng = np.random.default_rng(seed)
    seen, found, covered, family = Counter(), Counter(), Counter(), 0
    for _ in range(studies):
        asked = questions.collect(null_study.draw(bones, rng, effects))
        for question in asked:
            value = (truth or {}).get(question.key, 0.0)
            seen[question.key] += question.verdict == "seen"
            found[question.key] += question.p < 0.05
            covered[question.key] += question.low <= value <= question.high
        family += any(q.verdict == "seen" for q in asked if not q.check)
    return seen, found, covered, family, {q.key: q.verdict for q in asked}


def most(studies: int, share: float) -> float:
    """What a count of so many studies exceeds once in a thousand, at this share."""
    return stats.binom.ppf(0.999, studies, share)


def least(studies: int, share: float) -> float:
    return stats.binom.ppf(0.001, studies, share)


@pytest.mark.slow
def test_no_effect_is_rarely_seen():
    bones = null_study.skeleton(3, rates=(0.0, 0.1, 0.3))
    seen, _, covered, family, last = verdicts(bones, 40, seed=0)
    assert set(last) == OF_METHODS | OF_NOISE
    assert max(seen.values()) <= most(40, 0.05)
    assert family <= most(40, 0.05)
    assert min(covered[key] for key in last) >= least(40, 0.95)


def test_with_few_seeds_everything_is_described():
    bones = null_study.skeleton(2, rates=(0.0, 0.1, 0.3))
    last = verdicts(bones, 1, seed=0, effects=lambda f: f["noise_rate"] * 0.5)[4]
    assert set(last.values()) == {"described"}


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_without_effect_five_percent_at_most_are_seen_and_intervals_hold(seeds):
    studies = 400
    bones = null_study.skeleton(seeds)
    seen, found, covered, family, last = verdicts(bones, studies, seed=seeds)
    judged = OF_METHODS | OF_NOISE
    assert set(last) == judged
    assert "described" not in last.values()
    assert max(seen.values()) <= most(studies, 0.05), seen
    assert family <= most(studies, 0.05)
    for key in judged:
        assert least(studies, 0.93) <= covered[key] <= most(studies, 0.97), (key, covered[key])
        assert found[key] <= most(studies, 0.07), (key, found[key])


def of_noise(frame, *, points: float):
    """Out-of-domain accuracy changes by so many points at the highest γ, in proportion to γ."""
    ood = (frame["stage"] == "probe") & (frame["shift"] == "ood")
    return np.where(ood, frame["noise_rate"] / max(null_study.RATES) * points / 100, 0)


def spread_of_a_run() -> float:
    """Standard deviation, in points, of a run's mean over tasks out of domain, by the components.

    Four tasks with three heads each: two of them tested on three domains, two on two.
    """
    ood = "ood"
    variance = null_study.RUN[ood] ** 2 + null_study.RUN_TASK[ood] ** 2 / 4
    variance += null_study.RUN_HEAD[ood] ** 2 / 12
    domains = (3, 3, 2, 2)
    variance += sum(null_study.RUN_TEST[ood] ** 2 / (3 * d) for d in domains) / 4**2
    return float(np.sqrt(variance))


@pytest.mark.slow
def test_an_effect_of_noise_is_found_as_often_as_the_noncentral_t_says():
    seeds, studies = 5, 250
    rates = np.array(null_study.RATES)
    centred = rates - rates.mean()
    # The fitted change from the lowest to the highest γ, of one seed.
    error = spread_of_a_run() * np.ptp(rates) / np.sqrt(centred @ centred)
    critical = stats.t.isf(0.025, seeds - 1)
    shift = 4.0  # standard errors
    power = stats.nct.sf(critical, seeds - 1, shift)
    points = -shift * error / np.sqrt(seeds)
    seen, found, covered, _, _ = verdicts(
        null_study.skeleton(seeds),
        studies,
        seed=11,
        effects=lambda frame: of_noise(frame, points=points),
        truth={"ood": points},
    )
    assert least(studies, power) <= found["ood"] <= most(studies, power)
    assert covered["ood"] >= least(studies, 0.95)
    assert 0 < seen["ood"] < found["ood"]  # the correction has its price
    assert seen["sve"] <= most(studies, 0.05)


@pytest.mark.slow
def test_the_smallest_effect_printed_is_found_four_times_of_five():
    seeds, studies = 5, 250
    bones, rng = null_study.skeleton(seeds), np.random.default_rng(12)
    printed = [
        next(q.smallest for q in questions.collect(null_study.draw(bones, rng)) if q.key == "ood")
        for _ in range(60)
    ]
    # Single studies estimate the spread with four degrees of freedom; their mean square is exact.
    points = -float(np.sqrt(np.mean(np.square(printed))))
    _, found, *_ = verdicts(
        bones, studies, seed=13, effects=lambda frame: of_noise(frame, points=points)
    )
    assert 0.75 <= found["ood"] / studies <= 0.85


@pytest.mark.slow
def test_a_large_effect_of_a_method_is_seen():
    def effects(frame):
        better = (frame["method"] == "nmtune") & (frame["shift"] == "ood")
        return np.where(better, 0.2, 0)

    seen, *_ = verdicts(null_study.skeleton(3), 100, seed=5, effects=effects)
    assert seen["nmtune mlp ood"] >= 95
    assert seen["nmtune mlp id"] <= most(100, 0.05)


def test_the_smallest_effect_is_what_four_of_five_tests_find():
    sizes = np.random.default_rng(3).normal(0, 1, (4000, 4))
    effect = statistics.smallest_effect(1.0, 4)
    found = stats.ttest_1samp(sizes + effect, 0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.02)
