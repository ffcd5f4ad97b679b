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
import signal
import sys
from collections.abc import Sequence

from noisy_fm import app, config, data, hosts, signals
from noisy_fm.features.extraction import extract
from noisy_fm.features.store import open_store
from noisy_fm.messages import print_anywhere, say, settle
from noisy_fm.model import load_model

OURS = ("name", "size", "canvas", "crop")  # of `data.load`'s arguments; the model says the size


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, dict]:
    """(the flags, those that are `--data.KEY=VALUE` as {KEY: VALUE})."""
    parser = argparse.ArgumentParser(
        prog="python -m noisy_fm.features",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="--data.KEY=VALUE are arguments of noisy_fm.data.load: --data.path (of images on "
        "disk), --data.split, --data.domain (several as noto,twemoji), …",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", required=True, metavar="RUN", help="a training run's folder, or its URL")
    add("--data", required=True, metavar="NAME",
        help="folder, tar, array_record, parquet, tfds:NAME, emoji_domains, digits")  # fmt: skip
    add("--out", required=True, metavar="STORE", help="the folder to write")
    add("--feature", help="which of the model's features; by default what its head reads")
    add("--best", action="store_true", help="the best checkpoint by config.keep_best")
    add("--step", type=int, help="the checkpoint of this step; by default the newest")
    add("--batch-size", type=int, default=128, help="images at a time (128)")
    add("--threads", type=int, help="that decode; by default one a core")
    add("--max-bad", type=float, default=0.001, metavar="SHARE",
        help="stop if more of the images than this share (0.001), and than three, cannot be read; "
        "0: at the first")  # fmt: skip
    flags, rest = parser.parse_known_args(argv)
    return flags, app.data_flags(rest, parser.error)


def main(argv: Sequence[str] | None = None) -> None:
    flags, chosen = parse(argv)
    print_anywhere()
    signals.listen(signals.terminate)
    config.cache_compilations()
    try:
        _run(flags, chosen)
    except KeyboardInterrupt:
        app.fail("interrupted; run the same line again to go on", 128 + signal.SIGINT)
    except signals.Terminated:
        app.fail("terminated; run the same line again to go on", 128 + signal.SIGTERM)
    except app.MISTAKES as error:
        app.fail(error)
    settle()


def _run(flags: argparse.Namespace, chosen: dict) -> None:
    config.check_arguments(data.load, chosen, where="--data", given=OURS)
    for name in ("batch_size", "threads"):
        if (value := getattr(flags, name)) is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; expected 1 or more")
    hosts.check_devices()
    model = load_model(flags.model, best=flags.best, step=flags.step)
    size = model.preprocess.size  # drawn at that size, where there is a choice
    own = {"size": size} if flags.data in data.IN_MEMORY and size in data.SIZES else {}
    source = data.load(flags.data, **chosen, **own)
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
