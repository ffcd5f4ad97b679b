"""Spectra of stored features, as a table and a self-contained HTML page.

python -m noisy_fm.spectrum clean.npy noisy.npy --out report.html
python -m noisy_fm.spectrum features.npz:train store/ --convention release
"""

import argparse
import os
import sys
from collections import Counter
from pathlib import Path

from noisy_fm.messages import print_anywhere, settle
from noisy_fm.spectrum.files import columns_taken, load_features, split_key
from noisy_fm.spectrum.moments import CONVENTIONS
from noisy_fm.spectrum.report import measure, page, prepare_page, table, write_page


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
    return parser.parse_args(argv)


def load_named(sources: list[str]) -> dict:
    """Features by name: what stands before `=`, else the file's name, or its path if two share it.

    Raises ValueError for two of one name, and as `load_features`.
    """
    split = [_split(source) for source in sources]
    short = Counter(name or Path(file).name for name, file in split)
    named = {}
    for name, file in split:
        own = Path(file).name
        name = name or (own if short[own] == 1 else file)
        if name in named:
            raise ValueError(f"{name}: given twice; name them apart as NAME=FILE")
        named[name] = load_features(file)
        taken = columns_taken(file)
        if taken:
            print(f"{name}: {taken}", file=sys.stderr)
    return named


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
        features = load_named(args.features)
        measured = measure(
            features,
            intervals=not args.no_intervals,
            center=args.center or False,
            normalize=args.normalize,
            convention=args.convention,
            progress=show_progress(),
        )
        if args.out:  # before anything is printed, which may fail
            write_page(out, page(*measured))
        print(table(*measured[1:3], encoding=sys.stdout.encoding))
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
