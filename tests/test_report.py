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
        truth = {"stage": "pretrain", "dataset": "emoji_domains", "labels": "subcategory"}
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
                here_too |= {"labels": "category", "source": domain, "preset": "paper"}
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
                        {**here, "stage": "probe", "dataset": "emoji_domains", "labels": task}
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
    means = sve[sve["shift"] == "id"].groupby("noise_rate").value.mean()
    assert page.table_with("SVE of F, in-domain")["Features F"] == [f"{m:.3f}" for m in means]
    means = sve[sve["shift"] == "ood"].groupby("noise_rate").value.mean()
    assert page.table_with("SVE of F, out-of")["Features F"] == [f"{m:.3f}" for m in means]
    assert "Changed labels that the model predicts, %" in page.text
    assert "not measured in every cell" not in page.text


def test_one_seed_is_described_and_methods_are_judged_over_tasks(built):
    _, page = built
    for key in ("pretrain", "slight 0.05", "slight 0.1", "ood", "sve", "lsvr", "lsvr ood"):
        assert page.findings[key] == "described"
    assert page.findings["nmtune lp ood"] == page.findings["nmtune mlp ood"] == "seen"
    assert page.findings["nmtune lp id"] == page.findings["nmtune mlp id"] == "not seen"
    for needle in (
        "NMTune (MLP and terms) is above LP in out-of-domain",
        "No difference of in-domain accuracy between NMTune (MLP and terms) and LP is seen",
        "1 pre-training seed: it speaks of these 5 models only",
        "not of what pre-training would give again",
        "over the 4 questions judged here",
    ):
        assert needle in page.text
    described = page.text.split("Change of out-of-domain accuracy")[1].split("Not seen")[0]
    assert " p " not in described
    for claim in ("falls with γ", "did to", "Too few", "may have hidden"):
        assert claim not in page.text


@pytest.fixture(scope="module")
def repeated(tmp_path_factory):
    """A study of four pre-training seeds."""
    folder = tmp_path_factory.mktemp("repeated") / "run"
    return write_study(folder, seeds=(0, 1, 2, 3), probe_seeds=(0,), rates=(0.0, 0.1, 0.3))


def test_planted_effects_are_seen_and_planted_nulls_are_not(repeated):
    verdicts = {key: found.verdict for key, found in collected(repeated).items()}
    assert verdicts["pretrain"] == verdicts["ood"] == verdicts["sve"] == "seen"
    assert verdicts["nmtune lp ood"] == verdicts["nmtune mlp ood"] == "seen"
    assert verdicts["nmtune lp id"] == verdicts["nmtune mlp id"] == "not seen"
    assert verdicts["slight 0.1"] == "not seen"


@pytest.mark.usefixtures("unsaved")
def test_effects_of_the_other_sign_are_worded_so(tmp_path):
    def harmful(shift, method, rate):
        return 0.3 * rate - (0.05 if method == "nmtune" else 0)

    write_study(tmp_path / "run", effect=harmful, seeds=(0, 1, 2), rates=(0.0, 0.1, 0.3))
    text = report.build(tmp_path / "run").read_text()
    assert "NMTune (MLP and terms) is below LP in in-domain accuracy" in text
    assert "Out-of-domain accuracy (LP) rises with γ" in text


def by_hand(folder, shift):
    """Accuracy in points by (seed, γ, method, task), everything else averaged."""
    frame = pd.read_json(folder / "records.jsonl", lines=True, precise_float=True)
    rows = frame[
        (frame.stage == "probe") & (frame["shift"] == shift) & (frame.metric == "accuracy")
    ]
    return rows.groupby(["seed", "noise_rate", "method", "labels"]).value.mean() * 100


