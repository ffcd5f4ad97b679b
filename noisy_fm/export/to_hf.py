"""Hugging Face: a folder that transformers' `from_pretrained` reads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from noisy_fm import files
from noisy_fm.data.decode import FILTERS
from noisy_fm.export import equal
from noisy_fm.export import network as network_lib
from noisy_fm.export.network import Network
from noisy_fm.export.target import Target, require
from noisy_fm.export.to_timm import triples
from noisy_fm.export.torch_side import read_input, runner, with_counters
from noisy_fm.models import Clip, ConvNeXt, ResNet, ResNetV2, Swin, ViT
from noisy_fm.texts import tokenizer as tokens_lib
from noisy_fm.weights import files as weight_files
from noisy_fm.weights import rules
from noisy_fm.weights.maps import clip, convnext, resnet, resnetv2, swin, vit

LIBRARIES, INSTALL = ("transformers", "torch", "torchvision"), "pip install transformers"
OTHERS = "expected one of saved_npz, stablehlo, onnx"
LOADING = """\
from transformers import AutoImageProcessor, CLASS

processor = AutoImageProcessor.from_pretrained("FOLDER")
model = CLASS.from_pretrained("FOLDER"MORE).eval()
found = model(**processor(image, return_tensors="pt"))  # of a PIL image
"""
LOADING_CLIP = """\
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

processor = AutoImageProcessor.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = CLIPModel.from_pretrained("FOLDER").eval()
texts = tokenizer(["a cat", "a dog"], padding=True, return_tensors="pt")
found = model(**processor(image, return_tensors="pt"), **texts)  # of a PIL image
"""


class _Form:
    """What transformers calls a network: its kind, the config's arguments, weights and stages."""

    def __init__(self, kind: str, arguments: dict, state: dict, stages: dict, head: str = ""):
        self.kind, self.arguments, self.state, self.stages = kind, arguments, state, stages
        self.head = head


def _refuse(module, **expected) -> None:
    for name, value in expected.items():
        if getattr(module, name) != value:
            raise ValueError(
                f"transformers has no {type(module).__name__} with {name}="
                f"{getattr(module, name)!r}; {OTHERS}, timm"
            )


def _vit(module: ViT, variables: dict, size: int) -> _Form:
    if module.pool not in ("token", "token_mean"):
        raise ValueError(f"transformers has no ViT with pool={module.pool!r}; {OTHERS}, timm")
    _refuse(module, pre_norm=False)
    module, variables = equal.learned_positions(module, variables, size)
    module, variables = equal.placed_token(module, variables)
    arguments: dict[str, Any] = {
        "hidden_size": module.dim, "num_hidden_layers": module.depth,
        "num_attention_heads": module.num_heads, "image_size": size, "patch_size": module.patch,
        "layer_norm_eps": module.epsilon, "hidden_act": module.activation,
    }  # fmt: skip
    if module.layer_scale:
        module, variables = equal.with_mean(module, variables)
        kind = "Dinov2WithRegisters" if module.registers else "Dinov2"
        if module.mlp_ratio != int(module.mlp_ratio):
            _refuse(module, mlp_ratio=int(module.mlp_ratio))
        arguments["mlp_ratio"] = int(module.mlp_ratio)
        if module.registers:
            arguments["num_register_tokens"] = module.registers
    else:
        _refuse(module, registers=0, pool="token")
        kind = "ViT"
        arguments["intermediate_size"] = int(module.dim * module.mlp_ratio)
    prefix = {"ViT": "vit", "Dinov2": "dinov2"}.get(kind, "dinov2_with_registers")
    prefix = f"{prefix}." if module.num_classes else ""
    stages = {f"block{i}": f"{prefix}encoder.layer.{i}" for i in range(module.depth)}
    state = rules.to_theirs(variables, vit.hugging_face(module))
    if kind.startswith("Dinov2"):  # a parameter of training without supervision
        state[f"{prefix}embeddings.mask_token"] = np.zeros((1, module.dim), np.float32)
    return _Form(kind, arguments, state, stages, "classifier")


