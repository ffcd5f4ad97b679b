"""What a report asks of the records, against SciPy and by hand, on made-up studies."""

import json

import numpy as np
import pandas as pd
import pytest
from made_up_study import FREE, by_hand, collected, with_sweep, write_lines, write_study
from scipy import stats

from noisy_fm.report import artifacts, figures, findings, overview, paired, sweep, tables


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """One pre-training seed."""
    return write_study(tmp_path_factory.mktemp("study") / "run")


@pytest.fixture(scope="module")
def repeated(tmp_path_factory):
    """Four pre-training seeds."""
    folder = tmp_path_factory.mktemp("repeated") / "run"
    return write_study(folder, seeds=(0, 1, 2, 3), probe_seeds=(0,), rates=(0.0, 0.05, 0.1, 0.3))


def by_run(folder, shift, method):
    """Accuracy in points [seeds × γ], tasks counting alike."""
    means = by_hand(folder, shift).xs(method, level="method")
    return means.groupby(["seed", "noise_rate"]).mean().unstack()


def slopes(wide):
    """The fitted change from the lowest to the highest γ of each row."""
    span = wide.columns.max() - wide.columns.min()
    return [stats.linregress(row.index, row).slope * span for _, row in wide.iterrows()]


def test_planted_effects_are_seen_and_planted_nulls_are_not(repeated):
    verdicts = {key: found.verdict for key, found in collected(repeated).items()}
    seen = {"pretrain", "ood", "sve", "nmtune mlp ood"}
    assert {key for key, verdict in verdicts.items() if verdict == "seen"} >= seen
    null = {"slight", "relation", "mlp lp id", "nmtune mlp id", "rectified id", "rectified ood"}
    assert {verdicts[key] for key in null} == {"not seen"}


def test_effects_of_the_other_sign_are_worded_so(tmp_path):
    def harmful(shift, method, rate):
        return 0.3 * rate - (0.05 if method == "nmtune" else 0)

    write_study(tmp_path / "run", effect=harmful, seeds=(0, 1, 2), rates=(0.0, 0.1, 0.3))
    found = collected(tmp_path / "run")
    assert found["nmtune mlp id"].headline.startswith("NMTune is below MLP tuning in in-domain")
    assert found["ood"].headline.startswith("Out-of-domain accuracy (LP) rises with γ")


def test_methods_are_compared_by_run_as_scipy_does(repeated):
    for method, other, shift in (("nmtune", "mlp", "ood"), ("mlp", "lp", "id")):
        both = [by_run(repeated, shift, name).mean(axis=1) for name in (method, other)]
        found = collected(repeated)[f"{method} {other} {shift}"]
        assert found.differences == pytest.approx((both[0] - both[1]).tolist())
        expected = stats.ttest_rel(*both)
        interval = expected.confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
        assert found.p == pytest.approx(expected.pvalue)
        assert "over 4 pre-training seeds" in found.test
    task = by_hand(repeated, "id").unstack("method").xs("subject", level="labels")
    assert f"subject {tables.signed((task.mlp - task.lp).mean(), 2)}" in found.by_part


def test_noise_is_judged_over_seeds_as_scipy_does(repeated):
    expected_slopes = slopes(by_run(repeated, "ood", "lp"))
    found = collected(repeated)["ood"]
    expected = stats.ttest_1samp(expected_slopes, 0)
    assert found.differences == pytest.approx(expected_slopes)
    assert (found.effect, found.p) == pytest.approx((np.mean(expected_slopes), expected.pvalue))
    assert "t over 4 pre-training seeds" in found.test
    assert "By pre-training seed: seed 0 " in found.by_part
    spread = np.std(expected_slopes, ddof=1)
    assert f"between runs {spread:.2f}: with 4 seeds an effect under " in found.p_text


