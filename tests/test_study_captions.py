"""A study of swapped captions goes through the same stages as any other."""

import json

import numpy as np
import pandas as pd
import pytest
import small_study as small
from test_contrast import tiny

from noisy_fm import study

pytestmark = pytest.mark.slow


def get_config():
    config = small.get_config()
    config.pretrain = tiny(epochs=2.0, eval_every=-1, **{"data.domain": ("noto", "twemoji")})
    config.pretrain.noise = {"kind": "captions", "rate": 0.0}
    config.model = ""
    place = {"domain": ("openmoji",), "labels": "category"}
    config.pretrain.evaluators.unseen = {
        "kind": "retrieval", "data": {**place, "captions": "{name}"}
    }  # fmt: skip
    config.pretrain.evaluators.category = {
        "kind": "zero_shot", "data": {**place, "captions": ""}, "prompts": "name"
    }  # fmt: skip
    config.noise_rates, config.seeds = (0.0, 0.3), 1
    return config


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captions")
    study.run(get_config(), str(folder))
    return folder


def test_what_nothing_was_tuned_for_is_recorded_with_its_change(done):
    rows = pd.DataFrame(
        [json.loads(line) for line in (done / "records.jsonl").read_text().splitlines()]
    )
    rows = rows[rows.stage == "pretrain"]
    noisy, clean = (rows[rows.noise_rate == rate].set_index("metric") for rate in (0.3, 0.0))
    for name in ("category/zero_shot", "unseen/to_text/R@10", "unseen/to_image/R@1", "matched"):
        assert 0 <= noisy.loc[name, "low"] <= noisy.loc[name, "value"] <= noisy.loc[name, "high"]
        change = noisy.loc[f"{name}_change", "value"]
        assert change == pytest.approx(noisy.loc[name, "value"] - clean.loc[name, "value"])
    assert {"flipped_fits_given", "flipped_fits_true", "category/calibration"} <= set(noisy.index)
    assert "flipped_fits_given" not in clean.index
    assert noisy.loc["flipped_fits_chance", "value"] == 0.5  # of two captions
    assert (rows.noise_kind == "captions").all()


def test_the_page_shows_whose_caption_was_swapped(done):
    shown = json.loads((done / "examples.json").read_text())
    assert shown
    for one in shown:
        assert one["given"] != one["true"]
        assert ", " in one["true"]
    page = (done / "report" / "index.html").read_text()
    near = json.loads((done / "similarity.json").read_text())
    assert {one["noise_rate"] for one in near} == {0.0, 0.3}
    for one in near:
        count = len(set(one["captions"]))
        assert np.shape(one["cosines"]) == (count, count)
        assert np.abs(one["cosines"]).max() <= 1
    assert 'id="training"' in page
    assert "images are nearest to their own caption" in page
    assert "wapped captions" in page
    assert "rong labels" not in page


def test_another_evaluator_is_measured_where_models_are_trained_already(done):
    config = get_config()
    config.pretrain.evaluators.again = dict(config.pretrain.evaluators.unseen)
    study.run(config, str(done))
    rows = pd.DataFrame(
        [json.loads(line) for line in (done / "records.jsonl").read_text().splitlines()]
    )
    values = {
        name: rows[rows.metric == f"{name}/to_text/R@10"].sort_values("noise_rate").value.tolist()
        for name in ("unseen", "again")
    }
    assert values["again"] == values["unseen"]
    assert len(values["again"]) == 2
