"""Configs: one visible table of defaults, validation before anything runs, and a hash to cite.

A config file has `get_config(arg="")`, starts from `train()` (or `study.defaults()`), and sets
what differs. Every key of these tables is read by the code; a key outside them is an error.
"""

import copy
import hashlib
import inspect
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections
from ml_collections import ConfigDict

from noisy_fm.messages import require_known, unknown

# Groups whose further keys are arguments of what their `name` or `kind` picks.
OPEN_ENDED = ("model", "optimizer", "noise", "augment", "second_view")
# Keys of one number or several: other keys keep the type they have.
NUMBERS = (
    *("task.normalize.mean", "task.normalize.std", "task.augment.color_jitter"),
    "second_view.color_jitter",
)
PRECISIONS = ("float32", "bfloat16")
# (keys, condition, its wording) for numbers.
Range = tuple[tuple[str, ...], Callable, str]


def train(task: str = "classify") -> ConfigDict:
    """The defaults of one training run of a task, a key of `tasks.TASKS`."""
    from noisy_fm import sharding
    from noisy_fm.tasks import TASKS

    config = ConfigDict(
        {
            # What is learned from: a `data.load` source, and the one validation accuracy is for.
            # Empty values are not given. `path` and `canvas` are of images on disk.
            "data": {
                "name": "emoji_domains",
                "labels": "subcategory",
                "domain": (),
                "size": 32,
                "path": "",
                "canvas": 0,
                "captions": "",  # which text is an image's caption: see `data.load`
                "crop": 0.0,  # smallest share of an image on disk to crop in training; 0: 0.08
            },
            # Reading: processes (0: none but this), threads in each (0: the cores), batches ready,
            # and the share of unreadable images above which a run stops (0: at the first).
            "loader": {"workers": 0, "threads": 0, "buffer": 4, "max_bad": 0.001},
            "split": "pretrain",
            "eval_split": "test",
            "noise": {"kind": "symmetric", "rate": 0.0},
            # `name` picks the model or optimiser; other keys go to its constructor, checked there.
            "model": {"name": "resnet10_half"},
            # What is learned; the name picks a module of `tasks`, whose `defaults` these are.
            "task": TASKS[require_known("task", task, TASKS)].defaults(),
            "repeats": 1,  # copies of an example, differently augmented, in an epoch
            "optimizer": {"name": "adamw", "learning_rate": 1e-3, "weight_decay": 1e-4},
            "decay": ".*kernel",  # parameters whose path matches are decayed
            "schedule": {
                "name": "cosine",
                "warmup_epochs": 0.0,
                "warmup_rate": 0.0,  # learning rate at the start of the warm-up
                "min_rate": 0.0,  # learning rate at the end
                "warmup_prefix": True,  # the decay starts after the warm-up; timm's spans all
                "per_epoch": False,  # the rate changes once an epoch
            },
            "clip": 0.0,  # largest global norm of the gradient; 0: none
            "ema": 0.0,  # decay of a running average of the model, which is then evaluated; 0: none
            "microbatches": 1,  # parts of a batch whose gradients are added up
            # (regex, multiplier of the schedule) in order, first match wins; None freezes.
            "trainable": ((".*", 1.0),),
            "batch_size": 64,  # global: over all hosts and devices
            "epochs": 10.0,
            "precision": "float32",
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
            # (regex, rule of `sharding.infer`), first match wins.
            "sharding": sharding.RULES,
            "seeds": {"noise": 0, "order": 0, "init": 0, "dropout": 0},
            # Steps; 0: about twenty times a run and at least once an epoch.
            "log_every": 0,
            "eval_every": 0,  # −1: at the end only
            "checkpoint_minutes": 5.0,  # 0: never by the clock
            "checkpoint_every": 0,  # also after so many steps; 0: not by steps
            "keep_checkpoints": 2,  # the newest ones
            "keep_best": "",  # and the one whose eval metric of this name is best
            # What is measured at an evaluation beside the validation metrics.
            "evaluators": {  # see `evaluators`; further entries may be on other data
                "validation": {"kind": "validation"},
                # Share of wrong labels learned, and resisted, of so many; 0: not measured.
                "memorised": {"kind": "memorised", "examples": 0},
                "spectrum": {"kind": "spectrum", "names": (), "examples": 2048},  # of features
                # Accuracy of a ridge classifier on a feature; "": not measured.
                "probe": {"kind": "probe", "feature": "", "examples": 2048},
            },
            "writers": ("tensorboard",),  # and "wandb", "mlflow"
            "max_skipped": 10,  # steps with a loss or update that is not finite
            "stall_seconds": 300.0,  # without a step, until a line says what is waited for
            "profile": (),  # (first, last) step to trace
        }
    )
    return loosened(config)


