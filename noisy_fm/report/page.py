"""Assemble the page: sections of text, tables and drawings, rendered by template.html."""

import base64
import datetime
import json
import os
import re
import shlex
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd

from noisy_fm import figures as colours
from noisy_fm import record
from noisy_fm.report import (
    artifacts,
    figures,
    findings,
    overview,
    paired,
    questions,
    regimes,
    sections,
    sweep,
    tables,
    training,
)

MANIFEST = ("kind", "rate", "realised", "seed", "n", "changed", "num_classes", "hash")
EXAMPLE = ("image", "true", "given", "concept", "name", "noise_rate")
TEMPLATE = Path(__file__).with_name("template.html")


def build(workdir, out=None, *, against=None) -> Path:
    """Write the report of a study's `workdir` to `out` (WORKDIR/report); returns index.html.

    `against` is the workdir of another study, whose changes with γ are drawn beside this one's.

    `out` receives index.html, which needs no other file and no network, figures/*.svg and
    *.png, runs.csv (one row a pre-training run), and the records as .jsonl, .csv and .parquet.
    Scores are fractions in [0, 1]. Raises FileNotFoundError or ValueError if there are no records
    and OSError if `out` cannot be written, each with one line.
    """
    other = artifacts.load(against) if against is not None else None
    return write(artifacts.load(workdir), out, other)


def write(found: artifacts.Artifacts, out=None, other: artifacts.Artifacts | None = None) -> Path:
    """`build` of artifacts that are already read."""
    out = Path(out) if out is not None else found.workdir / "report"
    try:
        out.mkdir(parents=True, exist_ok=True)
        record.publish(found.records, out)
        page, runs = render(found, out / "figures", other)
        (out / "runs.csv").write_text(runs, encoding="utf-8")
        unfinished = out / "index.html.part"
        unfinished.write_text(page, encoding="utf-8")
        os.replace(unfinished, out / "index.html")
    except OSError as error:
        raise OSError(f"{out}: cannot write the report there ({error.strerror})") from error
    return out / "index.html"


def render(
    found: artifacts.Artifacts, folder: Path, other: artifacts.Artifacts | None = None
) -> tuple[str, str]:
    """(The page as HTML, one row a run as CSV); the figures are also written to `folder`."""
    everything = tables.prepare(found.records)
    records = everything[~tables.is_sweep(everything)]
    rates = sorted(records["noise_rate"].unique())
    studio = figures.Studio(folder, tables.ordered_labels(records["label"]), rates)
    studied = questions.collect(records)
    several = records["model"].nunique() > 1
    parts, runs = [], []
    for model in sorted(records["model"].unique()):
        own = records[records["model"] == model]
        panels = overview.panels(own, studio, model)
        if panels:
            files = [folder / f"{panel['drawing'].name}.png" for panel in panels]
            figures.tile(files, folder / f"{figures.slug('overview', model)}.png")
        runs.append(overview.runs_table(panels, model if several else ""))
        parts.append(
            {
                "model": model if several else None,
                "panels": panels,
                "judged": own["seed"].nunique() >= tables.FEWEST,
                "runs": shown(runs[-1]),
                "csv": base64.b64encode(runs[-1].to_csv(index=False).encode()).decode(),
                "sections": model_sections(model, everything, found, studio),
            }
        )
    if other is not None:
        here, there = found.workdir.resolve(), other.workdir.resolve()
        if here == there:
            raise ValueError(f"{here}: a study against itself; expected another")
        alike = here.name == there.name
        names = (str(here), str(there)) if alike else (here.name, there.name)
        theirs = tables.prepare(other.records)
        theirs = theirs[~tables.is_sweep(theirs)]
        parts[0]["sections"].insert(0, regimes.beside(records, theirs, names, studio))
    learning = overview.still_learning(records)
    methods = [label for label in tables.ordered_labels(records["label"]) if label != FEATURES]
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    html = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=overview.title(studied, rates, wrong=tables.wrong(records)),
        wrong=tables.wrong(records),
        statement=statement(records, found),
        memorised=overview.memorised_text(records),
        learning=learning,
        toggles=[(label, figures.slug(label)) for label in methods],
        records=f"{len(everything):,}",
        findings=[(one, strip(one), overview.caution(one, learning)) for one in studied],
        family=max(finding.family for finding in studied),
        parts=parts,
        examples=shaped(found.examples, EXAMPLE, "image")[:24],
        noise=sorted(shaped(found.manifests, MANIFEST, "rate"), key=lambda row: row["rate"]),
        stages=durations(found.stages),
        environment=flat(found.environment),
        config=json.dumps(found.config, indent=2, sort_keys=True) if found.config else None,
        reproduce=reproduce(records, found),
        problems=found.problems,
        light=colours.ramp(len(rates)),
        dark=colours.ramp(len(rates), dark=True),
        percent=tables.percent,
        signed=tables.signed,
        today=datetime.date.today().isoformat(),
    )
    return html, pd.concat(runs, ignore_index=True).to_csv(index=False)