def test_slight_noise_is_one_question_about_its_clearest_level(repeated):
    lp = by_run(repeated, "id", "lp")
    found = collected(repeated)["slight"]
    tests = {rate: stats.ttest_rel(lp[rate], lp[0.0]) for rate in (0.05, 0.1)}
    rate = min(tests, key=lambda rate: tests[rate].pvalue)
    assert found.differences == pytest.approx((lp[rate] - lp[0.0]).tolist())
    assert found.p == pytest.approx(min(1, 2 * tests[rate].pvalue))  # Bonferroni: few seeds
    interval = tests[rate].confidence_interval(1 - 0.05 / 2)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert f"at γ = {tables.percent(rate)}" in found.change
    critical = stats.t.isf(0.05 / 4, 3)
    # The clearest is the one that happens to vary least, so all say how runs vary.
    spread = np.sqrt(np.mean([np.var(lp[r] - lp[0.0], ddof=1) for r in (0.05, 0.1)]))
    assert f"Standard deviation between runs {spread:.2f}" in found.p_text
    error = spread / 2
    assert stats.nct.sf(critical, 3, found.smallest / error) == pytest.approx(0.8)


def test_tasks_that_follow_from_the_labels_are_told_from_those_that_do_not(tmp_path):
    write_study(tmp_path / "run", seeds=(0, 1, 2), probe_seeds=(0,), rates=(0.0, 0.1, 0.3))
    path = tmp_path / "run" / "records.jsonl"
    rows = [json.loads(text) for text in path.read_text().splitlines()]
    for row in rows:
        if row["stage"] == "probe" and row["labels"] in FREE:
            row["value"] += 0.4 * row["noise_rate"]
    write_lines(path, rows)
    means = by_hand(tmp_path / "run", "id").xs("lp", level="method").unstack("noise_rate")
    free = means.index.get_level_values("labels").isin(FREE)
    kinds = [slopes(means[kind].groupby("seed").mean()) for kind in (free, ~free)]
    found = collected(tmp_path / "run")["relation"]
    assert found.differences == pytest.approx(np.subtract(*kinds))
    assert found.effect == pytest.approx(12, abs=1)
    assert found.verdict == "seen"
    gains, losses = (tables.signed(np.mean(kind), 2) for kind in kinds)
    assert f"Tasks that do not follow {gains}, tasks that do {losses}." in found.by_part
    write_lines(path, [{**row, "relation": None} for row in rows])
    assert collected(tmp_path / "run")["relation"].verdict == "missing"


def test_rectification_takes_each_seeds_best_level_from_the_others(repeated):
    found = collected(repeated)["rectified id"]
    lp, nmtune = (by_run(repeated, "id", name) for name in ("lp", "nmtune"))
    gains, kept = (wide[[0.05, 0.1]].sub(wide[0.0], axis=0) for wide in (lp, nmtune))
    expected = []
    for seed in range(4):
        best = gains.drop(index=seed).mean().idxmax()
        expected.append(gains.at[seed, best] - kept.at[seed, best])
    assert found.differences == pytest.approx(expected)
    found = collected(repeated)["rectified ood"]
    lp, nmtune = (by_run(repeated, "ood", name) for name in ("lp", "nmtune"))
    assert found.differences == pytest.approx(slopes(nmtune - lp))


