"""Models of other libraries, from their files: the arrays, the network, and how it sees images.

load_model("timm/tf_efficientnet_b3.ns_jft_in1k", path="model.safetensors")
load_model("./a_folder_of_hugging_face")
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from noisy_fm import checkpoint, models
from noisy_fm import config as config_lib
from noisy_fm.data import decode, imagenet
from noisy_fm.data.source import numbered
from noisy_fm.messages import require_known, say
from noisy_fm.models.clip import Clip
from noisy_fm.models.vit import ViT, resize_positions
from noisy_fm.weights import files as weight_files
from noisy_fm.weights import hf, rules, zoo

HEADS = ("keep", "drop")
HUB = "hf"  # before the repository's own name
SIZES = Path(__file__).parent / "weights" / "sizes.json"  # of `tools/reference_sizes.py`
EXPORTED = "noisy_fm.json"  # of `noisy_fm.export`
OWN = "noisy_fm"
# formats of `noisy_fm.export` → whose names their arrays have
READ_AGAIN = {
    "timm": "timm",
    "torchvision": "torchvision",
    "open_clip": "open_clip",
    "saved_npz": OWN,
    "stablehlo": OWN,
}
LIBRARIES = (HUB, *zoo.ROWS)
OPEN_CLIP_CONFIG = "open_clip_config.json"
FETCHED = ("*.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model.bin", "*.npz")


class Found(NamedTuple):
    """A model elsewhere, before its arrays are read.

    library, row: its network (see `zoo`); images: how it sees them, if known; label_names: if
    known. path: of the weights. prefix: what stands before the names in the file.
    """

    library: str
    row: zoo.Row
    path: Path
    images: zoo.Images | None
    label_names: Sequence[str] = ()
    shorter: int = 0  # what the shorter side is resized to, if the config says it in pixels
    whole: bool = False
    fit: decode.Fit | None = None  # if a file of ours says it
    table: Mapping[str, Any] = {}  # arguments of the table of names
    antialias: bool = True  # of resized positions


class Loaded(NamedTuple):
    """What `model.load_model` makes a `Model` of."""

    variables: dict[str, Any]
    fit: decode.Fit
    meta: dict


def load(
    source: str,
    *,
    path=None,
    head: str = "keep",
    part: str = "",
    size: int | None = None,
    rounding: str = "floor",
) -> Loaded:
    """The variables, evaluation fit and meta of another library's model.

    source: LIBRARY/NAME (timm/ARCHITECTURE.TAG, torchvision/…, open_clip/…, see `zoo.ROWS`), a
    folder with the config.json of timm, open_clip or Hugging Face, or hf/OWNER/NAME, a repository
    of the hub. It, and what timm has there, is fetched if no path is given. path: the weights' file
    or folder. part: as `weights.files.read`. head: "drop" leaves out the classifier. size: of the
    images, where other than the weights'; positions are resized as the library does it. rounding:
    of what the shorter side is resized to (`decode.fitted`): "ceil" is that of timm before 0.9.

    Raises FileNotFoundError or ValueError, one line, before anything is computed.
    """
    require_known("head", head, HEADS)
    found = locate(source, path)
    found = found._replace(path=weight_files.located(found.path))
    state = weight_files.read(found.path, part=part)
    module, config = network(found, state, head)
    trained = trained_size(found, module, state)
    wanted = size or (found.images.size if found.images else trained)
    try:
        variables = variables_of(found, module, state, head, trained)
    except ValueError as error:
        raise ValueError(f"{error}{_better(found, state)}") from None
    if wanted != trained:
        variables = resized(module, variables, trained, wanted, antialias=found.antialias)
    _check_numbers(variables, found.path)
    fit = fitted(found, wanted, rounding)
    classes = 0 if isinstance(module, Clip) else module.num_classes
    config.data.size = wanted
    with config.ignore_type():
        config.task.normalize.update(found.images.norm if found.images else zoo.INCEPTION)
    info = {**numbered(classes), "encoded": True}
    names = found.label_names or (imagenet.names() if classes == 1000 else ())
    if len(names) == classes:
        info["label_names"] = list(names)
    return Loaded(variables, fit, about(source, found, config, info, variables))


def about(source: str, found: Found, config, info: dict, variables) -> dict:
    """What `Model.meta` says of a model that is no run of ours."""
    plain = config_lib.plain(config)
    return {
        "config": plain,
        "config_hash": config_lib.hash_of(plain),
        "manifest_hash": None,
        "info": info,
        "step": 0,
        "weights": digest(variables),
        "source": {"name": str(source), "library": found.library, "file": str(found.path)},
        **checkpoint.provenance(),
    }


def digest(variables) -> str:
    """16 hexadecimal digits of all arrays' paths and bits."""
    found = hashlib.blake2b(digest_size=8)
    for where, leaf in jax.tree_util.tree_leaves_with_path(variables):
        found.update(jax.tree_util.keystr(where).encode())
        found.update(np.ascontiguousarray(leaf).view(np.uint8).data)
    return found.hexdigest()


