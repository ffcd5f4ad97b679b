"""Extracts the features of a data set with a trained model, to a feature store.

python -m noisy_fm.features --model=runs/a --data=folder --data.path=/images --out=features
python -m noisy_fm.features --model=gs://bucket/run --data=digits --data.split=test --out=digits

What to expect: the model is there in seconds; then a bar shows images a second and the time left,
in bounded memory whatever the number of images. Interrupted or killed, the same line goes on, and
the store is the same, byte for byte. Images that cannot be read are counted, named in the store's
meta.json, and have no row. `python -m noisy_fm.spectrum OUT` and noisy_fm.features.open_store(OUT)
read the store: features.npy [n d] float32, ids.npy, labels.npy, meta.json.
"""

import argparse
import sys
from collections.abc import Sequence

from noisy_fm import app, config, data
from noisy_fm.features.extraction import extract
from noisy_fm.features.store import open_store
from noisy_fm.messages import say
from noisy_fm.model import MODELS_OWN


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, dict, dict]:
    """(the flags, those that are `--data.KEY=VALUE`, those that are `--model.KEY=VALUE`)."""
    parser = app.model_parser(
        "features",
        __doc__,
        epilog="--data.KEY=VALUE are arguments of noisy_fm.data.load: --data.path (of images on "
        "disk), --data.split, --data.domain (several as noto,twemoji), …",
    )
    add = parser.add_argument
    add("--out", required=True, metavar="STORE", help="the folder to write")
    add("--feature", help="which of the model's features; by default what its head reads")
    add("--threads", type=int, help="that decode; by default one a core")
    flags, rest = parser.parse_known_args(argv)
    return flags, *app.keyed_flags(rest, parser.error)


def main(argv: Sequence[str] | None = None) -> None:
    flags, chosen, of_model = parse(argv)
    app.run_command(
        lambda: _run(flags, chosen, of_model), again="; run the same line again to go on"
    )


def _run(flags: argparse.Namespace, chosen: dict, of_model: dict) -> None:
    config.check_arguments(data.load, chosen, where="--data", given=MODELS_OWN)
    for name in ("batch_size", "threads"):
        if (value := getattr(flags, name)) is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; expected 1 or more")
    model = app.chosen_model(flags, of_model)
    source = model.data(flags.data, **chosen)
    say(f"{model}, {len(source):,} images", file=sys.stderr)
    about = {key: value for key, value in chosen.items() if key != "path"}
    left_out = extract(
        model,
        source,
        flags.out,
        data={"name": flags.data, **about},
        feature=flags.feature,
        batch_size=flags.batch_size,
        max_bad=flags.max_bad,
        threads=flags.threads,
    )
    rows, width = open_store(flags.out, verify=False).features.shape
    bad = f"; {len(left_out)} unreadable ones left out, listed in meta.json" if left_out else ""
    say(f"{rows:,} × {width} features of {len(source):,} images in {flags.out}{bad}")


if __name__ == "__main__":
    main()
