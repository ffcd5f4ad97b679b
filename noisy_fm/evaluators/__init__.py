"""What is measured on a model while it trains, and on what: the entries of `config.evaluators`.

An entry is {"kind": a key of `EVALUATORS`, "data": keys of `config.data` that differ from the
run's own, "split", "eval_split": the run's own where empty, and the kind's arguments}.
"""

from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from noisy_fm import config as config_lib
from noisy_fm import data as data_lib
from noisy_fm.evaluators.evaluator import Evaluator, Given
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
}
OWN = ("kind", "data", "split", "eval_split")  # keys of an entry that are not its kind's

__all__ = ["EVALUATORS", "Evaluator", "Given", "check", "make"]


def check(entries: Mapping[str, Mapping]) -> None:
    """Raises one clear line for an entry of `config.evaluators` that cannot be."""
    for name, entry in entries.items():
        where = f"config.evaluators.{name}"
        kind = EVALUATORS[require_known(f"{where}.kind", entry.get("kind", ""), EVALUATORS)]
        arguments = {key: value for key, value in entry.items() if key not in OWN}
        config_lib.check_arguments(kind, arguments, where=where, given=("given",))


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
    train, test = (
        data_lib.load_split(data, entry.get(key) or config[key], where=where)
        for key in ("split", "eval_split")
    )
    return given._replace(clean=train, source=train, eval_source=test)
