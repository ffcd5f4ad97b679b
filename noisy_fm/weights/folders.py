"""Where a model of another library lies, and what it says of itself: names, folders, the hub."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from noisy_fm.data.decode import Fit
from noisy_fm.messages import require_known
from noisy_fm.weights import hf, zoo
from noisy_fm.weights.files import read_config
from noisy_fm.weights.zoo import Found

HUB = "hf"  # before a repository's own name
OPEN_CLIP_CONFIG = "open_clip_config.json"
EXPORTED = "noisy_fm.json"  # of `noisy_fm.export`
FORMAT = 1  # of it
OWN = "noisy_fm"  # whose arrays have our own names
# formats of `noisy_fm.export` → whose names their arrays have
READ_AGAIN = {"timm": "timm", "torchvision": "torchvision", "open_clip": "open_clip",
              "saved_npz": OWN, "stablehlo": OWN}  # fmt: skip
LIBRARIES = (HUB, *zoo.ROWS)
FETCHED = ("*.json", "*.safetensors", "*.safetensors.index.json")


def locate(source: str, path=None, images: str = "") -> Found:
    """The network, file and preprocessing that a name or a folder says; see `pretrained.load`.

    Raises FileNotFoundError or ValueError, one line.
    """
    library, _, name = str(source).partition("/")
    folder = Path(source).expanduser()
    if folder.is_dir():
        found = in_folder(folder, path)
    elif library == HUB and name.count("/") == 1:
        if path is not None:
            raise ValueError(f"{source} is fetched, and path is {path}; expected one of them")
        found = in_folder(fetched(name), None)
    elif library in zoo.ROWS and name:
        found = named(library, name, path, images)
        images = ""
    else:
        raise FileNotFoundError(
            f"{source} is no folder, and no model by a name of {HUB}/OWNER/NAME, "
            + ", ".join(f"{one}/NAME" for one in zoo.ROWS)
        )
    if images:
        raise ValueError(f"images is {images!r}, and {source} says itself how it sees them")
    return found


def named(library: str, name: str, path, images: str) -> Found:
    """A model by its name, and the file or folder of its weights."""
    architecture, _, tag = name.partition(".")
    row = zoo.row(library, architecture)
    place = None if path is None else Path(path).expanduser()
    if place is None:
        if library != "timm":
            raise ValueError(f"{library}/{name} needs path, the file of its weights")
        place = fetched(f"{library}/{name}")
    folder = place if place.is_dir() else place.parent
    if not images and place.exists() and any((folder / one).exists() for one in CONFIGS):
        found = in_folder(folder, path)
        if (found.library, found.row) != (library, row):
            raise ValueError(
                f"{place} holds {found.library}'s {found.row.model}, not {library}/{architecture}"
            )
        return found
    full = f"{library}/{name}"
    if images and full in zoo.IMAGES:
        raise ValueError(f"images is {images!r}, and how {full} sees them is known")
    unknown = library == "timm" and tag and not images and full not in zoo.IMAGES
    if unknown and (own := of_timms_own(name)) is not None:
        return Found(library, row, place, own, imagenet=tag.endswith("in1k"))
    key = require_known("images", images, zoo.IMAGES) if images else full
    if key not in zoo.IMAGES:
        near = sorted(one for one in zoo.IMAGES if architecture in one) or ["none"]
        raise ValueError(
            f"how {full} sees images is not known; expected a folder with its config as path, or "
            f"images='LIBRARY/NAME.TAG' that sees as it does (near it: {', '.join(near)})"
        )
    thousand = library in ("torchvision", "lite_pytorch") or tag.endswith("in1k")
    return Found(library, row, place, zoo.IMAGES[key], imagenet=thousand)


def of_timms_own(name: str) -> zoo.Images | None:
    """How ARCHITECTURE.TAG sees images by timm itself, where it is installed and knows the tag."""
    if importlib.util.find_spec("timm") is None:
        return None
    import timm

    if name not in timm.list_pretrained():
        return None
    cfg = timm.get_pretrained_cfg(name)
    if cfg.crop_mode != "center":
        raise ValueError(f"timm/{name} has crop_mode {cfg.crop_mode!r}; expected a folder as path")
    norm = zoo.norm(cfg.mean, cfg.std, where=f"timm/{name}")
    return zoo.Images(cfg.input_size[1], cfg.crop_pct, cfg.interpolation, norm)


def fetched(repository: str) -> Path:
    """The folder of a repository of the hub, fetched or from its cache."""
    hint = f"fetch its config.json and model.safetensors, and give their folder: {repository}"
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ValueError(f"{hint} (or pip install huggingface_hub)") from None
    try:
        return Path(snapshot_download(repository, allow_patterns=list(FETCHED)))
    except Exception as error:  # its own kinds, those of HTTP, the system's
        why = " ".join(str(error).split())[:120]
        raise ValueError(f"{repository} could not be fetched ({why}); {hint}") from None


CONFIGS = (EXPORTED, OPEN_CLIP_CONFIG, "config.json")


def in_folder(folder: Path, path) -> Found:
    """A model in a folder that says what it is; ValueError for a config that lacks something."""
    try:
        return _described(folder, path)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the config in {folder} is not as expected ({error!r})") from error


def _described(folder: Path, path) -> Found:
    place = Path(path).expanduser() if path else folder
    if (folder / EXPORTED).exists() and not (folder / "preprocessor_config.json").exists():
        return of_export(read_config(folder / EXPORTED), place, where=folder)
    if (folder / OPEN_CLIP_CONFIG).exists():
        own = folder / "open_clip_model.safetensors"
        place = own if path is None and own.exists() else place
        return of_open_clip(read_config(folder / OPEN_CLIP_CONFIG), place)
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{folder} has no config.json that says what model it holds")
    config = read_config(folder / "config.json")
    if "architecture" in config:
        return of_timm(config, place, where=folder)
    if "model_type" in config:
        return hf.described(folder, config, place)
    raise ValueError(f"{folder / 'config.json'} is neither timm's nor Hugging Face's")


def of_export(said: dict, path: Path, *, where: Path) -> Found:
    """What `noisy_fm.export` wrote."""
    to = said.get("to", "")
    if to not in READ_AGAIN or said.get("format") != FORMAT or "arguments" not in said:
        raise ValueError(
            f"{where} is an export to {to!r} (format {said.get('format')}), which is not read "
            f"again; expected one of {', '.join(READ_AGAIN)}"
        )
    fields = dict(said["arguments"])
    for name in ("num_classes", "logit_bias"):  # which the weights tell
        fields.pop(name, None)
    if "text" in fields and to in ("timm", "stablehlo"):
        raise ValueError(f"{where} holds the image tower of a CLIP alone, which is not read again")
    seen = said["preprocess"]
    fit = Fit(*(seen[name] for name in Fit._fields))
    norm = zoo.norm(seen["mean"], seen["std"], where=where)
    row = zoo.Row(fields.pop("name"), fit.size, fields)
    images = zoo.Images(fit.size, 1.0, fit.filter, norm)
    return Found(READ_AGAIN[to], row, path, images, said["label_names"], fit)


def of_timm(config: dict, path: Path, *, where: Path) -> Found:
    """timm's config.json."""
    row = zoo.row("timm", config["architecture"])
    pool = "token" if row.model.startswith(("vit_", "deit3_", "dinov2_", "clip_vit_")) else "avg"
    known = {"in_chans": (3,), "global_pool": (pool,), "class_token": (True,)}
    for key, value in config.get("model_args", {}).items():
        if key not in ("num_classes", "img_size") and value not in known.get(key, ()):
            raise ValueError(f"{where}: model_args.{key} is {value!r}, which is not read")
    cfg = config.get("pretrained_cfg", {})
    missing = [key for key in ("input_size", "mean", "std") if key not in cfg]
    if missing:
        raise ValueError(f"{where / 'config.json'} has no pretrained_cfg.{missing[0]}")
    mode = cfg.get("crop_mode") or "center"
    require_known(f"{where}: crop_mode", mode, ("center", "squash"))
    size = cfg["input_size"]
    if len(size) != 3 or size[0] != 3 or size[1] != size[2]:
        raise ValueError(f"{where}: input_size is {size}; expected [3, pixels, pixels]")
    norm = zoo.norm(cfg["mean"], cfg["std"], where=where)
    images = zoo.Images(
        size[1], cfg.get("crop_pct") or 0.875, cfg.get("interpolation", "bicubic"), norm
    )
    names = config.get("label_names") or ()
    said = config.get("num_classes")
    return Found(
        "timm", row, path, images, names, whole=mode == "squash",
        classes=said if isinstance(said, int) else 0,
        imagenet=str(cfg.get("tag", "")).endswith("in1k"),
    )  # fmt: skip


