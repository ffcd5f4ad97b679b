"""Fitted probes and NMTune heads elsewhere: NumPy alone, or an ONNX graph of features."""

import inspect
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from noisy_fm import __version__, estimator, files
from noisy_fm.export import parity, to_onnx
from noisy_fm.export.network import Network, width
from noisy_fm.export.target import missing, place, require
from noisy_fm.messages import require_known
from noisy_fm.models.heads import NORM_EPSILON

FORMATS = ("onnx", "numpy")
ARRAYS, GRAPH, INPUT = "head.npz", "head.onnx", "features"
ROWS = 64  # that a head is compared on
CLASSIFIERS = ("LinearProbe", "MLPTuneClassifier", "NMTuneClassifier")
LOADING_ONNX = f"""\
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("FOLDER/{GRAPH}")
(found,) = session.run(["probabilities"], {{"{INPUT}": np.zeros((2, WIDTH), np.float32)}})
"""


def arrays(fitted) -> dict[str, np.ndarray]:
    """A fitted head as a few arrays, BatchNorm folded into the layer before it."""
    params, found = fitted._parameters, dict[str, Any]()
    if fitted.mean_ is not None:
        found |= {"mean": np.asarray(fitted.mean_), "scale": np.asarray(fitted.scale_)}
    if "mlp" in params:
        p = {name: np.asarray(value, np.float64) for name, value in params["mlp"].items()}
        mean, var = (np.asarray(fitted._statistics[key], np.float64) for key in ("mean", "var"))
        scale = p["norm_scale"] / np.sqrt(var + NORM_EPSILON)
        found |= {
            "kernel_in": p["kernel_in"] * scale,
            "bias_in": (p["bias_in"] - mean) * scale + p["norm_bias"],
            "kernel_out": p["kernel_out"],
            "bias_out": p["bias_out"],
        }
        if "scale" in p:
            found["residual"] = p["scale"]
    found |= {"kernel": params["kernel"], "bias": params["bias"]}
    double = ("mean", "scale")  # features far from 0 would lose digits
    return {k: np.asarray(v, None if k in double else np.float32) for k, v in found.items()}


