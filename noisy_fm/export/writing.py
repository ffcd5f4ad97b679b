"""One model into one folder: written beside, checked, and then given its name."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from noisy_fm import files
from noisy_fm.export import (
    arrays,
    card,
    network,
    parity,
    to_hf,
    to_onnx,
    to_open_clip,
    to_timm,
    to_torchvision,
)
from noisy_fm.export.target import Target, missing, place
from noisy_fm.messages import require_known, say
from noisy_fm.model import Model, load_model

# (network, **options) → Target; raises ValueError for a network that the format does not have
TARGETS: dict[str, Callable[..., Target]] = {
    "timm": to_timm.timm,
    "torchvision": to_torchvision.torchvision,
    "open_clip": to_open_clip.open_clip,
    "hf": to_hf.hf,
    "onnx": to_onnx.onnx,
    "stablehlo": arrays.stablehlo,
    "saved_npz": arrays.saved_npz,
}
PIXELS = ("uint8", "float32")


def export(
    model: Model | str | os.PathLike,
    to: str,
    out,
    *,
    run=None,
    check: str = "installed",
    tolerance: float = parity.TOLERANCE,
    pixels: str = "uint8",
    nearest: bool = False,
    head=None,
) -> dict[str, Any]:
    """Writes a model in the format `to` (of `TARGETS`) to the folder `out`; returns the parity.

    model: of `load_model`, or a run's folder. run: the folder whose noise and results the card
    names, by default that of `model`. check: compare with the target if it is "installed", fail if
    it is not ("required"), or "never". tolerance: of an output's largest difference, as a share of
    its scale. pixels: what an ONNX or StableHLO function takes, 0 … 255 in either. nearest: where
    the target cannot say the model's preprocessing, write the nearest it can. head: a fitted
    estimator that goes on top (onnx).

    Raises:
      ValueError: the format does not have such a model, or something is missing; nothing is
        written. ParityError: the target computes something else; nothing is left.
    """
    require_known("to", to, TARGETS)
    require_known("check", check, parity.CHECKS)
    require_known("pixels", pixels, PIXELS)
    if not tolerance > 0:
        raise ValueError(f"tolerance is {tolerance}; expected above 0")
    out = place(out)
    if head is not None and to != "onnx":
        raise ValueError(f"a head goes on top of an ONNX graph only, to is {to!r}; see export_head")
    if not isinstance(model, Model):
        run = model if run is None else run
        model = load_model(model)
    one = network.of(model)
    target = TARGETS[to](one, pixels=pixels, nearest=nearest, head=head)
    lacking = missing(target.libraries)
    if lacking and check == "required":
        raise ValueError(
            f"check is 'required' and {', '.join(lacking)} is not installed: {target.install}"
        )
    written = {
        **target.files,
        "noisy_fm.json": "preprocessing, classes, noise",
        "parity.json": "how the format's outputs compare with the model's",
    }
    about = card.about(model, one, to, run, written)
    with files.written_whole(out) as folder:
        folder.mkdir()
        target.write(folder)
        files.write_json(folder / "noisy_fm.json", about)
        report = _report(one, target, folder, lacking, check, tolerance)
        files.write_json(folder / "parity.json", report)
        text = card.readme(about, target, report, out.name)
        files.write_bytes(folder / "README.md", text.encode())
    return report


def _report(one, target: Target, folder: Path, lacking, check: str, tolerance: float) -> dict:
    if not lacking and check != "never":
        return parity.check(one, target, folder, tolerance=tolerance)
    why = "it was asked not to be"
    if check != "never":
        why = f"{', '.join(lacking)} is not installed here; {target.install}, and export again"
        say(f"written, but not checked: {why}")
    return {"checked": False, "tolerance": tolerance, "why": why}