def test_methods_are_compared_over_tasks_as_scipy_does(study):
    means = by_hand(study, "ood").unstack("method")
    # γ, artists, targets and probe seeds do not multiply the evidence: a pair is a task.
    difference = (means.nmtune - means.lp).groupby("labels").mean()
    found = collected(study)["nmtune lp ood"]
    expected = stats.ttest_1samp(difference, 0)
    assert sorted(found.differences) == pytest.approx(sorted(difference))
    assert len(difference) == len(TASKS)
    assert (found.effect, found.p) == pytest.approx((difference.mean(), expected.pvalue))
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    mlp = (means.mlp - means.lp).groupby("labels").mean().mean()
    assert f"differs from LP by {tables.signed(mlp, 2)}" in found.by_part
    assert f"over {len(TASKS)} tasks; one number a task" in found.test


def test_noise_is_judged_over_seeds_as_scipy_does(repeated):
    found = collected(repeated)
    lp = by_hand(repeated, "id").xs("lp", level="method").groupby(["seed", "noise_rate"]).mean()
    lp = lp.unstack()
    expected = stats.ttest_rel(lp[0.1], lp[0.0])
    assert found["slight 0.1"].p == pytest.approx(expected.pvalue)
    assert found["slight 0.1"].differences == pytest.approx((lp[0.1] - lp[0.0]).tolist())
    lp = by_hand(repeated, "ood").xs("lp", level="method").groupby(["seed", "noise_rate"]).mean()
    slopes = [stats.linregress(row.index, row).slope * 0.3 for _, row in lp.unstack().iterrows()]
    expected = stats.ttest_1samp(slopes, 0)
    assert found["ood"].differences == pytest.approx(slopes)
    assert (found["ood"].effect, found["ood"].p) == pytest.approx(
        (np.mean(slopes), expected.pvalue)
    )
    assert "Student's t over 4 pre-training seeds" in found["ood"].test
    assert "By pre-training seed: seed 0 " in found["ood"].by_part


def test_too_few_tasks_leave_the_seeds_and_too_few_of_both_are_described(repeated, tmp_path):
    rows = [json.loads(text) for text in (repeated / "records.jsonl").read_text().splitlines()]
    rows = [r for r in rows if r["stage"] != "probe" or r["labels"] in ("subject", "gender")]
    write_lines(tmp_path / "records.jsonl", rows)
    found = collected(tmp_path)["nmtune lp ood"]
    means = by_hand(tmp_path, "ood").unstack("method")
    seeds = (means.nmtune - means.lp).groupby("seed").mean()
    assert found.p == pytest.approx(stats.ttest_1samp(seeds, 0).pvalue)
    assert found.differences == pytest.approx(seeds.tolist())
    assert "not of other tasks" in found.scope
    assert "one number a seed: tasks, heads, domains" in found.test
    write_lines(tmp_path / "records.jsonl", [r for r in rows if r["seed"] < 2])
    found = collected(tmp_path)["nmtune lp ood"]
    assert (found.verdict, np.isnan(found.p), np.isnan(found.low)) == ("described", True, True)


def test_sve_is_of_in_domain_images_and_lsvr_of_the_others(repeated):
    frame = pd.read_json(repeated / "records.jsonl", lines=True, precise_float=True)
    frame = frame[(frame.stage == "spectrum") & frame.method.isna()]
    found = collected(repeated)
    for metric, shift in (("sve", "id"), ("lsvr", "ood")):
        rows = frame[(frame.metric == metric) & (frame["shift"] == shift)]
        wide = rows.groupby(["seed", "noise_rate"]).value.mean().unstack()
        slopes = [stats.linregress(row.index, row).slope * 0.3 for _, row in wide.iterrows()]
        assert found[metric].differences == pytest.approx(slopes)
        assert {"id": "in-domain", "ood": "out-of-domain"}[shift] in found[metric].headline
    ood = frame[(frame.metric == "lsvr") & (frame["shift"] == "ood")]
    lsvr = ood.groupby(["seed", "noise_rate"]).value.mean().unstack()
    lp = by_hand(repeated, "ood").xs("lp", level="method").groupby(["seed", "noise_rate"]).mean()
    r = [stats.pearsonr(a, b)[0] for a, b in zip(lsvr.values, lp.unstack().values, strict=True)]
    test = found["lsvr ood"]
    assert test.differences == pytest.approx(r)
    assert test.effect == pytest.approx(np.tanh(np.arctanh(r).mean()))
    assert test.p == pytest.approx(stats.ttest_1samp(np.arctanh(r), 0).pvalue)


