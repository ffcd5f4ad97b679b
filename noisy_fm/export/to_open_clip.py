"""CLIP for open_clip: a folder that `open_clip.create_model("local-dir:FOLDER")` reads."""

from pathlib import Path

import numpy as np

from noisy_fm import files
from noisy_fm.export import network as network_lib
from noisy_fm.export.network import Network, placed, triples
from noisy_fm.export.target import OTHERS, Target
from noisy_fm.export.torch_side import runner, with_counters
from noisy_fm.models import ModifiedResNet
from noisy_fm.weights import files as weight_files
from noisy_fm.weights import rules
from noisy_fm.weights.maps import clip

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
LOADING = """\
import open_clip

model, _, transform = open_clip.create_model_and_transforms("local-dir:FOLDER")
tokenizer = open_clip.tokenizer.SimpleTokenizer(context_length=CONTEXT)
images = model.eval().encode_image(transform(image)[None], normalize=True)  # of a PIL image
texts = model.encode_text(tokenizer(["a cat", "a dog"]), normalize=True)
"""
FILTERS = ("bilinear", "bicubic")


def open_clip(network: Network, *, nearest: bool = False, **unused) -> Target:
    """The two towers, and how images are resized: to the size itself, whole or cropped."""
    if not network.texts:
        raise ValueError("open_clip holds models of images and texts, this knows no texts; "
                         "expected to='timm' or another format")  # fmt: skip
    fit, module = network.preprocess.fit, network.module
    exact = fit.shorter == fit.size and fit.filter in FILTERS
    exact = placed(network, "round", nearest, "open_clip") and exact
    if not exact and not nearest:
        raise ValueError(
            f"open_clip resizes to {fit.size} pixels, bilinear or bicubic, the model was evaluated "
            f"at {fit.shorter}, {fit.filter}; nearest=True (--nearest) writes what comes nearest"
        )
    about = {"model_cfg": _model(network), "preprocess_cfg": _preprocess(network)}
    state = with_counters(rules.to_theirs(network.variables, clip.open_clip(module)))

    def write(folder: Path) -> None:
        weight_files.write(folder / WEIGHTS, state, about={"format": "pt"})
        files.write_json(folder / CONFIG, about)

    return Target(
        write,
        lambda folder: _loaded(network, folder),
        ("open_clip", "torch"),
        "pip install open_clip_torch",
        LOADING.replace("CONTEXT", str(module.text.context)),
        {CONFIG: "towers and preprocessing", WEIGHTS: "the weights of both towers"},
        see=_transform,
        exact=exact,
    )


def _model(network: Network) -> dict:
    """open_clip's model_cfg; ValueError for towers that it does not have."""
    module, size = network.module, network.size
    image, text = module.image, module.text
    if isinstance(image, ModifiedResNet):
        vision = {"layers": list(image.stage_sizes), "width": image.width, "image_size": size}
        vision["head_width"] = image.width * 32 // image.num_heads
        quick = text.activation == "quick_gelu"
    else:
        vision = _vit(image, size)
        quick = image.activation == "quick_gelu"
        if image.activation != text.activation:
            raise ValueError(
                f"open_clip's towers have one activation, these {image.activation} and "
                f"{text.activation}; {OTHERS}"
            )
    return {
        "embed_dim": module.embed_dim,
        "vision_cfg": vision,
        "text_cfg": {
            "context_length": text.context,
            "vocab_size": text.vocabulary,
            "width": text.dim,
            "heads": text.num_heads,
            "layers": text.depth,
        },
        "quick_gelu": quick,
        **({"init_logit_bias": 0.0} if module.logit_bias else {}),
    }


def _vit(image, size: int) -> dict:
    expected = {"pool": "token", "pre_norm": True, "registers": 0, "layer_scale": 0,
                "class_position": True, "position": "learned"}  # fmt: skip
    for name, value in expected.items():
        if getattr(image, name, None) != value:
            raise ValueError(
                f"open_clip's image towers have {name}={value!r}, this "
                f"{getattr(image, name, type(image).__name__)!r}; {OTHERS}"
            )
    found = {
        "layers": image.depth,
        "width": image.dim,
        "head_width": image.dim // image.num_heads,
        "patch_size": image.patch,
        "mlp_ratio": image.mlp_ratio,
        "image_size": size,
    }
    return found | ({} if image.epsilon == 1e-5 else {"norm_kwargs": {"eps": image.epsilon}})


def _preprocess(network: Network) -> dict:
    fit, (mean, std) = network.preprocess.fit, triples(network)
    return {
        "mean": mean,
        "std": std,
        "interpolation": fit.filter if fit.filter in FILTERS else "bicubic",
        "resize_mode": "squash" if fit.whole else "shortest",
    }


def _loaded(network: Network, folder: Path):
    import open_clip as library
    import torch

    model = library.create_model(f"local-dir:{folder}")
    tokens = torch.from_numpy(network_lib.tokens(network).astype(np.int64))

    def forward(x):
        projected = model.encode_image(x)
        return {
            "projected": projected,
            "normalized": model.encode_image(x, normalize=True),
            "text/normalized": model.encode_text(tokens, normalize=True),
        }

    image = network.module.image
    if isinstance(image, ModifiedResNet):
        stages = {f"layer{i + 1}": f"visual.layer{i + 1}" for i in range(len(image.stage_sizes))}
    else:
        stages = {f"block{i}": f"visual.transformer.resblocks.{i}" for i in range(image.depth)}
    return runner(network, model, forward, stages)


def _transform(folder: Path):
    import open_clip as library

    _, _, transform = library.create_model_and_transforms(f"local-dir:{folder}")
    return lambda image: transform(image).numpy().transpose(1, 2, 0)
