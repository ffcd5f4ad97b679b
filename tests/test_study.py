"""The study itself, reduced: what it leaves, that it resumes, and that it cannot be confused."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from noisy_fm import data, spectrum, study
from noisy_fm.features import open_store

ROOT = Path(__file__).parent.parent


def small():
    cfg = study.defaults()
    cfg.pretrain.data.domain = ("noto",)
    cfg.pretrain.model = {"name": "resnet10_narrow", "width": 4}
    cfg.pretrain.batch_size = 64
    cfg.pretrain.epochs = 1.0
    cfg.pretrain.checkpoint_every = 10
    cfg.noise_rates = (0.0, 0.3)
    cfg.transfers = {
        "category": {
            "data": {"name": "emoji_domains", "labels": "category", "domain": "noto"},
            "unseen": {"lineart": {"domain": "lineart"}},
        },
        "digits": {"data": {"name": "digits"}},
    }
    cfg.probe_seeds = 2
    cfg.probe_epochs = 2
    return cfg


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The small study, run once."""
    folder = tmp_path_factory.mktemp("study") / "run"
    page = study.run(small(), str(folder))
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
    study.run(small(), str(folder))
    assert (folder / "records.jsonl").read_text() == before
    assert stamps == {p: p.stat().st_mtime_ns for p in (folder / "cells").rglob("*.json")}


def test_a_store_that_was_deleted_is_made_again_and_nothing_else(done, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(done[0], copy)
    cell = copy / "cells" / "noise0-seed0"
    store = store_of(cell / "features", "digits-test")
    before = np.array(open_store(store).features)
    shutil.rmtree(store)
    stamps = {p: p.stat().st_mtime_ns for p in copy.rglob("features.npy")}
    stamps |= {p: p.stat().st_mtime_ns for p in copy.rglob("pretrain.json")}
    study.run(small(), str(copy))
    np.testing.assert_array_equal(open_store(store).features, before)
    assert stamps == {p: p.stat().st_mtime_ns for p in stamps}


def test_a_workdir_of_another_training_config_is_refused(done):
    cfg = small()
    cfg.pretrain.epochs = 2.0
    with pytest.raises(ValueError, match=r"another config \(epochs: 1\.0 → 2\.0"):
        study.run(cfg, str(done[0]))


def test_a_damaged_stage_is_named(done, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(done[0], copy)
    stage = copy / "cells" / "noise0-seed0" / "probes.json"
    stage.write_text(stage.read_text()[:100])
    with pytest.raises(ValueError, match=r"probes\.json is damaged"):
        study.run(small(), str(copy))


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
    cfg = small()
    for key, value in change.items():
        cfg[key] = value
    with pytest.raises(ValueError, match=message):
        study.run(cfg, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_sweep_of_lambda_adds_heads_and_changes_none(done, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(done[0], folder)
    cfg = small()
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
def test_the_release_preset_is_studied_and_named(done, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(done[0], folder)
    cfg = small()
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
            f"test_study.study.run(test_study.small(), {str(folder)!r})"
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