def locate(source: str, path=None) -> Found:
    """Where a model's files are, and what they say of it."""
    library, _, name = str(source).partition("/")
    folder = Path(source).expanduser()
    if folder.is_dir():
        return in_folder(folder, path)
    if library in zoo.ROWS and name:
        architecture = name.partition(".")[0]
        if path is None:
            return in_folder(fetched(f"{library}/{name}"), None)
        place = Path(path).expanduser()
        if place.is_dir() and (place / "config.json").exists():
            return in_folder(place, None)
        row = zoo.row(library, architecture)
        images = zoo.IMAGES.get(name) if library == "timm" else None
        if images is None:
            images = DEFAULTS.get(library)
        if images is None and library != "open_clip":
            known = ", ".join(sorted(n for n in zoo.IMAGES if n.startswith(architecture))) or "none"
            raise ValueError(
                f"how {source} sees images is not known: give path a folder with its config.json, "
                f"or a tag that is known ({known})"
            )
        return Found(library, row, place, images)
    if library == HUB and name.count("/") == 1:
        return in_folder(fetched(name), path)
    raise FileNotFoundError(
        f"{source} is no folder, and no model by a name of {HUB}/OWNER/NAME, "
        + ", ".join(f"{one}/NAME" for one in zoo.ROWS)
    )


# Where a library has one way of seeing images for all of its networks.
DEFAULTS = {
    "torchvision": zoo.Images(224, 224 / 256, "bilinear", zoo.IMAGENET),
    "open_clip": zoo.Images(224, 1.0, "bicubic", zoo.OPENAI),
    "vision_transformer": zoo.Images(224, 1.0, "bilinear", zoo.INCEPTION),
    "big_vision": zoo.Images(224, 1.0, "bilinear", zoo.INCEPTION),
    "lite_pytorch": zoo.Images(224, 0.875, "bicubic", zoo.LITE),
}


def fetched(repository: str) -> Path:
    """The folder of a repository of the hub, fetched or from its cache."""
    hint = (
        f"fetch its config.json and model.safetensors, and give their folder as path: {repository}"
    )
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ValueError(f"{hint} (or pip install huggingface_hub)") from None
    try:
        return Path(snapshot_download(repository, allow_patterns=list(FETCHED)))
    except Exception as error:  # its own kinds, those of HTTP, the system's
        why = " ".join(str(error).split())[:120]
        raise ValueError(f"{repository} could not be fetched ({why}); {hint}") from None


def in_folder(folder: Path, path) -> Found:
    """A model in a folder that says what it is."""
    place = Path(path).expanduser() if path else folder
    if (folder / EXPORTED).exists() and not (folder / "preprocessor_config.json").exists():
        return of_export(read_config(folder / EXPORTED), place, where=folder)
    if (folder / OPEN_CLIP_CONFIG).exists():
        return of_open_clip(read_config(folder / OPEN_CLIP_CONFIG), place)
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{folder} has no config.json that says what model it holds")
    config = read_config(folder / "config.json")
    if "architecture" in config:
        return of_timm(config, place, where=folder)
    if "model_type" in config:
        made = hf.described(folder, config)
        return Found("hf", made.row, place, made.images, made.label_names, made.shorter, made.whole,
                     None, made.table, made.antialias)  # fmt: skip
    raise ValueError(f"{folder / 'config.json'} is neither timm's nor Hugging Face's")


def of_export(said: dict, path: Path, *, where: Path) -> Found:
    """What `noisy_fm.export` wrote."""
    library = require_known(f"{where} is an export; to", said.get("to", ""), READ_AGAIN)
    fields = dict(said["arguments"])
    for name in ("num_classes", "logit_bias"):  # which the file of weights tells
        fields.pop(name, None)
    seen = said["preprocess"]
    fit = decode.Fit(*(seen[name] for name in decode.Fit._fields))
    norm = {n: tuple(np.broadcast_to(seen[n], 3).tolist()) for n in ("mean", "std")}
    row = zoo.Row(fields.pop("name"), fit.size, fields)
    images = zoo.Images(fit.size, 1.0, fit.filter, norm)
    return Found(READ_AGAIN[library], row, path, images, said["label_names"], fit=fit)


