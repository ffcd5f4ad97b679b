"""Models of other libraries, from their files: the arrays, the network, and how it sees images.

load_model("timm/tf_efficientnet_b3.ns_jft_in1k", path="model.safetensors")
load_model("./a_folder_of_hugging_face")
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from noisy_fm import checkpoint, models
from noisy_fm import config as config_lib
from noisy_fm.data import decode, imagenet
from noisy_fm.data.source import numbered
from noisy_fm.messages import require_known, say
from noisy_fm.models.clip import Clip
from noisy_fm.models.swin import Swin
from noisy_fm.models.vit import ViT, resize_positions
from noisy_fm.weights import files as weight_files
from noisy_fm.weights import folders, rules, zoo
from noisy_fm.weights.zoo import Found

HEADS = ("keep", "drop")
SIZES = Path(__file__).parent / "weights" / "sizes.json"  # of `tools/reference_sizes.py`


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
    images: str = "",
) -> Loaded:
    """The variables, evaluation fit and meta of another library's model.

    source: LIBRARY/NAME (timm/ARCHITECTURE.TAG, torchvision/…, open_clip/…, see `zoo.ROWS`), a
    folder with the config.json of timm, open_clip or Hugging Face or of an export, or
    hf/OWNER/NAME, a repository of the hub. It, and what timm has there, is fetched if no path is
    given. path: the weights' file or folder. part: as `weights.files.read`. head: "drop" leaves out
    the classifier. size: of the images, where other than the weights'; positions are resized as the
    library does it. rounding: of what the shorter side is resized to, where timm says it by a share
    (`decode.fitted`): "ceil" is that of timm before 0.9. images: a key of `zoo.IMAGES`, for a name
    of which it is not known how it sees images.

    Raises FileNotFoundError or ValueError, one line.
    """
    require_known("head", head, HEADS)
    require_known("rounding", rounding, decode.ROUNDINGS)
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise ValueError(f"size is {size!r}; expected pixels a side, 1 or more")
    found = folders.locate(str(source), path, images)
    found = found._replace(path=weight_files.located(found.path))
    state = weight_files.read(found.path, part=part)
    module, config = network(found, state, head)
    trained = trained_size(found, module, state)
    wanted = size or found.images.size
    try:
        variables = variables_of(found, module, state, head, trained)
    except ValueError as error:
        raise ValueError(f"{error}{_better(found, state)}") from None
    _check_windows(found, module, wanted)
    if wanted != trained and size is None:
        say(f"{found.path.name}: positions of {trained} pixels, images of {wanted}, as it says")
    if wanted != trained:
        variables = resized(module, variables, trained, wanted, antialias=found.antialias)
    _check_numbers(variables, found.path)
    config.data.size = wanted
    with config.ignore_type():
        config.task.normalize.update(found.images.norm)
    classes = 0 if isinstance(module, Clip) else module.num_classes
    if found.classes and head == "keep" and classes != found.classes:
        raise ValueError(f"{found.path} has {classes} classes, its config {found.classes}")
    info = {**numbered(classes), "encoded": True}
    names = found.label_names or (imagenet.names() if found.imagenet and classes == 1000 else ())
    if names and classes:
        if len(names) != classes or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{found.path} has {classes} classes; expected a text for each")
        info["label_names"] = list(names)
    fit = fitted(found, wanted, rounding)
    return Loaded(variables, fit, about(str(source), found, config, info, variables))


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
        "source": {"name": source, "library": found.library, "file": str(found.path)},
        **checkpoint.provenance(),
    }


def digest(variables) -> str:
    """16 hexadecimal digits of all arrays' paths and bits."""
    found = hashlib.sha256()  # twice as fast as blake2b where the CPU has it
    for where, leaf in jax.tree_util.tree_leaves_with_path(variables):
        found.update(jax.tree_util.keystr(where).encode())
        found.update(np.ascontiguousarray(leaf).view(np.uint8).data)
    return found.hexdigest()[:16]


