"""Frozen model in, features out: extraction, and the feature store they are kept in.

A store is a folder of plain files: `features.npy` [n d] (or [n v d] for v views), `ids.npy`,
`labels.npy` (or one `labels.NAME.npy` a task) and `meta.json`, which says what made them.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from noisy_fm import files, sharding, tasks
from noisy_fm.data import loader
from noisy_fm.data.damage import LEFT_OUT, Damage
from noisy_fm.messages import unknown
from noisy_fm.spectrum.arrays import refuse_masked
from noisy_fm.spectrum.files import STORE_VERSION, typed


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
    keep: Sequence[str],
    batch_size: int,
    mesh: jax.sharding.Mesh,
    pooled: bool = False,
    threads: int | None = None,
    buffer: int = 4,
    max_bad: float = 0.001,
    left_out: dict[str, str] | None = None,
) -> Callable[[tuple[Any, Any], Any], dict[str, np.ndarray]]:
    """`predict` as (variables, source) → outputs, compiled once for all its calls.

    `pooled` averages features of more than two axes [n … d] (maps, tokens) over the middle ones,
    in float32 on the device, so that only [n d] leaves it. Images on disk are read as
    `loader.eval_batches` says; where one could not be, the output "mask" is 0, and it is added to
    `left_out`, {id: "file: reason"}.
    """

    def step(variables, batch):
        out = {"mask": batch["mask"], **task.predict_fn(*variables, batch)}
        named = {name: _pooled(x) if pooled else x for name, x in out.pop("features").items()}
        out |= {f"features/{name}": value for name, value in named.items()}
        missing = [name for name in keep if name not in out]
        if missing:
            raise ValueError(f"no output {missing[0]!r}; there are {', '.join(sorted(out))}")
        return {name: out[name] for name in keep}

    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    batch_size = -(-batch_size // ways) * ways
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    step = jax.jit(step, out_shardings=everywhere)
    rows = sharding.host_rows(mesh, batch_size)

    def run(variables, source) -> dict[str, np.ndarray]:
        chunks: dict[str, list] = {name: [] for name in keep}
        batches = loader.eval_batches(
            source, batch_size=batch_size, columns=task.columns, rows=rows, threads=threads,
            buffer=buffer, damage=Damage(max_bad, left_out, fate=LEFT_OUT),
        )  # fmt: skip
        with jax.set_mesh(mesh):
            for batch in batches:
                out = step(variables, sharding.to_global(batch, mesh))
                for name in keep:
                    chunks[name].append(np.asarray(out[name]))
        if left_out is not None:
            left_out.update(batches.damage.record)
        return {name: np.concatenate(parts)[: len(source)] for name, parts in chunks.items()}

    return run


def check_names(task: tasks.Task, variables: tuple[Any, Any], source, names, *, where: str) -> None:
    """Raises ValueError for the first of `names` that is no feature; compiles and runs nothing."""
    outputs = jax.eval_shape(task.predict_fn, *variables, loader.example(source, task.columns))
    for name in names:
        if name not in outputs["features"]:
            raise ValueError(unknown(where, name, outputs["features"]))


def _pooled(x: jax.Array) -> jax.Array:
    middle = tuple(range(1, x.ndim - 1))
    return x.astype(jnp.float32).mean(middle) if middle else x


class FeatureStore(NamedTuple):
    """An open store; arrays are memory-mapped and read-only."""

    path: Path
    features: np.ndarray
    ids: np.ndarray
    labels: np.ndarray | dict[str, np.ndarray] | None
    meta: dict


def write_store(path, *, features, ids, labels=None, meta: Mapping) -> None:
    """Writes a store, whole or not at all.

    `labels` is one array [n] or {task: [n]}; `meta` any JSON. Raises ValueError if lengths differ
    and TypeError for arrays of Python objects, which only a pickle could hold.
    """
    refuse_masked(features, where="features")
    arrays = {"features": np.asarray(features), "ids": np.asarray(ids)}
    if isinstance(labels, Mapping):
        arrays |= {f"labels.{name}": np.asarray(value) for name, value in labels.items()}
    elif labels is not None:
        arrays["labels"] = np.asarray(labels)
    lengths = {name: len(value) for name, value in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"a feature store's arrays must have one length; got {lengths}")
    for name, value in arrays.items():
        if value.dtype.hasobject:
            raise TypeError(f"a feature store holds plain arrays; {name} has dtype {value.dtype}")
    with files.written_whole(path) as folder:
        folder.mkdir()
        for name, value in arrays.items():
            np.save(folder / f"{name}.npy", value)
        contents = {
            name: {"shape": list(v.shape), "dtype": str(v.dtype), "crc32": _crc(v)}
            for name, v in arrays.items()
        }
        files.write_json(
            folder / "meta.json", {"store_version": STORE_VERSION, "files": contents, **meta}
        )


def open_store(path, *, verify: bool = True) -> FeatureStore:
    """Opens a store; `verify` reads every byte and compares it with the stored checksum.

    Raises FileNotFoundError for no store, ValueError for one that is damaged, cut short, or
    written by another version.
    """
    path = Path(path)
    if not (path / "meta.json").is_file():
        raise FileNotFoundError(f"{path} is not a feature store (it has no meta.json)")
    meta = files.read_json(path / "meta.json")
    if meta.get("store_version") != STORE_VERSION:
        raise ValueError(
            f"{path} is a store of version {meta.get('store_version')}; this noisy_fm reads "
            f"version {STORE_VERSION}: extract the features again"
        )
    arrays = {
        name: _open(path / f"{name}.npy", about, verify) for name, about in meta["files"].items()
    }
    labels = {n.removeprefix("labels."): v for n, v in arrays.items() if n.startswith("labels.")}
    return FeatureStore(
        path, arrays["features"], arrays["ids"], labels or arrays.get("labels"), meta
    )


def _open(file: Path, about: dict, verify: bool) -> np.ndarray:
    try:
        array = typed(np.load(file, mmap_mode="r", allow_pickle=False), about["dtype"])
    except (OSError, ValueError, EOFError) as error:
        reason = "missing" if not file.exists() else f"damaged ({error})"
        raise ValueError(
            f"{file} is {reason}; delete {file.parent} to have it made again"
        ) from None
    same = list(array.shape) == about["shape"] and str(array.dtype) == about["dtype"]
    if not same or (verify and _crc(array) != about["crc32"]):
        raise ValueError(
            f"{file} is damaged (its content is not what meta.json says); "
            f"delete {file.parent} to have it made again"
        )
    return array


def _crc(array: np.ndarray, block: int = 2**16) -> int:
    crc = 0
    for first in range(0, len(array), block):
        crc = zlib.crc32(np.ascontiguousarray(array[first : first + block]).tobytes(), crc)
    return crc
