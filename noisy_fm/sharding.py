"""One mesh of three axes, and who holds what on it: rules by parameter path.

`data` and `fsdp` both split the batch; `fsdp` also splits parameters and optimiser state; `tensor`
splits single matrices. Batch statistics and regularisers are over the global batch, because a
jitted function sees global arrays.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from noisy_fm.messages import unknown

AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(("data", "fsdp"))
SMALLEST_SHARDED = 2**14  # elements; below it, a gather costs more than the memory it saves
NAMED = ("replicate", "fsdp", "column", "row")
# The default. `tensor` splits a transformer block's matrices between a layer that widens and the
# one that narrows again (Shoeybi et al., 2019, Megatron-LM): one sum over `tensor` a branch.
RULES = (
    (r"mlp/fc1/(kernel|bias)", "column"),
    (r"mlp/fc2/kernel", "row"),
    (r"attn/proj/kernel", "row"),
    (".*", "fsdp"),
)


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, *, devices=None) -> Mesh:
    """A mesh over all devices; one axis may be −1 and takes what the others leave."""
    devices = jax.devices() if devices is None else devices
    shape = [data, fsdp, tensor]
    if shape.count(-1) > 1 or any(n == 0 or n < -1 for n in shape):
        raise ValueError(f"mesh {dict(zip(AXES, shape, strict=True))}; expected sizes, one −1")
    if -1 in shape:
        known = -int(np.prod(shape))
        shape[shape.index(-1)] = max(1, len(devices) // known)
    if int(np.prod(shape)) != len(devices):
        raise ValueError(
            f"mesh {dict(zip(AXES, shape, strict=True))} needs {int(np.prod(shape))} devices; "
            f"there are {len(devices)}"
        )
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def path_of(path: Sequence) -> str:
    """`stage1/block0/conv1/kernel` for a tree path."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def infer(tree, mesh: Mesh, rules: Sequence[tuple]):
    """A NamedSharding for each leaf of `tree` (arrays or ShapeDtypeStructs).

    `rules` are (regex, rule) in order; the first whose regex is found in the leaf's path counts.
    A rule is "replicate"; "fsdp" (the largest dimension that divides, if the array is large);
    "column" or "row" (the last dimension, or the one before it, over `tensor`, and another as
    "fsdp"); or a tuple with a mesh axis, several, or None for each dimension. Optimiser moments
    carry their parameter's path inside their own, so one rule covers both. Scalars are replicated.

    Raises ValueError for a leaf without a rule, a rule without a leaf (a slip of the pen, unless it
    is one of `RULES`), a dimension that does not divide, a `tensor` axis that splits nothing.
    """
    found, split = set(), False

    def one(path, leaf):
        nonlocal split
        name = path_of(path)
        matching = [(regex, rule) for regex, rule in rules if re.search(regex, name)]
        found.update(regex for regex, _ in matching)
        if not len(leaf.shape):
            return NamedSharding(mesh, PartitionSpec())
        if not matching:
            raise ValueError(
                f"no rule of config.sharding matches {name}; expected a last rule for all the "
                'rest, such as (".*", "fsdp")'
            )
        spec = _spec(leaf.shape, matching[0][1], mesh, name)
        split = split or "tensor" in _axes(spec)
        return NamedSharding(mesh, spec)

    shardings = jax.tree_util.tree_map_with_path(one, tree)
    for regex, rule in rules:
        if regex not in found and (regex, rule) not in RULES:
            raise ValueError(f"the rule {regex!r} of config.sharding matches no parameter")
    if mesh.shape["tensor"] > 1 and not split:
        raise ValueError(
            f"config.mesh.tensor is {mesh.shape['tensor']}, but config.sharding splits no "
            'parameter over it; expected 1, or rules such as ("mlp/fc1/", "column")'
        )
    return shardings


def _spec(shape: Sequence[int], rule, mesh: Mesh, name: str) -> PartitionSpec:
    axes: list = [None] * len(shape)
    if rule in ("column", "row"):
        place = len(shape) - (1 if rule == "column" else 2)
        if place < 0:
            raise ValueError(f"sharding rule {rule!r} is for matrices; {name} has shape {shape}")
        axes[place] = "tensor"
    elif isinstance(rule, str):
        if rule not in ("replicate", "fsdp"):
            raise ValueError(unknown("sharding rule", rule, NAMED))
    elif len(rule) != len(shape):
        raise ValueError(
            f"sharding rule {rule} is for {len(rule)} dimensions; {name} has shape {shape}"
        )
    else:
        axes = list(rule)
    if rule in ("fsdp", "column", "row") and math.prod(shape) >= SMALLEST_SHARDED:
        fits = [i for i, n in enumerate(shape) if not axes[i] and n % mesh.shape["fsdp"] == 0]
        if fits:
            axes[max(fits, key=lambda i: shape[i])] = "fsdp"
    for given in _axes(axes):
        if given not in AXES:
            raise ValueError(unknown(f"mesh axis in the rule {rule} of {name}", given, AXES))
    for n, names in zip(shape, axes, strict=True):
        ways = math.prod(mesh.shape[axis] for axis in _axes([names]))
        if n % ways:
            raise ValueError(
                f"sharding rule {rule!r} splits {n} of {name} {tuple(shape)} into {ways} "
                f"({names}); expected a multiple"
            )
    return PartitionSpec(*axes)


def _axes(spec: Iterable) -> list[str]:
    """Names of the mesh axes in a PartitionSpec."""
    return [name for axis in spec for name in ((axis,) if isinstance(axis, str) else axis or ())]


def gather(tree, like):
    """`tree` (parameters in a jitted step) laid out for use: whole, but for `tensor`'s splits.

    `like` has the arrays' shardings. Without this, the compiler may rather move activations than
    the parameters that `fsdp` holds in parts, and it splits the batch no more. The gradient goes
    the opposite way: summed over the batch's axes, then each device keeps its part.
    """

    def used(leaf):
        axes = [
            tuple(name for name in _axes([axis]) if name != "fsdp") or None
            for axis in leaf.sharding.spec
        ]
        return NamedSharding(leaf.sharding.mesh, PartitionSpec(*axes))

    return jax.lax.with_sharding_constraint(tree, jax.tree.map(used, like))


def host_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Positions in a global batch, ascending, of the rows that this process' devices hold.

    On a TPU slice a mesh follows the wires, so a host's rows need not stand together; a `tensor`
    axis over hosts gives several of them the same rows.
    """
    held = NamedSharding(mesh, BATCH).addressable_devices_indices_map((batch_size,))
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in held.values()]))


def to_global(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """The `host_rows` of a batch, each process its own, to arrays split over the batch axes."""
    sharding = NamedSharding(mesh, BATCH)
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(value))
        for name, value in batch.items()
    }


def check_batch(batch_size: int, mesh: Mesh) -> None:
    """Raises if a global batch cannot be split over the mesh."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % ways:
        raise ValueError(f"batch_size is {batch_size}; expected a multiple of {ways} (data × fsdp)")