def of_timm(config: dict, path: Path, *, where: Path) -> Found:
    """timm's config.json."""
    name = config["architecture"]
    row = zoo.row("timm", name)
    if config.get("model_args"):
        raise ValueError(f"{where}: model_args {config['model_args']} are not read")
    cfg = config.get("pretrained_cfg", {})
    missing = [key for key in ("input_size", "mean", "std") if key not in cfg]
    if missing:
        raise ValueError(f"{where / 'config.json'} has no pretrained_cfg.{missing[0]}")
    mode = cfg.get("crop_mode", "center")
    require_known(f"{where}: crop_mode", mode, ("center", "squash"))
    norm = {"mean": tuple(cfg["mean"]), "std": tuple(cfg["std"])}
    images = zoo.Images(
        cfg["input_size"][1],
        cfg.get("crop_pct") or 0.875,
        cfg.get("interpolation", "bicubic"),
        norm,
    )
    names = config.get("label_names") or ()
    return Found("timm", row, path, images, names, whole=mode == "squash")


def of_open_clip(config: dict, path: Path) -> Found:
    """open_clip's config: towers by their fields."""
    cfg, seen = config["model_cfg"], config.get("preprocess_cfg", {})
    vision, text = cfg["vision_cfg"], cfg["text_cfg"]
    quick = {"activation": "quick_gelu"} if cfg.get("quick_gelu") else {}
    texts = {
        "dim": text["width"], "depth": text["layers"], "num_heads": text["heads"],
        "context": text.get("context_length", 77), "vocabulary": text["vocab_size"], **quick,
    }  # fmt: skip
    strange = sorted({"timm_model_name", "hf_model_name"} & {*vision, *text})
    if strange:
        raise ValueError(f"{path}: towers by {strange[0]} are not read")
    width = vision["width"]
    if isinstance(vision["layers"], list):
        fields = {"stage_sizes": tuple(vision["layers"]), "width": width,
                  "num_heads": width * 32 // vision.get("head_width", 64)}  # fmt: skip
        base = "clip_resnet50"
    else:
        heads = width // vision.get("head_width", 64)
        fields = {"patch": vision["patch_size"], "dim": width, "depth": vision["layers"], **quick,
                  "num_heads": heads, "mlp_ratio": vision.get("mlp_ratio", 4.0)}  # fmt: skip
        base = "clip_vit_b16"
    row = zoo.Row(base, vision["image_size"],
                  {"embed_dim": cfg["embed_dim"], "text": texts, **fields})  # fmt: skip
    norm = {"mean": tuple(seen.get("mean", zoo.OPENAI["mean"])),
            "std": tuple(seen.get("std", zoo.OPENAI["std"]))}  # fmt: skip
    mode = require_known("resize_mode", seen.get("resize_mode", "shortest"), ("shortest", "squash"))
    images = zoo.Images(vision["image_size"], 1.0, seen.get("interpolation", "bicubic"), norm)
    return Found("open_clip", row, path, images, whole=mode == "squash")


def read_config(path: Path) -> dict:
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}; expected an object")
    return found


def network(found: Found, state: Mapping, head: str) -> tuple[nn.Module, Any]:
    """(The module, a training config that makes it)."""
    row = found.row
    if found.library == "open_clip" or "text" in row.fields:
        config = config_lib.train("contrast")
        fields = {"name": row.model, **row.fields}
        module: nn.Module = models.create_clip(**fields)
    else:
        config = config_lib.train("classify")
        fields = {"name": row.model, **row.fields}
        bare = models.create(row.model, 1, **row.fields)
        classes = 0 if head == "drop" else _classes(found, bare, state)
        module = models.create(row.model, classes, **row.fields)
    with config.unlocked():
        config.model = fields
        config.data.name = ""
        config.task.augment = {"name": "imagenet"}  # of images on disk, were it trained on
    return module, config


def _classes(found: Found, bare: nn.Module, state: Mapping) -> int:
    """How many outputs the file's head has; 0 if it has none."""
    names, _ = rules.named(names_of(found, bare), "params/head/bias")
    return len(state[names[0]]) if names[0] in state else 0


def names_of(found: Found, module: nn.Module) -> rules.Map:
    if found.library == OWN:
        given = shapes_of(module, found.row.size)
        paths = traverse_util.flatten_dict(dict(given), sep="/")
        return rules.Map([rules.Rule(path, path) for path in paths], ignored=())
    return zoo.table(found.library, module, **found.table)


def shapes_of(module: nn.Module, size: int):
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    given = [image]
    if isinstance(module, Clip):
        given.append(jax.ShapeDtypeStruct((1, module.text.context), jnp.int32))
    return jax.eval_shape(lambda *x: module.init(jax.random.key(0), *x), *given)


def names_and_shapes(module: nn.Module, size: int, table: rules.Map) -> dict[str, tuple]:
    """{their name: shape} of the arrays of a network of ours."""
    shapes = shapes_of(module, size)
    empty = jax.tree.map(lambda leaf: np.broadcast_to(np.bool_(0), leaf.shape), shapes)
    return {name: value.shape for name, value in rules.to_theirs(empty, table).items()}


