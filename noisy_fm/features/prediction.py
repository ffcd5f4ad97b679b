"""A task's outputs over every example of a source, in order."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from noisy_fm import sharding, tasks
from noisy_fm.data import loader
from noisy_fm.data.damage import LEFT_OUT, Damage
from noisy_fm.messages import unknown
from noisy_fm.model import to_host
from noisy_fm.models.layers import pooled as averaged


def predict(
    task: tasks.Task,
    variables: tuple[Any, Any],
    source,
    *,
    keep: Sequence[str],
    batch_size: int,
    mesh: jax.sharding.Mesh,
) -> dict[str, np.ndarray]:
    """Runs `task.predict_fn` over every example of `source`, in order.

    `keep` names outputs; `features/NAME` picks a named feature. Returns {name: [n …]} on the host.
    """
    return predictor(task, keep=keep, batch_size=batch_size, mesh=mesh)(variables, source)


def predictor(
    task: tasks.Task,
    *,
    max_bad: float = 0.001,
    left_out: dict[str, str] | None = None,
    **layout,
) -> Callable[[tuple[Any, Any], Any], dict[str, np.ndarray]]:
    """`predict` as (variables, source) → outputs, compiled once for all its calls.

    `layout`: what `stream` takes. At most the share `max_bad` of the images may be unreadable; they
    are added to `left_out`, {id: "file: reason"}.
    """
    outputs = stream(task, **layout)

    def run(variables, source) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        first, total = 0, len(source)
        damage = Damage(max_bad, left_out, fate=LEFT_OUT)
        for out in outputs(variables, source, damage):
            for name, value in out.items():
                if name not in found:
                    found[name] = np.empty((total, *value.shape[1:]), value.dtype)
                found[name][first : first + len(value)] = value[: total - first]
            first += len(next(iter(out.values())))
        if left_out is not None:
            left_out.update(damage.record)
        return found

    return run


def stream(
    task: tasks.Task,
    *,
    keep: Sequence[str],
    batch_size: int,
    mesh: jax.sharding.Mesh,
    columns: Sequence[str] | None = None,
    pooled: bool = False,
    threads: int | None = None,
    buffer: int = 4,
) -> Callable[..., Iterator[dict[str, np.ndarray]]]:
    """(variables, source, damage, start=0) → each batch's outputs, fetched while the next one runs.

    They are of the examples from `start` on.
    `columns` are what is read beside images (None: all that the task learns from; features need
    none). `batch_size` is rounded up to what the mesh divides, the last batch filled. `pooled`
    averages features of more than two axes [n … d] (maps, tokens) over the middle ones, in float32
    on the device, so that only [n d] leaves it. Images on disk are read as `loader.eval_batches`
    says; where one could not be, and where a batch was filled up, the output "mask" is 0.
    """

    def step(variables, batch):
        out = {"mask": batch["mask"], **task.predict_fn(*variables, batch)}
        named = {name: averaged(x) if pooled else x for name, x in out.pop("features").items()}
        out |= {f"features/{name}": value for name, value in named.items()}
        missing = [name for name in keep if name not in out]
        if missing:
            raise ValueError(f"no output {missing[0]!r}; there are {', '.join(sorted(out))}")
        return {name: out[name] for name in keep}

    columns = task.columns if columns is None else columns
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    batch_size = -(-batch_size // ways) * ways
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    step = jax.jit(step, out_shardings=everywhere)
    rows = sharding.host_rows(mesh, batch_size)
    # The devices of a CPU share its threads: in two programs at once they may wait for one another.
    one_by_one = mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"

    def outputs(
        variables, source, damage: Damage, start: int = 0
    ) -> Iterator[dict[str, np.ndarray]]:
        def compute(batch):
            with jax.set_mesh(mesh):  # not around a yield: it would hold for who reads this too
                out = step(variables, sharding.to_global(batch, mesh))
            return jax.block_until_ready(out) if one_by_one else out

        batches = loader.eval_batches(
            source, batch_size=batch_size, columns=columns, collate=task.collate, rows=rows,
            threads=threads, buffer=buffer, start=start, damage=damage,
        )  # fmt: skip
        with contextlib.closing(batches):
            yield from to_host(map(compute, batches))

    return outputs


def check_names(task: tasks.Task, variables: tuple[Any, Any], source, names, *, where: str) -> None:
    """Raises ValueError for the first of `names` that is no feature; compiles and runs nothing."""
    outputs = jax.eval_shape(task.predict_fn, *variables, loader.example(source, ()))
    for name in names:
        if name not in outputs["features"]:
            raise ValueError(unknown(where, name, outputs["features"]))
