"""Formats that need no other framework: variables as .npz, and StableHLO."""

from pathlib import Path

import jax
import jax.export
import numpy as np

from noisy_fm import files
from noisy_fm.export import network as network_lib
from noisy_fm.export.network import Network
from noisy_fm.export.target import Target, require

WEIGHTS = "variables.npz"
PLATFORMS = ("cpu", "cuda", "tpu")
HLO = "model.stablehlo"

LOAD_NPZ = f"""\
import json
from pathlib import Path

import numpy as np
from flax import traverse_util

from noisy_fm import models

config = json.loads(Path("FOLDER/config.json").read_text())
module = models.CREATE(**config)
variables = traverse_util.unflatten_dict(dict(np.load("FOLDER/{WEIGHTS}")), sep="/")
images = np.zeros((1, SIZE, SIZE, 3), np.float32)  # normalised
logits, features = module.apply(variables, images)
"""
LOAD_HLO = f"""\
import jax.export
import numpy as np

with open("FOLDER/{HLO}", "rb") as file:
    model = jax.export.deserialize(file.read())
weights = dict(np.load("FOLDER/{WEIGHTS}"))
pixels = np.zeros((2, SIZE, SIZE, 3), np.PIXELS)  # resized and cropped as `preprocess` says
outputs = model.call(weights, pixels)  # {{name: array}}
"""


def saved_npz(network: Network, **unused) -> Target:
    """Our own names; read again as Flax variables of the same module."""
    create = "create_clip" if network.texts else "create"

    def load(folder: Path):
        with np.load(folder / WEIGHTS, allow_pickle=False) as file:
            variables = network_lib.nested(dict(file))
        return _computed(lambda pixels: network_lib.apply(network, variables, pixels))

    def write(folder: Path) -> None:
        files.write_arrays(folder / WEIGHTS, network_lib.flat(network.variables))
        files.write_json(folder / "config.json", network.arguments)

    return Target(
        write,
        load,
        (),
        "",
        LOAD_NPZ.replace("CREATE", create).replace("SIZE", str(network.size)),
        {
            WEIGHTS: "parameters and statistics by our paths",
            "config.json": f"the arguments of noisy_fm.models.{create}",
        },
    )


def stablehlo(network: Network, *, pixels: str = "uint8", **unused) -> Target:
    """A serialised function of (weights, pixels) for any batch, on CPU, CUDA and TPU."""
    require(("flatbuffers",), "pip install 'noisy-fm[export]'", "StableHLO")

    def write(folder: Path) -> None:
        weights = {  # without CLIP's text tower, which no pixels reach
            name: value
            for name, value in network_lib.flat(network.variables).items()
            if not name.startswith("params/text")
        }
        side = network.size
        (n,) = jax.export.symbolic_shape("n")
        images = jax.ShapeDtypeStruct((n, side, side, 3), np.dtype(pixels))
        shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()}

        def function(arrays, given):
            return network_lib.apply(network, network_lib.nested(arrays), given)

        with jax.default_matmul_precision("highest"):
            made = jax.export.export(jax.jit(function), platforms=PLATFORMS)(shapes, images)
        files.write_bytes(folder / HLO, bytes(made.serialize()))
        files.write_arrays(folder / WEIGHTS, weights)

    def load(folder: Path):
        made = jax.export.deserialize(bytearray((folder / HLO).read_bytes()))
        with np.load(folder / WEIGHTS, allow_pickle=False) as file:
            weights = dict(file)
        return _computed(lambda given: made.call(weights, given.astype(pixels)))

    return Target(
        write,
        load,
        (),
        "",
        LOAD_HLO.replace("SIZE", str(network.size)).replace("PIXELS", pixels),
        {HLO: "the function, by jax.export", WEIGHTS: "its first argument, arrays by name"},
    )


def _computed(function):
    def run(pixels: np.ndarray):
        with jax.default_matmul_precision("highest"):
            return jax.device_get(function(pixels))

    return run