def test_f_stands_beside_z_only_on_the_same_images(study, tmp_path):
    rows = [json.loads(text) for text in (study / "records.jsonl").read_text().splitlines()]
    spectra = [row for row in rows if row["stage"] == "spectrum"]
    frame = tables.prepare(artifacts.tidy(spectra, []))
    assert set(tables.same_images(frame, "sve", "id")["label"]) == {"MLP", "NMTune"}
    of_task = [
        {**r, "labels": "category", "value": r["value"] + 1, "low": None, "high": None}
        for r in spectra
        if r["method"] is None
    ]
    frame = tables.prepare(artifacts.tidy(spectra + of_task, []))
    found = tables.same_images(frame, "sve", "id")
    assert set(found["label"]) == {"Features F", "MLP", "NMTune"}
    whole = tables.feature_sets(frame, "sve", "id").groupby("noise_rate").value.mean()
    beside = found[found["label"] == "Features F"].groupby("noise_rate").value.mean()
    assert (beside - whole).tolist() == pytest.approx([1] * len(RATES))
    # Of other images, told by their number, it is not drawn.
    frame.loc[(frame["method"].isna()) & (frame["target"] == "noto"), "n"] = 799
    assert "Features F" not in set(tables.same_images(frame, "sve", "id")["label"])


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
    assert len(found["slight 0.1"].differences) == 4  # at γ = 0 and 10 % it is there


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


def test_means_have_intervals_over_seeds(repeated):
    records = tables.prepare(artifacts.load(repeated).records)
    shown = tables.summarise(
        tables.probe_scores(records, shift="id", metric="accuracy"), ["noise_rate", "label"]
    )
    cell = shown.iloc[0]
    rows = records[(records.stage == "probe") & (records["shift"] == "id")]
    rows = rows[(rows.metric == "accuracy") & (rows.noise_rate == cell.noise_rate)]
    seeds = rows[rows.label == cell.label].groupby("seed").value.mean()
    low, high = stats.t.interval(0.95, 3, seeds.mean(), stats.sem(seeds))
    assert (cell.value, cell.low, cell.high) == pytest.approx((seeds.mean(), low, high))


def test_a_task_counts_once_however_many_artists_drew_it():
    def row(task, source, value):
        about = {"model": "m", "seed": 0, "dataset": "d", "labels": task, "source": source}
        return {**about, "noise_rate": 0.0, "value": value, "low": value, "high": value}

    frame = pd.DataFrame([row("a", "x", 0.2), row("a", "y", 0.4), row("b", "x", 0.9)])
    assert tables.summarise(frame, ["noise_rate"]).value.item() == pytest.approx(0.6)
    frame["target"] = frame["source"]
    assert tables.sizes(frame) == "2 tasks, 3 heads"


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
        (lambda r: r["stage"] != "spectrum", "SVE of F, in-domain images: not recorded"),
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
        return late and r["labels"] == "skin_tone" and r["source"] == "noto"

    write_lines(tmp_path / "records.jsonl", [r for r in rows if not unfinished(r)])
    page = Page(report.build(tmp_path).read_text())
    assert f"1 of {HEADS} tests are not measured in every cell" in page.text
    frame = pd.DataFrame(rows)
    frame = frame[
        (frame.stage == "probe") & (frame["shift"] == "id") & (frame.metric == "accuracy")
    ]
    frame = frame[
        (frame.method == "lp") & ~((frame["labels"] == "skin_tone") & (frame.source == "noto"))
    ]
    # skin_tone has a head less, and counts as much as another task.
    means = frame.groupby(["noise_rate", "labels"]).value.mean().groupby("noise_rate").mean() * 100
    assert page.table_with("In-domain accuracy")["LP"] == [f"{m:.1f}" for m in means]


