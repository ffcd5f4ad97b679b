"""The report on made-up records."""

import base64
import html.parser
import itertools
import json
import re

import numpy as np
import pandas as pd
import pytest
from made_up_study import (
    COMMON,
    HEADS,
    RATES,
    by_hand,
    collected,
    with_sweep,
    write_lines,
    write_study,
)
from PIL import Image
from scipy import stats

from noisy_fm import record, report
from noisy_fm.report import __main__ as command
from noisy_fm.report import artifacts, figures, overview, paper, tables


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
        if tag not in ("meta", "link", "img", "br", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in ("meta", "link", "img", "br", "input"):
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
        figures.Studio, "save", lambda _, canvas, name, alt, *more: figures.Drawing(name, "", alt)
    )
    monkeypatch.setattr(figures, "tile", lambda *given: None)


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


def test_captions_zero_shot_and_retrieval_are_drawn_and_named(tmp_path):
    write_study(tmp_path / "run", seeds=(0, 1, 2))
    path = tmp_path / "run" / "records.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    about = next(row for row in rows if row["metric"] == "accuracy" and row["stage"] == "pretrain")
    for rate, seed in itertools.product(RATES, range(3)):
        for metric in ("category/zero_shot", "unseen/to_text/R@10", "unseen/to_text/R@1"):
            numbers = {"noise_rate": rate, "seed": seed, "value": 0.4 - rate / 2 + seed / 100}
            rows.append({**about, "metric": metric, **numbers, "low": 0.1, "high": 0.5})
    rows = [{**row, "noise_kind": "captions"} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    logged = [
        {"model": about["model"], "noise_rate": rate, "seed": seed, "step": step}
        | {"loss": 5 - step / 10 + rate + seed / 10, "scale": 14.0 + step}
        for rate, seed, step in itertools.product(RATES, range(2), (10, 20))
    ]
    record.write(tmp_path / "run" / "training.jsonl", logged)
    near = {"captions": ["a cat", "b dog", "c owl"], "cosines": np.eye(3)[[0, 1, 1]].tolist()}
    near |= {"model": about["model"], "noise_rate": RATES[-1]}
    (tmp_path / "run" / "similarity.json").write_text(json.dumps([near]))
    html = report.build(tmp_path / "run").read_text()
    page = Page(html)
    drawn = {one for one in page.ids if "figure" in one}
    assert {"zero-shot-resnet-w16-figure_1", "r10-resnet-w16-figure_1"} <= drawn
    assert {"training-loss-resnet-w16-figure_1", "training-scale-resnet-w16-figure_1"} <= drawn
    assert "first to last: 4.05 to 3.05 at γ = 0" in html
    assert "2 of 3 images are nearest to their own caption" in html
    assert "swapped captions were memorised" in page.text
    assert "Swapped captions that the model repeats" in page.text
    for name in ("Unseen/to text/R@10, %", "Category/zero shot, %"):
        assert name in page.text
    runs = pd.read_csv(tmp_path / "run" / "report" / "runs.csv")
    assert runs.filter(like="Retrieval, R@10").size


def test_page_is_self_contained_and_complete(built):
    folder, page = built
    local = ("#", "data:image/png;base64,", "data:text/csv;", "records.", "runs.csv", "figures/")
    assert [r for r in page.resources if not r.startswith(local)] == []
    text = (folder / "index.html").read_text()
    assert "@import" not in text
    assert "<script" not in text
    assert "url(http" not in text
    assert """Content-Security-Policy" content="default-src 'none'; style-src""" in text
    sections = [
        "statement",
        "overview",
        "wrong",
        "findings",
        "pretraining",
        "downstream",
        "spectrum",
        "tasks",
    ]
    assert {*sections, "noise", "run"} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids)), "the inline SVGs' ids meet"
    assert 'alt="concept &lt;0&gt;"' in text
    assert "concept <0>" not in text
    shown = "python -m noisy_fm.study \\\n    --x=1"  # which a shell reads as one line
    for needle in ("1,200 steps", shown, "c0ffee12", "abc300"):
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
    (cells,) = (rows for rows in page.tables if rows[1][0] == "Accuracy, %")
    shown = {row[0]: row[1:] for row in cells}
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
    assert "Changed supervision that the model repeats, %" in page.text
    assert "not measured in every cell" not in page.text


def test_one_seed_is_described(built):
    _, page = built
    assert set(page.findings.values()) == {"described"}
    for needle in (
        "Difference of out-of-domain accuracy between NMTune and MLP tuning",
        "1 pre-training seed: it speaks of these 5 models only",
        "Nothing could be judged here",
    ):
        assert needle in page.text
    described = page.text.split("Change of out-of-domain accuracy")[1]
    assert " p = " not in described
    assert " p < " not in described
    for claim in ("falls with γ", "did to", "Too few", "may have hidden"):
        assert claim not in page.text