FEATURES = tables.METHODS["features"]


def shown(runs: pd.DataFrame) -> dict:
    """A table of runs as text."""
    rows = [
        ["" if pd.isna(cell) else cell if isinstance(cell, str) else f"{cell:.4g}" for cell in row]
        for row in runs.itertuples(index=False)
    ]
    return {"columns": list(runs), "rows": rows}


def model_sections(
    model: str, everything, found: artifacts.Artifacts, studio: figures.Studio
) -> list[dict]:
    """The sections about one pre-trained model; only the last but one sees a λ-sweep's heads."""
    rows = everything[everything["model"] == model]
    study = rows[~tables.is_sweep(rows)]
    curves = pd.DataFrame(found.spectra).reindex(columns=["model", "preset", "weights"])
    of_study = (curves["model"].fillna("") == model) & ~tables.is_sweep(curves)
    spectra = [row for row, kept in zip(found.spectra, of_study, strict=True) if kept]
    swept = sweep.weight_sweep(rows, studio, model)
    logged, near = (
        [row for row in some if row.get("model") == model and row.get("noise_rate") in studio.rates]
        for some in (found.history, found.similarity)
    )
    trained = training.training(logged, near, studio, model)
    return [
        sections.pretraining(study, studio, model),
        sections.downstream(study, studio, model),
        *sections.less_data(study, studio, model),
        sections.spectrum(study, spectra, studio, model),
        *([swept] if swept else []),
        sections.tasks(study),
        *([trained] if trained else []),
    ]


def statement(records: pd.DataFrame, found: artifacts.Artifacts) -> dict:
    """What was run, in the words of the opening paragraph."""
    pretrained = records[records["stage"] == "pretrain"]
    probes = records[records["stage"] == "probe"]
    steps = [
        tables.plural(find(found.config, f"{unit}s"), unit)
        for unit in ("step", "epoch")
        if isinstance(find(found.config, f"{unit}s"), (int, float))
    ]
    kinds = sorted(records["noise_kind"].dropna().unique())
    return {
        "models": sorted(records["model"].unique()),
        "datasets": sorted(set(pretrained["dataset"]) - {""}),
        "labels": sorted(set(pretrained["labels"]) - {""}),
        "kinds": kinds,
        "rates": tables.percents(sorted(records["noise_rate"].unique())),
        "seeds": tables.plural(records["seed"].nunique(), "pre-training seed"),
        "probe_seeds": tables.plural(probes["probe_seed"].nunique(), "probe seed"),
        "steps": steps[:1],
        "methods": tables.ordered_labels(probes["label"]),
        "recipes": " and ".join(recipes(probes)),
        "second_view": (found.config.get("second_view") or {}).get("name", "none"),
        "runs": tables.plural(len(records[paired.RUN].drop_duplicates()), "model"),
    }


def recipes(probes: pd.DataFrame) -> list[str]:
    """What NMTune was, by preset: "paper preset (λ = 0.01)"."""
    nmtune = probes[probes["method"] == "nmtune"].dropna(subset="preset")
    found = []
    for preset, weights in nmtune.groupby("preset")["weights"]:
        recorded = weights.dropna()
        text = f"{preset} preset"
        if len(recorded):
            text += f" (λ = {tables.lambda_text(json.loads(recorded.iloc[0]))})"
        found.append(text)
    return found


