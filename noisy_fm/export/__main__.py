"""Writes a trained model for another framework, and compares it there before it has its name.

python -m noisy_fm.export --model=runs/a --to=timm --out=exported
python -m noisy_fm.export --model=runs/clip --to=open_clip --out=clip --check=required

What to expect: a folder with the model as the target takes it, noisy_fm.json (how images are
resized and normalised, classes, noise), README.md with lines that load it, and parity.json; a table
of how far the target's outputs are from the model's. If they differ, nothing is left under the name
and the exit code is 1.
"""

import argparse
from collections.abc import Sequence

from noisy_fm import app
from noisy_fm.export import TARGETS, ParityError, export, parity
from noisy_fm.export.writing import PIXELS
from noisy_fm.messages import say


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, dict]:
    """(the flags, those that are `--model.KEY=VALUE`)."""
    parser = app.model_parser(
        "export",
        __doc__,
        epilog="--model.KEY=VALUE are arguments of noisy_fm.load_model: --model.path, …",
        data=False,
    )
    add = parser.add_argument
    add("--to", required=True, choices=TARGETS, help="the format")
    add("--out", required=True, metavar="FOLDER", help="the folder to write")
    add("--check", default="installed", choices=parity.CHECKS,
        help="compare if the target is installed, fail if it is not, or never")  # fmt: skip
    add("--tolerance", type=float, default=parity.TOLERANCE, metavar="SHARE",
        help="largest difference, of an output's scale (1e-4)")  # fmt: skip
    add("--pixels", default="uint8", choices=PIXELS, help="what onnx and stablehlo take")
    add("--nearest", action="store_true",
        help="write the nearest preprocessing where the format cannot say the model's")  # fmt: skip
    add("--head", metavar="FILE", help="a probe or NMTune head to put on top (onnx)")
    flags, rest = parser.parse_known_args(argv)
    of_data, of_model = app.keyed_flags(rest, parser.error)
    if of_data:
        parser.error("an export reads no data; expected no --data.KEY")
    return flags, of_model


def main(argv: Sequence[str] | None = None) -> None:
    flags, of_model = parse(argv)
    app.run_command(lambda: _run(flags, of_model))


def _run(flags: argparse.Namespace, of_model: dict) -> None:
    model = app.chosen_model(flags, of_model)
    try:
        report = export(
            model,
            flags.to,
            flags.out,
            run=flags.model,
            check=flags.check,
            tolerance=flags.tolerance,
            pixels=flags.pixels,
            nearest=flags.nearest,
            head=flags.head,
        )
    except ParityError as error:
        app.fail(error, 1)
    if report["checked"]:
        parity.table(report)
    say(f"{model} as {flags.to} in {flags.out}")


if __name__ == "__main__":
    main()
