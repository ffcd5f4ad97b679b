"""The report on made-up records (test-only: no number here comes from a model)."""

import base64
import html.parser
import io
import itertools
import json
import re
import zlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats

from noisy_fm import report
from noisy_fm.report import __main__ as command
from noisy_fm.report import artifacts, figures, findings, paired, questions, sweep, tables

RATES = (0.0, 0.05, 0.1, 0.2, 0.3)
DOMAINS = ("noto", "twemoji", "openmoji", "fluent3d")
TASKS = ("category", "skin_tone", "subject", "gender")
HEADS = 12  # the tasks, each tuned on three domains
LESS = {"accuracy": 0, "balanced_accuracy": 0.04, "macro_f1": 0.07}
COMMON = {
    "model": "resnet_w16",
    "noise_kind": "symmetric",
    "config_hash": "c0ffee12",
    "commit": "0123456789abcdef",
    "versions": {"jax": "0.10.2"},
    "duration_s": 1.5,
}


def write_study(folder, *, rates=RATES, seeds=(0,), probe_seeds=(0, 1), effect=None, ood=True):
    """A plausible workdir. effect(shift, method, rate) in [0, 1] adds to every accuracy."""
    effect = effect or planted
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    rows, spectra, clean = [], [], {}
    for seed, rate in itertools.product(seeds, rates):
        here = {**COMMON, "seed": seed, "noise_rate": rate}
        truth = {"stage": "pretrain", "dataset": "emoji_domains", "task": "subcategory"}
        value = 0.72 - 0.5 * rate + rng.normal(0, 0.004)
        rows.append({**here, **truth, "metric": "accuracy", **measured(value, 3000)})
        if rate == 0:
            clean[seed] = value
        fits = {"value": 0.9 - rate, "low": 0.88 - rate, "high": 0.92 - rate, "n": 9000}
        rows.append({**here, **truth, "metric": "train_accuracy_true_labels", **fits})
        if rate and seed in clean:
            lost = value - clean[seed]
            change = {"value": lost, "low": lost - 0.011, "high": lost + 0.009, "n": 3000}
            rows.append({**here, **truth, "metric": "accuracy_change", **change})
        if rate:
            for metric, value in (("flipped_fits_given", 0.1 + rate), ("flipped_fits_true", 0.6)):
                rows.append({**here, **truth, "metric": metric, **measured(value, 500)})
        for domain, method in itertools.product(DOMAINS, (None, "mlp", "nmtune")):
            lift = {"mlp": -0.2, "nmtune": 0.35}.get(method, 0) + 0.8 * rate
            sigma = np.exp(-np.arange(128) / (14 + 9 * lift)) * np.exp(rng.normal(0, 0.02, 128))
            p = sigma / sigma.sum()
            here_too = {**here, "dataset": "emoji_domains", "target": domain}
            here_too["shift"] = "id" if domain in DOMAINS[:3] else "ood"
            if method:
                here_too |= {"task": "category", "source": domain, "preset": "paper"}
            for metric, x in (("sve", -np.sum(p * np.log(p))), ("lsvr", -np.log(p[0]))):
                rows.append(
                    {**here_too, "stage": "spectrum", "method": method, "metric": metric}
                    | {"value": x, "low": x - 0.02, "high": x + 0.02, "n": 800}
                )
            kept = ("model", "seed", "noise_rate")
            spectra.append(
                {k: here[k] for k in kept}
                | {"domain": domain, "method": method, "singular_values": list(sigma * 90)}
            )
        pairs = [(s, t) for s in DOMAINS[:3] for t in DOMAINS if ood or s == t]
        for task, (source, target) in itertools.product(TASKS, pairs):
            shift = "id" if source == target else "ood"
            # The same task is as hard at every γ and for every method.
            hard = np.random.default_rng(zlib.crc32(f"{task}{source}{target}".encode())).uniform(
                0, 0.25
            )
            for method, probe_seed in itertools.product(("lp", "mlp", "nmtune"), probe_seeds):
                base = (0.85 if shift == "id" else 0.6) - hard + effect(shift, method, rate)
                for metric, less in LESS.items():
                    value = float(np.clip(base - less + rng.normal(0, 0.006), 0, 1))
                    rows.append(
                        {**here, "stage": "probe", "dataset": "emoji_domains", "task": task}
                        | {"shift": shift, "source": source, "target": target, "fraction": 1.0}
                        | {"method": method, "preset": "paper", "probe_seed": probe_seed}
                        | {"label_noise": 0.0, "metric": metric, **measured(value, 380)}
                    )
    write_lines(folder / "records.jsonl", rows)
    write_lines(folder / "spectra.jsonl", spectra)
    write_rest(folder, rates, seeds)
    return folder


def planted(shift, method, rate):
    """NMTune above the others out of domain, noise harmful there; nothing in domain."""
    if shift == "id":
        return 0.0
    return -0.15 * rate + (0.03 if method == "nmtune" else 0.0)


