"""Models an hour of a study whose cells run side by side, each on its share of the cores.

Ours is `--scheduler=local:N`, the peer the same line without it, one cell after another on all
cores; either from the first import to the report, in a folder of its own.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import Case

ROOT = Path(__file__).parents[2]


def run(measure, argv) -> list[Case]:
    parser = argparse.ArgumentParser(prog="bench.py cells")
    parser.add_argument("--jobs", type=int, default=2, help="cells at a time (default 2)")
    parser.add_argument("--cells", type=int, default=4, help="models trained (default 4)")
    parser.add_argument("--epochs", type=float, default=8.0)
    args = parser.parse_args(argv)

    def study(*more: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            line = [sys.executable, "-m", "noisy_fm.study", "--config=configs/study/emoji.py"]
            line += [f"--workdir={folder}/run", f"--config.seeds={args.cells}"]
            line += ["--config.noise_rates=(0.3,)", f"--config.pretrain.epochs={args.epochs}"]
            subprocess.run([*line, *more], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)

    case = f"{args.cells} models, {args.epochs:g} epochs, {args.jobs} at a time"
    side_by_side = lambda: study(f"--scheduler=local:{args.jobs}")  # noqa: E731
    return [measure(case, side_by_side, {"one by one": study}, target={"one by one": 1.3})]
