"""Operations of a function, counted from its trace, and what chips can do: together, MFU."""

from collections.abc import Callable

import jax
import numpy as np

# Dense bf16 peak of a chip, FLOP/s, by the start of its `device_kind` (vendors' data sheets).
PEAK = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


def peak(device: jax.Device) -> float | None:
    """The chip's dense bf16 FLOP/s, or None if it is not in the table (a CPU)."""
    for kind, rate in PEAK.items():
        if device.device_kind.startswith(kind):
            return rate
    return None


def count(function: Callable, *arguments) -> int:
    """FLOPs of the matrix products and convolutions of function(*arguments), 2 a multiply-add.

    Loops (`scan`) count as often as they run; element-wise work does not count, nor does what the
    compiler adds or leaves out. The arguments may be ShapeDtypeStructs. A training step is taken
    as three times its forward pass, the convention of model FLOPs utilisation (PaLM, app. B).
    """
    return _of_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def _of_jaxpr(jaxpr) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation) -> int:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        depth = np.prod([equation.invars[0].aval.shape[i] for i in contracted])
        return int(2 * depth * np.prod(equation.outvars[0].aval.shape))
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        out_channels = kernel[parameters["dimension_numbers"].rhs_spec[0]]
        depth = np.prod(kernel) / out_channels  # groups are in the kernel's input channels
        return int(2 * depth * np.prod(equation.outvars[0].aval.shape))
    if name == "scan":
        return parameters["length"] * _of_jaxpr(parameters["jaxpr"].jaxpr)
    if name == "cond":
        return max(_of_jaxpr(branch.jaxpr) for branch in parameters["branches"])
    inner = (getattr(value, "jaxpr", value) for value in parameters.values())
    return sum(_of_jaxpr(jaxpr) for jaxpr in inner if hasattr(jaxpr, "eqns"))