def measured(value, n):
    half = 1.96 * np.sqrt(max(value * (1 - value), 1e-6) / n)
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_rest(folder, rates, seeds):
    """Everything but the records and spectra."""
    config = {"pretrain": {"steps": 1200, "batch_size": 128}, "noise_rates": list(rates)}
    (folder / "config.json").write_text(json.dumps(config))
    environment = {"versions": {"jax": "0.10.2", "numpy": "2.4"}, "device": "cpu", "cores": 2}
    environment |= {"commit": "0123456789abcdef", "command": "python -m noisy_fm.study --x=1"}
    (folder / "environment.json").write_text(json.dumps(environment))
    stages = [(f"pretrain/{rate:g}", 40.0 + rate) for rate in rates] + [("probe", 21.0)]
    write_lines(folder / "stages.jsonl", [{"stage": s, "duration_s": d} for s, d in stages])
    manifests = []
    for rate, seed in itertools.product(rates, seeds):
        manifest = {"kind": "symmetric", "rate": rate, "realised": int(rate * 11000) / 11000}
        manifest |= {"seed": seed, "n": 11000, "changed": int(rate * 11000), "num_classes": 98}
        manifest["hash"] = f"abc{int(rate * 100)}{seed}"
        manifests.append({"cell": f"noise{rate:g}-seed{seed}", **manifest})
    write_lines(folder / "manifests.jsonl", manifests)
    examples = [
        {"image": png(i), "true": "cat-face", "given": "sky & weather", "noise_rate": 0.05}
        | {"concept": f"concept <{i}>"}
        for i in range(6)
    ]
    (folder / "examples.json").write_text(json.dumps(examples))


def png(i):
    pixels = np.random.default_rng(i).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((32, 32), 0).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