@pytest.mark.slow
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
    for title in ("In-domain accuracy, % (4 tasks, 12 heads)", "SVE of F"):
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


def test_changes_from_no_lambda_are_paired_by_task(study):
    records = pd.read_json(study / "records.jsonl", lines=True, precise_float=True)
    rows = [r for r in records.to_dict("records") if r["stage"] == "probe"]
    frame = artifacts.tidy(with_sweep(rows, {0.0: 0.0, 0.1: -0.03}), [])
    found = sweep.rows_of(tables.prepare(frame))
    assert sorted(found["label"].unique()) == ["0", "0.01", "0.1"]
    scores = tables.probe_scores(found, shift="ood", metric="accuracy")
    changes = paired.gains_over(scores, "0", "").set_index("label")
    ood = frame[(frame["shift"] == "ood") & (frame.metric == "accuracy")]
    zero = (ood.method == "mlp") | (ood.weights == "[0.0, 0.0, 0.0]")
    by_task = ood.assign(lam=ood.weights.where(~zero, "0")).groupby(["labels", "lam"])
    # λ = 0 is the mean of MLP tuning and of NMTune's head of weight 0, cell by cell.
    wide = by_task.value.mean().unstack()
    expected = stats.ttest_1samp(wide["[0.1, 0.1, 0.1]"] - wide["0"], 0)
    interval = expected.confidence_interval(0.95)
    assert changes.loc["0.1", "low"] == pytest.approx(interval.low)
    assert changes.loc["0.1", "high"] == pytest.approx(interval.high)


@pytest.mark.usefixtures("unsaved")
def test_records_that_do_not_say_where_or_mix_kinds_of_noise_are_told(study, tmp_path):
    rows = [json.loads(text) for text in (study / "records.jsonl").read_text().splitlines()]
    spectra = [r for r in rows if r["stage"] == "spectrum" and r["method"] is None]
    for row in spectra:
        del row["shift"]
    other = [{**r, "noise_kind": "asymmetric"} for r in rows if r["stage"] == "pretrain"]
    write_lines(tmp_path / "records.jsonl", rows + other)
    page = Page(report.build(tmp_path).read_text())
    assert f"{len(spectra)} records of a target have neither source nor shift" in page.text
    assert "mix kinds of noise (asymmetric, symmetric)" in page.text
    assert page.findings["sve"] == page.findings["lsvr"] == "missing"
    assert page.findings["pretrain"] == "described"


@pytest.mark.usefixtures("unsaved")
def test_bad_lines_are_skipped_and_named(study, tmp_path, capsys):
    text = (study / "records.jsonl").read_text().splitlines()
    text[2] = text[2][:30]
    text.append(text[-1])
    text.append('{"stage": "probe", "metric": "accuracy", "value": NaN}')
    text.append('{"stage": "probe", "metric": "accuracy", "value": 0.5, "seed": 0}')
    (tmp_path / "records.jsonl").write_text("\n".join(text))
    (tmp_path / "config.json").write_text("{")
    page = Page(report.build(tmp_path).read_text())
    assert "records.jsonl, line 3: not a JSON object" in page.text
    assert "1 records were written again" in page.text
    assert "1 records have no finite value" in page.text
    assert "1 records name no noise_rate or no seed" in page.text
    assert "config.json: not a JSON dict" in page.text
    assert "manifests.jsonl: no such file" in page.text
    assert command.main([str(tmp_path)]) == 0
    out, error = capsys.readouterr()
    assert out.strip() == str(tmp_path / "report" / "index.html")
    assert "report: records.jsonl, line 3: not a JSON object" in error
    assert "report: examples.json: no such file" in error
    assert all(line.startswith("report: ") for line in error.splitlines())


def test_published_records_are_read_from_parquet(study, built, tmp_path):
    (tmp_path / "records.parquet").write_bytes((built[0] / "records.parquet").read_bytes())
    pd.testing.assert_frame_equal(
        artifacts.load(tmp_path).records, artifacts.load(study).records, check_exact=False
    )


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


