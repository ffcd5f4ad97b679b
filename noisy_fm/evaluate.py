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
import numpy as np

from noisy_fm import app, config, data, evaluators, files, sharding, zeroshot
from noisy_fm.messages import require_known, say
from noisy_fm.model import MODELS_OWN, Model

KINDS = {"zero_shot": ("prompts", "names"), "retrieval": ("within",), "validation": ()}


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, dict, dict]:
    """(the flags, those that are `--data.KEY=VALUE`, those that are `--model.KEY=VALUE`)."""
    parser = app.model_parser(
        "evaluate", __doc__, epilog="--data.KEY=VALUE are arguments of noisy_fm.data.load"
    )
    add = parser.add_argument
    add("--kind", help=f"{', '.join(KINDS)}; by default what the model and the data allow")
    add("--prompts", action="append", metavar="PROMPT",
        help="name, simple, imagenet, or one's own with {}; several times for several")  # fmt: skip
    add("--names", help="the classes' wording: labels (the data's own), imagenet")
    add("--within", help="a column: captions are searched within its value")
    add("--out", metavar="FILE", help="where to write the values, as JSON")
    flags, rest = parser.parse_known_args(argv)
    return flags, *app.keyed_flags(rest, parser.error)


def main(argv: Sequence[str] | None = None) -> None:
    flags, chosen, of_model = parse(argv)
    app.run_command(lambda: _run(flags, chosen, of_model))


def _run(flags: argparse.Namespace, chosen: dict, of_model: dict) -> None:
    config.check_arguments(data.load, chosen, where="--data", given=MODELS_OWN)
    if flags.batch_size < 1:
        raise ValueError(f"--batch-size is {flags.batch_size}; expected 1 or more")
    model = app.chosen_model(flags, of_model)
    trained = model.meta["config"]
    if "split" not in chosen and flags.data == trained["data"]["name"]:
        chosen["split"] = trained["eval_split"]
        say(
            f"split {chosen['split']!r}, the run's own; --data.split picks another", file=sys.stderr
        )
    elif "split" not in chosen:
        say("all splits of the data; --data.split picks one", file=sys.stderr)
    source = model.preprocess.source(model.data(flags.data, **chosen))
    kind = flags.kind or _kind(model, captions="captions" in chosen)
    known = KINDS[require_known("--kind", kind, KINDS)]
    arguments = {}
    for name in ("prompts", "names", "within"):
        if (value := getattr(flags, name)) and name not in known:
            why = "" if flags.kind else ", which the model and the data call for"
            raise ValueError(f"--{name} is not read by --kind={kind}{why}")
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

    Of zero_shot also "per_class", {name: accuracy}, None for a class without an image.
    kind: a key of `evaluators.EVALUATORS` that needs no training data; arguments: its own.
    """
    left_out: dict[str, str] = {}
    mesh = sharding.make_mesh(devices=jax.local_devices())
    layout = {
        "mesh": mesh,
        "batch_size": batch_size,
        "max_bad": max_bad,
        "left_out": left_out,
    }
    variables = model.on(mesh)
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
        classes = {"per_class": dict(zip(names, map(_number, each), strict=True))}
    return {"metrics": found, **classes, "left_out": left_out}


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _kind(model: Model, *, captions: bool) -> str:
    if not model.texts:
        return "validation"
    return "retrieval" if captions else "zero_shot"


if __name__ == "__main__":
    main()