class Page(html.parser.HTMLParser):
    """The parts of a page that the tests ask about."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.resources, self.open, self.images = [], [], [], []
        self.findings, self.tables, self.captions, self.text = {}, [], [], ""
        self.feed(text)
        assert not self.open, f"unclosed {self.open}"

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if "id" in attributes:
            self.ids.append(attributes["id"])
        for name in ("src", "href", "xlink:href"):
            if name in attributes:
                self.resources.append(attributes[name])
        if "data-key" in attributes:
            self.findings[attributes["data-key"]] = attributes["data-verdict"]
        if tag == "svg" and attributes.get("role") == "img":
            self.images.append(attributes["aria-label"])
        if tag == "table":
            self.tables.append([])
            self.captions.append("")
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in ("meta", "link", "img", "br"):
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        data = data.replace("\N{NO-BREAK SPACE}", " ")
        self.text += data
        if self.open and self.open[-1] == "caption":
            self.captions[-1] += data
        if "small" not in self.open and ("td" in self.open or "th" in self.open):
            self.tables[-1][-1][-1] += data.strip()

    def table_with(self, title):
        """{row name: [cells]} of the first table whose caption starts with `title`."""
        captioned = zip(self.tables, self.captions, strict=True)
        rows = next(rows for rows, caption in captioned if caption.startswith(title))
        return {row[0]: row[1:] for row in rows[1:]}


@pytest.fixture
def unsaved(monkeypatch):
    """Figures are drawn but not rendered to files, for tests that are about the rest."""
    monkeypatch.setattr(
        figures.Studio, "save", lambda _, canvas, name, alt: figures.Drawing(name, "", alt)
    )


def collected(folder):
    """The findings of a workdir by key."""
    records = tables.prepare(artifacts.load(folder).records)
    return {finding.key: finding for finding in questions.collect(records)}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study") / "run")


@pytest.fixture(scope="module")
def built(study):
    path = report.build(study)
    return path.parent, Page(path.read_text())


def test_one_of_a_thing_is_singular():
    assert tables.plural(1, "epoch") == "1 epoch"
    assert tables.plural(1200, "step") == "1,200 steps"
    assert tables.plural(0.5, "epoch") == "0.5 epochs"


def test_page_is_self_contained_and_complete(built):
    folder, page = built
    local = ("#", "data:image/png;base64,", "records.", "figures/")
    assert [r for r in page.resources if not r.startswith(local)] == []
    text = (folder / "index.html").read_text()
    assert "@import" not in text
    assert "<script" not in text
    assert "url(http" not in text
    sections = ["statement", "findings", "pretraining", "downstream", "spectrum", "tasks"]
    assert {*sections, "noise", "run"} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids)), "the inline SVGs' ids meet"
    assert "concept <0>" in page.text  # escaped in the source
    assert "concept <0>" not in text
    for needle in ("1,200 steps", "python -m noisy_fm.study --x=1", "c0ffee12", "abc300"):
        assert needle in page.text


def test_every_figure_has_files_and_alt_text(built):
    folder, page = built
    drawn = [i.removeprefix("figure-") for i in page.ids if i.startswith("figure-")]
    drawn = [name for name in drawn if not name.endswith("figure_1")]
    assert len(drawn) >= 11
    for name in drawn:
        assert (folder / "figures" / f"{name}.svg").stat().st_size > 1000
        with Image.open(folder / "figures" / f"{name}.png") as image:
            assert np.asarray(image.convert("L")).std() > 5
    assert all(len(alt) > 20 for alt in page.images)
    assert any("NMTune" in alt and "0\N{NO-BREAK SPACE}%" in alt for alt in page.images)


def test_tables_equal_an_independent_computation(study, built):
    frame = pd.read_json(study / "records.jsonl", lines=True, precise_float=True)
    probe = frame[(frame.stage == "probe") & (frame["shift"] == "ood")]
    _, page = built
    for title, metric in (
        ("Out-of-domain accuracy", "accuracy"),
        ("Out-of-domain balanced accuracy", "balanced_accuracy"),
        ("Out-of-domain macro", "macro_f1"),
    ):
        shown = page.table_with(title)
        for label, method in (("LP", "lp"), ("MLP", "mlp"), ("NMTune", "nmtune")):
            rows = probe[(probe.method == method) & (probe.metric == metric)]
            means = rows.groupby("noise_rate").value.mean() * 100
            assert shown[label] == [f"{m:.1f}" for m in means]
    truth = frame[frame.stage == "pretrain"].set_index(["metric", "noise_rate"]).value * 100
    shown = {row[0]: row[1:] for row in page.tables[0]}
    assert shown["Accuracy, %"] == [f"{m:.1f}" for m in truth["accuracy"]]
    changes = [f"{m:.1f}".replace("-", "\N{MINUS SIGN}") for m in truth["accuracy_change"]]
    assert shown["Accuracy, change from γ = 0, points"] == ["–", *changes]
    fits = [f"{m:.1f}" for m in truth["train_accuracy_true_labels"]]
    assert shown["Accuracy on all training images, true labels, %"] == fits
    sve = frame[(frame.stage == "spectrum") & (frame.metric == "sve") & frame.method.isna()]
    means = sve.groupby("noise_rate").value.mean()
    assert page.table_with("SVE")["Features F"] == [f"{m:.3f}" for m in means]
    assert "Changed labels that the model predicts, %" in page.text
    assert "not measured in every cell" not in page.text


def test_planted_effects_are_seen_and_planted_nulls_are_not(built):
    _, page = built
    assert page.findings["pretrain"] == "seen"
    assert page.findings["ood"] == "seen"
    # However consistent over the feature sets, five models cannot establish a trend or a
    # correlation.
    assert page.findings["sve"] == page.findings["lsvr"] == page.findings["lsvr ood"] == "too few"
    assert page.findings["nmtune lp ood"] == page.findings["nmtune mlp ood"] == "seen"
    assert page.findings["nmtune lp id"] == page.findings["nmtune mlp id"] == "not seen"
    assert page.findings["slight 0.05"] == "not seen"
    for needle in ("Pre-training accuracy falls with γ", "NMTune is above LP in out-of-domain"):
        assert needle in page.text
    assert "No difference of in-domain accuracy between NMTune and LP is seen" in page.text
    assert "speaks of these particular models" in page.text


@pytest.mark.usefixtures("unsaved")
def test_effects_of_the_other_sign_are_worded_so(tmp_path):
    def harmful(shift, method, rate):
        return 0.3 * rate - (0.05 if method == "nmtune" else 0)

    write_study(tmp_path / "run", effect=harmful)
    text = report.build(tmp_path / "run").read_text()
    assert "NMTune is below LP in in-domain accuracy" in text
    assert "10, 20, 30\N{NO-BREAK SPACE}% is above clean pre-training" in text


def test_finding_equals_scipy_on_pairs_made_by_hand(study):
    frame = pd.read_json(study / "records.jsonl", lines=True, precise_float=True)
    rows = frame[
        (frame.stage == "probe") & (frame["shift"] == "ood") & (frame.metric == "accuracy")
    ]
    # γ, targets and probe seeds do not multiply the evidence: a pair is a trained head.
    means = rows.groupby(["seed", "task", "source", "method"]).value.mean().unstack() * 100
    difference = means["nmtune"] - means["lp"]
    found = collected(study)["nmtune lp ood"]
    assert len(found.differences) == len(difference) == HEADS
    assert found.p == pytest.approx(stats.wilcoxon(difference).pvalue, rel=1e-6)
    assert found.low < difference.median() < found.high
    assert found.effect == pytest.approx(difference.mean(), abs=0.1)
    assert f"{HEADS} pairs: trained heads" in found.test
    assert "its levels of γ and target domains count once" in found.scope
    clean = rows[rows.method == "lp"].assign(noisy=rows.noise_rate > 0)
    means = clean.groupby(["task", "source", "noisy"]).value.mean().unstack() * 100
    found = collected(study)["ood"]
    assert found.differences == pytest.approx((means[True] - means[False]).tolist())
    assert found.p == pytest.approx(stats.wilcoxon(means[True] - means[False]).pvalue, rel=1e-6)


def test_more_targets_with_the_same_outcome_add_no_evidence(study, tmp_path):
    rows = [json.loads(text) for text in (study / "records.jsonl").read_text().splitlines()]
    copies = [{**r, "target": f"{r['target']}2"} for r in rows if r.get("shift") == "ood"]
    write_lines(tmp_path / "records.jsonl", rows + copies)
    once, twice = collected(study), collected(tmp_path)
    for key in ("ood", "nmtune lp ood", "nmtune mlp ood"):
        assert twice[key].p == once[key].p
        assert twice[key].differences == pytest.approx(once[key].differences)


def test_many_seeds_make_pretraining_runs_the_unit(tmp_path):
    write_study(tmp_path / "run", seeds=tuple(range(9)), probe_seeds=(0,), rates=(0.0, 0.1, 0.3))
    records = tables.prepare(artifacts.load(tmp_path / "run").records)
    found = collected(tmp_path / "run")
    for key in ("ood", "nmtune lp ood"):
        assert len(found[key].differences) == 9
        assert "9 pairs: pre-training seeds (heads, levels of γ, " in found[key].test
        assert "units are pre-training runs" in found[key].scope
    assert "within a pre-training seed" in found["pretrain"].test
    assert found["pretrain"].verdict == "seen"
    shown = tables.summarise(
        tables.probe_scores(records, shift="id", metric="accuracy"), ["noise_rate", "label"]
    )
    cell = shown.iloc[0]
    rows = records[(records.stage == "probe") & (records["shift"] == "id")]
    rows = rows[(rows.metric == "accuracy") & (rows.noise_rate == cell.noise_rate)]
    seeds = rows[rows.label == cell.label].groupby("seed").value.mean()
    low, high = stats.t.interval(0.95, 8, seeds.mean(), stats.sem(seeds))
    assert (cell.low, cell.high) == pytest.approx((low, high))


def test_records_are_the_same_in_every_format(built):
    folder, _ = built
    csv = pd.read_csv(folder / "records.csv")
    parquet = pd.read_parquet(folder / "records.parquet")
    lines = pd.read_json(folder / "records.jsonl", lines=True, precise_float=True)
    assert len(csv) == len(parquet) == len(lines) > 500
    for name in ("value", "low", "high", "noise_rate"):
        np.testing.assert_array_equal(csv[name], parquet[name])
        np.testing.assert_allclose(lines[name], parquet[name], rtol=1e-12)
    for name in ("stage", "method", "target", "metric", "versions"):
        assert csv[name].fillna("").tolist() == parquet[name].fillna("").tolist()


@pytest.mark.parametrize(
    ("kept", "line"),
    [
        (lambda r: r["stage"] == "pretrain", "No downstream tuning is recorded"),
        (lambda r: r["stage"] != "pretrain", "No pre-training accuracy was recorded"),
        (lambda r: r["stage"] != "spectrum", "SVE: not recorded"),
        (lambda r: r["noise_rate"] == 0.1, "Only one γ is recorded"),
        (lambda r: r.get("shift") != "ood", "No out-of-domain task is recorded"),
        (lambda r: r.get("method") != "nmtune", "task was measured with both"),
        (lambda r: r["noise_rate"] > 0, "there is no clean model"),
    ],
)
@pytest.mark.usefixtures("unsaved")
def test_missing_parts_become_a_line(study, tmp_path, kept, line):
    rows = [json.loads(text) for text in (study / "records.jsonl").read_text().splitlines()]
    write_lines(tmp_path / "records.jsonl", [row for row in rows if kept(row)])
    page = Page(report.build(tmp_path).read_text())
    assert line in page.text
    for other in (
        "No example images",
        "No noise manifest",
        "No durations",
        "configuration was not",
    ):
        assert other in page.text
    assert not re.search(r"\bnan\b", page.text)


@pytest.mark.usefixtures("unsaved")
def test_means_are_over_the_tasks_that_every_cell_has(study, tmp_path):
    rows = [json.loads(text) for text in (study / "records.jsonl").read_text().splitlines()]

    def unfinished(r):
        late = r["noise_rate"] == 0.3 and r["stage"] == "probe"
        return late and r["task"] == "skin_tone" and r["source"] == "noto"

    write_lines(tmp_path / "records.jsonl", [r for r in rows if not unfinished(r)])
    page = Page(report.build(tmp_path).read_text())
    assert f"1 of {HEADS} tasks are not measured in every cell" in page.text
    frame = pd.DataFrame(rows)
    frame = frame[
        (frame.stage == "probe") & (frame["shift"] == "id") & (frame.metric == "accuracy")
    ]
    frame = frame[
        (frame.method == "lp") & ~((frame.task == "skin_tone") & (frame.source == "noto"))
    ]
    means = frame.groupby("noise_rate").value.mean() * 100
    assert page.table_with("In-domain accuracy")["LP"] == [f"{m:.1f}" for m in means]


@pytest.mark.usefixtures("unsaved")
def test_fractions_presets_and_models_are_kept_apart(study, tmp_path):
    rows = [json.loads(text) for text in (study / "records.jsonl").read_text().splitlines()]
    small = [
        {**r, "fraction": 0.1, "value": r["value"] - 0.2, "low": None, "high": None}
        for r in rows
        if r["stage"] == "probe"
    ]
    release = [
        {**r, "preset": "release", "value": r["value"] + 0.01}
        for r in rows
        if r.get("method") == "nmtune" and r["stage"] == "probe"
    ]
    vit = [{**r, "model": "vit_tiny"} for r in rows]
    write_lines(tmp_path / "records.jsonl", rows + small + release + vit)
    page = Page(report.build(tmp_path).read_text())
    assert "fraction" in page.ids
    shown = page.table_with("In-domain accuracy")
    assert {"LP", "MLP", "NMTune (paper)", "NMTune (release)"} == set(shown)
    once = Page(report.build(study, tmp_path / "once").read_text())
    assert shown["LP"] == once.table_with("In-domain accuracy")["LP"]
    assert "Downstream, by method: vit_tiny" in page.text


def with_sweep(rows, gain):
    """`rows` with their λ written, and NMTune's heads at λ = 0 and 0.1 as `gain[λ]` has them."""
    own = [
        {**r, "weights": [0.01] * 3} if r.get("method") == "nmtune" else r for r in rows
    ]  # fmt: skip
    swept = [
        {**r, "weights": [weight] * 3}
        | {name: r[name] + gain[weight] for name in ("value", "low", "high")}
        for r in rows
        if r.get("method") == "nmtune"
        for weight in gain
    ]
    return own + swept