def _swin(module: Swin, variables: dict, size: int) -> _Form:
    side = size // module.patch
    for _ in module.depths:
        if side < module.window:
            raise ValueError(
                f"transformers' Swin needs maps of at least a window ({module.window}), images of "
                f"{size} make one of {side}; {OTHERS}, timm"
            )
        side = -(-side // 2)
    arguments = {
        "image_size": size, "patch_size": module.patch, "embed_dim": module.dim,
        "depths": list(module.depths), "num_heads": list(module.num_heads),
        "window_size": module.window, "mlp_ratio": module.mlp_ratio,
    }  # fmt: skip
    state = rules.to_theirs(variables, swin.hugging_face(module))
    return _Form("Swin", arguments, state, {}, "classifier")


def _convnext(module: ConvNeXt, variables: dict, size: int) -> _Form:
    _refuse(module, head_width=0, epsilon=1e-6)
    sizes = [module.width * 2**i for i in range(len(module.stage_sizes))]
    arguments = {
        "num_stages": len(sizes), "hidden_sizes": sizes, "depths": list(module.stage_sizes),
        "layer_norm_eps": module.epsilon, "image_size": size,
        "layer_scale_init_value": module.layer_scale,
    }  # fmt: skip
    stages = {f"stage{i + 1}": f"convnext.encoder.stages.{i}" for i in range(len(sizes))}
    state = rules.to_theirs(variables, convnext.hugging_face(module))
    return _Form("ConvNext", arguments, state, stages, "classifier")


def _resnet(module: ResNet, variables: dict, size: int) -> _Form:
    _refuse(module, stem="imagenet")
    if module.block == "wide_bottleneck":
        raise ValueError(f"transformers has no wide ResNet; {OTHERS}, timm")
    wider = 4 if module.block == "bottleneck" else 1
    count = len(module.stage_sizes)
    arguments = {
        "embedding_size": module.width, "depths": list(module.stage_sizes),
        "hidden_sizes": [wider * module.width * 2**i for i in range(count)],
        "layer_type": module.block,
    }  # fmt: skip
    stages = {f"layer{i + 1}": f"resnet.encoder.stages.{i}" for i in range(count)}
    state = rules.to_theirs(variables, resnet.hugging_face(module))
    return _Form("ResNet", arguments, state, stages, "classifier.1")


def _bit(module: ResNetV2, variables: dict, size: int) -> _Form:
    count = len(module.stage_sizes)
    arguments = {
        "embedding_size": module.width, "depths": list(module.stage_sizes),
        "hidden_sizes": [4 * module.width * 2**i for i in range(count)],
    }  # fmt: skip
    stages = {f"layer{i + 1}": f"bit.encoder.stages.{i}" for i in range(count)}
    state = rules.to_theirs(variables, resnetv2.hugging_face(module))
    return _Form("Bit", arguments, state, stages, "classifier.1")


def _clip(module: Clip, variables: dict, size: int) -> _Form:
    names = clip.hugging_face(module)  # or a ValueError
    if module.logit_bias:
        raise ValueError(f"transformers' CLIP has no logit_bias (loss 'sigmoid'); {OTHERS}")
    image, text = module.image, module.text
    if not isinstance(image, ViT):
        raise ValueError(f"transformers' CLIP has a ViT, this {type(image).__name__}; {OTHERS}")
    _refuse(image, pool="token", pre_norm=True, registers=0, layer_scale=0.0, class_position=True)
    _refuse(image, position="learned")

    def tower(one, ratio: float, epsilon: float) -> dict:
        return {
            "hidden_size": one.dim, "intermediate_size": int(one.dim * ratio),
            "num_hidden_layers": one.depth, "num_attention_heads": one.num_heads,
            "hidden_act": one.activation, "layer_norm_eps": epsilon,
            "projection_dim": module.embed_dim,
        }  # fmt: skip

    seen = tower(image, image.mlp_ratio, image.epsilon)
    read = tower(text, 4, 1e-5) | {
        "vocab_size": text.vocabulary, "max_position_embeddings": text.context,
        "bos_token_id": text.vocabulary - 2, "eos_token_id": text.vocabulary - 1,
        "pad_token_id": text.vocabulary - 1,
    }  # fmt: skip
    arguments = {
        "text_config": read,
        "vision_config": seen | {"image_size": size, "patch_size": image.patch},
        "projection_dim": module.embed_dim,
    }
    stages = {f"block{i}": f"vision_model.encoder.layers.{i}" for i in range(image.depth)}
    return _Form("CLIP", arguments, rules.to_theirs(variables, names), stages)


KINDS: dict[type, Callable[..., _Form]] = {
    ViT: _vit, Swin: _swin, ConvNeXt: _convnext, ResNet: _resnet, ResNetV2: _bit, Clip: _clip,
}  # fmt: skip


def hf(network: Network, *, nearest: bool = False, **unused) -> Target:
    """config.json, model.safetensors and preprocessor_config.json; CLIP's tokenizer as well."""
    require(("transformers",), INSTALL, "a folder for transformers")
    module, fit = network.module, network.preprocess.fit
    margin = (fit.shorter - fit.size) / 2
    exact = fit.whole and round(margin) == int(margin)
    if type(module) not in KINDS:
        raise ValueError(
            f"{type(module).__name__} has no form for transformers, which is written of "
            f"{', '.join(kind.__name__ for kind in KINDS)}; {OTHERS}, timm"
        )
    if not exact and not nearest:
        raise ValueError(
            "transformers rounds down where a crop begins, the model's evaluation to the nearest "
            "pixel, so that some images are cropped a pixel aside; nearest=True (--nearest) "
            "accepts that"
        )
    form = KINDS[type(module)](module, network.variables, network.size)
    kind = _class(network, form)
    config = _config(network, form, kind)
    letters = network.texts and module.text.vocabulary == tokens_lib.clip_tokenizer().size
    written = {
        "config.json": "the model's, by its config class",
        "model.safetensors": "weights",
        "preprocessor_config.json": "resizing, cropping and normalisation",
        **({"vocab.json": "the tokenizer's", "merges.txt": "the tokenizer's",
            "tokenizer_config.json": "the tokenizer's"} if letters else {}),
    }  # fmt: skip

    def write(folder: Path) -> None:
        files.write_json(folder / "config.json", config)
        state = with_counters(form.state)
        weight_files.write(folder / "model.safetensors", state, about={"format": "pt"})
        files.write_json(folder / "preprocessor_config.json", _processor(network))
        if letters:
            _write_tokenizer(folder, module.text.context)

    loading = LOADING_CLIP if network.texts else LOADING
    more = ", add_pooling_layer=False" if kind == "ViTModel" else ""
    return Target(
        write,
        lambda folder: _loaded(network, form, kind, folder),
        LIBRARIES,
        INSTALL,
        loading.replace("CLASS", kind).replace("MORE", more),
        written,
        see=_see,
        exact=exact,
        aside=not exact,
    )


def _class(network: Network, form: _Form) -> str:
    if network.texts:
        return "CLIPModel"
    return f"{form.kind}{'ForImageClassification' if network.module.num_classes else 'Model'}"


def _config(network: Network, form: _Form, kind: str) -> dict:
    import transformers

    arguments = dict(form.arguments)
    if not network.texts and network.module.num_classes:
        count = network.module.num_classes
        names = network.label_names
        names = names if len(names) == count else tuple(map(str, range(count)))
        arguments["id2label"] = dict(enumerate(names))
        arguments["label2id"] = {name: i for i, name in enumerate(names)}
    config = getattr(transformers, f"{form.kind}Config")(**arguments)
    found = {**config.to_dict(), "architectures": [kind]}
    if "id2label" in found:  # JSON has texts as keys
        found["id2label"] = {str(key): value for key, value in found["id2label"].items()}
    return found


def _processor(network: Network) -> dict:
    fit, (mean, std) = network.preprocess.fit, triples(network)
    whole = {"height": fit.shorter, "width": fit.shorter}
    return {
        "image_processor_type": f"{'CLIP' if network.texts else 'Bit'}ImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": whole if fit.whole else {"shortest_edge": fit.shorter},
        "resample": int(FILTERS[fit.filter]),
        "do_center_crop": True,
        "crop_size": {"height": fit.size, "width": fit.size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }


def _write_tokenizer(folder: Path, context: int) -> None:
    """CLIP's vocabulary, with the names that transformers has for its two ends."""
    known = tokens_lib.clip_tokenizer(context)
    ends = {tokens_lib.START: "<|startoftext|>", tokens_lib.END: "<|endoftext|>"}
    files.write_json(
        folder / "vocab.json", {ends.get(name, name): i for i, name in enumerate(known.names)}
    )
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in tokens_lib.merges())])
    files.write_bytes(folder / "merges.txt", f"{merges}\n".encode())
    files.write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": context,
        "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>",
    })  # fmt: skip


