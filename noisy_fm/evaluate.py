"""Measures a trained model on any data: by class names alone, by captions, or on its own classes.

python -m noisy_fm.evaluate --model=runs/clip --data=emoji_domains --data.labels=category
    --data.domain=fluent3d --data.split=test --prompts=name
python -m noisy_fm.evaluate --model=runs/clip --data=folder --data.path=/imagenet --data.split=val
    --prompts=imagenet --names=imagenet
python -m noisy_fm.evaluate --model=runs/clip --data=folder --data.path=/images
    --data.captions=captions.csv:title --kind=retrieval

What to expect: a model of images and texts classifies by names (kind zero_shot), or, of data with
captions, retrieves (kind retrieval); a classifier is validated on its own classes. A table of
values with 95 % intervals (resampling whole groups) is shown; --out writes it as JSON, with each
class's accuracy, the counts and what made it.
"""

import argparse
import sys
from collections.abc import Sequence

import jax

from noisy_fm import app, config, data, evaluators, files, hosts, sharding, signals, zeroshot
from noisy_fm.messages import print_anywhere, require_known, say, settle
from noisy_fm.model import Model, load_model, separated

OURS = ("name", "size", "canvas", "crop")  # of `data.load`'s arguments; the model says them
KINDS = {"zero_shot": ("prompts", "names"), "retrieval": ("within",), "validation": ()}


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, dict]:
    """(the flags, those that are `--data.KEY=VALUE` as {KEY: VALUE})."""
    parser = argparse.ArgumentParser(
        prog="python -m noisy_fm.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="--data.KEY=VALUE are arguments of noisy_fm.data.load",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", required=True, metavar="RUN", help="a training run's folder, or its URL")
    add("--data", required=True, metavar="NAME",
        help="folder, tar, array_record, parquet, tfds:NAME, emoji_domains, digits")  # fmt: skip
    add("--kind", help=f"{', '.join(KINDS)}; by default what the model and the data allow")
    add("--prompts", action="append", metavar="PROMPT",
        help="name, simple, imagenet, or one's own with {}; several times for several")  # fmt: skip
    add("--names", help="the classes' wording: labels (the data's own), imagenet")
    add("--within", help="a column: captions are searched within its value")
    add("--out", metavar="FILE", help="where to write the values, as JSON")
    add("--best", action="store_true", help="the best checkpoint by config.keep_best")
    add("--step", type=int, help="the checkpoint of this step; by default the newest")
    add("--batch-size", type=int, default=128, help="images at a time (128)")
    add("--max-bad", type=float, default=0.001, metavar="SHARE",
        help="stop if more of the images than this share (0.001), and than three, cannot be "
        "read")  # fmt: skip
    flags, rest = parser.parse_known_args(argv)
    return flags, app.data_flags(rest, parser.error)


def main(argv: Sequence[str] | None = None) -> None:
    flags, chosen = parse(argv)
    print_anywhere()
    signals.listen(signals.terminate)
    config.cache_compilations()
    try:
        hosts.check_devices()
        _run(flags, chosen)
    except KeyboardInterrupt:
        app.fail("interrupted", 130)
    except signals.Terminated:
        app.fail("terminated", 143)
    except app.MISTAKES as error:
        app.fail(error)
    settle()


def _run(flags: argparse.Namespace, chosen: dict) -> None:
    config.check_arguments(data.load, chosen, where="--data", given=OURS)
    if flags.batch_size < 1:
        raise ValueError(f"--batch-size is {flags.batch_size}; expected 1 or more")
    model = load_model(flags.model, best=flags.best, step=flags.step)
    trained = model.meta["config"]
    if "split" not in chosen and flags.data == trained["data"]["name"]:
        chosen["split"] = trained["eval_split"]
        say(
            f"split {chosen['split']!r}, the run's own; --data.split picks another", file=sys.stderr
        )
    elif "split" not in chosen:
        say("all splits of the data; --data.split picks one", file=sys.stderr)
    size = model.preprocess.size
    own = {"size": size} if flags.data in data.IN_MEMORY and size in data.SIZES else {}
    source = model.preprocess.source(data.load(flags.data, **chosen, **own))
    kind = flags.kind or _kind(model, source, captions="captions" in chosen)
    known = KINDS[require_known("--kind", kind, KINDS)]
    arguments = {}
    for name in ("prompts", "names", "within"):
        if (value := getattr(flags, name)) and name not in known:
            raise ValueError(f"--{name} is not read by --kind={kind}, which the data call for")
        if value:
            arguments[name] = value
    if isinstance(prompts := arguments.get("prompts"), list):
        arguments["prompts"] = prompts[0] if len(prompts) == 1 else tuple(prompts)
    say(f"{model}, {len(source):,} images: {kind}", file=sys.stderr)
    found = evaluate(
        model, source, kind, arguments, batch_size=flags.batch_size, max_bad=flags.max_bad
    )
    for name, one in found["metrics"].items():
        interval = f" [{one['low']:.4f}, {one['high']:.4f}]" if "low" in one else ""
        count = f" of {one['n']:,}" if "n" in one else ""
        say(f"{name:16} {one['value']:.4f}{interval}{count}")
    if flags.out:
        about = {"data": {"name": flags.data, **chosen}, "kind": kind, "arguments": arguments}
        made = {key: model.meta[key] for key in ("weights", "step", "config_hash", "manifest_hash")}
        files.write_json(flags.out, {**found, **about, "model": made})


def evaluate(
    model: Model,
    source,
    kind: str,
    arguments: dict,
    *,
    batch_size: int = 128,
    max_bad: float = 0.001,
) -> dict:
    """{"metrics": {name: {"value", with an interval "low", "high", and "n"}}, "left_out"}.

    Of zero_shot also "per_class", {name: accuracy}, NaN for a class without an image.
    kind: a key of `evaluators.EVALUATORS` that needs no training data; arguments: its own.
    """
    left_out: dict[str, str] = {}
    layout = {
        "mesh": sharding.make_mesh(devices=jax.local_devices()),
        "batch_size": batch_size,
        "max_bad": max_bad,
        "left_out": left_out,
    }
    variables = separated(model.variables)
    given = evaluators.Given(
        model.task, variables, source, source, source, None, model.meta["info"], layout
    )
    one = evaluators.EVALUATORS[kind](given, **arguments)
    assert one is not None
    outcomes = one.outcomes(variables)
    found = {name: evaluators.interval(outcome) for name, outcome in outcomes.items()}
    classes = {}
    if kind == "zero_shot" and not {"only", "groups"} & set(arguments):
        hits, names = outcomes["zero_shot"], source.info["label_names"]
        assert isinstance(hits, evaluators.Outcome)
        labels = source.columns["label"][source.rows_of(hits.ids)]
        each = zeroshot.per_class(hits.values, labels, len(names))
        classes = {"per_class": {name: float(x) for name, x in zip(names, each, strict=True)}}
    return {"metrics": found, **classes, "left_out": left_out}


def _kind(model: Model, source, *, captions: bool) -> str:
    if not model.texts:
        return "validation"
    return "retrieval" if captions else "zero_shot"


if __name__ == "__main__":
    main()