def test_a_sweep_of_lambda_is_a_section_of_its_own(study, built, tmp_path):
    rows = [json.loads(text) for text in (study / "records.jsonl").read_text().splitlines()]
    rows = [r for r in rows if r["stage"] != "probe" or r["metric"] == "accuracy"]
    write_lines(tmp_path / "records.jsonl", with_sweep(rows, {0.1: 0.05}))
    page = Page(report.build(tmp_path).read_text())
    assert page.ids.index("spectrum") < page.ids.index("sweep") < page.ids.index("tasks")
    assert "sweep" not in built[1].ids
    # The rest of the page is of the preset's λ, as if there were no sweep.
    assert page.findings == built[1].findings
    for title in ("In-domain accuracy, % (12 tasks)", "SVE"):
        assert page.table_with(title) == built[1].table_with(title)
    frame = pd.DataFrame(rows)
    probe = frame[(frame.stage == "probe") & (frame["shift"] == "ood")]
    means = probe.groupby(["method", "noise_rate"]).value.mean() * 100
    shown = {r[0]: r[1:] for t in page.tables for r in t if r[0].startswith("λ = ") and r[1] < "7"}
    assert shown["λ = 0"] == [f"{m:.1f}" for m in means["mlp"]]  # tuning without the terms
    assert shown["λ = 0.01"] == [f"{m:.1f}" for m in means["nmtune"]]
    assert shown["λ = 0.1"] == [f"{m + 5:.1f}" for m in means["nmtune"]]
    figures_drawn = {i.removeprefix("figure-") for i in page.ids if i.startswith("figure-sweep")}
    for name in ("ood", "id", "gain-ood", "gain-id", "sve", "lsvr"):
        assert f"sweep-{name}-resnet-w16" in figures_drawn


