"""From a study's stages to the plain rows that a report reads; every row says what made it."""

import os
import platform
import shlex
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from noisy_fm import checkpoint, files, record, statistics
from noisy_fm import config as config_lib
from noisy_fm.study import stages, transfers
from noisy_fm.study.cells import Cell

Outputs = dict[Cell, dict[str, dict]]
SUPERVISION = {"captions": "caption"}  # kind of noise → the column it makes wrong, if not "label"
STAGES = {"spectra": "spectrum", "probes": "probe"}  # what records call a stage


def assemble(config: ConfigDict, workdir: Path, outputs: Outputs) -> None:
    """Writes what the report reads: records, spectra, stages, manifests and examples."""
    common = {"config_hash": config_lib.hash_of(config)}
    size = config.pretrain.data.size
    column = SUPERVISION.get(config.pretrain.noise.kind, "label")
    relations: dict[tuple[str, str], str] = {}
    for one in transfers.collect(config):
        found = transfers.relation(one, config.pretrain.data, size, column=column)
        if found:  # all have to agree
            known = relations.setdefault((one.dataset, one.labels), found)
            relations[one.dataset, one.labels] = known if known == found else "free"
    records, curves, durations, manifests, logged = [], [], [], [], []
    for cell, out in outputs.items():
        about = {
            "model": cell.config.model.name,
            "noise_kind": cell.config.noise.kind,
            "noise_rate": cell.rate,
            "seed": cell.seed,
        }
        manifest = out["pretrain"]["manifest"]
        shared = {**about, "manifest_hash": manifest["hash"], **common}
        for row in cell_records(cell, out, shared):
            relation = relations.get((row["dataset"], row["labels"])) if row["method"] else None
            records.append({**row, "relation": relation})
        records += change_records(cell, outputs, shared)
        curves += list(cell_curves(out, about))
        logged += [{**about, **row} for row in out["pretrain"].get("history", [])]
        durations += [
            {"stage": f"{name} {cell.name}", "duration_s": made["duration_s"]}
            for name, made in out.items()
        ]
        manifests.append({"cell": cell.name, **manifest})
    record.write(workdir / record.NAME, records)
    record.write(workdir / "spectra.jsonl", curves)
    record.write(workdir / "stages.jsonl", durations)
    record.write(workdir / "manifests.jsonl", manifests)
    record.write(workdir / "training.jsonl", logged)
    noisiest = max(outputs, key=lambda cell: cell.rate)
    first = [c for c in outputs if c.seed == noisiest.seed and c.rate in (0, noisiest.rate)]
    near = {cell: outputs[cell]["pretrain"].get("similarity") for cell in first}
    files.write_json(
        workdir / "similarity.json",
        [{"model": c.config.model.name, "noise_rate": c.rate, **n} for c, n in near.items() if n],
    )
    files.write_json(workdir / "examples.json", outputs[noisiest]["pretrain"]["examples"])


def cell_records(cell: Cell, out: dict, shared: dict) -> Iterable[dict]:
    """One row a metric: pre-training, spectrum, probes."""

    def rows(stage_name, metrics, **fields):
        made = {name: out[stage_name][name] for name in ("versions", "commit", "duration_s")}
        known = {**shared, **made, "stage": STAGES.get(stage_name, stage_name)}
        for metric, numbers in metrics.items():
            yield record.row(**{**known, **fields, "metric": metric, **numbers})

    yield from rows("pretrain", with_chance(out["pretrain"]), **trained_on(cell))
    kept = ("dataset", "labels", "source", "target", "shift", "n", *record.HEAD)
    for row in out["spectra"]["rows"]:
        yield from rows("spectra", row["metrics"], **{k: row[k] for k in kept if k in row})
    for row in out["probes"]["rows"]:
        yield from rows("probes", row["metrics"], **{k: row[k] for k in kept if k in row})
    for row in out["probes"]["spectra"]:
        fields = {k: row[k] for k in kept if k in row}
        yield from rows("probes", row["metrics"], **fields, stage=STAGES["spectra"])


def trained_on(cell: Cell) -> dict:
    return {"dataset": cell.config.data.name, "labels": cell.config.data.labels}


def with_chance(pretrained: dict) -> dict:
    """The metrics of pre-training and, beside memorised labels, how many chance gives.

    A model that misses a changed label's truth hits the given one of C − 1 others by chance; an
    image is as near to one caption as to another.
    """
    metrics = pretrained["metrics"]
    if "flipped_fits_true" not in metrics:
        return metrics
    truth = metrics["flipped_fits_true"]
    if pretrained["manifest"]["num_classes"] is None:  # nearer to either of two captions
        half = {"value": 0.5, "low": 0.5, "high": 0.5, "n": truth["n"]}
        return {**metrics, "flipped_fits_chance": half}
    others = pretrained["manifest"]["num_classes"] - 1
    chance = {"value": (1 - truth["value"]) / others, "n": truth["n"]}
    chance |= {"low": (1 - truth["high"]) / others, "high": (1 - truth["low"]) / others}
    return {**metrics, "flipped_fits_chance": chance}


def change_records(cell: Cell, outputs: Outputs, shared: dict) -> list[dict]:
    """What is held out against the clean model of the same seed, paired on the same examples.

    The interval resamples concepts, so what an image adds to both models cancels.
    """
    clean = next((c for c in outputs if c.rate == 0 and c.seed == cell.seed), None)
    if clean is None or cell.rate == 0:
        return []
    ours, theirs = (outcomes_of(one) for one in (cell, clean))
    made = {name: outputs[cell]["pretrain"][name] for name in ("versions", "commit", "duration_s")}
    about = {**shared, **made, **trained_on(cell), "stage": "pretrain"}
    found = []
    both = [key for key in ours if key.endswith(":values") and key in theirs]
    for name in (key.removesuffix(":values") for key in both):
        _, i, j = np.intersect1d(ours[f"{name}:ids"], theirs[f"{name}:ids"], return_indices=True)
        values, before = ours[f"{name}:values"][i], theirs[f"{name}:values"][j]
        change = np.subtract(values, before, dtype=float)
        there = np.isfinite(change)
        groups = ours[f"{name}:groups"][i][there]
        low, high = statistics.cluster_bootstrap(change[there], groups, bounds=(-1.0, 1.0))
        measured = {"low": low, "high": high, "n": int(there.sum())}
        value = float(change[there].mean())
        found.append(record.row(**about, metric=f"{name}_change", value=value, **measured))
    return found


def outcomes_of(cell: Cell) -> dict[str, np.ndarray]:
    """ "NAME:values", "NAME:ids" and "NAME:groups" of what was held out.

    Until 2026-11 it was accuracy alone, by other names.
    """
    found = stages.arrays(cell, "pretrain")
    if "correct" not in found:
        return found
    return {
        "accuracy:values": found["correct"],
        "accuracy:ids": found["id"],
        "accuracy:groups": found["group"],
    }


def cell_curves(out: dict, about: dict) -> Iterable[dict]:
    """Singular values of F on all images of a domain and, for tuned heads, of Z on their task's."""
    whole = [row for row in out["spectra"]["rows"] if "singular_values" in row]
    for row in (*whole, *out["probes"]["spectra"]):
        known = {key: row[key] for key in record.CURVE if key in row}
        yield record.curve(**about, domain=row["target"], **known)


def environment() -> dict:
    """The machine and the command, for the report."""
    device = jax.devices()[0]
    return {
        **checkpoint.provenance(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "device": f"{len(jax.devices())} × {device.device_kind}",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "noisy_fm.study", *sys.argv[1:]]),
    }
