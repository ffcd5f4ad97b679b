"""Runs a study: pre-train at each noise rate, extract, look at the spectrum, tune, report.

    python -m noisy_fm.study --config=configs/study/emoji.py --workdir=runs/emoji

Every stage writes one artifact, whole or not at all, and is skipped when its artifact is there:
kill it anywhere and run the same line again. More noise_rates or seeds in the same workdir only run
the new cells; a change in what is measured (transfers, methods, …) runs that again, never the
training.
"""

from ml_collections import ConfigDict

from noisy_fm import app, study
from noisy_fm.messages import say


def main(config: ConfigDict, workdir: str) -> None:
    path = study.run(config, workdir)
    if path is not None:
        say(f"report: {path}")


if __name__ == "__main__":
    app.run_app(main)
