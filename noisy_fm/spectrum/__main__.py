"""Spectra of stored features, as a table and a self-contained HTML page.

python -m noisy_fm.spectrum clean.npy noisy.npy --out report.html
python -m noisy_fm.spectrum features.npz:train store/ --convention release
"""

import argparse
import os
import sys
from collections import Counter
from pathlib import Path

from noisy_fm.messages import print_anywhere, say, settle
from noisy_fm.spectrum.files import columns_taken, load_features, row_ids, split_key
from noisy_fm.spectrum.measure import measure
from noisy_fm.spectrum.moments import CONVENTIONS
from noisy_fm.spectrum.report import page, prepare_page, table, write_page
from noisy_fm.spectrum.words import cautions, headline, pairing


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m noisy_fm.spectrum",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "features",
        nargs="+",
        metavar="FEATURES",
        help=".npy, .npz, .parquet, .safetensors, .csv or a feature-store folder, [n d]; FILE:KEY "
        "picks an array of an .npz or .safetensors, a column of lists of a .parquet, or columns of "
        "a .csv (FILE:a,b or FILE:emb_*); NAME=FILE names it in the report",
    )
    parser.add_argument("--out", metavar="HTML", help="write the page here, a name in .html")
    parser.add_argument(
        "--convention",
        choices=sorted(CONVENTIONS),
        help="paper: rows as they are (the default); release: unit rows minus each row's own mean",
    )
    parser.add_argument(
        "--center", choices=("columns", "samples"), help="subtract column means, or each row's own"
    )
    parser.add_argument("--normalize", action="store_true", help="scale rows to unit length first")
    parser.add_argument("--no-intervals", action="store_true", help="skip the jackknife")
    parser.add_argument(
        "--whole",
        action="store_true",
        help="take all rows; by default larger sets are cut to the rows of the smallest, drawn "
        "without replacement by a fixed seed, since SVE and LSVR depend on their number",
    )
    return parser.parse_args(argv)


def load_named(sources: list[str]) -> tuple[dict, dict]:
    """Features and, of stores, ids of their rows, by name: what stands before `=`, else the file's.

    It is the file's path where two share a name.

    Raises ValueError for two of one name, and as `load_features`.
    """
    split = [_split(source) for source in sources]
    short = Counter(name or Path(file).name for name, file in split)
    named: dict = {}
    ids = {}
    for name, file in split:
        own = Path(file).name
        name = name or (own if short[own] == 1 else file)
        if name in named:
            raise ValueError(f"{name}: given twice; name them apart as NAME=FILE")
        named[name] = load_features(file)
        if (found := row_ids(file)) is not None:
            ids[name] = found
        taken = columns_taken(file)
        if taken:
            print(f"{name}: {taken}", file=sys.stderr)
    return named, ids


def _split(source: str) -> tuple[str, str]:
    """(NAME, FILE) of NAME=FILE; no name where there is none, or a file has the `=`."""
    name, _, file = source.rpartition("=")
    return ("", source) if Path(os.path.expanduser(source)).exists() else (name, file)


def show_progress():
    """A `progress` callback that draws one bar a file on a terminal, and nothing elsewhere."""
    from tqdm import tqdm

    bars = {}

    def progress(name: str, rows: int, of: int) -> None:
        if name not in bars:
            bars[name] = tqdm(total=of, desc=name, unit=" rows", unit_scale=True, disable=None)
        bars[name].update(rows - bars[name].n)
        if rows == of:
            bars[name].close()

    return progress


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    print_anywhere()
    try:
        if args.out:
            out = prepare_page(args.out, [split_key(_split(s)[1])[0] for s in args.features])
        features, ids = load_named(args.features)
        measured = measure(
            features,
            intervals=not args.no_intervals,
            whole=args.whole,
            ids=ids,
            center=args.center or False,
            normalize=args.normalize,
            convention=args.convention,
            progress=show_progress(),
        )
        if args.out:  # before anything is printed, which may fail
            write_page(out, page(measured))
        for line in cautions(measured):
            say(f"warning: {line}", file=sys.stderr)
        print(table(measured.summaries, measured.bounds, encoding=sys.stdout.encoding))
        if len(features) > 1:
            print(headline(measured), *[f"{pairing(measured)}."] * bool(measured.bounds), sep="\n")
        if args.out:
            print(f"report: {args.out}")
        sys.stdout.flush()
    except BrokenPipeError:  # who reads has seen enough
        settle()
    except (ValueError, TypeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        settle()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
