"""Runs a PyTorch module on pixels, and keeps what its parts give on the way."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from noisy_fm.export.network import Network, normalised
from noisy_fm.export.target import Outputs


def runner(
    network: Network,
    module,
    forward: Callable[[Any], Mapping[str, Any]],
    stages: Mapping[str, str],
    *,
    channels_last: bool = False,
) -> Callable[[np.ndarray], Outputs]:
    """pixels [n s s 3] → `forward`'s outputs and the features `stages`, as arrays of our layout.

    forward: of normalised images [n 3 s s] in float32; stages: {feature of ours: submodule of
    theirs that gives it}, of which those count that are there. channels_last: of its maps.
    """
    import torch

    module.eval()

    def run(pixels: np.ndarray) -> Outputs:
        x = torch.from_numpy(
            np.ascontiguousarray(normalised(network, pixels).transpose(0, 3, 1, 2))
        )
        kept: dict[str, Any] = {}
        with contextlib.ExitStack() as hooks, torch.no_grad():
            for name, path in stages.items():
                with contextlib.suppress(AttributeError):
                    part = module.get_submodule(path)
                    handle = part.register_forward_hook(_keep(kept, name))
                    hooks.callback(handle.remove)
            out = forward(x)
        features = {name: _as_ours(value, channels_last) for name, value in kept.items()}
        return features | {name: value.numpy() for name, value in out.items()}

    return run


def with_counters(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays, and the counts of batches that PyTorch's BatchNorm keeps beside its means."""
    means = [name for name in state if name.endswith(".running_mean")]
    names = [f"{name.removesuffix('running_mean')}num_batches_tracked" for name in means]
    return {**state, **{name: np.zeros((), np.int64) for name in names}}


def _keep(kept: dict[str, Any], name: str):
    def hook(module, inputs, output):
        if hasattr(output, "last_hidden_state"):
            output = output.last_hidden_state
        kept[name] = output[0] if isinstance(output, tuple) else output

    return hook


def _as_ours(value, channels_last: bool) -> np.ndarray:
    """Maps [n c h w] as [n h w c]; tokens [n l c] as they are."""
    array = value.numpy()
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 and not channels_last else array


def read_input(module, path: str) -> list:
    """A list that holds what the submodule was last called with: what a head reads."""
    kept: list = []

    def hook(part, inputs):
        kept[:] = [inputs[0].flatten(1)]

    module.get_submodule(path).register_forward_pre_hook(hook)
    return kept
