"""The study itself, reduced: what it leaves, that it resumes, and that it cannot be confused."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pictures
import pytest
import small_study as small

from noisy_fm import data, files, spectrum, study
from noisy_fm.features import open_store
from noisy_fm.study import __main__ as command
from noisy_fm.study import cells, grid, settings, stages, transfers

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The small study, run once."""
    folder = tmp_path_factory.mktemp("study") / "run"
    page = study.run(small.get_config(), str(folder))
    return folder, page


def store_of(folder, name):
    """The store of that name, whatever hash follows it."""
    (found,) = folder.glob(f"{name}-*")
    return found


def records(folder):
    lines = (folder / "records.jsonl").read_text().splitlines()
    return pd.DataFrame([json.loads(line) for line in lines])


def test_it_leaves_a_record_for_every_cell_of_the_grid(done):
    rows = records(done[0])
    probe = rows[(rows.stage == "probe") & (rows.metric == "accuracy")]
    # 2 rates × (2 test sets of one task + 1 of the other) × 3 methods × 2 seeds
    assert len(probe) == 2 * 3 * 3 * 2
    assert set(probe["shift"]) == {"id", "ood"}
    assert (
        probe.value.between(0, 1) & (probe.low <= probe.value) & (probe.value <= probe.high)
    ).all()
    pre = rows[(rows.stage == "pretrain") & (rows.noise_rate == 0.3)].set_index("metric")
    assert {
        "accuracy",
        "accuracy_change",
        "train_accuracy_true_labels",
        "flipped_fits_given",
    } <= set(pre.index)
    for column in ("config_hash", "manifest_hash", "versions", "duration_s"):
        assert rows[column].notna().all()
    logged = [json.loads(line) for line in (done[0] / "training.jsonl").read_text().splitlines()]
    assert {row["noise_rate"] for row in logged} == {0.0, 0.3}
    assert all(np.isfinite(row["loss"]) and row["step"] > 0 for row in logged)
    assert 'id="training"' in Path(done[1]).read_text()
    assert rows.groupby("noise_rate").manifest_hash.nunique().eq(1).all()
    assert rows.manifest_hash.nunique() == 2


def test_its_spectra_are_those_of_the_stored_features(done):
    folder, _ = done
    cell = folder / "cells" / "noise0.3-seed0" / "features"
    store = open_store(store_of(cell, "emoji_domains-noto-test"))
    stored = store.features
    values = np.linalg.svd(stored.astype(np.float64), compute_uv=False)
    p = values / values.sum()
    sve = -np.sum(p[p > 0] * np.log(p[p > 0]))
    rows = records(folder)
    got = rows[
        (rows.stage == "spectrum") & (rows.metric == "sve") & (rows.noise_rate == 0.3)
        & (rows.target == "noto") & rows.method.isna()
    ]  # fmt: skip
    of_all, of_task = (got[got["labels"].isna()], got[got["labels"] == "category"])
    assert of_all.value.item() == pytest.approx(sve, rel=1e-6)
    assert of_all.value.item() == pytest.approx(spectrum.summary(stored)["sve"])
    # F beside Z: on the images of the task that Z is of, and on no others.
    source = data.load("emoji_domains", split="test", domain="noto", labels="category", size=32)
    images = stored[[list(store.ids).index(i) for i in source.ids]]
    assert 0 < len(images) == of_task.n.item() < len(stored)
    assert of_task.value.item() == pytest.approx(spectrum.summary(images)["sve"])
    of_z = rows[(rows.stage == "spectrum") & (rows.method == "nmtune") & (rows.target == "noto")]
    assert set(of_z.n) == {len(images)}


def test_tasks_that_follow_from_the_labels_of_pre_training_are_told(done):
    rows = records(done[0])
    heads = rows[rows.stage == "probe"].drop_duplicates(["dataset", "labels"])
    found = dict(zip(heads["dataset"], heads["relation"].fillna(""), strict=True))
    assert found == {"emoji_domains": "determined", "digits": ""}
    assert rows[rows.stage == "pretrain"].relation.isna().all()
    config = small.get_config()
    config.transfers.tone = {
        "data": {"name": "emoji_domains", "labels": "skin_tone", "domain": "noto"}
    }
    config = settings.completed(config)
    collected = {one.name: one for one in transfers.collect(config)}
    for name, expected in (("category", "determined"), ("tone", "free"), ("digits", None)):
        assert (
            transfers.relation(collected[name], config.pretrain.data, 32, column="label")
            == expected
        )
    category = transfers.load(collected["category"].train, 32, labels="category")
    subcategory = transfers.load(collected["category"].train, 32, labels="subcategory")
    both = pd.Series(category.columns["category"], category.ids).reindex(subcategory.ids)
    assert both.groupby(subcategory.columns["label"]).nunique().max() == 1  # as the drawings say