@pytest.mark.slow
def test_incomplete_records_leave_questions_out_and_the_page_whole(repeated, tmp_path):
    rows = [json.loads(text) for text in (repeated / "records.jsonl").read_text().splitlines()]

    def of(method, rate):
        return lambda r: r.get("method") == method and r["noise_rate"] == rate

    for number, (lost, verdict) in enumerate(
        (
            (of("nmtune", 0.05), "not seen"),  # 10 % is left
            (of("nmtune", 0.0), "missing"),
            (lambda r: of("nmtune", 0.05)(r) and r["seed"] == 2, "not seen"),
            (lambda r: r["noise_rate"] != (0.0 if r["seed"] % 2 else 0.3), "missing"),
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_lines(folder / "records.jsonl", [r for r in rows if not lost(r)])
        assert collected(folder)["rectified id"].verdict == verdict
        records = tables.prepare(artifacts.load(folder).records)
        studio = figures.Studio(folder / "figures", ["LP", "MLP", "NMTune"], [0.0, 0.05, 0.1, 0.3])
        assert overview.panels(records, studio, "resnet_w16")


def test_with_two_seeds_everything_is_described(repeated, tmp_path):
    rows = [json.loads(text) for text in (repeated / "records.jsonl").read_text().splitlines()]
    write_lines(tmp_path / "records.jsonl", [r for r in rows if r["seed"] < 2])
    for found in collected(tmp_path).values():
        assert (found.verdict, np.isnan(found.p), np.isnan(found.low)) == ("described", True, True)
        assert len(found.differences) == 2


def test_sve_is_of_in_domain_images_and_lsvr_of_the_others(repeated):
    frame = pd.read_json(repeated / "records.jsonl", lines=True, precise_float=True)
    frame = frame[(frame.stage == "spectrum") & frame.method.isna()]
    found = collected(repeated)
    for metric, shift in (("sve", "id"), ("lsvr", "ood")):
        rows = frame[(frame.metric == metric) & (frame["shift"] == shift)]
        wide = rows.groupby(["seed", "noise_rate"]).value.mean().unstack()
        assert found[metric].differences == pytest.approx(slopes(wide))
        assert {"id": "in-domain", "ood": "out-of-domain"}[shift] in found[metric].headline
    lp = by_run(repeated, "ood", "lp")
    r = [stats.pearsonr(a, b)[0] for a, b in zip(wide.values, lp.values, strict=True)]
    test = found["lsvr ood"]
    assert test.differences == pytest.approx(r)
    assert test.effect == pytest.approx(np.tanh(np.arctanh(r).mean()))
    expected = stats.ttest_1samp(np.arctanh(r), 0)
    assert test.p == pytest.approx(expected.pvalue)
    assert test.high == pytest.approx(np.tanh(expected.confidence_interval(0.95).high))


def test_an_unfinished_seed_or_test_is_left_out_and_counted(repeated, tmp_path):
    rows = [json.loads(text) for text in (repeated / "records.jsonl").read_text().splitlines()]

    def finished(r):
        late = (r["seed"], r["noise_rate"]) == (3, 0.3)
        lost = r.get("labels") == "gender" and r["seed"] == 1 and r.get("target") == "fluent3d"
        return not late and not (lost and r.get("source") == "noto" and r["noise_rate"] == 0.1)

    write_lines(tmp_path / "records.jsonl", [row for row in rows if finished(row)])
    found = collected(tmp_path)
    assert len(found["ood"].differences) == 3
    left_out = "1 of 4 pre-training seeds and 1 of 36 tests not recorded in every run and left out"
    assert left_out in found["ood"].test
    assert len(found["slight"].differences) == 4  # at γ up to 10 % it is there


@pytest.mark.slow
def test_more_heads_with_the_same_outcome_add_no_evidence(repeated, tmp_path):
    rows = [json.loads(text) for text in (repeated / "records.jsonl").read_text().splitlines()]
    probes = [r for r in rows if r["stage"] == "probe"]
    copies = [{**r, "target": f"{r['target']}2"} for r in probes if r["shift"] == "ood"]
    artists = [{**r, **{n: f"{r[n]}3" for n in ("source", "target")}} for r in probes]
    write_lines(tmp_path / "records.jsonl", rows + copies + artists)
    once, twice = collected(repeated), collected(tmp_path)
    for key, found in once.items():
        assert twice[key].p == pytest.approx(found.p), key
        assert twice[key].differences == pytest.approx(found.differences), key


def asked(key, p, **more):
    words = {"change": f"change of {key}", "up": f"{key} rises", "down": f"{key} falls"}
    given = {"effect": -5.2, "low": -10.1, "high": -0.4, "p": p, "verdict": "described"}
    given["differences"] = (-8.0, -5.0, -2.6)
    return findings.Finding(key, **{**words, **given, **more})


def test_headline_never_contradicts_its_interval():
    family = [asked("a", 0.03), asked("b", 0.001), asked("c", 0.2, high=2.0)]
    family.append(asked("d", np.nan, low=np.nan, high=np.nan))
    a, b, c, d = findings.corrected(family)
    assert [f.verdict for f in (a, b, c, d)] == ["not seen", "seen", "not seen", "described"]
    shown = "\N{MINUS SIGN}5.20\N{NO-BREAK SPACE}points"
    assert a.headline.startswith(f"a falls: {shown}")
    assert a.headline.endswith("], but not after correction for 3 questions.")
    assert b.headline.startswith(f"b falls: {shown} [")
    assert c.headline.startswith("No change of c is seen")
    assert d.headline == f"Change of d: {shown}."
    assert d.p_text == ""


def test_a_check_is_outside_the_correction():
    questions_asked = [asked("a", 0.02), asked("b", 0.04)]
    check, *others = findings.corrected([asked("check", 0.03, check=True), *questions_asked])
    assert [f.p_holm for f in others] == pytest.approx([0.04, 0.04])
    assert (check.verdict, check.p_holm, check.family) == ("seen", 0.03, 2)
    assert "outside the correction" in check.p_text
    assert "Holm" in others[0].p_text


def scores_of(folder):
    records = tables.prepare(artifacts.load(folder).records)
    return tables.probe_scores(records, shift="ood", metric="accuracy")


@pytest.mark.slow
def test_gains_and_changes_have_intervals_over_seeds(study, repeated):
    gains = paired.gains_over(scores_of(repeated), "LP", "noise_rate")
    gain = gains.set_index(["noise_rate", "label"]).loc[(0.1, "NMTune")]
    lp, nmtune = (by_run(repeated, "ood", name) / 100 for name in ("lp", "nmtune"))
    interval = stats.ttest_rel(nmtune[0.1], lp[0.1]).confidence_interval(0.95)
    assert (gain.low, gain.high) == pytest.approx((interval.low, interval.high))
    changes = paired.changes_from_clean(scores_of(repeated)).set_index(["label", "noise_rate"])
    interval = stats.ttest_rel(lp[0.3], lp[0.0]).confidence_interval(0.95)
    found = changes.loc[("LP", 0.3)]
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    for found in (
        paired.gains_over(scores_of(study), "LP", "noise_rate"),
        paired.changes_from_clean(scores_of(study)),
    ):
        assert len(found)
        assert found[["low", "high"]].isna().all(axis=None)  # one seed


def test_changes_from_no_lambda_are_paired_by_run(repeated):
    records = pd.read_json(repeated / "records.jsonl", lines=True, precise_float=True)
    rows = [r for r in records.to_dict("records") if r["stage"] == "probe"]
    frame = artifacts.tidy(with_sweep(rows, {0.0: 0.0, 0.1: -0.03}), [])
    found = sweep.rows_of(tables.prepare(frame))
    assert sorted(found["label"].unique()) == ["0", "0.01", "0.1"]
    scores = tables.probe_scores(found, shift="ood", metric="accuracy")
    changes = paired.gains_over(scores, "0", "").set_index("label")
    ood = frame[(frame["shift"] == "ood") & (frame.metric == "accuracy")]
    zero = (ood.method == "mlp") | (ood.weights == "[0.0, 0.0, 0.0]")
    by_seed = ood.assign(lam=ood.weights.where(~zero, "0")).groupby(["seed", "lam"])
    # λ = 0 is the mean of MLP tuning and of NMTune's head of weight 0, cell by cell.
    wide = by_seed.value.mean().unstack()
    interval = stats.ttest_1samp(wide["[0.1, 0.1, 0.1]"] - wide["0"], 0).confidence_interval(0.95)
    assert changes.loc["0.1", "low"] == pytest.approx(interval.low)
    assert changes.loc["0.1", "high"] == pytest.approx(interval.high)
