"""Command line: python -m noisy_fm.report WORKDIR [--out DIR] [--against DIR]."""

import argparse
import sys

from noisy_fm.messages import print_anywhere
from noisy_fm.report import artifacts, page

DESCRIPTION = """\
Build the report of a study: one self-contained index.html, its figures as SVG and PNG, and the
records as CSV, JSON Lines and Parquet."""
READS = """\
It reads only what the study wrote to WORKDIR: records.jsonl (or records.parquet) and, where
present, spectra.jsonl, config.json, environment.json, stages.jsonl, manifests.jsonl and
examples.json. A part that is missing becomes a line on the page and on the error stream. Example:

  python -m noisy_fm.report runs/emoji && xdg-open runs/emoji/report/index.html"""


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m noisy_fm.report",
        description=DESCRIPTION,
        epilog=READS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("workdir", metavar="WORKDIR", help="the study's working directory")
    parser.add_argument("--out", metavar="DIR", help="where to write (default: WORKDIR/report)")
    parser.add_argument(
        "--against", metavar="DIR", help="another study, drawn beside this one (a second regime)"
    )
    arguments = parser.parse_args(argv)
    print_anywhere()
    try:
        found = artifacts.load(arguments.workdir)
        other = artifacts.load(arguments.against) if arguments.against else None
        print(page.write(found, arguments.out, other))
    except (OSError, ValueError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 1
    for problem in found.problems:
        print(f"report: {problem}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