def probabilities(features, head, xp=np):
    """[n C] of features [n d]; `head` is dict(np.load("head.npz"))."""
    x = (features - head["mean"]) / head["scale"] if "mean" in head else features
    if "kernel_in" in head:
        hidden = xp.maximum(x @ head["kernel_in"] + head["bias_in"], 0)
        z = hidden @ head["kernel_out"] + head["bias_out"]
        x = x + head["residual"] * z if "residual" in head else z
    logits = x @ head["kernel"] + head["bias"]
    shifted = xp.exp(logits - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


LOADING_NUMPY = f"""\
import numpy as np


{inspect.getsource(probabilities)}

head = dict(np.load("FOLDER/{ARRAYS}"))
found = probabilities(np.zeros((2, WIDTH), np.float32), head)
"""


class OnTop:
    """A head in a graph with its backbone."""

    def __init__(self, fitted):
        self.fitted = fitted
        self.arrays = {k: np.asarray(v, np.float32) for k, v in arrays(fitted).items()}

    def probabilities(self, features: jax.Array) -> jax.Array:
        return probabilities(features, self.arrays, jnp)

    def reference(self, features: dict) -> dict[str, np.ndarray]:
        return {"probabilities": self.fitted.predict_proba(features["pre_logits"])}


def on_top(network: Network, head) -> OnTop:
    """A fitted estimator, or its file, as outputs of a network; it reads "pre_logits"."""
    if "pre_logits" not in network.outputs:
        raise ValueError("a head reads the feature 'pre_logits', which is no output of CLIP's")
    fitted = loaded(head)
    if fitted.n_features_in_ != width(network):
        raise ValueError(
            f"the head reads {fitted.n_features_in_} features, the model gives {width(network)}"
        )
    return OnTop(fitted)


def loaded(head) -> Any:
    """A fitted classifier, given as such or as the file that its `save` wrote."""
    from sklearn.utils.validation import check_is_fitted

    if isinstance(head, str | os.PathLike):
        head = _read(Path(head))
    if type(head).__name__ not in CLASSIFIERS:
        raise ValueError(f"the head is a {type(head).__name__}; expected {', '.join(CLASSIFIERS)}")
    check_is_fitted(head)
    return head


def _read(path: Path):
    said = []
    for name in CLASSIFIERS:
        try:
            return getattr(estimator, name).load(path)
        except ValueError as error:
            said.append(str(error))
            if "expected" not in said[-1] or "holds" not in said[-1]:  # of none of the classes
                break
    raise ValueError(said[-1])


def export_head(
    fitted, out, to: str = "onnx", *, check: str = "installed", tolerance: float = parity.TOLERANCE
) -> dict[str, Any]:
    """Writes a fitted head, features → probabilities, to the folder `out`; returns the parity.

    fitted: LinearProbe, MLPTuneClassifier or NMTuneClassifier, or the file of one. to: "numpy", a
    .npz and a function of a few lines in the README.md, or "onnx". check, tolerance and what is
    raised: as `export`.
    """
    require_known("to", to, FORMATS)
    require_known("check", check, parity.CHECKS)
    folder_name, fitted = place(out), loaded(fitted)
    if to == "onnx":
        require(to_onnx.LIBRARIES, to_onnx.INSTALL, "ONNX")
    lacking = missing(("onnxruntime",)) if to == "onnx" else []
    if lacking and check == "required":
        raise ValueError(f"check is 'required' and onnxruntime is missing: {to_onnx.INSTALL}")
    head = arrays(fitted)
    with files.written_whole(folder_name) as folder:
        folder.mkdir()
        if to == "numpy":
            files.write_arrays(folder / ARRAYS, head)
        else:
            top = OnTop(fitted)
            shape = (fitted.n_features_in_,)
            to_onnx.graph(
                lambda x: {"probabilities": top.probabilities(x)},
                shape, "float32", INPUT, folder / GRAPH,
            )  # fmt: skip
        report: dict[str, Any] = {"checked": False, "why": "it was asked not to be"}
        if lacking:
            report["why"] = f"onnxruntime is not installed: {to_onnx.INSTALL}, and export again"
        elif check != "never":
            report = _checked(fitted, folder, to, tolerance)
        files.write_json(folder / "parity.json", report)
        about = _about(fitted, to)
        files.write_json(folder / "noisy_fm.json", about)
        text = _readme(about, to, report, folder_name.name)
        files.write_bytes(folder / "README.md", text.encode())
    return report


def _checked(fitted, folder: Path, to: str, tolerance: float) -> dict[str, Any]:
    """Probabilities by the file beside the estimator's own, on drawn features."""
    given = np.random.default_rng(0).normal(size=(ROWS, fitted.n_features_in_)).astype(np.float32)
    if fitted.mean_ is not None:
        given = (given * fitted.scale_ + fitted.mean_).astype(np.float32)
    if to == "numpy":
        with np.load(folder / ARRAYS, allow_pickle=False) as file:
            head = dict(file)
        found = probabilities(given, head)
    else:
        run = to_onnx.session(folder / GRAPH)
        run(given[:1])  # another batch than the one that follows
        found = run(given)["probabilities"]
    one = parity.compared(fitted.predict_proba(given), found, "probabilities")
    if not one["relative"] <= tolerance:
        raise parity.ParityError(
            f"probabilities differ by {one['relative']:.2g}, tolerance {tolerance:g}, so nothing "
            "was written"
        )
    return {"checked": True, "tolerance": tolerance, "outputs": {"probabilities": one}}


def _about(fitted, to: str) -> dict[str, Any]:
    return {
        "format": 1,
        "version": __version__,
        "to": to,
        "estimator": type(fitted).__name__,
        "classes": fitted.classes_.astype(str).tolist(),
        "features": int(fitted.n_features_in_),
        "standardised_inside": fitted.mean_ is not None,
    }


def _readme(about: dict, to: str, report: dict, folder: str) -> str:
    code = (LOADING_NUMPY if to == "numpy" else LOADING_ONNX).replace("FOLDER", folder)
    code = code.replace("WIDTH", str(about["features"])).strip()
    said = "Not checked." if not report["checked"] else (
        f"Compared with the estimator on {ROWS} rows of drawn features: the largest difference of "
        f"a probability is {report['outputs']['probabilities']['max']:.1e}."
    )  # fmt: skip
    return (
        f"# {about['estimator']}, as {to}\n\nProbabilities [n {len(about['classes'])}] of features "
        f"[n {about['features']}]; the classes are named in `noisy_fm.json`, in their order.\n\n"
        f"```python\n{code}\n```\n\n{said}\n"
    )
