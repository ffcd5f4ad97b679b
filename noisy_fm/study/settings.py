"""A study's config: its table of defaults, and its checks."""

import contextlib
import re
from collections.abc import Iterator, Mapping

from ml_collections import ConfigDict

from noisy_fm import config as config_lib
from noisy_fm.messages import require_known
from noisy_fm.study import protocols, views


def defaults() -> ConfigDict:
    """The defaults of a study: a grid of training runs and what is measured on each."""
    config = ConfigDict(
        {
            "pretrain": config_lib.train(),
            "noise_rates": (0.0, 0.05, 0.10, 0.20, 0.30),
            "seeds": 1,  # pre-training seeds (initialisation, order, noise) per rate
            "model": "",  # shorthand for pretrain.model.name
            "feature": "pre_logits",
            # What heads are tuned and tested on, by names of one's own; see `transfer`.
            "transfers": {
                "category": transfer(
                    {"name": "emoji_domains", "labels": "category", "domain": "noto"},
                    unseen={name: {"domain": name} for name in ("lineart", "fluent3d")},
                ),
                "digits": transfer({"name": "digits"}),
            },
            "methods": ("lp", "mlp", "nmtune"),  # keys of `protocols.PROTOCOLS`
            "preset": "paper",  # of MLP tuning and NMTune, with its own λ
            # What heads of preset "release" are tuned on beside each image: that image augmented,
            # as in `pretrain.task.augment`; "none": nothing.
            "second_view": {"name": "none"},
            # λ-sweep: further λ of NMTune, each one number or (MSE, COV, SVD); 0 is MLP tuning.
            "weights": (),
            "fractions": (1.0,),
            "label_noise": (0.0,),
            "probe_seeds": 3,
            "probe_epochs": 30,
            "spectrum": {"center": False, "normalize": False},
        }
    )
    config.pretrain.eval_every = -1
    return config


def transfer(
    data: Mapping, *, split: str = "train", eval_split: str = "test", unseen: Mapping | None = None
) -> dict:
    """One of `config.transfers`: what heads are tuned on, and what they are tested on.

    data        keys of `config.pretrain.data`, but captions and crop, whose others are empty;
                `size` 0 is the model's, and images in memory of another size are resized to it
    split       heads are tuned on it, …
    eval_split  … and tested on it: in domain
    unseen      name → what differs in `data`, or in `eval_split`, for tests out of domain
    """
    known = config_lib.train().data.items()
    empty = {key: type(value)() for key, value in known if key not in ("captions", "crop")}
    return {
        "data": {**empty, **data},
        "split": split,
        "eval_split": eval_split,
        "unseen": dict(unseen or {}),
    }


def completed(config: ConfigDict) -> ConfigDict:
    """A copy of `config` with its shorthands spelled out."""
    config = config_lib.updated(config, {})
    if "pretrain" not in config:
        raise ValueError(
            "config.pretrain is missing: this is no study's config (python -m noisy_fm.train runs "
            "one of a training run)"
        )
    if "tasks" in config:
        raise ValueError(
            "config.tasks is no more: expected config.transfers, groups of keys as "
            "{'digits': {'data': {'name': 'digits'}}} (configs/study/emoji.py has more)"
        )
    if config.model and config.model != config.pretrain.model.name:
        config.pretrain.model = {"name": config.model}
    config.model = config.pretrain.model.name
    config.transfers = {
        name: _filled(one, f"config.transfers.{name}")
        for name, one in config_lib.group(config.get("transfers", {}), "config.transfers").items()
    }
    return config


@contextlib.contextmanager
def own_keys() -> Iterator[None]:
    """Faults of a training config are told by the keys that it has in a study."""
    try:
        yield
    except ValueError as error:
        raise ValueError(KEY.sub("config.pretrain.", str(error))) from None


KEY = re.compile(r"\bconfig\.(?!pretrain\b|json\b|py\b)")


def _filled(given, where: str) -> dict:
    """A transfer with all its keys."""
    given, whole = config_lib.group(given, where), transfer({})
    data = config_lib.group(given.get("data", {}), f"{where}.data")
    for keys, known, place in ((given, whole, where), (data, whole["data"], f"{where}.data")):
        for key in keys:
            require_known("key", f"{place}.{key}", [f"{place}.{name}" for name in known])
    return {**whole, **given, "data": {**whole["data"], **data}}


def check(config: ConfigDict) -> None:
    """Raises one clear line for a `completed` config that cannot run, whatever its data."""
    # The training config, whose keys are its task's, is checked below.
    known = {"transfers": config.transfers, "pretrain": config.pretrain}
    config_lib.check_keys(config, {**defaults(), **known})
    with own_keys():
        config_lib.check_train(config.pretrain)
    for rate in config.noise_rates:
        if not (isinstance(rate, int | float) and 0 <= rate < 1):
            raise ValueError(f"config.noise_rates has {rate!r}; expected every γ in [0, 1)")
    if len({f"{rate:g}" for rate in config.noise_rates}) < len(set(config.noise_rates)):
        raise ValueError(
            f"config.noise_rates are {config.noise_rates}; expected γ that differ in six "
            "digits, as cells are named by them"
        )
    if config.pretrain.noise.rate:
        raise ValueError("config.pretrain.noise.rate is set; a study reads config.noise_rates")
    for key in ("noise_rates", "methods", "fractions", "label_noise"):
        if not config[key]:
            raise ValueError(f"config.{key} is empty; expected at least one entry")
        if len(set(config[key])) < len(config[key]):
            raise ValueError(f"config.{key} is {config[key]}; expected no entry twice")
    if not config.transfers:
        raise ValueError("config.transfers is empty; expected at least one entry")
    if config.weights and "nmtune" not in config.methods:
        raise ValueError(f"config.weights are λ of 'nmtune'; config.methods are {config.methods}")
    for key in ("seeds", "probe_seeds", "probe_epochs"):
        if not (isinstance(config[key], int) and config[key] > 0):
            raise ValueError(f"config.{key} is {config[key]!r}; expected a positive whole number")
    for name, one in config.transfers.items():
        where = f"config.transfers.{name}.unseen"
        known_keys = [*one.data, "eval_split"]
        for target, changes in config_lib.group(one.unseen, where).items():
            for key in config_lib.group(changes, f"{where}.{target}"):
                require_known(f"key of {where}.{target}", key, known_keys)
    protocols.heads(config)
    views.check(config)
