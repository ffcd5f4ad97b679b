"""Hugging Face: a folder that transformers' `from_pretrained` reads."""

from pathlib import Path

import numpy as np

from noisy_fm import files
from noisy_fm.data.decode import FILTERS
from noisy_fm.export import network as network_lib
from noisy_fm.export.hf_forms import KINDS, Form
from noisy_fm.export.network import Network, placed, triples
from noisy_fm.export.target import OTHERS, Target, require
from noisy_fm.export.torch_side import read_input, runner, with_counters
from noisy_fm.models import ViT
from noisy_fm.texts import tokenizer as tokens_lib
from noisy_fm.weights import files as weight_files

LIBRARIES, INSTALL = ("transformers", "torch", "torchvision"), "pip install transformers"
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


def hf(network: Network, *, nearest: bool = False, **unused) -> Target:
    """config.json, model.safetensors and preprocessor_config.json; CLIP's tokenizer as well."""
    require(("transformers",), INSTALL, "a folder for transformers")
    module = network.module
    exact = placed(network, "floor", nearest, "transformers")
    if type(module) not in KINDS:
        raise ValueError(
            f"{type(module).__name__} has no form for transformers, which is written of "
            f"{', '.join(kind.__name__ for kind in KINDS)}; {OTHERS}, timm"
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


def _class(network: Network, form: Form) -> str:
    if network.texts:
        return "CLIPModel"
    return f"{form.kind}{'ForImageClassification' if network.module.num_classes else 'Model'}"


def _config(network: Network, form: Form, kind: str) -> dict:
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


def _loaded(network: Network, form: Form, kind: str, folder: Path):
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