def trained_size(found: Found, module: nn.Module, state: Mapping) -> int:
    """The size of the images that the file's positions are of, else the row's."""
    vit, path = (module.image, "image/") if isinstance(module, Clip) else (module, "")
    if not isinstance(vit, ViT) or vit.position != "learned":
        return found.row.size
    names, _ = rules.named(names_of(found, module), f"params/{path}pos_embed")
    if names[0] not in state:
        return found.row.size  # which is said to be missing
    rows = state[names[0]].shape[-2] - prefix(vit)
    grid = math.isqrt(max(rows, 0))
    if grid * grid != rows or not grid:
        raise ValueError(f"{found.path}: {rows} positions in {names[0]} are no square of patches")
    return grid * vit.patch


def prefix(vit: ViT) -> int:
    """Rows of the positions that are before the patches'."""
    return int(vit.class_position and vit.pool not in ("gap", "norm_gap"))


def variables_of(found: Found, module: nn.Module, state: Mapping, head: str, size: int) -> dict:
    """Our variables, every array of the file used, but for a head that is dropped."""
    table = names_of(found, module)
    if head == "drop" and not isinstance(module, Clip):
        with_head = names_of(found, models.create(found.row.model, 1, **found.row.fields))
        heads = {rules.named(with_head, f"params/head/{leaf}")[0][0] for leaf in ("kernel", "bias")}
        state = {name: value for name, value in state.items() if name not in heads}
    narrow = {str(v.dtype) for v in state.values() if v.dtype.itemsize < 4 and v.dtype.kind != "b"}
    if narrow & {"float16", "bfloat16"}:
        say(f"{found.path.name}: {', '.join(sorted(narrow))} weights, used in float32")
    made = rules.to_ours(state, shapes_of(module, size), table, where=str(found.path))
    return jax.tree.map(jnp.asarray, made)


def resized(module, variables: dict, old: int, new: int, *, antialias: bool) -> dict:
    """The variables for images of another size."""
    clip = isinstance(module, Clip)
    vit = module.image if clip else module
    if not isinstance(vit, ViT):
        if not clip:
            return variables  # what has no positions takes any size
        raise ValueError(f"the attention pool's positions are of {old} pixels; expected that size")
    if new % vit.patch:
        raise ValueError(f"size is {new}; expected a multiple of the patch size {vit.patch}")
    grids = [(size // vit.patch,) * 2 for size in (old, new)]
    params = dict(variables["params"])
    tower = dict(params["image"]) if clip else params
    table = resize_positions(tower["pos_embed"], *grids, prefix=prefix(vit), antialias=antialias)
    tower["pos_embed"] = jnp.asarray(table)
    return {**variables, "params": {**params, "image": tower} if clip else tower}


def fitted(found: Found, size: int, rounding: str) -> decode.Fit:
    images = found.images or DEFAULTS["open_clip"]
    if found.fit and size == found.fit.size:
        return found.fit
    if found.shorter:
        shorter = found.shorter if size == images.size else round(
            size * found.shorter / images.size
        )  # fmt: skip
        require_known("filter", images.filter, decode.FILTERS)
        return decode.Fit(size, shorter, found.whole, images.filter, "floor")
    return decode.fitted(
        size, images.crop_fraction, rounding=rounding, whole=found.whole, filter=images.filter
    )


def _check_numbers(variables, path: Path) -> None:
    bad = [
        jax.tree_util.keystr(where, simple=True, separator="/")
        for where, leaf in jax.tree_util.tree_leaves_with_path(variables)
        if not np.isfinite(np.asarray(leaf)).all()
    ]
    if bad:
        raise ValueError(f"{path}: {len(bad)} arrays hold NaN or infinity, as {bad[0]}")


def head_names(table: rules.Map) -> set[str]:
    """What the arrays of the classifier are called."""
    return {rules.named(table, f"params/head/{leaf}")[0][0] for leaf in ("kernel", "bias")}


def _better(found: Found, state: Mapping) -> str:
    """Which other network of the same library the file is of, for the end of a message."""
    sizes = json.loads(SIZES.read_text())
    for name, row in zoo.ROWS.get(found.library, {}).items():
        if row == found.row or found.library == "open_clip":
            continue
        module = models.create(row.model, 1, **row.fields)
        table = names_of(found, module)
        left_out = (*map(re.escape, head_names(table)), *table.ignored)
        body = {
            key: value.shape
            for key, value in state.items()
            if not any(re.fullmatch(one, key) for one in left_out)
        }
        counts = [len(body), sum(map(math.prod, body.values()))]
        if sizes.get(f"{found.library}/{name}", counts) != counts:
            continue
        there = names_and_shapes(module, row.size, table)
        if all(body.get(key, shape) == shape for key, shape in there.items()) and (
            body.keys() == there.keys() - head_names(table)
        ):
            return f"; it is {found.library}'s {name}"
    return ""
