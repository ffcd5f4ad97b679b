"""Prepares images for training: sharded array_record that any machine reads at random.

    python tools/prepare.py folder --path imagenet --split train --out prepared
    python tools/prepare.py tar --path 'shards/train-*.tar' --split train --out prepared
    python tools/prepare.py parquet --path imagenet-1k --split train --out prepared
    python tools/prepare.py tfds:imagenet2012 --path tensorflow_datasets

Train on it with data.name=array_record, data.path=prepared (or, without --out, tfds:NAME and its
path). Killed anywhere, the same line goes on and ends with the same bytes; --verify reads all back
and compares it with SPLIT.SHA256SUMS. Splits may be prepared side by side, a process each. An
image that cannot be read keeps its place as an empty record, which training replaces, and is named
in SPLIT.unreadable.json; --max-bad bounds them as config.loader.max_bad does (0: none). Preparing
a TFDS data set needs TensorFlow (the `prepare` extra).
"""

import argparse
import sys

from noisy_fm.data import prepare
from noisy_fm.data.storage import FORMATS, TFDS, open_storage
from noisy_fm.data.storage.tfds import find_folder
from noisy_fm.messages import print_anywhere, unknown


def main(argv: list[str] | None = None) -> None:
    print_anywhere()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help=f"{', '.join(FORMATS)} or {TFDS}NAME")
    parser.add_argument("--path", help="where it is (TFDS: the data_dir)")
    parser.add_argument("--split", help="train, val, …: a subfolder, or a word of the files' names")
    parser.add_argument("--out", help="folder of the array_record shards")
    parser.add_argument("--shard-size", type=int, help="images a shard (10000)")
    parser.add_argument("--max-bad", type=float, help="share that may be unreadable (0.001)")
    parser.add_argument("--verify", action="store_true", help="check every byte at the end")
    args = parser.parse_args(argv)
    try:
        run(args)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


def run(args: argparse.Namespace) -> None:
    """Does what the arguments say; raises ValueError or OSError for what cannot be done."""
    tfds = args.source.startswith(TFDS)
    if not tfds and args.source not in FORMATS:
        raise ValueError(unknown("source", args.source, [*FORMATS, f"{TFDS}NAME"]))
    if not (tfds or args.out):
        raise ValueError("--out is missing; expected the folder to write to")
    options = {"shard_size": args.shard_size, "max_bad": args.max_bad}
    options = {name: value for name, value in options.items() if value is not None}
    unused = [*options, *["split"] * bool(args.split), *["verify"] * args.verify]
    if unused and not args.out:
        raise ValueError(f"--{unused[0].replace('_', '-')} is for --out, which is missing")
    if tfds:
        name = args.source.removeprefix(TFDS)
        try:
            find_folder(name, args.path)
        except FileNotFoundError:
            prepare.prepare_tfds(name, args.path)
        if not args.out:
            return print(f"tfds:{name} is prepared in {find_folder(name, args.path)}")
    storage = open_storage(args.source, args.path, args.split)
    bad = prepare.prepare(storage, args.out, args.split or "all", **options)
    wrong = prepare.verify(args.out) if args.verify else []
    if wrong:
        raise ValueError(f"{'; '.join(wrong)}: delete what is wrong and run the same line again")
    skipped = f"; {len(bad)} cannot be read and are empty records" if bad else ""
    print(f"{len(storage.listing.labels)} images are in {args.out}{skipped}")


if __name__ == "__main__":
    main()