def test_pretraining_says_what_its_intervals_are_from(study, repeated, tmp_path):
    found = collected(study)["pretrain"]
    assert (found.verdict, found.check) == ("described", True)
    assert np.isnan(found.p)
    assert "95 % intervals from the sample of images alone: 5" in found.by_part
    assert found.by_part.count("[") == 4
    found = collected(repeated)["pretrain"]
    assert found.headline.startswith("Pre-training accuracy falls with γ: \N{MINUS SIGN}")
    assert "95 % intervals over pre-training runs: 10" in found.by_part
    # Without a clean model there are no changes, and the trend is as it was.
    rows = [json.loads(text) for text in (repeated / "records.jsonl").read_text().splitlines()]
    write_lines(tmp_path / "records.jsonl", [r for r in rows if r["metric"] != "accuracy_change"])
    assert collected(tmp_path)["pretrain"].p == found.p


def asked(key, p, **more):
    words = {"change": f"change of {key}", "up": f"{key} rises", "down": f"{key} falls"}
    given = {"effect": -5.2, "low": -10.1, "high": -0.4, "p": p, "df": 4, "verdict": "described"}
    return findings.Finding(key, **{**words, **given, **more})


def test_headline_never_contradicts_its_interval():
    family = [asked("a", 0.03), asked("b", 0.001), asked("c", 0.2, high=2.0)]
    family.append(asked("d", np.nan, low=np.nan, high=np.nan))
    a, b, c, d = findings.corrected(family)
    assert [f.verdict for f in (a, b, c, d)] == ["not seen", "seen", "not seen", "described"]
    shown = "\N{MINUS SIGN}5.20\N{NO-BREAK SPACE}points"
    assert a.headline.startswith(f"a falls: {shown}")
    assert a.headline.endswith("], but not after correction for 3 questions.")
    assert a.short == a.headline.removesuffix(".")
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
    assert check.short.endswith("(a check of the set-up)")
    assert "Holm" in others[0].p_text


def test_mean_spectrum_is_over_the_sets_that_every_level_has():
    def row(rate, domain, sigmas, probe_seed=0):
        return {"noise_rate": rate, "domain": domain, "singular_values": sigmas} | {
            "probe_seed": probe_seed
        }

    rows = [row(0.0, "a", [3, 1]), row(0.0, "a", [1, 1], 1), row(0.1, "a", [4, 1])]
    curves = figures.mean_spectra([*rows, row(0.1, "b", [1, 1])])
    np.testing.assert_allclose(curves[0.0], [0.625, 0.375])
    np.testing.assert_allclose(curves[0.1], [0.8, 0.2])


def test_gains_over_lp_are_over_tasks_and_changes_over_seeds(study, repeated):
    def scores(folder):
        records = tables.prepare(artifacts.load(folder).records)
        return tables.probe_scores(records, shift="ood", metric="accuracy")

    means = by_hand(study, "ood").xs(0.1, level="noise_rate").unstack("method")
    interval = stats.ttest_1samp((means.nmtune - means.lp) / 100, 0).confidence_interval(0.95)
    gain = paired.gains_over(scores(study), "LP", "noise_rate")
    gain = gain.set_index(["noise_rate", "label"]).loc[(0.1, "NMTune")]
    assert (gain.low, gain.high) == pytest.approx((interval.low, interval.high))
    changes = paired.changes_from_clean(scores(study)).set_index(["label", "noise_rate"])
    assert changes.loc[("LP", 0.1), ["low", "high"]].isna().all()  # one seed
    changes = paired.changes_from_clean(scores(repeated)).set_index(["label", "noise_rate"])
    lp = by_hand(repeated, "ood").xs("lp", level="method").groupby(["seed", "noise_rate"]).mean()
    expected = stats.ttest_rel(lp.unstack()[0.3] / 100, lp.unstack()[0.0] / 100)
    interval = expected.confidence_interval(0.95)
    found = changes.loc[("LP", 0.3)]
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