def test_the_first_screen_shows_every_run(repeated):
    path = report.build(repeated)
    text, page = path.read_text(), Page(path.read_text())
    lp, mlp, nmtune = (by_run(repeated, "ood", name) for name in ("lp", "mlp", "nmtune"))
    title = page.text.split("\n:root")[0]
    assert title.strip().startswith("With wrong labels in pre-training, from γ = 0 % to 30 %, ")
    change = lp[0.3] - lp[0.0]
    low, high = stats.ttest_1samp(change, 0).confidence_interval(0.95)
    shown = [tables.signed(value, 1) for value in (change.mean(), low, high)]
    assert "out-of-domain accuracy falls ({} points [{}, {}])".format(*shown) in title
    assert "the spectrum flattens (SVE +" in title
    assert "Mean of 4 tasks, each weighted alike." in page.text
    runs = pd.read_csv(path.parent / "runs.csv").set_index(["seed", "noise_rate"])
    for column, expected in (
        ("Out-of-domain accuracy: LP", lp),
        ("Difference between heads, out-of-domain: MLP − LP", mlp - lp),
        ("Difference between heads, out-of-domain: NMTune − MLP", nmtune - mlp),
    ):
        np.testing.assert_allclose(runs[column], expected.stack())
    every = page.tables[page.captions.index("Every run")]
    assert every[1][:3] == ["0", "0", f"{runs.iloc[0, 0]:.4g}"]
    assert len(every) == 1 + lp.size
    encoded = text.split("data:text/csv;charset=utf-8;base64,")[1].split('"')[0]
    assert base64.b64decode(encoded).decode() == (path.parent / "runs.csv").read_text()
    # Under the pointer a dot says which run it is.
    dot = f"<title>seed 2, 30\N{NO-BREAK SPACE}%: {lp.loc[2, 0.3]:.4g}</title>"
    figure = text.split('id="figure-accuracy-ood-resnet-w16"')[1].split("</figure>")[0]
    assert dot in figure
    assert figure.count("<title>seed ") == 3 * lp.size
    assert page.text.count("At γ = 30 %, 40 % of the wrong labels were memorised: not learned") == 2
    assert (path.parent / "figures" / "overview-resnet-w16.png").stat().st_size > 10_000


def by_run(folder, shift, method):
    """Accuracy in points [seeds × γ], tasks counting alike."""
    means = by_hand(folder, shift).xs(method, level="method")
    return means.groupby(["seed", "noise_rate"]).mean().unstack()


@pytest.mark.slow
def test_the_map_of_tasks_shows_changes_and_which_are_clear(repeated):
    page = Page(report.build(repeated).read_text())
    frame = pd.read_json(repeated / "records.jsonl", lines=True, precise_float=True)
    rows = frame[(frame.stage == "probe") & (frame.metric == "accuracy") & (frame.method == "lp")]
    shown = {row[0]: row[1:] for row in page.tables[page.captions.index("Out-of-domain")]}
    marks = []
    outside = rows[rows.source != rows.target]
    for (labels, source, target), test in outside.groupby(["labels", "source", "target"]):
        wide = test.groupby(["seed", "noise_rate"]).value.mean().unstack() * 100
        cells = shown[f"{labels}, {source} → {target}"]
        assert cells[0] == f"{wide[0.0].mean():.1f}"
        for cell, rate in zip(cells[1:], sorted(wide)[1:], strict=True):
            change = wide[rate] - wide[0.0]
            interval = stats.ttest_1samp(change, 0).confidence_interval(0.95)
            marks.append(bool(interval.low > 0 or interval.high < 0))
            assert cell == tables.signed(change.mean(), 1) + (" ●" if marks[-1] else "")
    assert set(marks) == {True, False}  # or the mark would say nothing


@pytest.mark.slow
def test_heads_that_are_still_learning_are_told(repeated, tmp_path):
    rows = [json.loads(text) for text in (repeated / "records.jsonl").read_text().splitlines()]
    records = tables.prepare(artifacts.tidy(rows, []))
    assert overview.still_learning(records) == {}  # their losses are not recorded
    heads = [r for r in rows if r["stage"] == "probe" and r["metric"] == "accuracy"]
    fell = {"lp": (1.9, 1.7), "mlp": (0.05, 0.01), "nmtune": (0.4, 0.35)}
    for head in [r for r in heads if r["source"] == r["target"]]:
        halfway, last = fell[head["method"]]
        if head["labels"] == "subject":  # one task of four is not averaged out
            rows.append({**head, "metric": "train_loss_halfway", "value": halfway})
        elif head["method"] == "nmtune" and head["labels"] == "gender":
            last = 0.01  # a single epoch: nobody knows
        else:
            rows.append({**head, "metric": "train_loss_halfway", "value": last})
        rows.append({**head, "metric": "train_loss", "value": last})
    write_lines(tmp_path / "records.jsonl", rows)
    page = Page(report.build(tmp_path).read_text())
    assert page.text.count("heads were still learning") == 2
    assert "LP's heads were still learning on subject: the second half" in page.text
    assert "NMTune's heads were still learning on gender: " in page.text
    assert page.text.count("(LP still learning)") == 2  # MLP − LP, in domain and out of it
    assert page.text.count("(LP and NMTune still learning)") == 2  # the two rectifications


