"""README.md of an export, in plain words, and noisy_fm.json, the same for programs."""

from collections.abc import Mapping
from typing import Any

from noisy_fm import __version__, files, noise
from noisy_fm.export.network import Network
from noisy_fm.export.target import Target
from noisy_fm.model import Model

FORMAT = 1


def about(model: Model, network: Network, to: str, run, files_of: Mapping[str, str]) -> dict:
    """What noisy_fm.json says: the preprocessing, the classes, the run and its noise.

    run: the folder of the run that the model came from, None for others.
    """
    meta = model.meta
    made = {
        key: meta[key]
        for key in ("weights", "step", "config_hash", "manifest_hash")
        if isinstance(meta.get(key), str | int)
    }
    found = {
        "format": FORMAT,
        "version": __version__,
        "to": to,
        "model": network.name,
        "arguments": network.arguments,
        "outputs": list(network.outputs),
        "label_names": list(network.label_names),
        "preprocess": network.preprocess.said(),
        "precision": {"trained": network.precision, "exported": "float32"},
        "files": dict(files_of),
        **made,
    }  # fmt: skip
    config = meta.get("config", {})
    if isinstance(meta.get("source"), Mapping):  # another library's model
        name, library = (str(meta["source"][key]) for key in ("name", "library"))
        # Of a folder on this machine its last part says enough.
        name = name.rstrip("/").rpartition("/")[2] if name.startswith(("/", "~")) else name
        found["source"] = {"name": name, "library": library}
    elif "data" in config:
        data = {key: value for key, value in config["data"].items() if key != "path"}
        found["trained"] = {"task": config["task"]["name"], "data": data, "split": config["split"]}
    return found | _of_run(run, meta.get("step"))


def _of_run(run, step) -> dict[str, Any]:
    """The noise of a run's folder, and what was measured if that was of this step."""
    if run is None:
        return {}
    folder, found = files.absolute(run), {}
    if (folder / "noise.npz").exists():
        said = noise.Manifest.load(folder / "noise.npz").summary()
        names = ("kind", "rate", "realised", "changed", "n", "seed", "hash")
        found["noise"] = {name: said[name] for name in names}
    if (folder / "result.json").exists():
        result = files.read_json(folder / "result.json")
        if result.get("steps") == step:
            found["eval"] = result.get("eval", {})
    return found


def readme(found: Mapping[str, Any], target: Target, report: Mapping[str, Any], folder: str) -> str:
    """The model card."""
    parts = [
        f"# {found['model']}, as {found['to']}",
        _trained(found),
        "## Files\n\n"
        + "\n".join(f"- `{name}`: {words}" for name, words in found["files"].items()),
        "## Use\n\n" + _seen(found["preprocess"]),
        f"From the folder that holds `{folder}`:\n\n"
        f"```python\n{target.loading.replace('FOLDER', folder).strip()}\n```",
        "## Parity\n\n" + _parity(report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _trained(found: Mapping[str, Any]) -> str:
    lines = []
    if "trained" in found:
        made = found["trained"]
        lines.append(
            f"Trained to {made['task']} on {made['data']['name']} (split {made['split']!r}) with "
            f"noisy_fm {found['version']}, step {found.get('step', '?')}."
        )
    if "source" in found:
        lines.append(f"Loaded from {found['source']['name']} ({found['source']['library']}).")
    if "noise" in found:
        said = found["noise"]
        lines.append(
            f"Supervision noise: γ = {said['realised']:.2%} of {said['n']:,} examples changed "
            f"({said['kind']}, seed {said['seed']}, manifest {said['hash']})."
        )
    for name in ("accuracy", "zero_shot"):
        if (value := found.get("eval", {}).get(name)) is not None:
            lines.append(f"Measured by the run: {name} {_value(value)}.")
    if found["label_names"]:
        lines.append(f"{len(found['label_names']):,} classes, named in `noisy_fm.json`.")
    if found["precision"]["trained"] != "float32":
        lines.append(
            f"Trained in {found['precision']['trained']}; what is exported computes in float32."
        )
    return "\n".join(lines)


def _value(value) -> str:
    if not isinstance(value, Mapping):
        return f"{value:.4f}"
    between = f" [{value['low']:.4f}, {value['high']:.4f}]" if "low" in value else ""
    return f"{value['value']:.4f}{between}"


def _seen(fit: Mapping[str, Any]) -> str:
    size, shorter = fit["size"], fit["shorter"]
    how = (
        f"both sides are resized to {shorter} pixels"
        if fit["whole"]
        else f"the shorter side is resized to {shorter} pixels"
    )
    crop = "" if fit["whole"] and shorter == size else f", the centre {size}×{size} is cropped"
    return (
        f"RGB images: {how} ({fit['filter']}, antialiased){crop}; pixels / 255 are normalised by "
        f"mean {fit['mean']} and standard deviation {fit['std']}."
    )


def _parity(report: Mapping[str, Any]) -> str:
    if not report["checked"]:
        return f"Not checked: {report['why']}."
    lines = ["| output | largest | mean | relative | arg-max |", "|---|---|---|---|---|"]
    for name, one in report["outputs"].items():
        values = " | ".join(f"{one[key]:.1e}" for key in ("max", "mean", "relative"))
        lines.append(f"| {name} | {values} | {one['argmax']:.0%} |")
    if "preprocessing" in report:
        seen = report["preprocessing"]
        words = "" if seen["exact"] else ", which is the nearest that the format can say"
        if (alike := seen.get("levels_if_placed_alike")) is not None:
            words = (
                f", since some crops begin a pixel beside the model's; but for that by {alike:.2f}"
            )
        lines.append(
            f"\nIts own preprocessing differs by {seen['levels']:.2f} grey levels at most on "
            f"{seen['photographs']} photographs{words}."
        )
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines.append(f"\nCompared in float32 by {versions}.")
    return "\n".join(lines)