def loosened(config: ConfigDict) -> ConfigDict:
    """`config` itself, whose `NUMBERS` can then be set to one number or to several.

    A ConfigDict, and with it the command line, holds a key to the type of its first value.
    """
    for root in (config, config.get("pretrain", ConfigDict())):
        for where in NUMBERS:
            *groups, key = where.split(".")
            held = root
            for name in groups:
                held = held.get(name, ConfigDict())
            if key in held and held.get_type(key) is not object:
                held[key] = ml_collections.FieldReference(held[key], field_type=object)
    return config


def parse_arg(arg: str, **defaults):
    """Reads `noise_rate=0.1,seed=1` into a ConfigDict of the defaults' types."""
    values = ConfigDict(defaults)
    for item in filter(None, (arg or "").split(",")):
        name, equals, text = item.partition("=")
        if name not in defaults:
            raise ValueError(unknown("config argument", name, defaults))
        kind = type(defaults[name])
        if kind is bool:
            if equals and text.lower() not in ("true", "false", "1", "0"):
                raise ValueError(f"config argument {name}={text}: expected true or false")
            values[name] = not equals or text.lower() in ("true", "1")
            continue
        try:
            values[name] = kind(text)
        except ValueError:
            raise ValueError(f"config argument {name}={text}: expected {kind.__name__}") from None
    return values


def check_keys(config: Mapping, reference: Mapping, *, where: str = "config") -> None:
    """Raises for a key of `config` that `reference` lacks, or lacks from `config`.

    The other keys of `OPEN_ENDED` groups are arguments, and are checked against the signature of
    what takes them by `check_arguments`.
    """
    open_ended = where.split(".")[-1] in OPEN_ENDED
    for key in config:
        if key not in reference:
            if open_ended:
                continue
            raise ValueError(unknown("key", f"{where}.{key}", [f"{where}.{k}" for k in reference]))
        if isinstance(reference[key], Mapping | ConfigDict):
            check_keys(group(config[key], f"{where}.{key}"), reference[key], where=f"{where}.{key}")
    for key in reference:
        if key not in config:
            raise ValueError(f"{where}.{key} is missing; start the config from noisy_fm.config")


def group(value, where: str) -> Mapping:
    """`value`, which has keys; else a ValueError that says where it stands."""
    if not isinstance(value, Mapping | ConfigDict):
        raise ValueError(f"{where} is {value!r}; expected a group of keys")
    return value


def check_regex(where: str, regex: str) -> None:
    """Raises for a regular expression that cannot be compiled."""
    try:
        re.compile(regex)
    except (re.error, TypeError) as error:
        raise ValueError(f"{where} has {regex!r}, no regular expression: {error}") from None


def check_arguments(
    function: Callable, arguments: Mapping, *, where: str, given: Sequence[str] = ()
) -> None:
    """Raises for an argument that `function` does not take, or that is `given` elsewhere."""
    known = [name for name in inspect.signature(function).parameters if name not in given]
    for name in arguments:
        if name not in known:
            raise ValueError(unknown("key", f"{where}.{name}", [f"{where}.{k}" for k in known]))