def test_changes_from_no_lambda_are_paired_by_head(study):
    records = pd.read_json(study / "records.jsonl", lines=True, precise_float=True)
    rows = [r for r in records.to_dict("records") if r["stage"] == "probe"]
    frame = artifacts.tidy(with_sweep(rows, {0.0: 0.0, 0.1: -0.03}), [])
    found = sweep.rows_of(tables.prepare(frame))
    assert sorted(found["label"].unique()) == ["0", "0.01", "0.1"]
    scores = tables.probe_scores(found, shift="ood", metric="accuracy")
    changes = sweep.changes_from_none(scores).set_index("label")
    ood = frame[(frame["shift"] == "ood") & (frame.metric == "accuracy")]
    zero = (ood.method == "mlp") | (ood.weights == "[0.0, 0.0, 0.0]")
    by_head = ood.assign(lam=ood.weights.where(~zero, "0")).groupby(["task", "source", "lam"])
    # λ = 0 is the mean of MLP tuning and of NMTune's head of weight 0, cell by cell.
    wide = by_head.value.mean().unstack()
    difference = wide["[0.1, 0.1, 0.1]"] - wide["0"]
    expected = paired.signed_rank(difference)
    assert changes.loc["0.1", "value"] == pytest.approx(expected.effect)
    assert changes.loc["0.1", "low"] == pytest.approx(expected.low)
    assert changes.loc["0.1", "n"] == HEADS