def test_heads_record_how_their_training_loss_fell(done):
    rows = records(done[0])
    last, halfway = (rows[rows.metric == metric] for metric in ("train_loss", "train_loss_halfway"))
    trained = rows[(rows.stage == "probe") & (rows.metric == "accuracy") & (rows["shift"] == "id")]
    assert len(last) == len(halfway) == len(trained)
    assert (last.value.to_numpy() <= halfway.value.to_numpy()).mean() > 0.9
    assert last.low.isna().all()
    assert (last.n > 100).all()


def test_memorised_labels_stand_beside_chance(done):
    rows = records(done[0])
    rows = rows[(rows.stage == "pretrain") & (rows.noise_rate == 0.3)].set_index("metric")
    manifests = [
        json.loads(line) for line in (done[0] / "manifests.jsonl").read_text().splitlines()
    ]
    classes = manifests[-1]["num_classes"]
    chance = rows.loc["flipped_fits_chance"]
    assert chance.value == pytest.approx((1 - rows.value["flipped_fits_true"]) / (classes - 1))
    assert chance.low <= chance.value <= chance.high


def test_its_report_says_what_was_measured(done):
    folder, page = done
    html = Path(page).read_text()
    rows = records(folder)
    accuracy = rows[(rows.stage == "pretrain") & (rows.metric == "accuracy")]
    for value in accuracy.value:
        assert f"{100 * value:.1f}" in html
    assert (Path(page).parent / "records.parquet").exists()


def test_running_again_repeats_nothing(done):
    folder, _ = done
    stamps = {p: p.stat().st_mtime_ns for p in (folder / "cells").rglob("*.json")}
    before = (folder / "records.jsonl").read_text()
    study.run(small.get_config(), str(folder))
    assert (folder / "records.jsonl").read_text() == before
    assert stamps == {p: p.stat().st_mtime_ns for p in (folder / "cells").rglob("*.json")}


