"""timm's models: a folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` reads."""

from pathlib import Path

from noisy_fm import files
from noisy_fm.export import equal
from noisy_fm.export.network import Network, placed, triples, width
from noisy_fm.export.target import OTHERS, Target
from noisy_fm.export.timm_rows import KINDS, NAMES
from noisy_fm.export.torch_side import runner, with_counters
from noisy_fm.models import ModifiedResNet, Swin, ViT
from noisy_fm.weights import files as weight_files
from noisy_fm.weights import rules, zoo

LIBRARIES, INSTALL = ("timm", "torch"), "pip install timm"
LOADING = """\
import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
logits = model(transform(image)[None])  # of a PIL image
"""


def timm(network: Network, *, nearest: bool = False, **unused) -> Target:
    """config.json and model.safetensors; CLIP's image tower alone, its projection the head."""
    module, variables = network.module, network.variables
    exact = placed(network, "round", nearest, "timm")
    if network.texts:
        if isinstance(module.image, ModifiedResNet):
            raise ValueError(f"timm's CLIP ResNet has other names; {OTHERS}, open_clip")
        module, variables = equal.image_tower(module, variables)
    if type(module) not in KINDS:
        raise ValueError(f"timm has no {type(module).__name__}; {OTHERS}")
    if isinstance(module, ViT):
        module, variables = equal.learned_positions(module, variables, network.size)
    describe, stages = KINDS[type(module)]
    row, arguments = describe(module, network.name)
    architecture, known = NAMES[row]
    if isinstance(module, ViT | Swin):
        arguments |= {} if network.size == known else {"img_size": network.size}
    if isinstance(module, Swin):
        variables = equal.small_windows(module, variables, network.size)
    state = with_counters(rules.to_theirs(variables, zoo.table("timm", module)))
    about = _config(network, module, architecture, arguments, state)

    def write(folder: Path) -> None:
        weight_files.write(folder / "model.safetensors", state, about={"format": "pt"})
        files.write_json(folder / "config.json", about)

    def load(folder: Path):
        return _loaded(network, folder, stages(module))

    return Target(
        write,
        load,
        LIBRARIES,
        INSTALL,
        LOADING,
        {"config.json": "timm's name, arguments and preprocessing", "model.safetensors": "weights"},
        see=_transform,
        exact=exact,
        aside=not exact,
    )


def _config(network: Network, module, architecture: str, arguments: dict, state) -> dict:
    fit, (mean, std) = network.preprocess.fit, triples(network)
    heads = ("head.fc", "head", "fc", "classifier")
    classifier = next((name for name in heads if f"{name}.weight" in state), "head")
    labels = network.label_names
    return {
        "architecture": architecture,
        "num_classes": module.num_classes,
        "num_features": width(network),
        **({"label_names": list(labels)} if len(labels) == module.num_classes else {}),
        "model_args": arguments,
        "pretrained_cfg": {
            "num_classes": module.num_classes,
            "input_size": [3, fit.size, fit.size],
            "fixed_input_size": isinstance(module, ViT | Swin),
            "interpolation": fit.filter,
            "crop_pct": crop_share(fit.size, fit.shorter),
            "crop_mode": "squash" if fit.whole else "center",
            "mean": mean,
            "std": std,
            "classifier": classifier,
            "pool_size": None,
        },
    }


def crop_share(size: int, shorter: int) -> float:
    """The share of the shorter side that is cropped, such that ⌊size / share⌋ is `shorter`."""
    for digits in (2, 3, 4):
        share = round(size / shorter, digits)
        if share and int(size / share) == shorter:
            return share
    return size / (shorter + 0.5)


def _loaded(network: Network, folder: Path, stages):
    import timm as library
    import torch

    model = library.create_model(f"local-dir:{folder}", pretrained=True)

    def forward(x):
        found = model.forward_features(x)
        read = model.forward_head(found, pre_logits=True).flatten(1)
        if not network.texts:
            logits = {"logits": model.forward_head(found)} if network.module.num_classes else {}
            return {"pre_logits": read, **logits}
        projected = model.forward_head(found)
        return {
            "projected": projected,
            "normalized": torch.nn.functional.normalize(projected, dim=-1),
        }

    last = isinstance(network.module, Swin)
    return runner(network, model, forward, stages, channels_last=last)


def _transform(folder: Path):
    import timm.data

    given = files.read_json(folder / "config.json")["pretrained_cfg"]
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, given))
    return lambda image: transform(image).numpy().transpose(1, 2, 0)