@pytest.mark.usefixtures("unsaved")
@pytest.mark.slow
def test_two_regimes_stand_side_by_side(repeated, tmp_path, capsys):
    other = write_study(
        tmp_path / "augmented",
        effect=lambda shift, method, rate: 0.1 * rate,
        seeds=(0, 1, 2),
        probe_seeds=(0,),
        rates=(0.0, 0.1, 0.3),
    )
    assert command.main([str(repeated), f"--out={tmp_path / 'out'}", f"--against={other}"]) == 0
    page = Page((tmp_path / "out" / "index.html").read_text())
    shown = page.table_with("Out-of-domain accuracy, change, points")
    for folder, name in ((repeated, "run"), (other, "augmented")):
        lp = by_run(folder, "ood", "lp")
        assert shown[name] == [tables.signed((lp[r] - lp[0.0]).mean(), 1) for r in (0.1, 0.3)]
    assert {"run", "augmented"} == set(page.table_with("SVE in domain, change, nats"))
    assert "memorised at the highest γ: run 40%, augmented 40%" in page.text
    assert "regimes" in page.ids
    assert command.main([str(repeated), f"--against={repeated}"]) == 1
    assert "a study against itself; expected another" in capsys.readouterr().err


@pytest.mark.slow
def test_the_papers_values_stand_behind_those_of_the_study(built, repeated, tmp_path):
    text = (built[0] / "index.html").read_text()
    assert text.count('<input type="checkbox" checked id="show-paper">') == 1
    assert 'body:has(#show-paper:not(:checked)) [id*="-paper--"] { display: none; }' in text
    name = "pretraining-change-resnet-w16"
    drawing = text.split(f'id="figure-{name}"')[1].split("</figure>")[0]
    lines = [f"{name}-paper--{figures.slug(label)}" for label in paper.TABLE_1]
    for line in lines:
        assert f'id="{line}-mean"' in drawing
        assert f'id="{line}-name"' in drawing
    changes = paper.pretraining_changes(0.1).set_index(["label", "noise_rate"])["value"]
    assert set(changes.index.get_level_values("noise_rate")) == {0.0, 0.05, 0.1}
    assert changes["ViT-B/16 (CLIP)", 0.1] == pytest.approx((43.22 - 45.43) / 100)
    # Without a model at γ = 0 there is no change to lay it behind.
    rows = [json.loads(line) for line in (repeated / "records.jsonl").read_text().splitlines()]
    write_lines(tmp_path / "records.jsonl", [r for r in rows if r["metric"] != "accuracy_change"])
    assert 'show-paper"' not in report.build(tmp_path).read_text()


@pytest.mark.slow
def test_a_study_ten_times_as_large_makes_a_page_below_two_megabytes(tmp_path):
    rates = (0.0, 0.025, 0.05, 0.1, 0.2, 0.3)
    write_study(tmp_path / "run", seeds=range(100), probe_seeds=(0,), rates=rates)
    assert report.build(tmp_path / "run").stat().st_size < 2e6


@pytest.fixture(scope="module")
def repeated(tmp_path_factory):
    """A study of four pre-training seeds."""
    folder = tmp_path_factory.mktemp("repeated") / "run"
    return write_study(folder, seeds=(0, 1, 2, 3), probe_seeds=(0,), rates=(0.0, 0.1, 0.3))


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
        (
            lambda r: r.get("method") != "nmtune",
            "how out-of-domain accuracy changes with γ: needs an out-of-domain task",
        ),
        (lambda r: r["noise_rate"] > 0, "under slight noise: needs models without noise (γ = 0)."),
    ],
)
@pytest.mark.usefixtures("unsaved")
@pytest.mark.slow
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
@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.usefixtures("unsaved")
@pytest.mark.slow
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
@pytest.mark.slow
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
@pytest.mark.slow
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


@pytest.mark.slow
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


def test_mean_spectrum_is_over_the_sets_that_every_level_has():
    def row(rate, domain, sigmas, probe_seed=0):
        return {"noise_rate": rate, "domain": domain, "singular_values": sigmas} | {
            "probe_seed": probe_seed
        }

    rows = [row(0.0, "a", [3, 1]), row(0.0, "a", [1, 1], 1), row(0.1, "a", [4, 1])]
    curves = figures.mean_spectra([*rows, row(0.1, "b", [1, 1])])
    np.testing.assert_allclose(curves[0.0], [0.625, 0.375])
    np.testing.assert_allclose(curves[0.1], [0.8, 0.2])
