"""Small models to export, of drawn variables, as `load_model` would give them."""

import re
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from noisy_fm import config, tasks
from noisy_fm.data import decode
from noisy_fm.model import Model, Preprocess

CLASSES = 5
VIT = {"name": "vit_ti16", "depth": 1, "dim": 16, "num_heads": 2, "patch": 8}
TEXT = {"dim": 32, "depth": 1, "num_heads": 4}
TOWER = {"name": "clip_vit_b16", "embed_dim": 16, "depth": 1, "dim": 32, "num_heads": 4,
         "patch": 8, "text": TEXT}  # fmt: skip


def drawn(path: str, shape) -> np.ndarray:
    """An array by its path: no scale at 1, no bias at 0, no variance below 0."""
    generator = np.random.default_rng(zlib.crc32(path.encode()))
    noise = generator.standard_normal(shape)
    if path.endswith("/var"):
        return np.asarray(0.5 + generator.random(shape), np.float32)
    if path.endswith("logit_scale"):
        return np.float32(np.log(10))
    if path.endswith(("scale", "gamma")):
        return np.asarray(1 + 0.2 * noise, np.float32)
    wide = path.endswith("kernel") and len(shape) > 1
    return np.asarray(noise * (np.prod(shape[:-1]) ** -0.5 if wide else 0.2), np.float32)


def made(fields: dict, *, size: int = 16, fit: decode.Fit | None = None, **normalize) -> Model:
    """A model of those keys of config.model; with "text" among them, one of images and texts."""
    clip = "text" in fields
    plain = config.plain(config.train("contrast" if clip else "classify"))
    plain["model"], plain["data"]["size"] = dict(fields), size
    plain["task"]["normalize"] |= normalize
    cfg = config.from_plain(plain)
    info = {"label_names": [f"class {i}" for i in range(CLASSES)], "encoded": False}
    kind = tasks.TASKS[cfg.task.name]
    module, task = kind.network(cfg, info), kind.make(cfg, info)
    inputs = [jnp.zeros((1, size, size, 3))]
    if clip:
        inputs.append(jnp.zeros((1, module.text.context), jnp.int32))
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))
    flat = traverse_util.flatten_dict(dict(shapes), sep="/")
    arrays = {path: jnp.asarray(drawn(path, leaf.shape)) for path, leaf in flat.items()}
    variables = traverse_util.unflatten_dict(arrays, sep="/")
    fit = fit or decode.Fit(size, size, whole=True)
    meta = {"config": config.plain(cfg), "info": info, "step": 7, "weights": "0123456789abcdef"}
    preprocess = Preprocess(fit, **cfg.task.normalize)
    return Model(module, variables, preprocess, "pre_logits", meta, task)


def snippet(folder: Path) -> str:
    """The Python of a card, which is to run from the folder above."""
    return re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)[1]
