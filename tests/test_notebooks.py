"""The notebooks run, and each .ipynb is its script's cells, executed.

After a change of a script, with Jupyter beside the package (pip install jupytext nbconvert
ipykernel), in experiments/notebooks: jupytext --to ipynb --execute SCRIPT.py
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from noisy_fm.record import today
from noisy_fm.report import artifacts, tables

FOLDER = Path(__file__).parent.parent / "experiments" / "notebooks"
SCRIPTS = sorted(FOLDER.glob("*.py"))
each_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)


def cells(script):
    """[(kind, text)] of a script in the percent format; text without comment marks or margins."""
    found = []
    for line in script.read_text().splitlines():
        if line.startswith("# %%"):
            found.append(("markdown" if line.endswith("[markdown]") else "code", []))
        elif found:
            kind, lines = found[-1]
            lines.append(line.removeprefix("#").removeprefix(" ") if kind == "markdown" else line)
    return [(kind, "\n".join(lines).strip()) for kind, lines in found]


def notebook(script):
    return json.loads(script.with_suffix(".ipynb").read_text())


@each_script
def test_a_notebook_holds_its_script(script):
    there = [
        (cell["cell_type"], "".join(cell["source"]).strip()) for cell in notebook(script)["cells"]
    ]
    assert there == cells(script)


@each_script
def test_a_notebook_was_executed_in_order_without_error(script):
    code = [cell for cell in notebook(script)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert "error" not in {output["output_type"] for output in outputs}
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    text = json.dumps(outputs)
    assert "/site-packages/" not in text  # a warning, or a path of the machine it ran on


def test_notebooks_are_small():
    assert sum(script.with_suffix(".ipynb").stat().st_size for script in SCRIPTS) < 900_000


def run(name, tmp_path):
    """Standard output of a script run with reduced sizes; warnings are errors."""
    environment = os.environ | {"NOISY_FM_FAST": "1", "MPLBACKEND": "Agg", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-W", "error", FOLDER / f"{name}.py"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_features_to_nmtune_runs(tmp_path):
    out = run("features_to_nmtune", tmp_path)
    assert out.startswith("black and white has SVE ")
    for other in ("LP", "MLP"):  # two models, three domains
        counts = re.search(
            rf"NMTune − {other}, points: better in (\d) of 6 .* (\d), open in (\d)", out
        )
        assert sum(map(int, counts.groups())) == 6
    assert "{'γ = 0.0': (338, 128), 'γ = 0.3': (338, 128)}" in out


@pytest.mark.slow
def test_frozen_foundation_model_runs(tmp_path):
    out = run("frozen_foundation_model", tmp_path)
    assert "features (85, 1280)" in out
    assert "rows were drawn" in out or "whole groups were drawn" in out  # the domains differ in n
    assert sum(line.startswith("Over ") for line in out.splitlines()) == 2
    table = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line[:3] == "mlp"}
    assert float(table["mlp"][0]) > 0.35  # of eight categories, after two epochs on 85 drawings


@pytest.mark.slow
def test_published_records_are_averaged_by_task_and_by_run(tmp_path):
    out = run("published_records", tmp_path)
    folder = FOLDER.parent / out.partition(":")[0]
    rows = [today(row) for row in pd.read_parquet(folder / "records.parquet").to_dict("records")]

    def means(unit, **fields):
        """Mean over the seeds at each γ, by plain loops; every run of the records has all units."""
        runs: dict = {}
        for row in rows:
            if all(row[k] == v or (v is None and pd.isna(row[k])) for k, v in fields.items()):
                units = runs.setdefault((row["noise_rate"], row["seed"]), {})
                units.setdefault(tuple(row[k] for k in unit), []).append(row["value"])
        by_rate: dict = {}
        for (rate, _), units in runs.items():
            by_rate.setdefault(rate, []).append(np.mean([np.mean(v) for v in units.values()]))
        return [np.mean(by_rate[rate]) for rate in sorted(by_rate)]

    expected = {
        "LP out of domain, %": 100 * np.array(
            means(["dataset", "labels"], stage="probe", metric="accuracy", method="lp", shift="ood")
        ),
        "SVE in domain, nats": means(  # of whole feature sets, as the report's: not by labelling
            ["dataset", "target"],
            stage="spectrum", metric="sve", method=None, shift="id", labels=None,
        ),
    }  # fmt: skip
    for name, values in expected.items():
        (line,) = (line for line in out.splitlines() if line.startswith(name))
        found = [float(value) for value in re.findall(r"([\d.]+) at ", line)]
        np.testing.assert_allclose(found, values, atol=6e-4)
    records = tables.prepare(artifacts.load(folder).records)
    sets = tables.feature_sets(records, "sve", "id")
    shown = tables.summarise(sets, ["noise_rate"], ["dataset", "target"])["value"]
    np.testing.assert_allclose(shown, expected["SVE in domain, nats"])
