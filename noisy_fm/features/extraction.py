"""The features of a whole data set, streamed to a store: in bounded memory, and resumable."""

from collections.abc import Mapping

import jax
import numpy as np

from noisy_fm import sharding
from noisy_fm.data import identity
from noisy_fm.data.damage import LEFT_OUT, Damage
from noisy_fm.features.prediction import stream
from noisy_fm.features.store import GrowingStore
from noisy_fm.messages import unknown
from noisy_fm.model import Model
from noisy_fm.progress import Progress


def extract(
    model: Model,
    source,
    path,
    *,
    data: Mapping,
    feature: str | None = None,
    batch_size: int = 128,
    max_bad: float = 0.001,
    threads: int | None = None,
) -> dict[str, str]:
    """Writes the features of every image of `source` to a store at `path`.

    All of this process' devices compute; the host holds a few batches. Killed, the same call goes
    on from what was written, and the store is the same byte for byte; that the images are the same
    is told by their names and labels, not by their contents. Images that cannot be read
    (at most the share `max_bad`) have no row; they are returned, and in meta.json `left_out`, as
    {id: where and why}. `data` (JSON) says in meta.json what the source is.

    Raises ValueError, in one line, for an unknown feature, and if something else is at `path`.
    """
    name = model.feature if feature is None else feature
    if name not in (known := model.feature_names):
        raise ValueError(unknown("feature", name, known))
    seen = model.preprocess.source(source)
    supervised = [one for one in ("label", "caption") if one in source.columns][:1]
    made_from = {
        **{key: model.meta.get(key) for key in ("weights", "step", "config_hash", "manifest_hash")},
        **{"model": model.meta["config"]["model"]["name"], "feature": name},
        **{
            "data": dict(data),
            "data_hash": identity(source, columns=supervised),
            "batch_size": batch_size,
        },
        # A run's config says how it sees images, that of another library's model does not.
        **({"preprocess": model.preprocess.said()} if "source" in model.meta else {}),
    }
    mesh = sharding.make_mesh(devices=jax.local_devices())
    keep = ("mask", f"features/{name}")
    outputs = stream(
        model.task, keep=keep, batch_size=batch_size, mesh=mesh, columns=(), pooled=True,
        threads=threads,
    )  # fmt: skip
    with GrowingStore(path, made_from=made_from) as store:
        read = len(source) if store.finished else store.read
        damage = Damage(max_bad, store.left_out, examples=read, fate=LEFT_OUT)
        damage.check()
        if store.finished:
            return store.left_out
        variables = model.on(mesh)
        with Progress("features", len(source), start=read, unit="image") as bar:
            for out in outputs(variables, seen, damage, read):
                ids = source.ids[store.read : store.read + len(out["mask"])]
                there = out["mask"][: len(ids)] != 0
                rows = out[keep[1]][: len(ids)][there].astype(np.float32)
                why = {str(id_): damage.names[int(id_)] for id_ in ids[~there]}
                store.append(rows, read=len(ids), left_out=why)
                bar.update(len(ids), f"{len(store.left_out)} unreadable" if store.left_out else "")
        kept = ~np.isin(source.ids, np.array(list(store.left_out), np.int64))
        known = source.columns.get("label")
        labels = None if known is None else known[kept]
        store.finish(ids=source.ids[kept], labels=labels, meta=source.info)
        return store.left_out