def check_train(config: ConfigDict) -> None:
    """Raises one clear line for a training config that cannot run."""
    from noisy_fm.tasks import TASKS

    task = config.get("task", {})
    if "pretrain" in config:
        raise ValueError("this is the config of a study: python -m noisy_fm.study runs it")
    if not isinstance(task, ConfigDict) or "name" not in task:
        raise ValueError("config.task has no name; start the config from noisy_fm.config")
    kind = TASKS[require_known("config.task.name", task.name, TASKS)]
    known = {**train(task.name), "evaluators": config.evaluators}
    check_keys(config, known)
    require_known("config.precision", config.precision, PRECISIONS)
    for key in ("trainable", "sharding"):
        for rule in config[key]:
            if isinstance(rule, str) or not isinstance(rule, Sequence) or len(rule) != 2:
                raise ValueError(
                    f"config.{key} has {rule!r}; expected pairs (regex, …), one of them as "
                    "((regex, …),)"
                )
            check_regex(f"config.{key}", rule[0])
    for regex, multiplier in config.trainable:
        if not (multiplier is None or _is_number(multiplier)):
            raise ValueError(
                f"config.trainable has {multiplier!r} for {regex!r}; expected a number, or None"
            )
    check_regex("config.decay", config.decay)
    check_ranges(config, RANGES)
    kind.check(config)
    if config.batch_size % config.microbatches:
        raise ValueError(
            f"config.batch_size is {config.batch_size}; expected a multiple of "
            f"config.microbatches ({config.microbatches})"
        )
    if config.profile and not (
        [type(step) for step in config.profile] == [int, int]
        and 0 < config.profile[0] <= config.profile[1]
    ):
        raise ValueError(f"config.profile is {config.profile}; expected (first, last) step")
    if config.schedule.warmup_epochs >= config.epochs:
        raise ValueError(
            f"config.schedule.warmup_epochs is {config.schedule.warmup_epochs}, training is "
            f"{config.epochs} epochs; expected the warm-up to be shorter "
            "(--config.schedule.warmup_epochs=… less, or --config.epochs=… more)"
        )


def check_ranges(config: ConfigDict, ranges: Sequence[Range]) -> None:
    """Raises for a key of `ranges` whose value is no finite number, or not what is expected."""
    flat = flatten(config)
    for keys, fits, expected in ranges:
        for key in keys:
            value = flat[key]
            if not (isinstance(value, int | float) and math.isfinite(value) and fits(value)):
                raise ValueError(f"config.{key} is {value!r}; expected {expected}")


def check_numbers(key: str, value) -> None:
    """Raises unless `value` is one number or three (of a standard deviation, positive ones)."""
    several = value if isinstance(value, list | tuple) else (value,)
    if len(several) not in (1, 3) or not all(_is_number(one) for one in several):
        raise ValueError(f"config.{key} is {value!r}; expected one number or three")
    if key.endswith(".std") and min(several) <= 0:
        raise ValueError(f"config.{key} is {value!r}; expected positive numbers")


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# What may change when a run is resumed: how it is read, laid out, watched and kept, not what it is.
# Moved data must be the same: ids and labels are compared (`data_hash`).
FREE = {
    *("data.path", "loader", "mesh", "evaluators", "writers", "profile"),
    *("log_every", "eval_every", "checkpoint_every", "checkpoint_minutes"),
    *("keep_checkpoints", "keep_best", "max_skipped", "stall_seconds"),
}

# Keys that are younger than runs still in use, at the value that changes nothing.
LATER = {"data.captions": "", "data.crop": 0.0}

# Of the numbers of a training config, those that its task does not know of itself.
RANGES: tuple[Range, ...] = (
    (("epochs", "optimizer.learning_rate"), lambda v: v > 0, "a positive number"),
    (
        ("batch_size", "keep_checkpoints", "repeats", "microbatches", "loader.buffer"),
        lambda v: isinstance(v, int) and v > 0,
        "a positive whole number",
    ),
    (
        ("log_every", "checkpoint_every", "max_skipped", "loader.workers", "loader.threads"),
        lambda v: isinstance(v, int) and v >= 0,
        "a whole number",
    ),
    (("eval_every",), lambda v: isinstance(v, int) and v >= -1, "a whole number, or -1"),
    (
        ("seeds.noise", "seeds.order", "seeds.init", "seeds.dropout"),
        lambda v: isinstance(v, int) and 0 <= v < 2**32,
        "a whole number below 2³²",
    ),
    (
        ("checkpoint_minutes", "stall_seconds", "clip", "optimizer.weight_decay",
         "schedule.warmup_epochs", "schedule.warmup_rate", "schedule.min_rate"),
        lambda v: v >= 0,
        "0 or more",
    ),
    (("noise.rate",), lambda v: 0 <= v < 1, "γ in [0, 1)"),
    (("ema",), lambda v: 0 <= v < 1, "[0, 1)"),
    (("loader.max_bad", "data.crop"), lambda v: 0 <= v <= 1, "[0, 1]"),
)  # fmt: skip