def _loaded(network: Network, form: _Form, kind: str, folder: Path):
    import torch
    import transformers

    more = {"add_pooling_layer": False} if kind == "ViTModel" else {}
    made = getattr(transformers, kind)
    model, said = made.from_pretrained(str(folder), output_loading_info=True, **more)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if bad := sorted(said.get(what, ())):
            raise ValueError(f"transformers reports {what.replace('_', ' ')}: {bad[0]}")
    if network.texts:
        tokens = torch.from_numpy(network_lib.tokens(network).astype(np.int64))
        return runner(network, model, lambda x: _embedded(model, x, tokens), form.stages)
    module = network.module
    width = form.state["classifier.weight"].shape[-1] if "classifier.weight" in form.state else 0
    if not module.num_classes:
        return runner(network, model, lambda x: _pooled(module, model, x), form.stages)
    read = read_input(model, form.head)

    def forward(x):
        logits = model(pixel_values=x).logits
        # A head that was widened (see `equal.with_mean`) reads the class token first.
        narrow = width and getattr(module, "pool", "") == "token"
        return {"logits": logits, "pre_logits": read[0][:, : module.dim] if narrow else read[0]}

    return runner(network, model, forward, form.stages)


def _embedded(model, x, tokens) -> dict:
    found = model(input_ids=tokens, pixel_values=x)
    projected = model.visual_projection(model.vision_model(pixel_values=x).pooler_output)
    return {
        "projected": projected,
        "normalized": found.image_embeds,
        "text/normalized": found.text_embeds,
    }


def _pooled(module, model, x) -> dict:
    """What our network without a head gives: "pre_logits"."""
    import torch

    found = model(pixel_values=x)
    if not isinstance(module, ViT):
        return {"pre_logits": found.pooler_output.flatten(1)}
    token = found.last_hidden_state[:, 0]
    if module.pool == "token":
        return {"pre_logits": token}
    mean = found.last_hidden_state[:, 1 + module.registers :].mean(1)
    return {"pre_logits": torch.cat([token, mean], dim=1)}


def _see(folder: Path):
    import transformers

    processor = transformers.AutoImageProcessor.from_pretrained(str(folder))

    def see(image):
        pixels = processor(image, return_tensors="np")["pixel_values"][0]
        return np.asarray(pixels).transpose(1, 2, 0)

    return see