def shaped(rows: list, keys: tuple[str, ...], needed: str) -> list[dict]:
    """Rows with exactly `keys`, absent ones None; rows without the `needed` one are left out."""
    rows = [row for row in rows if isinstance(row, dict) and row.get(needed) is not None]
    return [{key: row.get(key) for key in keys} for row in rows]


def durations(stages: list[dict]) -> dict | None:
    """Seconds by group of stages (the part of the name before a slash) and in all."""
    rows = [
        (str(row.get("stage") or row.get("name") or "?"), float(row["duration_s"]))
        for row in stages
        if isinstance(row.get("duration_s"), (int, float))
    ]
    if not rows:
        return None
    frame = pd.DataFrame(rows, columns=["stage", "seconds"])
    frame["group"] = frame["stage"].map(lambda name: re.split(r"[/:\s]", name)[0])
    grouped = frame.groupby("group", sort=False)["seconds"].agg(["size", "sum"]).reset_index()
    total = frame["seconds"].sum()
    return {
        "groups": [
            (g, int(size), duration(s), 100 * s / max(total, 1e-9))
            for g, size, s in grouped.itertuples(index=False)
        ],
        "all": [(stage, duration(s)) for stage, s in rows],
        "total": duration(total),
    }


def duration(seconds: float) -> str:
    """4.2 -> "4.2 s"; 372 -> "6 min 12 s"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def reproduce(records: pd.DataFrame, found: artifacts.Artifacts) -> dict:
    """What a reader needs to run it again."""
    command = found.environment.get("command")
    recorded = found.environment.get("commits")
    recorded = recorded if isinstance(recorded, list) else []
    # The records say which commits made them; environment.json alone may be of the first run.
    commits = [*records["commit"].dropna(), *(str(commit) for commit in recorded if commit)]
    commits = commits or [str(found.environment.get("commit") or "")]
    return {
        "command": wrapped(shlex.join(map(str, command)) if isinstance(command, list) else command),
        "commits": [commit for commit in dict.fromkeys(commits) if commit],
        "config_hash": ", ".join(sorted(records["config_hash"].dropna().unique())) or None,
        "manifest_hash": records["manifest_hash"].nunique(),
    }


def wrapped(command: str | None) -> str | None:
    """A command line with a flag a line, which a shell reads as one."""
    parts = shlex.split(command) if command else []
    breaks = [
        f" \\\n    {shlex.quote(p)}" if p.startswith("--") else f" {shlex.quote(p)}" for p in parts
    ]
    return "".join(breaks).strip() or None


def flat(tree: dict, prefix: str = "") -> list[tuple[str, str]]:
    """A nested dict as (dotted key, text) rows."""
    rows = []
    for key, value in tree.items():
        if isinstance(value, dict):
            rows += flat(value, f"{prefix}{key}.")
        else:
            text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
            rows.append((f"{prefix}{key}", text))
    return rows


def find(tree: dict, key: str):
    """The first value under `key` in a nested dict, those under "pretrain" first; else None."""
    branches = sorted(tree.items(), key=lambda item: "pretrain" not in item[0])
    if key in tree:
        return tree[key]
    values = (find(branch, key) for _, branch in branches if isinstance(branch, dict))
    return next((value for value in values if value is not None), None)


def strip(finding: findings.Finding) -> dict | None:
    """Positions, in % of the width, of a finding's numbers, mean and interval around zero.

    A single number has no scale to be seen on.
    """
    if finding.verdict == "missing" or len(finding.differences) < 2:
        return None
    dots = np.asarray(finding.differences)
    marks = [finding.effect, *(v for v in (finding.low, finding.high) if np.isfinite(v)), *dots]
    reach = 1.0 if finding.unit == "r" else 1.05 * max(np.abs(marks).max(), 1e-9)

    def place(value):
        return None if not np.isfinite(value) else round(50 + 48 * float(value) / reach, 2)

    digits = 0 if reach >= 10 else 1 if reach >= 1 else 2
    return {
        "dots": [(place(d), 7 + (7 * i) % 17) for i, d in enumerate(dots[:400])],
        "effect": place(finding.effect),
        "low": place(finding.low),
        "high": place(finding.high),
        "left": tables.signed(-reach, digits),
        "right": tables.signed(reach, digits),
    }
