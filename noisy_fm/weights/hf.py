"""What a folder of Hugging Face says of its model: config and image processor, without PyTorch."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from noisy_fm.data.decode import Fit
from noisy_fm.messages import require_known
from noisy_fm.weights import zoo
from noisy_fm.weights.files import read_config
from noisy_fm.weights.zoo import Found, Images, Row

CLIP = "clip_vit_b16"
ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu"}
FILTERS = {"1": "lanczos", "2": "bilinear", "3": "bicubic"}  # PIL's numbers


def described(folder: Path, given: Mapping, path: Path) -> Found:
    """The row, image processing and classes of a folder with config.json.

    Raises ValueError for a model that has no counterpart here, and a processor that does what ours
    cannot.
    """
    kind = given["model_type"]
    make = KINDS[require_known(f"{folder / 'config.json'}: model_type", kind, KINDS)]
    try:
        from transformers import AutoConfig
    except ImportError:
        raise ValueError(
            f"{folder} is of Hugging Face, whose config is read by transformers: "
            "pip install transformers"
        ) from None
    config = AutoConfig.from_pretrained(folder)
    classifies = any("Classification" in name for name in given.get("architectures") or ())
    row = make(config, classifies)
    images, fit = processing(folder)
    names = [config.id2label[i] for i in sorted(config.id2label)] if classifies else []
    if all(name == f"LABEL_{i}" for i, name in enumerate(names)):
        names = []
    table = {} if classifies or kind in WITHOUT_PREFIX else {"prefix": ""}
    return Found("hf", row, path, images, names, fit, False, table, kind not in PLAIN_CUBIC)


def _vit(config, classifies: bool) -> Row:
    return Row("vit_b16", config.image_size, _fields(config))


def _dinov2(config, classifies: bool) -> Row:
    if config.use_swiglu_ffn:
        raise ValueError("config.json has use_swiglu_ffn, which no network here has")
    fields = {**_fields(config), "layer_scale": config.layerscale_value, "class_position": True,
              "registers": getattr(config, "num_register_tokens", 0),
              "pool": "token_mean" if classifies else "token"}  # fmt: skip
    return Row("dinov2_s14", config.image_size, fields)


def _fields(config) -> dict:
    """Of a ViT by its config."""
    for name in ("patch_size", "image_size"):
        if not isinstance(getattr(config, name), int):
            raise ValueError(f"config.json has {name} {getattr(config, name)}; expected a number")
    if not config.qkv_bias:
        raise ValueError("config.json has qkv_bias false, which no ViT here has")
    wide = getattr(config, "mlp_ratio", None)
    return {
        "patch": config.patch_size,
        "dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": float(wide) if wide else config.intermediate_size / config.hidden_size,
        "epsilon": config.layer_norm_eps,
        "activation": ACTIVATIONS[require_known("hidden_act", config.hidden_act, ACTIVATIONS)],
    }


def _swin(config, classifies: bool) -> Row:
    _expect(config, hidden_act="gelu", qkv_bias=True, use_absolute_embeddings=False,
            mlp_ratio=4.0, layer_norm_eps=1e-5)  # fmt: skip
    fields = {"patch": config.patch_size, "dim": config.embed_dim, "depths": tuple(config.depths),
              "num_heads": tuple(config.num_heads), "window": config.window_size}  # fmt: skip
    return Row("swin_t", config.image_size, fields)


def _convnext(config, classifies: bool) -> Row:
    _expect(config, hidden_act="gelu", patch_size=4)
    if config.layer_norm_eps not in (1e-12, 1e-6):  # of the last norm alone, where both are none
        raise ValueError(f"config.json has layer_norm_eps {config.layer_norm_eps}; expected 1e-12")
    width = _doubling(config.hidden_sizes)
    return Row("convnext_tiny", config.image_size,
               {"stage_sizes": tuple(config.depths), "width": width})  # fmt: skip


def _resnet(config, classifies: bool) -> Row:
    _expect(config, hidden_act="relu", downsample_in_first_stage=False)
    basic = config.layer_type == "basic"
    width = _doubling(config.hidden_sizes) // (1 if basic else 4)
    if config.embedding_size != width or getattr(config, "downsample_in_bottleneck", False):
        raise ValueError("config.json is of a ResNet that no network here is")
    block = "basic" if basic else "bottleneck"
    return Row("resnet50", 224,
               {"stage_sizes": tuple(config.depths), "width": width, "block": block})  # fmt: skip


def _clip(config, classifies: bool) -> Row:
    vision, text = config.vision_config, config.text_config
    _expect(text, intermediate_size=4 * text.hidden_size)
    fields = _tower(vision)
    fields["patch"] = vision.patch_size
    texts = {**_tower(text), "context": text.max_position_embeddings,
             "vocabulary": text.vocab_size}  # fmt: skip
    del texts["mlp_ratio"]
    return Row(CLIP, vision.image_size,
               {"embed_dim": config.projection_dim, "text": texts, **fields})  # fmt: skip


def _tower(config) -> dict:
    _expect(config, layer_norm_eps=1e-5)
    return {
        "dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": config.intermediate_size / config.hidden_size,
        "activation": ACTIVATIONS[require_known("hidden_act", config.hidden_act, ACTIVATIONS)],
    }


KINDS: dict[str, Callable[..., Row]] = {
    "vit": _vit,
    "dinov2": _dinov2,
    "dinov2_with_registers": _dinov2,
    "swin": _swin,
    "convnext": _convnext,
    "resnet": _resnet,
    "clip": _clip,
}
WITHOUT_PREFIX = ("convnext", "resnet", "clip")  # whose tables have one form of names
PLAIN_CUBIC = ("dinov2", "vit", "clip")  # whose positions are resized without antialiasing


def _expect(config, **values) -> None:
    for name, value in values.items():
        found = getattr(config, name, value)
        if found != value:
            raise ValueError(f"config.json has {name} {found!r}; expected {value!r}")


def _doubling(widths: Sequence[int]) -> int:
    if any(wide != widths[0] * 2**i for i, wide in enumerate(widths)):
        raise ValueError(f"config.json has hidden_sizes {list(widths)}; expected each doubled")
    return widths[0]


def processing(folder: Path) -> tuple[Images, Fit]:
    """How a folder's image processor sees images.

    Raises FileNotFoundError or ValueError where it is not there, or does what ours cannot.
    """
    path = folder / "preprocessor_config.json"
    if not path.exists():
        raise FileNotFoundError(f"{folder} has no preprocessor_config.json, which says how it sees")
    seen = read_config(path)
    missing = [key for key in ("size", "image_mean", "image_std", "resample") if key not in seen]
    kind = str(seen.get("image_processor_type") or seen.get("feature_extractor_type"))
    if seen.get("rescale_offset") or not any(word in kind for word in (*SHORTEST, *SQUARE)):
        raise ValueError(f"{path} is of {kind}, which is not read")
    off = [key for key in ("do_resize", "do_rescale", "do_normalize") if seen.get(key) is False]
    if missing or off:
        what = f"no {missing[0]}" if missing else f"{off[0]} false"
        raise ValueError(f"{path} has {what}, which no preprocessing here is")
    if abs(seen.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-9:
        raise ValueError(f"{path} has rescale_factor {seen['rescale_factor']}; expected 1/255")
    norm = zoo.norm(seen["image_mean"], seen["image_std"], where=path)
    name = FILTERS[require_known(f"{path}: resample", str(seen["resample"]), FILTERS)]
    size, crop = seen["size"], seen.get("crop_size")
    if isinstance(size, int):
        shortest = any(word in kind for word in SHORTEST)
        size = {"shortest_edge": size} if shortest else {"height": size, "width": size}
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop or {}
    cropped = seen.get("do_center_crop", bool(crop)) and bool(crop)
    if cropped and crop.get("height") != crop.get("width"):
        raise ValueError(f"{path} has crop_size {crop}; expected a square")
    side, shorter = crop.get("height", 0) if cropped else 0, size.get("shortest_edge", 0)
    whole = not shorter
    if whole and (size.get("height") != size.get("width") or not size.get("height")):
        raise ValueError(f"{path} has size {size}; expected a square")
    if seen.get("crop_pct") and shorter:  # ConvNeXt's processor, which ResNets have too
        # Below 384 pixels they are the crop's, and `crop_pct` says of what.
        side, whole = shorter, shorter >= 384
        shorter = shorter if whole else int(shorter / seen["crop_pct"])
    shorter = shorter or size["height"]
    if not side and not whole:
        raise ValueError(f"{path}: images keep their shape; expected a crop")
    side = side or shorter
    return Images(side, 1.0, name, norm), Fit(side, shorter, whole, name, "floor")


# Whose size, where it is one number, is the shorter side's, or both sides'.
SHORTEST, SQUARE = ("CLIP", "Bit", "ConvNext"), ("ViT", "DeiT", "Swin", "Beit")