def num_steps(config: ConfigDict, num_examples: int) -> tuple[int, int]:
    """(steps of the whole run, steps of one epoch) for `num_examples` training examples."""
    per_epoch = num_examples // config.batch_size
    if per_epoch == 0:
        raise ValueError(
            f"config.batch_size is {config.batch_size}, the training set has {num_examples} "
            f"examples; expected at least one whole batch (--config.batch_size={num_examples} or "
            "less)"
        )
    return max(1, round(config.epochs * per_epoch)), per_epoch


def often(every: int, steps: int, steps_per_epoch: int) -> int:
    """Every how many steps: `every`, or for 0 twenty times a run and once an epoch at the least."""
    return every or max(1, min(math.ceil(steps / 20), steps_per_epoch))


def plain(config) -> Any:
    """The config as JSON types, keys sorted."""
    if isinstance(config, ConfigDict | Mapping):
        return {str(key): plain(config[key]) for key in sorted(config)}
    if isinstance(config, Sequence) and not isinstance(config, str):
        return [plain(item) for item in config]
    return config


def from_plain(value) -> Any:
    """What `plain` was given, a ConfigDict; lists are tuples."""
    if isinstance(value, Mapping):
        return ConfigDict({key: from_plain(one) for key, one in value.items()})
    return tuple(map(from_plain, value)) if isinstance(value, list) else value


def flatten(config: Mapping, prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of a nested config."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, Mapping | ConfigDict)
        flat |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def hash_of(config) -> str:
    """Twelve hex digits that name the config (SHA-256 of its sorted JSON)."""
    text = json.dumps(plain(config), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def differences(old: dict, new: dict, *, prefix: str = "") -> list[str]:
    """`key: old → new` for every leaf that differs between two plain configs."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        a, b, name = old.get(key), new.get(key), f"{prefix}{key}"
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, prefix=f"{name}.")
        elif a != b:
            lines.append(f"{name}: {a} → {b}")
    return lines


def today(plain: dict) -> dict:
    """A plain training config of any version, with the keys of this one.

    Until 2026-11 what is now in `task` stood at the top, `data.labels` was `data.task`, and there
    was nothing of `LATER`.
    """
    if isinstance(plain.get("data"), dict):
        later = {key.removeprefix("data."): value for key, value in LATER.items()}
        plain = {**plain, "data": {**later, **plain["data"]}}
    if "task" in plain:
        return plain
    new = {**plain, "data": dict(plain["data"])}
    new["data"]["labels"] = new["data"].pop("task")
    loss = new.pop("loss")
    moved = {key: new.pop(key) for key in ("normalize", "augment", "mix")}
    moved |= {"loss": loss["name"], "label_smoothing": loss["label_smoothing"]}
    new["task"] = {"name": "classify", **moved}
    return new


def binding(config: Mapping) -> dict[str, Any]:
    """{dotted key: value} of what a run in progress must keep: all but `FREE`.

    Of `LATER` keys only what is set, so that what was made before there were any still counts.
    """
    return {
        key: value
        for key, value in flatten(config).items()
        if not {key, key.partition(".")[0]} & FREE and (key not in LATER or value != LATER[key])
    }


def run_differences(old: dict, new: dict) -> list[str]:
    """Those of the `differences` that a run in progress must not have: see `binding`.

    A run at a constant rate may become longer.
    """

    before, now = binding(today(old)), binding(new)
    if now["epochs"] != before["epochs"] and now["schedule.name"] == before["schedule.name"]:
        if now["schedule.name"] == "constant" and now["epochs"] > before["epochs"]:
            before["epochs"] = now["epochs"]
        elif now["epochs"] > before["epochs"]:
            why = (
                f"all rates of a {now['schedule.name']} schedule follow from it, not of a constant"
            )
            now["epochs"] = f"{now['epochs']}, and {why} one"
    return differences(before, now)


def updated(config: ConfigDict, changes: Mapping) -> ConfigDict:
    """A copy of `config` with dotted keys replaced: `updated(c, {"noise.rate": 0.1})`."""
    new = ml_collections.ConfigDict(copy.deepcopy(config.to_dict()))
    loosened(new).update_from_flattened_dict(changes)
    return new


def cache_compilations() -> None:
    """Keeps compiled programs on disk, so that a program is compiled once a machine."""
    import jax

    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    jax.config.update("jax_compilation_cache_dir", os.path.join(home, "noisy_fm", "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