@pytest.mark.usefixtures("unsaved")
def test_bad_lines_are_skipped_and_named(study, tmp_path, capsys):
    text = (study / "records.jsonl").read_text().splitlines()
    text[2] = text[2][:30]
    text.append(text[-1])
    text.append('{"stage": "probe", "metric": "accuracy", "value": NaN}')
    (tmp_path / "records.jsonl").write_text("\n".join(text))
    (tmp_path / "config.json").write_text("{")
    page = Page(report.build(tmp_path).read_text())
    assert "records.jsonl, line 3: not a JSON object" in page.text
    assert "1 records were written again" in page.text
    assert "1 records have no finite value" in page.text
    assert "config.json: not a JSON dict" in page.text
    assert "manifests.jsonl: no such file" in page.text
    assert command.main([str(tmp_path)]) == 0
    out, error = capsys.readouterr()
    assert out.strip() == str(tmp_path / "report" / "index.html")
    assert "report: records.jsonl, line 3: not a JSON object" in error
    assert "report: examples.json: no such file" in error
    assert all(line.startswith("report: ") for line in error.splitlines())


@pytest.mark.usefixtures("unsaved")
def test_all_commits_are_listed(study, tmp_path):
    rows = [json.loads(text) for text in (study / "records.jsonl").read_text().splitlines()]
    page = Page(report.build(study, tmp_path / "one").read_text())
    assert "at commit 0123456789abcd:" in page.text
    assert "commits are mixed" not in page.text
    rows[-1]["commit"] = "fedcba9876543210"
    write_lines(tmp_path / "records.jsonl", rows)
    (tmp_path / "environment.json").write_text(
        json.dumps({"command": "study", "commits": [COMMON["commit"], "aaaa0000"]})
    )
    page = Page(report.build(tmp_path).read_text())
    assert "at commits 0123456789abcd, fedcba98765432, aaaa0000:" in page.text
    assert "Stages made by 3 commits are mixed" in page.text


def test_layout_has_no_boxes_of_fixed_height(built):
    text = (built[0] / "index.html").read_text()
    assert "max-height" not in text
    assert re.search(r"\.scroll \{ overflow-x: auto;[^}]*linear-gradient", text)  # the cue
    assert "overflow-y" not in text
    printed = text[text.index("@media print") :].splitlines()[0]
    assert ".scroll { overflow: visible; background: none; }" in printed


