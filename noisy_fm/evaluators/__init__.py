"""What is measured on a model while it trains, and on what: the entries of `config.evaluators`.

An entry is {"kind": a key of `EVALUATORS`, "data": keys of `config.data` that differ from the
run's own, "split", "eval_split": the run's own where empty, and the kind's arguments}.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from noisy_fm import config as config_lib
from noisy_fm import data as data_lib
from noisy_fm.evaluators.contrast import retrieval, zero_shot
from noisy_fm.evaluators.evaluator import Evaluator, Given, Outcome, interval
from noisy_fm.evaluators.memorised import memorised
from noisy_fm.evaluators.ridge import ridge
from noisy_fm.evaluators.spectra import spectra
from noisy_fm.evaluators.validation import validation
from noisy_fm.messages import require_known

EVALUATORS: dict[str, Callable[..., Evaluator | None]] = {
    "validation": validation,
    "memorised": memorised,
    "spectrum": spectra,
    "probe": ridge,
    "zero_shot": zero_shot,
    "retrieval": retrieval,
}
# What a kind of evaluator measures nothing without.
NEEDS = {
    "memorised": "examples is 0; expected how many wrong labels to look at",
    "spectrum": "names is empty; expected names of features, as ('pre_logits',)",
    "probe": "feature is empty; expected the name of one, as 'pre_logits'",
}
HELD_OUT = (
    "validation",
    "spectrum",
    "zero_shot",
    "retrieval",
)  # kinds that look at no example to train on
OWN = ("kind", "data", "split", "eval_split")  # keys of an entry that are not its kind's

__all__ = ["EVALUATORS", "Evaluator", "Given", "Outcome", "check", "interval", "make"]


def check(entries: Mapping[str, Mapping]) -> None:
    """Raises one clear line for an entry of `config.evaluators` that cannot be."""
    for name, entry in entries.items():
        where = f"config.evaluators.{name}"
        config_lib.group(config_lib.group(entry, where).get("data", {}), f"{where}.data")
        kind = EVALUATORS[require_known(f"{where}.kind", entry.get("kind", ""), EVALUATORS)]
        known = [*OWN, *(key for key in inspect.signature(kind).parameters if key != "given")]
        for key in entry:
            require_known("key", f"{where}.{key}", [f"{where}.{one}" for one in known])
        most = entry.get("examples", 0)
        if not isinstance(most, int) or most < 0:
            raise ValueError(f"{where}.examples is {most!r}; expected a whole number, 0 or more")


def make(config: ConfigDict, given: Given) -> dict[str, Evaluator]:
    """The evaluators that `config.evaluators` asks for, by their entries' names.

    Raises one clear line for what cannot be measured, before anything is.
    """
    made = {}
    for name, entry in config.evaluators.items():
        arguments = {key: value for key, value in entry.items() if key not in OWN}
        found = EVALUATORS[entry["kind"]](_own(config, name, entry, given), **arguments)
        if found is not None:
            made[name] = found
        elif name not in config_lib.train().evaluators:
            raise ValueError(f"config.evaluators.{name} measures nothing: {NEEDS[entry['kind']]}")
    measured = [full for name, one in made.items() for full in names(name, one)]
    if config.keep_best:
        require_known("config.keep_best", config.keep_best, measured)
    return made


def names(entry: str, evaluator: Evaluator) -> list[str]:
    return [title(entry, name) for name in evaluator.names]


def title(entry: str, name: str) -> str:
    """What a value is called in the log: the run's own loss, accuracy, memorised, … plainly."""
    if entry in PLAIN or not name:
        return name or entry
    return f"{entry}/{name}"


PLAIN = ("validation", "memorised")


def _own(config: ConfigDict, name: str, entry: Mapping[str, Any], given: Given) -> Given:
    """What an entry with data or splits of its own measures."""
    if not any(entry.get(key) for key in OWN[1:]):
        return given
    data, where = {**config.data, **entry.get("data", {})}, f"config.evaluators.{name}.data"
    config_lib.check_keys(data, config.data, where=where)
    test = data_lib.load_split(data, entry.get("eval_split") or config.eval_split, where=where)
    train = test
    if entry["kind"] not in HELD_OUT:
        train = data_lib.load_split(data, entry.get("split") or config.split, where=where)
    return given._replace(clean=train, source=train, eval_source=test)