TOWERS = {  # what is read of open_clip's configs; what else they say must be what is the default
    "model_cfg": ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text",
                  "init_logit_scale", "init_logit_bias"),
    "vision_cfg": ("layers", "width", "head_width", "patch_size", "image_size", "mlp_ratio",
                   "norm_kwargs", "patch_dropout"),
    "text_cfg": ("context_length", "vocab_size", "width", "heads", "layers", "norm_kwargs"),
}  # fmt: skip


def of_open_clip(config: dict, path: Path) -> Found:
    """open_clip's config: towers by their fields."""
    cfg, seen = config["model_cfg"], config.get("preprocess_cfg", {})
    vision, text = cfg["vision_cfg"], cfg["text_cfg"]
    for part, said in (("model_cfg", cfg), ("vision_cfg", vision), ("text_cfg", text)):
        for key, value in said.items():
            if key not in TOWERS[part] and value not in (None, False, {}):
                raise ValueError(f"{path}: {part}.{key} is {value!r}, which no CLIP here has")
    epsilon, of_text = ((one.get("norm_kwargs") or {}).get("eps", 1e-5) for one in (vision, text))
    if of_text != 1e-5 or any(
        set(one.get("norm_kwargs") or {}) - {"eps"} for one in (vision, text)
    ):
        raise ValueError(f"{path}: norm_kwargs of the texts are {text.get('norm_kwargs')}")
    quick = {"activation": "quick_gelu"} if cfg.get("quick_gelu") else {}
    texts = {
        "dim": text["width"], "depth": text["layers"], "num_heads": text["heads"],
        "context": text.get("context_length", 77), "vocabulary": text["vocab_size"], **quick,
    }  # fmt: skip
    width, head = vision["width"], vision.get("head_width", 64)
    if isinstance(vision["layers"], list):
        base = "clip_resnet50"
        fields = {"stage_sizes": tuple(vision["layers"]), "width": width,
                  "num_heads": width * 32 // head}  # fmt: skip
    else:
        base = "clip_vit_b16"
        fields = {"patch": vision["patch_size"], "dim": width, "depth": vision["layers"],
                  "num_heads": width // head, "mlp_ratio": vision.get("mlp_ratio", 4.0),
                  "epsilon": epsilon, **quick}  # fmt: skip
    row = zoo.Row(base, vision["image_size"],
                  {"embed_dim": cfg["embed_dim"], "text": texts, **fields})  # fmt: skip
    norm = zoo.norm(*(seen.get(n, zoo.OPENAI[n]) for n in ("mean", "std")), where=path)
    mode = require_known("resize_mode", seen.get("resize_mode", "shortest"), ("shortest", "squash"))
    images = zoo.Images(vision["image_size"], 1.0, seen.get("interpolation", "bicubic"), norm)
    table: Mapping = {"text": "text."} if cfg.get("custom_text") else {}
    return Found("open_clip", row, path, images, whole=mode == "squash", table=table)