def network(found: Found, state: Mapping, head: str) -> tuple[nn.Module, Any]:
    """(The module, a training config that makes it)."""
    row = found.row
    clip = found.library == "open_clip" or "text" in row.fields
    config = config_lib.train("contrast" if clip else "classify")
    if clip:
        if head == "drop":
            raise ValueError(f"{found.path} has no classifier to drop; expected head='keep'")
        module: nn.Module = models.create_clip(row.model, **row.fields)
        (bias,), _ = rules.named(names_of(found, module, bias=True), "params/logit_bias")
        if bias in state:
            module = models.create_clip(row.model, logit_bias=True, **row.fields)
            config.task.loss = "sigmoid"
    else:
        bare = models.create(row.model, 1, **row.fields)
        classes = 0 if head == "drop" else _classes(found, bare, state)
        module = models.create(row.model, classes, **row.fields)
    with config.unlocked():
        config.model = {"name": row.model, **row.fields}
        config.data.name = ""
        config.task.augment = {"name": "imagenet"}  # of images on disk, were it trained on
    return module, config


def _classes(found: Found, bare: nn.Module, state: Mapping) -> int:
    """How many outputs the file's head has; 0 if it has none."""
    names, _ = rules.named(names_of(found, bare), "params/head/bias")
    return np.size(state[names[0]]) if names[0] in state else 0


def names_of(found: Found, module: nn.Module, *, bias: bool = False) -> rules.Map:
    """The table of names of the file; `bias`: also of what only a sigmoid loss has."""
    if found.library == folders.OWN:
        return rules.OWN
    table = zoo.table(found.library, module, **found.table)
    if bias:  # Hugging Face's CLIP has no such array
        none = rules.Rule("params/logit_bias", "logit_bias")
        return rules.Map([*table.rules, none], table.ignored)
    return table


def trained_size(found: Found, module: nn.Module, state: Mapping) -> int:
    """The size of the images that the file's positions are of, else the row's."""
    vit, path = (module.image, "image/") if isinstance(module, Clip) else (module, "")
    if not isinstance(vit, ViT) or vit.position != "learned":
        return found.row.size
    names, _ = rules.named(names_of(found, module), f"params/{path}pos_embed")
    if names[0] not in state or np.ndim(state[names[0]]) < 2:
        return found.row.size  # which is said to be missing, or of another shape
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
    if head == "drop":
        heads = head_names(names_of(found, models.create(found.row.model, 1, **found.row.fields)))
        state = {name: value for name, value in state.items() if name not in heads}
    narrow = {str(v.dtype) for v in state.values()} & {"float16", "bfloat16"}
    if narrow:
        say(f"{found.path.name}: {', '.join(sorted(narrow))} weights, used in float32")
    made = rules.to_ours(state, zoo.shapes_of(module, size), table, where=str(found.path))
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
    """How images are fitted; of another size than the library's, in proportion."""
    images, fit = found.images, found.fit
    if fit is None:
        return decode.fitted(
            size, images.crop_fraction, rounding=rounding, whole=found.whole, filter=images.filter
        )
    if rounding != "floor":
        raise ValueError(f"rounding is {rounding!r}, and {found.path} says it in pixels")
    require_known("filter", fit.filter, decode.FILTERS)
    return fit._replace(size=size, shorter=max(size, round(fit.shorter * size / fit.size)))


def _check_windows(found: Found, module: nn.Module, size: int) -> None:
    """Hugging Face shifts padded maps, timm pads shifted ones; here it is timm's way."""
    if found.library != "hf" or not isinstance(module, Swin):
        return
    side = size // module.patch
    for _ in module.depths:
        if side > module.window and side % module.window:
            raise ValueError(
                f"images of {size} pixels make a map of {side}, no multiple of the window "
                f"{module.window}, which Hugging Face pads in a way that is not computed here"
            )
        side = -(-side // 2)


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
        there = zoo.names_and_shapes(module, row.size, table)
        if all(body.get(key, shape) == shape for key, shape in there.items()) and (
            body.keys() == there.keys() - head_names(table)
        ):
            return f"; it is {found.library}'s {name}"
    return ""
