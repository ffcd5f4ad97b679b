"""From a study's stages to the plain rows that a report reads; every row says what made it."""

import base64
import io
import os
import platform
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from noisy_fm import checkpoint, files, record, statistics, train
from noisy_fm import config as config_lib

NUM_EXAMPLES = 12  # images with wrong labels shown in the report


def assemble(config: ConfigDict, workdir: Path, outputs: dict) -> None:
    """Writes what the report reads: records, spectra, stages, manifests and examples."""
    common = {"config_hash": config_lib.hash_of(config)}
    records, curves, durations, manifests = [], [], [], []
    for cell, out in outputs.items():
        about = {
            "model": cell.config.model.name,
            "noise_kind": cell.config.noise.kind,
            "noise_rate": cell.rate,
            "seed": cell.seed,
        }
        manifest = out["pretrain"]["manifest"]
        shared = {**about, "manifest_hash": manifest["hash"], **common}
        records += list(cell_records(cell, out, shared, config))
        records += change_record(cell, outputs, shared)
        curves += list(cell_curves(out, about))
        durations += [
            {"stage": f"{name} {cell.name}", "duration_s": made["duration_s"]}
            for name, made in out.items()
        ]
        manifests.append({"cell": cell.name, **manifest})
    record.write(workdir / "records.jsonl", records)
    record.write(workdir / "spectra.jsonl", curves)
    record.write(workdir / "stages.jsonl", durations)
    record.write(workdir / "manifests.jsonl", manifests)
    files.write_json(workdir / "examples.json", wrong_labels(max(outputs, key=lambda c: c.rate)))


def cell_records(cell, out: dict, shared: dict, config: ConfigDict) -> Iterable[dict]:
    """One row a metric: pre-training, spectrum, probes."""

    def rows(stage_name, metrics, **fields):
        seconds = out[stage_name]["duration_s"]
        for metric, numbers in metrics.items():
            known = {
                **shared,
                "versions": out[stage_name]["versions"],
                "commit": out[stage_name]["commit"],
                "stage": {"spectra": "spectrum", "probes": "probe"}.get(stage_name, stage_name),
                "duration_s": seconds,
            }
            yield record.row(**{**known, **fields, "metric": metric, **numbers})

    trained = {"dataset": cell.config.data.name, "labels": cell.config.data.labels}
    yield from rows("pretrain", with_chance(out["pretrain"]), **trained)
    in_domain = {(name, source) for name, _, source, _ in config.tasks}
    for row in out["spectra"]["rows"]:
        place = (row["dataset"], row["domain"])
        fields = {
            "dataset": row["dataset"],
            "labels": row.get("labels"),  # of F on a task's own images, which are fewer
            "target": row["domain"],
            "shift": row.get("shift", "id" if place in in_domain else "ood"),
            "n": row["n"],
        }
        yield from rows("spectra", row["metrics"], **fields)
    for row in out["probes"]["rows"]:
        yield from rows("probes", row["metrics"], **{k: row[k] for k in row if k != "metrics"})
    for row in out["probes"]["spectra"]:
        fields = {key: row[key] for key in (*record.HEAD, "dataset", "labels", "source", "n")}
        shift = "id" if row["domain"] == row["source"] else "ood"
        fields |= {"stage": "spectrum", "target": row["domain"], "shift": shift}
        yield from rows("probes", row["metrics"], **fields)


def with_chance(pretrained: dict) -> dict:
    """The metrics of pre-training and, beside memorised labels, how many chance gives.

    A model that misses a changed label's truth hits the given one of C − 1 others by chance.
    """
    metrics = pretrained["metrics"]
    if "flipped_fits_true" not in metrics:
        return metrics
    truth = metrics["flipped_fits_true"]
    others = pretrained["manifest"]["num_classes"] - 1
    chance = {"value": (1 - truth["value"]) / others, "n": truth["n"]}
    chance |= {"low": (1 - truth["high"]) / others, "high": (1 - truth["low"]) / others}
    return {**metrics, "flipped_fits_chance": chance}


def change_record(cell, outputs: dict, shared: dict) -> list[dict]:
    """Pre-training accuracy against the clean model of the same seed, paired on the same images.

    The interval resamples concepts, so what an image adds to both models cancels.
    """
    clean = next((o for c, o in outputs.items() if c.rate == 0 and c.seed == cell.seed), None)
    if clean is None or cell.rate == 0:
        return []
    ours, theirs = outputs[cell]["pretrain"], clean["pretrain"]
    change = np.subtract(ours["correct"], theirs["correct"])
    low, high = statistics.cluster_bootstrap(change, np.asarray(ours["groups"]))
    row = {**shared, "stage": "pretrain", "metric": "accuracy_change"}
    row |= {"dataset": cell.config.data.name, "labels": cell.config.data.labels}
    row |= {name: ours[name] for name in ("versions", "commit", "duration_s")}
    measured = {"value": float(change.mean()), "low": low, "high": high, "n": len(change)}
    return [record.row(**row, **measured)]


def cell_curves(out: dict, about: dict) -> Iterable[dict]:
    """Singular values of F on all images of a domain and, for tuned heads, of Z on their task's."""
    whole = [row for row in out["spectra"]["rows"] if "singular_values" in row]
    for row in (*whole, *out["probes"]["spectra"]):
        known = {key: row[key] for key in record.CURVE if key in row}
        yield record.curve(**about, **known)


def wrong_labels(cell) -> list[dict]:
    """A few images of the cell's training set whose label was flipped, as the report shows them."""
    made = train.setup(cell.config)
    source, names = made.clean, made.clean.info["label_names"]
    given, true = (one.columns["label"] for one in (made.source, made.clean))
    flipped = np.flatnonzero(given != true)
    chosen = np.random.default_rng(0).permutation(flipped)[:NUM_EXAMPLES]
    rows = []
    for i, image in zip(chosen, source.read(chosen)["image"], strict=True):
        png = io.BytesIO()
        Image.fromarray(image).save(png, "PNG")
        rows.append(
            {
                "image": base64.b64encode(png.getvalue()).decode(),
                "true": names[true[i]],
                "given": names[given[i]],
                "concept": str(source.columns.get("caption", source.ids)[i]),
                "noise_rate": cell.rate,
            }
        )
    return rows


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
        "command": " ".join(["python -m noisy_fm.study", *sys.argv[1:]]),
    }