@pytest.mark.slow
def test_a_store_that_was_deleted_is_made_again_and_nothing_else(done, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(done[0], copy)
    cell = copy / "cells" / "noise0-seed0"
    store = store_of(cell / "features", "digits-test")
    before = np.array(open_store(store).features)
    shutil.rmtree(store)
    stamps = {p: p.stat().st_mtime_ns for p in copy.rglob("features.npy")}
    stamps |= {p: p.stat().st_mtime_ns for p in copy.rglob("pretrain.json")}
    study.run(small.get_config(), str(copy))
    np.testing.assert_array_equal(open_store(store).features, before)
    assert stamps == {p: p.stat().st_mtime_ns for p in stamps}


def test_a_workdir_of_other_examples_is_refused(done, tmp_path):
    for name in ("pretrain.json", "data.json"):
        shutil.copy(done[0] / name, tmp_path / name)
    cfg = small.get_config()
    before = files.read_json(tmp_path / "data.json")
    (now,) = before.values()
    files.write_json(tmp_path / "data.json", dict.fromkeys(before, "0123456789ab"))
    with pytest.raises(ValueError, match=f"hash of examples and labels: 0123456789ab → {now}"):
        study.run(cfg, str(tmp_path))


def test_a_workdir_of_another_training_config_is_refused(done):
    cfg = small.get_config()
    cfg.pretrain.epochs = 2.0
    with pytest.raises(ValueError, match=r"another config \(epochs: 1\.0 → 2\.0"):
        study.run(cfg, str(done[0]))


def test_a_damaged_stage_is_named(done, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(done[0], copy)
    stage = copy / "cells" / "noise0-seed0" / "probes.json"
    stage.write_text(stage.read_text()[:100])
    with pytest.raises(ValueError, match=r"probes\.json is damaged"):
        study.run(small.get_config(), str(copy))


def of(*, unseen=None, eval_split="test", **data):
    """A transfer on the emoji, with a mistake."""
    data = {"name": "emoji_domains", "labels": "category", "domain": "noto", **data}
    return {"one": {"data": data, "eval_split": eval_split, "unseen": unseen or {}}}


def two():
    """Two that call different drawings alike."""
    first, second = (of(unseen={"lineart": {"domain": d}}, domain=d)["one"] for d in ARTISTS[:2])
    second["unseen"]["lineart"]["domain"] = ARTISTS[2]
    return {"one": first, "two": second}


ARTISTS = ("noto", "twemoji", "openmoji")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise_rates": (0.0, 1.0)}, "noise_rates has 1.0"),
        ({"transfers": of(name="emoji_domain")}, "emoji_domains"),
        ({"transfers": of(domain="notto")}, "noto"),
        ({"transfers": of(unseen={"lineart": {"domain": "linart"}})}, "lineart"),
        ({"transfers": of(unseen={"lineart": {"domian": "lineart"}})}, "did you mean 'domain'"),
        ({"transfers": of(eval_split="tset")}, "test"),
        ({"transfers": of(sizes=3)}, r"did you mean 'config\.transfers\.one\.data\.size'"),
        ({"transfers": {"one": 3}}, r"config\.transfers\.one is 3; expected a group of keys"),
        ({"transfers": {**of(), "two": of()["one"]}}, "expected no transfer twice"),
        ({"transfers": {**of(), **two()}}, "call different images 'lineart'"),
        ({"transfers": {}}, "config.transfers is empty"),
        ({"methods": ("lp", "nmtun")}, "nmtune"),
        ({"model": "resnet"}, "unknown model 'resnet'"),
        ({"feature": "pool"}, "unknown config.feature"),
        ({"noise_rates": (0.1, 0.1)}, "no entry twice"),
        (
            {"tasks": (("digits", "", "", ()),)},
            "config.tasks is no more: expected config.transfers",
        ),
        ({"weights": (0.1, -1.0)}, "weights must lie in"),
        ({"weights": ((0.1, 0.2),)}, r"three \(mse, cov, svd\)"),
        ({"weights": (0.1,), "methods": ("lp",)}, "config.weights are λ of 'nmtune'"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(change, message, tmp_path):
    cfg = small.get_config()
    for key, value in change.items():
        cfg[key] = value
    with pytest.raises(ValueError, match=message):
        study.run(cfg, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_sweep_of_lambda_adds_heads_and_changes_none(done, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(done[0], folder)
    cfg = small.get_config()
    cfg.weights = (0.0, 0.01, (1.0, 0.04, 0.001))  # 0.01 is the preset's own
    page = study.run(cfg, str(folder))
    before, after = records(done[0]), records(folder)
    after["λ"] = after.weights.map(str)
    own = after["λ"].isin(["None", "nan", "[0.01, 0.01, 0.01]"])
    columns = before.columns.drop(["config_hash", "duration_s", "commit", "weights"])
    pd.testing.assert_frame_equal(
        before[columns], after.loc[own, columns].reset_index(drop=True), check_exact=True
    )
    assert set(after.loc[~own, "λ"]) == {"[0.0, 0.0, 0.0]", "[1.0, 0.04, 0.001]"}
    swept = after[~own & (after.stage == "probe")]
    assert len(swept) == 2 * (before.query("stage == 'probe' and method == 'nmtune'")).shape[0]
    keys = ["noise_rate", "labels", "target", "probe_seed", "metric"]
    none = swept[swept["λ"] == "[0.0, 0.0, 0.0]"].set_index(keys)["value"]
    mlp = after[(after.stage == "probe") & (after.method == "mlp")].set_index(keys)["value"]
    np.testing.assert_allclose(none, mlp.loc[none.index], atol=1e-6)
    assert 'id="sweep"' in Path(page).read_text()
    assert 'id="sweep"' not in Path(done[1]).read_text()


@pytest.mark.slow
def test_cells_of_an_earlier_grid_stay_in_the_report_or_are_named_beside_it(done, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(done[0], folder)
    (folder / "cells" / "noise0.1-old-seed0").mkdir()  # somebody's copy, no cell
    cfg = small.get_config()
    cfg.noise_rates = (0.3,)
    study.run(cfg, str(folder))
    assert "the report includes cells of an earlier grid in this workdir: noise0-seed0" in (
        capsys.readouterr().out
    )
    columns = records(folder).columns.drop(["config_hash"])
    before, after = (
        f[columns].sort_values("noise_rate", kind="stable").reset_index(drop=True)
        for f in (records(done[0]), records(folder))
    )
    pd.testing.assert_frame_equal(before, after, check_exact=True)
    cfg.probe_epochs = 1  # of other heads than the cell beside has
    page = Path(study.run(cfg, str(folder)))
    why = "it lacks probes as this config has them"
    assert f"cells/noise0-seed0 is not in this report: {why}" in page.read_text()
    assert set(records(folder).noise_rate) == {0.3}


def test_a_study_begun_before_tasks_had_their_keys_goes_on(done, tmp_path):
    new = json.loads((done[0] / "pretrain.json").read_text())
    old = {key: value for key, value in new.items() if key != "task"}
    old |= {key: new["task"][key] for key in ("normalize", "augment", "mix")}
    old["loss"] = {"name": new["task"]["loss"], "label_smoothing": new["task"]["label_smoothing"]}
    old["data"] = {"task" if k == "labels" else k: v for k, v in new["data"].items()}
    (tmp_path / "pretrain.json").write_text(json.dumps(old))
    cfg = study.resolve(small.get_config())
    assert grid.begun(cfg, str(tmp_path), "abc") == tmp_path
    cfg.pretrain.epochs = 3.0
    with pytest.raises(ValueError, match="begun with another config"):
        grid.begun(cfg, str(tmp_path), "abc")


@pytest.mark.slow
def test_a_change_of_what_is_measured_runs_what_follows_from_it_and_nothing_else():
    def marks(**changes):
        cfg = study.resolve(small.get_config())
        for key, value in changes.items():
            setattr(cfg, key, value)
        return stages.marks(cells.grid(cfg, Path())[1], cfg)

    def differ(**changes):
        before, after = marks(), marks(**changes)
        return [name for name in before if before[name] != after[name]]

    assert differ() == differ(noise_rates=(0.0, 0.3, 0.4)) == []
    assert differ(probe_epochs=3) == differ(weights=(0.1,)) == ["probes"]
    assert differ(spectrum={"center": True, "normalize": False}) == ["spectra", "probes"]
    assert differ(feature="stage4") == ["features", "spectra", "probes"]
    cfg = small.get_config()
    cfg.pretrain.log_every = 7  # how a run is watched is not what it is
    assert stages.marks(cells.grid(study.resolve(cfg), Path())[1], study.resolve(cfg)) == marks()
    cfg.pretrain.optimizer.learning_rate = 0.5
    changed = stages.marks(cells.grid(study.resolve(cfg), Path())[1], study.resolve(cfg))
    assert not set(changed.values()) & set(marks().values())


def shell(line: str) -> subprocess.CompletedProcess:
    return subprocess.run(line, shell=True, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.slow
def test_a_dry_run_prints_the_line_that_runs_each_cell(done, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(done[0], folder)
    lost = folder / "cells" / "noise0.3-seed0" / "spectra.json"
    lost.unlink()
    said = shell(
        f"{sys.executable} -m noisy_fm.study --config=tests/small_study.py --workdir={folder} "
        "--scheduler=local:2 --dry_run"
    )
    first, second = said.stdout.splitlines()
    assert first.endswith("--cell=noise0-seed0  # done")
    assert second.endswith("--cell=noise0.3-seed0  # left: spectra")
    assert "--scheduler" not in second
    assert "--dry_run" not in second
    ran = shell(second)
    assert ran.returncode == 0, ran.stderr
    assert "noise 30.0% seed 0: spectra" in ran.stdout
    made, before = (
        json.loads((f / "cells" / "noise0.3-seed0" / "spectra.json").read_text())
        for f in (folder, done[0])
    )
    assert made["rows"] == before["rows"]


def test_the_line_of_a_cell_keeps_what_the_study_was_given():
    given = ["--config=a.py:x=1", "--scheduler", "tcp://a:1", "--dry_run", "--config.seeds=3"]
    kept = [*given[:1], "--config.seeds=3", "--workdir", "runs/a"]
    assert command.line([*given, "--workdir", "runs/a", "--cell=b"], "c")[3:] == [*kept, "--cell=c"]


@pytest.fixture
def photographs(tmp_path):
    """A folder of JPEGs in three classes, one of 48 and one of 18 that cannot be read."""
    for split, count, first in (("train", 48, 0), ("val", 18, 1000)):
        rows = pictures.examples(count, first=first)
        rows[5] = (*rows[5][:2], f"no photograph, in {split}".encode())
        pictures.write_folder(tmp_path / "photographs", rows, split)
    return tmp_path / "photographs"


@pytest.mark.slow
def test_a_study_of_ones_own_folder_under_noise_with_unreadable_files(photographs, tmp_path):
    load = importlib.util.spec_from_file_location("own", ROOT / "configs" / "study" / "folder.py")
    load.loader.exec_module(module := importlib.util.module_from_spec(load))
    cfg = module.get_config(f"path={photographs},unseen={photographs},quick")
    cfg.pretrain.data.size = 24  # no size that the digits come in
    cfg.pretrain.model = {"name": "resnet10_narrow", "width": 4}
    cfg.pretrain.batch_size, cfg.pretrain.epochs = 16, 1.0
    cfg.transfers.digits = study.transfer({"name": "digits"})
    cfg.methods, cfg.probe_seeds, cfg.probe_epochs = ("lp",), 1, 2
    cfg.transfers.own.unseen.unseen.eval_split = "train"
    page = Path(study.run(cfg, str(tmp_path / "run")))
    rows = records(tmp_path / "run")
    accuracy = rows[(rows.metric == "accuracy") & (rows.noise_rate == 0.3)]
    accuracy = accuracy.set_index(["stage", "dataset", "target"])
    assert accuracy.n["pretrain"].item() == 17
    assert accuracy.n["probe", "own"].to_dict() == {"": 17, "unseen": 47}
    assert accuracy["shift"]["probe", "own", "unseen"] == "ood"
    assert ("probe", "digits", "") in accuracy.index
    cell = tmp_path / "run" / "cells" / "noise0.3-seed0" / "features"
    store = open_store(store_of(cell, "own-val"))
    assert len(store.ids) == 17
    assert [Path(where).suffix for where in store.meta["left_out"].values()] == [".JPEG"]
    shown = json.loads((tmp_path / "run" / "examples.json").read_text())
    assert 10 <= len(shown) <= 12  # the photographs whose label was changed, readable ones
    assert all(one["concept"] for one in shown)
    assert shown[0]["image"] in page.read_text()
    # The same classes, or it is no test of these heads.
    (photographs / "val" / "other").mkdir()
    (photographs / "val" / "other" / "a.JPEG").write_bytes(pictures.jpeg(5000))
    own = {"name": "folder", "path": str(photographs)}
    cfg.transfers.own = study.transfer(own, eval_split="val")
    transfers._listed.cache_clear()
    with pytest.raises(ValueError, match="only one of them has other"):
        transfers.check(transfers.collect(settings.completed(cfg)), 24)


@pytest.mark.slow
def test_the_release_preset_is_studied_and_named(done, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(done[0], folder)
    cfg = small.get_config()
    cfg.preset = "release"
    cfg.methods = ("nmtune",)
    page = Path(study.run(cfg, str(folder))).read_text()
    rows = records(folder)
    heads = rows[rows.stage == "probe"]
    assert set(heads.preset) == {"release"}
    assert set(heads.weights.map(str)) == {"[1.0, 0.04, 0.001]"}
    theirs = records(done[0]).query("stage == 'probe' and method == 'nmtune'")
    assert not np.allclose(heads["value"].to_numpy(), theirs["value"].to_numpy())
    assert "release preset (λ = 1, 0.04, 0.001" in page
    assert "paper preset (λ = 0.01" in Path(done[1]).read_text()


@pytest.mark.slow
def test_killed_anywhere_and_run_again_gives_the_same_records(tmp_path):
    def start(folder):
        code = (
            "import sys; sys.path.insert(0, 'tests'); import test_study;"
            f"test_study.study.run(test_study.small.get_config(), {str(folder)!r})"
        )
        with (tmp_path / f"{folder.name}.log").open("a") as log:
            return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=log, stderr=log)

    def files(folder):
        return sum(len(names) for _, _, names in os.walk(folder))  # while they come and go

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait() == 0
    # Killed once so many files are there: what a given time reaches differs between machines.
    rng = np.random.default_rng(0)
    for wanted in np.linspace(1, 0.8 * files(whole), 6):
        process = start(killed)
        while process.poll() is None and files(killed) < wanted:
            time.sleep(0.02)
        time.sleep(float(rng.uniform(0, 0.5)))
        assert process.poll() is None, (tmp_path / "killed.log").read_text()[-2000:]
        process.kill()
        process.wait()
    assert start(killed).wait() == 0, (tmp_path / "killed.log").read_text()[-2000:]
    where = ["duration_s", "commit"]  # of the checkout, which may change meanwhile
    expected, got = (records(f).drop(columns=where) for f in (whole, killed))
    pd.testing.assert_frame_equal(expected, got, check_exact=True)
