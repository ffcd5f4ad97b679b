"""One mesh of three axes, and who holds what on it: rules by parameter path.

`data` and `fsdp` both split the batch; `fsdp` also splits parameters and optimiser state; `tensor`
splits single matrices. Batch statistics and regularisers are over the global batch, because a
jitted function sees global arrays.
"""

import re
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(("data", "fsdp"))
SMALLEST_SHARDED = 2**14  # elements; below it, a gather costs more than the memory it saves


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


def _spec(shape: Sequence[int], rule, mesh: Mesh) -> PartitionSpec:
    if rule == "replicate":
        return PartitionSpec()
    if rule == "fsdp":
        size = mesh.shape["fsdp"]
        fits = [i for i, n in enumerate(shape) if n % size == 0]
        if size == 1 or not fits or np.prod(shape) < SMALLEST_SHARDED:
            return PartitionSpec()
        axis = max(fits, key=lambda i: shape[i])
        return PartitionSpec(*(("fsdp" if i == axis else None) for i in range(len(shape))))
    if isinstance(rule, str):
        raise ValueError(f"sharding rule {rule!r}; expected 'replicate', 'fsdp' or mesh axes")
    if len(rule) != len(shape):
        raise ValueError(f"sharding rule {rule} is for {len(rule)} dimensions; shape is {shape}")
    return PartitionSpec(*rule)


def infer(tree, mesh: Mesh, rules: Sequence[tuple]):
    """A NamedSharding for each leaf of `tree` (arrays or ShapeDtypeStructs).

    `rules` are (regex, rule) in order; the first whose regex is found in the leaf's path counts.
    A rule is "replicate", "fsdp" (the largest dimension that divides, if the array is large), or a
    tuple with a mesh axis or None for each dimension. Optimiser moments carry their parameter's
    path inside their own, so one rule covers both.
    """

    def one(path, leaf):
        name = path_of(path)
        for regex, rule in rules:
            if re.search(regex, name) and (len(leaf.shape) or isinstance(rule, str)):
                return NamedSharding(mesh, _spec(leaf.shape, rule, mesh))
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(one, tree)


def to_global(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Host batch (this process' share) to global arrays split over the batch axes."""
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
