"""Small models of a family, with every number drawn: ours beside the reference it is equal to.

The arrays are drawn by their names, so that the reference's outputs can be frozen: the parity suite
compares with the library itself, the default suite with `references/zoo.json`, which
`tools/reference_zoo.py` writes.
"""

import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np

from noisy_fm.weights import rules
from noisy_fm.weights.zoo import names_and_shapes, shapes_of

FROZEN = Path(__file__).parent / "references" / "zoo.json"


class Small(NamedTuple):
    """ours() and theirs() make the same small network; `rules_of(module)` is the map between."""

    ours: Callable[[], nn.Module]
    theirs: Callable  # imports its library inside
    rules_of: Callable[[nn.Module], rules.Map]
    size: int  # of the images
    buffers: Callable[[str], bool] = lambda name: False  # arrays of theirs that are not drawn


def drawn(name: str, shape) -> np.ndarray:
    """An array of a network by its name: no norm at 1, no bias at 0, no variance below 0."""
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    noise = generator.standard_normal(shape)
    if name.endswith("running_var"):
        value = 0.5 + generator.random(shape)
    elif len(shape) < 2:
        value = 0.2 * noise + (1 if name.endswith(("weight", "gamma")) else 0)
    else:
        value = noise * (
            0.2 if min(shape[:2]) == 1 and len(shape) == 3 else np.prod(shape[1:]) ** -0.5
        )
    return np.asarray(value, np.float32)


def images(size: int, count: int = 3) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, size, size, 3)).astype(np.float32)


def outputs(small: Small) -> dict[str, np.ndarray]:
    """{"logits", "pre_logits"} of ours, of the arrays drawn by the names of theirs."""
    module = small.ours()
    table = small.rules_of(module)
    there = names_and_shapes(module, small.size, table)
    state = {name: drawn(name, shape) for name, shape in there.items()}
    variables = rules.to_ours(state, shapes_of(module, small.size), table)
    back = rules.to_theirs(variables, table)
    assert back.keys() == state.keys()
    for name, value in back.items():  # to the bit, and as it is written
        np.testing.assert_array_equal(value, state[name])
        assert value.flags.c_contiguous
    with jax.default_matmul_precision("highest"):
        logits, features = jax.jit(module.apply)(variables, images(small.size))
    return {"logits": np.asarray(logits), "pre_logits": np.asarray(features["pre_logits"])}


def reference_outputs(small: Small) -> dict[str, np.ndarray]:
    """The same of timm's network, or of another with its `forward_head`."""
    import torch

    model = small.theirs().eval()
    state = {
        name: torch.from_numpy(drawn(name, tuple(value.shape)))
        for name, value in model.state_dict().items()
        if value.is_floating_point() and not small.buffers(name)
    }
    model.load_state_dict(state, strict=False)
    with torch.no_grad():
        x = torch.from_numpy(images(small.size).transpose(0, 3, 1, 2).copy())
        found = model.forward_features(x)
        return {
            "logits": model.forward_head(found).numpy(),
            "pre_logits": model.forward_head(found, pre_logits=True).numpy(),
        }


def assert_equal(found: Mapping, expected: Mapping, *, atol: float = 1e-4) -> None:
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], np.asarray(value), atol=atol, err_msg=name)
        assert np.std(value) > 0.01, f"{name} hardly varies"


def frozen(name: str) -> dict:
    return json.loads(FROZEN.read_text())[name]
