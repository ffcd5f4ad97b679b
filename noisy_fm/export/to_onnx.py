"""ONNX: one graph of pixels to outputs for any batch, normalisation inside, by jax2onnx."""

import contextlib
import io
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.extend.core
import numpy as np

from noisy_fm import files
from noisy_fm.export import network as network_lib
from noisy_fm.export.network import Network
from noisy_fm.export.target import Target, require
from noisy_fm.models import fast

LIBRARIES = ("jax2onnx", "onnx")
INSTALL = "pip install 'noisy-fm[onnx]'"
OPSET = 18  # the first whose ReduceSumSquare takes its axes as jax2onnx writes them
LARGEST = 1_900_000_000  # bytes of weights in one file
FILE, INPUT = "model.onnx", "pixels"
LOADING = f"""\
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("FOLDER/{FILE}")
pixels = np.zeros((2, SIZE, SIZE, 3), np.PIXELS)  # resized and cropped as config.json says
names = [one.name for one in session.get_outputs()]
outputs = dict(zip(names, session.run(None, {{"{INPUT}": pixels}})))
"""


def onnx(network: Network, *, pixels: str = "uint8", head=None, **unused) -> Target:
    """model.onnx, and config.json with what happens to an image before.

    head: a fitted estimator of "pre_logits", whose probabilities are one more output.
    """
    require(LIBRARIES, INSTALL, "ONNX")
    flat = network_lib.flat(network.variables)
    weighs = sum(x.nbytes for name, x in flat.items() if not name.startswith("params/text"))
    if weighs > LARGEST:
        raise ValueError(
            f"the weights are {weighs / 1e9:.1f} GB, one ONNX file holds 2; expected to='stablehlo'"
        )
    with_head = None
    if head is not None:
        from noisy_fm.export import heads  # which loads scikit-learn

        with_head = heads.on_top(network, head)

    def function(given):
        found = network_lib.apply(network, network.variables, given)
        if with_head is not None:
            found["probabilities"] = with_head.probabilities(found["pre_logits"])
        return found

    def write(folder: Path) -> None:
        side = network.size
        graph(function, (side, side, 3), pixels, INPUT, folder / FILE)
        files.write_json(folder / "config.json", {
            "input": {"name": INPUT, "type": pixels, "shape": ["n", side, side, 3]},
            "preprocess": network.preprocess.fit._asdict(),
            "normalised_inside": True,
            "opset": OPSET,
        })  # fmt: skip

    def load(folder: Path):
        run = session(folder / FILE)
        return lambda given: run(given.astype(pixels))

    return Target(
        write,
        load,
        ("onnxruntime",),
        INSTALL,
        LOADING.replace("SIZE", str(network.size)).replace("PIXELS", pixels),
        {FILE: f"the graph, opset {OPSET}", "config.json": "its input and how to make it"},
        extra=(lambda features: {} if with_head is None else with_head.reference(features)),
    )


def graph(function: Callable[[Any], dict], shape, dtype: str, name: str, path: Path) -> None:
    """Writes `function` of one array [n *shape] as an ONNX graph with outputs by their names.

    It is traced here, so that jax2onnx sees operations only and replaces none of Flax's layers by
    its own reading of them.
    """
    import onnx as library
    from jax2onnx import to_onnx

    (n,) = jax.export.symbolic_shape("n")
    given = jax.ShapeDtypeStruct((n, *shape), np.dtype(dtype))
    with fast.plain(), jax.default_matmul_precision("highest"):
        traced, shapes = jax.make_jaxpr(function, return_shape=True)(given)
    flat = jax.extend.core.jaxpr_as_fun(traced)
    with _quiet():
        model = to_onnx(
            lambda x: tuple(flat(x)),
            inputs=[given],
            input_names=[name],
            output_names=sorted(shapes),  # in which order a dict is flattened
            model_name="noisy_fm",
            opset=OPSET,
        )
    library.save(model, str(path))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the lines that jax2onnx prints and logs of what it does."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)


def session(path: Path):
    """A function of one array to {output's name: array}, by ONNX Runtime on the CPU."""
    import onnxruntime

    made = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names, given = [one.name for one in made.get_outputs()], made.get_inputs()[0].name
    return lambda x: dict(zip(names, made.run(None, {given: np.asarray(x)}), strict=True))
