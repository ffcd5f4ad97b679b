"""The schema of records: what it refuses, and that old records are read with today's names."""

import json
from pathlib import Path

import pandas as pd
import pytest

from noisy_fm import record
from noisy_fm.report import artifacts, questions, tables

PUBLISHED = Path(__file__).parent.parent / "experiments" / "emoji_full"


def test_a_record_has_every_field_and_no_other():
    made = record.row(metric="accuracy", value=0.5)
    assert set(made) == {*record.IDENTITY, *record.MEASUREMENT}
    assert made["labels"] is None
    assert set(record.NUMERIC) <= set(made)
    with pytest.raises(ValueError, match="did you mean 'labels'"):
        record.row(label="category")
    with pytest.raises(ValueError, match="unknown field of singular values 'target'"):
        record.curve(target="noto")


def test_records_made_when_labels_were_called_task_are_read(tmp_path):
    old = {"task": "category", "noise_rate": 0, "seed": 0, "metric": "accuracy", "value": 0.5}
    (tmp_path / record.NAME).write_text(json.dumps(old))
    assert artifacts.load(tmp_path).records["labels"].item() == "category"
    published = tmp_path / "published"  # records.parquet of 2026-10
    published.mkdir()
    pd.DataFrame([old, {**old, "seed": 1}]).to_parquet(published / record.PUBLISHED)
    found = artifacts.load(published)
    assert set(found.records["labels"]) == {"category"}
    assert not any("written again" in line for line in found.problems)


def test_the_published_study_is_read_whole_and_every_question_is_judged():
    found = artifacts.load(PUBLISHED)
    runs = found.records.groupby("noise_rate")["seed"].nunique()
    assert len(runs) >= 5
    assert runs.min() >= 10
    asked = questions.collect(tables.prepare(found.records))
    assert {finding.verdict for finding in asked} <= {"seen", "not seen"}
    wanted = ("spectra.jsonl", "stages.jsonl", "manifests.jsonl")  # all else can be left out
    assert {line.partition(":")[0] for line in found.problems} <= set(wanted)
