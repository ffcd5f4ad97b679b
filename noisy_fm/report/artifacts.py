"""Read what a study leaves in its working directory; the report reads nothing else."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd

from noisy_fm import record
from noisy_fm.report import tables


@dataclasses.dataclass(frozen=True)
class Artifacts:
    """Everything the page is made of; `problems` are lines about what could not be read."""

    workdir: Path
    records: pd.DataFrame
    spectra: list[dict]
    config: dict
    environment: dict
    stages: list[dict]
    manifests: list[dict]
    examples: list[dict]
    history: list[dict]
    similarity: list[dict]
    problems: list[str]


def load(workdir) -> Artifacts:
    """Read a study's working directory.

    Records are read from records.jsonl, or from the records.parquet that a study is published
    with. Lines and files that are not JSON are left out and named in `problems`. Raises
    FileNotFoundError if the folder or its records are missing and ValueError if no record can be
    read.
    """
    workdir = Path(workdir)
    if not workdir.is_dir():
        raise FileNotFoundError(f"{workdir}: no such folder; expected a study's workdir")
    problems: list[str] = []
    path, rows = record.read(workdir, problems)
    problems += beside(workdir)
    records = tidy(rows, problems)
    if records.empty:
        raise ValueError(f"{path}: {why_empty(rows)}")
    return Artifacts(
        workdir=workdir,
        records=records,
        spectra=[
            {**row, "weights": plain(row.get("weights"))}
            for row in read_lines(workdir / "spectra.jsonl", problems)
            if row.get("singular_values")
        ],
        config=read_object(workdir / "config.json", dict, problems),
        environment=read_object(workdir / "environment.json", dict, problems),
        stages=read_lines(workdir / "stages.jsonl", problems),
        manifests=read_lines(workdir / "manifests.jsonl", problems),
        examples=read_object(workdir / "examples.json", list, problems),
        history=optional(workdir / "training.jsonl", read_lines, problems),
        similarity=optional(workdir / "similarity.json", read_list, problems),
        problems=problems,
    )


def beside(workdir: Path) -> list[str]:
    """Lines about models and images in the study's folder that its records do not speak of."""
    path = workdir / "grid.json"
    grid = read_object(path, dict, []) if path.is_file() else {}
    lines = [
        f"cells/{name} is not in this report: {why}."
        for name, why in grid.get("left_out", {}).items()
    ]
    if unreadable := grid.get("unreadable"):
        number = tables.plural(len(unreadable), "image")
        lines.append(f"{number} could not be read, nor counted, as {unreadable[0]}.")
    return lines


def why_empty(rows: list[dict]) -> str:
    """Why no row of the records could be used."""
    values = [row["value"] for row in rows if row.get("value") is not None]
    if not values:
        return "holds no readable record with a value; run the study first"
    return (
        f"none of its {len(rows)} records has a metric and a finite number as value "
        f"(the first is {values[0]!r})"
    )


def read_lines(path: Path, problems: list[str]) -> list[dict]:
    """The objects of a JSON Lines file, none if it is absent, which is a problem to report."""
    if not path.is_file():
        problems.append(f"{path.name}: no such file; its part of the page is missing.")
        return []
    return record.read_lines(path, problems)


def optional(path: Path, read, problems: list[str]) -> list[dict]:
    """What a study of before 2026-12 did not leave."""
    return read(path, problems) if path.is_file() else []


def read_list(path: Path, problems: list[str]) -> list[dict]:
    return read_object(path, list, problems)


def read_object(path: Path, kind: type, problems: list[str]):
    """The JSON value of a file, empty if the file is absent or does not hold a `kind`."""
    if not path.is_file():
        problems.append(f"{path.name}: no such file; its part of the page is missing.")
        return kind()
    try:
        value = json.loads(path.read_bytes())
    except ValueError:
        value = None
    if isinstance(value, kind):
        return value
    problems.append(f"{path.name}: not a JSON {kind.__name__}; the file was left out.")
    return kind()


def tidy(rows: list[dict], problems: list[str]) -> pd.DataFrame:
    """Records as a frame in the schema's column order, one row a cell, every value finite."""
    columns = [*record.IDENTITY, *record.MEASUREMENT]
    frame = pd.DataFrame(rows)
    frame = frame.reindex(columns=[*columns, *(c for c in frame.columns if c not in columns)])
    for column in record.NUMERIC:
        frame[column] = pd.to_numeric(frame[column], errors="coerce").astype(float)
    for column in frame.columns.difference(record.NUMERIC):
        frame[column] = [plain(value) for value in frame[column]]
    unusable = ~np.isfinite(frame["value"]) | frame["metric"].isna()
    if unusable.any():
        problems.append(f"{unusable.sum()} records have no finite value; they were left out.")
    frame = frame[~unusable]
    homeless = frame[["noise_rate", "seed"]].isna().any(axis=1)
    if homeless.any():
        problems.append(
            f"{homeless.sum()} records name no noise_rate or no seed, so nobody knows which model "
            "they are of; they were left out."
        )
    frame = frame[~homeless]
    # A stage that was killed after writing and run again leaves its rows twice.
    repeated = frame.duplicated(list(record.IDENTITY), keep="last")
    if repeated.any():
        problems.append(f"{repeated.sum()} records were written again; the last of each was kept.")
    frame = frame[~repeated].reset_index(drop=True)
    placeless = tables.placeless(frame)
    if placeless.any():
        problems.append(
            f"{placeless.sum()} records of a target have neither source nor shift, so they count "
            "neither in domain nor out of it."
        )
    if frame["config_hash"].nunique() > 1:
        problems.append(f"The records come from {frame['config_hash'].nunique()} configurations.")
    if frame["noise_kind"].nunique() > 1:
        kinds = ", ".join(sorted(frame["noise_kind"].dropna().unique()))
        problems.append(f"The records mix kinds of noise ({kinds}); averages run over them.")
    return frame


def plain(value):
    """A cell that CSV and Parquet can hold: text or None; dicts and lists become JSON."""
    if isinstance(value, (dict, list)):
        return json.dumps(value, sort_keys=True)
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return None
    return str(value)
