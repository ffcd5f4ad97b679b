"""Batches from a source: shuffled by seed, sharded by host, resumable at any step.

The order is a pure function of (seed, step): batch `step` holds the same examples whatever the
number of hosts, workers or restarts, so resuming is starting at `step`.
"""

from collections.abc import Callable, Iterator, Mapping

import grain
import numpy as np


def train_batches(
    source,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    stop: int,
    corrupt: Callable[[Mapping], Mapping] | None = None,
    process: tuple[int, int] = (0, 1),
    threads: int = 1,
    buffer: int = 4,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields batches `start … stop − 1` of endless reshuffled epochs over `source`.

    Each epoch is a new permutation of the examples; epochs run into one another, so every batch
    has the same size. `corrupt` maps a batch to a batch (noise). `process` is this host's
    (index, count): it gets its equal share of each global batch.
    """
    index, count = process
    if batch_size % count:
        raise ValueError(f"batch_size is {batch_size}; expected a multiple of {count} hosts")
    share = batch_size // count

    def fetch(indices: np.ndarray) -> Mapping[str, np.ndarray]:
        batch = source.take(indices[index * share : (index + 1) * share])
        return corrupt(batch) if corrupt else batch

    dataset = (
        grain.MapDataset.range(len(source))
        .shuffle(seed=seed)
        .repeat()
        .batch(batch_size, batch_fn=np.asarray)
        .map(fetch)
    )[start:stop]
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
    return iter(dataset.to_iter_dataset(options))


def eval_batches(
    source, *, batch_size: int, process: tuple[int, int] = (0, 1)
) -> Iterator[dict[str, np.ndarray]]:
    """Yields every example once, in order; the last batch is padded and `mask` is 0 there."""
    index, count = process
    share = batch_size // count
    for first in range(0, len(source), batch_size):
        indices = np.arange(first + index * share, first + (index + 1) * share)
        mask = indices < len(source)
        batch = source.take(np.where(mask, indices, 0))
        yield {**batch, "mask": mask.astype(np.float32)}


def relabel(ids: np.ndarray, labels: np.ndarray) -> Callable[[Mapping], dict]:
    """A corruption for `train_batches`: the example with id `ids[i]` gets `labels[i]`."""
    order = np.argsort(ids)
    sorted_ids, sorted_labels = ids[order], labels[order]

    def corrupt(batch: Mapping) -> dict:
        rows = np.minimum(np.searchsorted(sorted_ids, batch["id"]), len(sorted_ids) - 1)
        if not np.array_equal(sorted_ids[rows], batch["id"]):
            raise ValueError("a batch has examples whose ids the noise was not drawn for")
        return {**batch, "label": sorted_labels[rows]}

    return corrupt
