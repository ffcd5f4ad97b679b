"""An export beside the model that it was made of: outputs, features, and what is seen of images."""

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from noisy_fm.export.network import Network, examples, levels, photos, picture, reference
from noisy_fm.export.target import Target
from noisy_fm.messages import say

BATCHES = (1, 3)
LEVEL = 1.001  # grey levels that two resizings may differ by, and to spare for float32
CHECKS = ("installed", "required", "never")
TOLERANCE = 1e-4  # of an output's scale


class ParityError(ValueError):
    """The export does not compute what the model does."""


def check(network: Network, target: Target, folder: Path, *, tolerance: float) -> dict[str, Any]:
    """What parity.json says; raises ParityError, one line, where it is not equal.

    outputs: {name: {"max", "mean" of the differences, "relative" to the output's scale, "argmax",
    the share of rows whose largest entry is the same}} over batches of 1 and 3. stages: of each
    feature that both have, the relative difference, in order.
    """
    run = target.load(folder)
    found: dict[str, dict] = {}
    stages: dict[str, float] = {}
    for count in BATCHES:
        pixels = examples(network, count)
        ours, theirs = reference(network, pixels), run(pixels)
        extra = target.extra(ours) if target.extra else {}
        ours |= extra
        names = (*network.outputs, *extra)
        if lacking := [name for name in names if name not in theirs]:
            raise ParityError(f"the export has no output {lacking[0]!r}, so it was not written")
        for name, value in theirs.items():
            if name in (*names, "text/normalized"):
                one = compared(ours[name], value, name)
                found[name] = _worse(found.get(name), one)
            elif ours[name].shape == value.shape:
                one = compared(ours[name], value, name)
                stages[name] = max(stages.get(name, 0.0), one["relative"])
    stages = {name: stages[name] for name in ours if name in stages}  # in the network's order
    first = next((name for name, value in stages.items() if not value <= tolerance), None)
    report: dict[str, Any] = {
        "checked": True,
        "tolerance": tolerance,
        "batches": list(BATCHES),
        "outputs": found,
        "stages": stages,
        "first_divergence": first,
        "versions": _versions(target),
    }
    for name, one in found.items():
        if not one["relative"] <= tolerance:  # so that NaN fails too
            at = f"; they first differ at {first}" if first else ""
            raise ParityError(
                f"{name} differs by {one['relative']:.2g} of its scale, tolerance {tolerance:g}, "
                f"so nothing was written{at}"
            )
    if target.see is not None:
        report["preprocessing"] = _seen(network, target, folder)
    return report


def _seen(network: Network, target: Target, folder: Path) -> dict[str, Any]:
    """How far the target's own preprocessing is from ours on photographs."""
    assert target.see is not None
    see, given = target.see(folder), photos()
    seen = [see(picture(photo)) for photo in given]

    def worst(aside: bool) -> float:
        pairs = zip(seen, given, strict=True)
        return max(levels(network, one, photo, aside=aside) for one, photo in pairs)

    found = {"levels": worst(False), "photographs": len(given), "exact": target.exact}
    if target.aside:
        found["levels_if_placed_alike"] = worst(True)
    value = worst(target.aside)
    if (target.exact or target.aside) and not value <= LEVEL:
        raise ParityError(
            f"the target's preprocessing differs by {value:.1f} grey levels on photographs, one "
            "is allowed, so nothing was written"
        )
    return found


def compared(ours: np.ndarray, theirs: np.ndarray, name: str) -> dict[str, float]:
    """The largest, mean and relative difference, and how often the largest entry is the same."""
    if ours.shape != theirs.shape:
        raise ParityError(
            f"{name} is {list(theirs.shape)} there and {list(ours.shape)} here, so nothing was "
            "written"
        )
    difference = np.abs(ours.astype(np.float64) - theirs)
    largest, scale = float(difference.max()), float(np.abs(ours).max())
    return {
        "max": largest,
        "mean": float(difference.mean()),
        "relative": largest / max(scale, 1e-12),
        "argmax": float((ours.argmax(-1) == theirs.argmax(-1)).mean()),
    }


def _worse(one: dict[str, float] | None, other: dict[str, float]) -> dict[str, float]:
    if one is None:
        return other
    return {k: (min if k == "argmax" else max)(one[k], other[k]) for k in other}


def _versions(target: Target) -> dict[str, str]:
    named = importlib.metadata.packages_distributions()
    found = {}
    for library in ("jax", *target.libraries):
        for package in named.get(library, [])[:1]:
            found[package] = importlib.metadata.version(package)
    return found


def table(report: Mapping[str, Any]) -> None:
    """Says the report in a few lines."""
    say(f"{'output':<16}{'max':>10}{'mean':>10}{'relative':>10}{'argmax':>8}")
    for name, one in report["outputs"].items():
        values = "".join(f"{one[key]:>10.1e}" for key in ("max", "mean", "relative"))
        say(f"{name:<16}{values}{one['argmax']:>8.0%}")
    if "preprocessing" in report:
        seen = report["preprocessing"]
        say(f"preprocessing: {seen['levels']:.2f} grey levels on {seen['photographs']} photographs")