@pytest.mark.usefixtures("unsaved")
def test_mistakes_get_one_line(study, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank").mkdir()
    (tmp_path / "blank" / "records.jsonl").write_text("\n")
    (tmp_path / "file").write_text("")
    (tmp_path / "words").mkdir()
    write_lines(tmp_path / "words" / "records.jsonl", [{"metric": "accuracy", "value": "high"}] * 2)
    for arguments, words in (
        ([str(tmp_path / "none")], "no such folder"),
        ([str(tmp_path / "empty")], "no such file"),
        ([str(tmp_path / "blank")], "no readable record"),
        ([str(tmp_path / "words")], "none of its 2 records has a metric and a finite number"),
        ([str(study), "--out", str(tmp_path / "file" / "out")], "cannot write the report"),
    ):
        assert command.main(arguments) == 1
        out, error = capsys.readouterr()
        assert out == ""
        assert error.count("\n") == 1
        assert words in error
    assert command.main([str(study), "--out", str(tmp_path / "good")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "good" / "index.html")


def test_help_says_what_is_read(capsys):
    with pytest.raises(SystemExit, match="0"):
        command.main(["--help"])
    text = capsys.readouterr().out
    assert "records.jsonl" in text
    assert "--out" in text


def test_pretraining_verdict_follows_the_paired_interval(study, tmp_path):
    rows = [json.loads(text) for text in (study / "records.jsonl").read_text().splitlines()]
    changes = [r for r in rows if r["metric"] == "accuracy_change"]

    def found_with(interval):
        """The finding where each γ changed by −2 points, with this interval."""
        for row in changes:
            row |= {"value": -0.02, "low": interval[0], "high": interval[1]}
        write_lines(tmp_path / "records.jsonl", rows)
        return collected(tmp_path)["pretrain"]

    found = found_with((-0.03, -0.01))
    assert found.verdict == "seen"
    assert found.headline.startswith("Pre-training accuracy falls with γ: \N{MINUS SIGN}2.00")
    assert (found.low, found.high) == pytest.approx((-3, -1))
    # Two half-widths from 0 are 2 · 1.96 standard errors.
    assert found.p == pytest.approx(2 * stats.norm.sf(2 * stats.norm.ppf(0.975)))
    assert "Paired cluster bootstrap over concepts" in found.test
    assert "these particular models" in found.scope
    assert found.by_part.count("[\N{MINUS SIGN}3.00,\N{NO-BREAK SPACE}\N{MINUS SIGN}1.00]") == 4
    assert found_with((-0.041, 0.001)).verdict == "not seen"
    # Without a clean model there are no changes, and the five models themselves are tested.
    write_lines(tmp_path / "records.jsonl", [r for r in rows if r not in changes])
    found = collected(tmp_path)["pretrain"]
    assert (found.verdict, found.p) == ("seen", pytest.approx(2 / 120))


def test_spectral_trend_has_models_as_units(study, tmp_path):
    rows = [json.loads(text) for text in (study / "records.jsonl").read_text().splitlines()]
    frame = pd.DataFrame(rows)
    sve = frame[(frame.metric == "sve") & frame.method.isna()]
    means = sve.groupby("noise_rate").value.mean()
    expected = stats.kendalltau(means.index, means, method="exact")
    found = collected(study)["sve"]
    assert (found.effect, found.p) == pytest.approx((expected.statistic, expected.pvalue))
    assert (found.p, found.attainable) == pytest.approx((2 / 120, 2 / 120))
    assert "over 5 models within a pre-training seed" in found.test
    assert found.by_part.startswith("From γ = 0\N{NO-BREAK SPACE}% to 30\N{NO-BREAK SPACE}%")
    assert f"by {means[0.3] - means[0.0]:+.3f} nats [" in found.by_part

    # Feature sets of other levels, one of them missing in a model, leave the order as it is.
    def shifted(row):
        far = row["stage"] == "spectrum" and row["target"] == "noto"
        return {**row, "value": row["value"] + 50} if far else row

    def kept(row):
        return (row["stage"], row.get("target"), row["noise_rate"]) != ("spectrum", "noto", 0.2)

    write_lines(tmp_path / "records.jsonl", [shifted(row) for row in rows if kept(row)])
    assert collected(tmp_path)["sve"].p == pytest.approx(2 / 120)
    # Copies of the feature sets are no more models.
    copies = [{**r, "target": f"{r['target']}2"} for r in rows if r["stage"] == "spectrum"]
    write_lines(tmp_path / "records.jsonl", rows + copies)
    assert collected(tmp_path)["sve"].p == pytest.approx(2 / 120)


def asked(key, p, attainable=1e-4, **more):
    words = {"change": f"change of {key}", "up": f"{key} rises", "down": f"{key} falls"}
    given = {"effect": -5.2, "low": -10.1, "high": -0.4, "p": p, "attainable": attainable}
    return findings.Finding(key, **{**words, **given, **more})


def test_headline_never_contradicts_its_interval():
    family = [asked("a", 0.03), asked("b", 0.04, 0.03), asked("c", 0.2), asked("d", 0.9, high=2.0)]
    a, b, c, d = findings.corrected(family)
    assert (a.verdict, b.verdict, c.verdict, d.verdict) == (
        *("not seen", "too few"),
        *("not seen", "not seen"),
    )
    shown = "\N{MINUS SIGN}5.20\N{NO-BREAK SPACE}points"
    assert a.headline.startswith(f"a falls: {shown}")
    assert a.headline.endswith("], but not after correction for 4 questions.")
    assert a.short == a.headline.removesuffix(".")
    assert b.headline.startswith(f"b falls: {shown}")
    assert b.short.endswith("but the data are too few after correction for 4 questions")
    assert c.headline.startswith("No change of c is seen")
    assert c.headline.endswith("], though the interval leaves out 0.")
    assert d.headline.endswith("+2.00].")


def test_a_check_is_outside_the_correction():
    questions_asked = [asked("a", 0.02), asked("b", 0.04)]
    check, *others = findings.corrected([asked("check", 0.03, check=True), *questions_asked])
    assert [f.p_holm for f in others] == pytest.approx([0.04, 0.04])
    assert (check.verdict, check.p_holm, check.family) == ("seen", 0.03, 2)
    assert "outside the correction" in check.p_text
    assert check.short.endswith("(a check of the set-up)")
    assert "Holm" in others[0].p_text


def test_tests_of_one_size_are_too_few_alike():
    """Zero differences do not set two tests of nine pairs apart."""
    signs = np.array([1, -1, 1, -1, 1, -1, 1, 1, -1])
    zeros = np.array([0, 0, 1, -1, 1, -1, 1, 1, 1])
    sizes = np.arange(1.0, 10)
    tests = [paired.signed_rank(sizes * by) for by in (signs, zeros, 1)]
    assert {test.attainable for test in tests} == {2 / 2**9}
    filler = [asked(f"f{i}", 0.9) for i in range(10)]
    found = [asked(f"t{i}", test.p, test.attainable) for i, test in enumerate(tests)]
    verdicts = [finding.verdict for finding in findings.corrected([*found, *filler])[:3]]
    assert verdicts == ["too few"] * 3  # 13 questions: 13 · 2/2⁹ = 0.051
    verdicts = [finding.verdict for finding in findings.corrected([*found, *filler[:9]])[:3]]
    assert verdicts == ["not seen", "not seen", "seen"]


def test_mean_spectrum_is_over_the_sets_that_every_level_has():
    def row(rate, domain, sigmas, probe_seed=0):
        return {"noise_rate": rate, "domain": domain, "singular_values": sigmas} | {
            "probe_seed": probe_seed
        }

    rows = [row(0.0, "a", [3, 1]), row(0.0, "a", [1, 1], 1), row(0.1, "a", [4, 1])]
    curves = figures.mean_spectra([*rows, row(0.1, "b", [1, 1])])
    np.testing.assert_allclose(curves[0.0], [0.625, 0.375])
    np.testing.assert_allclose(curves[0.1], [0.8, 0.2])


def test_gains_pair_the_same_task(study):
    records = tables.prepare(artifacts.load(study).records)
    scores = tables.probe_scores(records, shift="ood", metric="accuracy")
    values = scores[scores.noise_rate == 0.1].pivot_table(
        index=["task", "source"], columns="method", values="value"
    )
    expected = paired.signed_rank(values["nmtune"] - values["lp"])
    gain = tables.paired_gains(scores, "label").set_index(["noise_rate", "label"])
    assert tuple(gain.loc[(0.1, "NMTune"), ["value", "low", "high"]]) == pytest.approx(expected[:3])
    assert gain.loc[(0.1, "NMTune"), "n"] == HEADS


def test_gains_are_walsh_medians(study):
    frame = pd.read_json(study / "records.jsonl", lines=True, precise_float=True)
    rows = frame[(frame.stage == "probe") & (frame["shift"] == "id") & (frame.metric == "accuracy")]
    records = tables.prepare(artifacts.load(study).records)
    scores = tables.probe_scores(records, shift="id", metric="accuracy")
    means = rows.groupby(["task", "source", "method", "noise_rate"]).value.mean()
    over_lp = tables.paired_gains(scores, "label").set_index(["noise_rate", "label"]).value
    wide = means.unstack("method")
    d = (wide.nmtune - wide.lp).xs(0.1, level="noise_rate").to_numpy()
    walsh = [(d[i] + d[j]) / 2 for i in range(HEADS) for j in range(i, HEADS)]
    assert over_lp[0.1, "NMTune"] == pytest.approx(np.median(walsh))
    by_rate = tables.paired_gains(scores, "noise_rate").set_index(["noise_rate", "label"]).value
    wide = means.unstack("noise_rate").xs("lp", level="method")
    d = (wide[0.3] - wide[0.0]).to_numpy()
    walsh = [(d[i] + d[j]) / 2 for i in range(HEADS) for j in range(i, HEADS)]
    assert by_rate[0.3, "LP"] == pytest.approx(np.median(walsh))
    assert (0.0, "LP") not in by_rate.index


def test_signed_rank_against_brute_force():
    rng = np.random.default_rng(0)
    d = rng.normal(0.4, 1, 9)
    test = paired.signed_rank(d)
    ranks = stats.rankdata(np.abs(d))
    sums = np.array([ranks @ s for s in itertools.product((0, 1), repeat=9)])
    observed = ranks[d > 0].sum()
    tail = min(np.mean(sums <= observed), np.mean(sums >= observed))
    assert test.p == pytest.approx(min(1, 2 * tail))
    assert test.attainable == pytest.approx(2 / 2**9)

    def p_at(shift):
        return stats.wilcoxon(d - shift).pvalue

    # The interval holds exactly the shifts that the test does not reject.
    assert p_at(test.low - 1e-6) <= 0.05 < p_at(test.low + 1e-6)
    assert p_at(test.high + 1e-6) <= 0.05 < p_at(test.high - 1e-6)
    assert np.isnan(paired.signed_rank(d[:5]).low)
    assert paired.signed_rank(np.zeros(8)).p == 1


def test_blocked_kendall_is_kendall_for_one_block_and_enumeration_for_two():
    rng = np.random.default_rng(1)
    x, y = np.arange(6.0), rng.normal(size=6)
    one = paired.kendall_in_blocks([(x, y)])
    expected = stats.kendalltau(x, y, method="exact")
    assert (one.effect, one.p) == pytest.approx((expected.statistic, expected.pvalue))
    assert paired.kendall_in_blocks([(np.arange(5.0), np.arange(5.0))]).p == pytest.approx(2 / 120)
    x, y, z = np.arange(4.0), rng.normal(size=4), rng.normal(size=4)

    def score(values):
        return sum(np.sign(values[j] - values[i]) for i in range(4) for j in range(i + 1, 4))

    null = [
        score(a) + score(b) for a in itertools.permutations(y) for b in itertools.permutations(z)
    ]
    two = paired.kendall_in_blocks([(x, y), (x, z)])
    observed = abs(score(y) + score(z))
    assert two.p == pytest.approx(np.mean(np.abs(null) >= observed))


def test_holm_against_its_definition():
    np.testing.assert_allclose(paired.holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])


@pytest.mark.parametrize(
    ("value", "low", "high", "p"),
    [
        (0.5, 0.0, 1.2, 0.05),  # 0 on the edge: exactly the level
        (-0.5, -0.9, 0.0, 0.05),
        (1.0, 0.9, 5.0, 0.0),  # ten half-widths from 0
        (0.0, -1.0, 2.0, 1.0),
        (0.0, 0.0, 0.0, 1.0),
        (0.5, 0.5, 0.5, 0.0),
    ],
)
def test_p_of_an_interval_is_below_the_level_where_it_excludes_zero(value, low, high, p):
    assert paired.p_of_interval(value, low, high) == pytest.approx(p, abs=1e-12)
