"""The schema of what a study measured, which study, report and tests share: one row a number.

`IDENTITY` says which number it is: `labels` is a labelling of the data set, `source` the domain
that a head was tuned on, `target` the one it, or the spectrum, is of. `MEASUREMENT` is the number,
and what made it; `relation` says whether a labelling follows from the labels of pre-training
("determined"), or does not ("free"), where they are of the same images.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from noisy_fm import files
from noisy_fm.messages import unknown

HEAD = ("method", "preset", "weights", "fraction", "label_noise", "probe_seed")
IDENTITY = (
    *("stage", "model", "noise_kind", "noise_rate", "seed", "dataset", "labels", "shift"),
    *("source", "target", *HEAD, "metric"),
)
MEASUREMENT = (
    *("value", "low", "high", "n", "relation"),
    *("config_hash", "manifest_hash", "commit", "versions", "duration_s"),
)
NUMERIC = (
    *("noise_rate", "seed", "fraction", "label_noise", "probe_seed"),
    *("value", "low", "high", "n", "duration_s"),
)
# A row of singular values: those of F on all images of a domain, or of a head's Z on its task's.
CURVE = (
    *("model", "noise_kind", "noise_rate", "seed", "dataset", "labels", "source", "domain"),
    *("method", "preset", "weights", "singular_values"),
)
NAME, PUBLISHED = "records.jsonl", "records.parquet"


def row(**fields) -> dict:
    """A record with every field, those not given None; raises ValueError for an unknown one."""
    return _filled(fields, (*IDENTITY, *MEASUREMENT), "record field")


def curve(**fields) -> dict:
    """A row of singular values, likewise."""
    return _filled(fields, CURVE, "field of singular values")


def _filled(fields: Mapping, known: tuple[str, ...], what: str) -> dict:
    for name in fields:
        if name not in known:
            raise ValueError(unknown(what, name, known))
    return {**dict.fromkeys(known), **fields}


def today(found: dict) -> dict:
    """A row of any version with this one's fields: `labels` was `task` until 2026-11."""
    if "task" not in found or "labels" in found:
        return found
    return {"labels" if name == "task" else name: value for name, value in found.items()}


def write(path: Path, rows: Iterable[Mapping]) -> None:
    """Writes a JSON Lines file, whole or not at all."""
    with files.written_whole(path) as temporary:
        lines = (json.dumps(one, ensure_ascii=False, allow_nan=False) for one in rows)
        temporary.write_text("".join(f"{line}\n" for line in lines))


def read(folder: Path, problems: list[str]) -> tuple[Path, list[dict]]:
    """The file with a study's records, and its rows; lines that are not JSON go to `problems`.

    It is records.jsonl, or the records.parquet that a study is published with. Raises
    FileNotFoundError if there is neither.
    """
    path, published = folder / NAME, folder / PUBLISHED
    if path.is_file():
        return path, read_lines(path, problems)
    if published.is_file():
        return published, [today(one) for one in pd.read_parquet(published).to_dict("records")]
    raise FileNotFoundError(f"{path}: no such file; run the study with this workdir first")


def read_lines(path: Path, problems: list[str]) -> list[dict]:
    """The objects of a JSON Lines file; a line that is not one is skipped and reported."""
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except ValueError:  # also bytes that are not UTF-8
            found = None
        if isinstance(found, dict):
            rows.append(today(found))
        else:
            problems.append(f"{path.name}, line {number}: not a JSON object; the line was skipped.")
    return rows


def publish(records: pd.DataFrame, folder: Path) -> None:
    """records.jsonl, records.csv and records.parquet, the same rows in each."""
    records.to_json(folder / NAME, orient="records", lines=True, double_precision=15)
    records.to_csv(folder / "records.csv", index=False)
    records.to_parquet(folder / PUBLISHED, index=False)
