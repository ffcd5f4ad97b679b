"""The schema of records: what it refuses, and that old records are read with today's names."""

import json
from pathlib import Path

import pytest

from noisy_fm import record
from noisy_fm.report import artifacts

PUBLISHED = Path(__file__).parent.parent / "experiments" / "emoji_study"


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
    found = artifacts.load(PUBLISHED)  # records.parquet of 2026-10
    heads = found.records[found.records["stage"] == "probe"]
    assert {"category", "skin_tone"} <= set(heads["labels"])
    assert not any("written again" in line for line in found.problems)
    old = {"task": "category", "noise_rate": 0, "seed": 0, "metric": "accuracy", "value": 0.5}
    (tmp_path / record.NAME).write_text(json.dumps(old))
    assert artifacts.load(tmp_path).records["labels"].item() == "category"
