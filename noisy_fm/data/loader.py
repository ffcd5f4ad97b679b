"""Batches from a source: shuffled by seed, sharded by host, resumable at any step.

The order is a pure function of (seed, step): batch `step` holds the same examples, cropped alike,
whatever the number of hosts, threads, workers or restarts, so resuming is starting at `step`.
"""

import gc
import os
import queue
import re
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
from absl import flags

from noisy_fm.data.damage import LEFT_OUT, Damage
from noisy_fm.data.images import Canvases
from noisy_fm.data.order import shuffled
from noisy_fm.data.source import EVALUATION, Source, View

SHARED_MEMORY = Path("/dev/shm")  # where Linux has what workers hand over
ROOM = (
    "give it more (docker run --shm-size=…, mount -o remount,size=… /dev/shm), or set "
    "config.loader.workers=0, which needs none"
)
TERMINATED = re.compile(r"terminated unexpectedly with exit code (-?\d+)")  # grain's words


class Batches(Iterator[dict[str, np.ndarray]]):
    """An iterator over batches that knows the `damage` met so far; `close` ends its workers."""

    def __init__(self, iterator, source, damage: Damage | None, *, workers: int = 0):
        self.iterator, self.source, self.workers = iterator, source, workers
        self.damage = Damage() if damage is None else damage

    def __next__(self) -> dict[str, np.ndarray]:
        try:
            batch, damaged = next(self.iterator)
        except RuntimeError as error:
            if ended := TERMINATED.search(str(error)):
                raise OSError(_why_ended(int(ended[1]), self.workers)) from None
            raise
        self.damage.add(self.source, damaged, len(batch["id"]))
        return batch

    def close(self) -> None:
        self.iterator.close()
        if self.workers:
            gc.collect()  # batches in cycles, which else hold shared memory to the process' end


def train_batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    stop: int,
    columns: Sequence[str] = ("label",),
    collate: Callable[[dict], dict] = dict,
    rows: np.ndarray | None = None,
    threads: int | None = None,
    buffer: int = 4,
    workers: int = 0,
    repeats: int = 1,
    damage: Damage | None = None,
) -> Batches:
    """Yields batches `start … stop − 1` of endless reshuffled epochs over `source`.

    Each epoch is a new permutation of the examples; epochs run into one another, so every batch
    has the same size. With `repeats` r an epoch is as long, of the permutation's first 1/r, each
    r times in a row (repeated augmentation, Hoffer et al. 2020, in DeiT's form). `columns` are what
    a batch is made of besides image and id, by `collate`. `rows` are the positions in each global
    batch that this host reads (None: all).

    Images on disk are decoded by `threads` (None: one a core) in this process or, with
    `workers`, in each of so many others, which share nothing with it and start afresh; `buffer`
    batches wait ready. `damage` collects what cannot be read. Raises OSError if shared memory is
    too small for the workers, or later if one of them was killed.
    """
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}; expected at least 1")
    fetch = _Fetch(
        source, batch_size, seed, _rows(batch_size, rows), columns, collate, repeats,
        _threads(source, threads, workers),
    )  # fmt: skip
    dataset = grain.MapDataset.range(start, stop).map(fetch)
    nbytes = len(fetch.rows) * source.nbytes(View(places=fetch.rows))
    return _stream(
        dataset, source, damage, nbytes=nbytes, buffer=buffer, workers=workers, threads=threads
    )


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    columns: Sequence[str] = ("label",),
    collate: Callable[[dict], dict] = dict,
    rows: np.ndarray | None = None,
    threads: int | None = None,
    buffer: int = 4,
    start: int = 0,
    damage: Damage | None = None,
) -> Batches:
    """Yields every example from `start` on once, in order.

    `mask` is 0 where the last batch is padded, and where an unreadable image was replaced by the
    next.
    """
    steps = -(-(len(source) - start) // batch_size)
    fetch = _FetchInOrder(
        source,
        batch_size,
        start + _rows(batch_size, rows),
        columns,
        collate,
        _threads(source, threads, 0),
    )
    damage = Damage(fate=LEFT_OUT) if damage is None else damage
    if not source.encoded:
        return Batches((fetch(step) for step in range(steps)), source, damage)
    dataset = grain.MapDataset.range(steps).map(fetch)
    nbytes = len(fetch.rows) * source.nbytes(EVALUATION)
    return _stream(
        dataset, source, damage, nbytes=nbytes, buffer=buffer, workers=0, threads=threads
    )


def example(
    source: Source, columns: Sequence[str] = ("label",), collate: Callable[[dict], dict] = dict
) -> dict[str, np.ndarray]:
    """A batch of one example that can be read: what evaluation batches are made of."""
    return collate(source.read(np.zeros(1, int), View(damaged=[]), columns=columns))


class _Fetch:
    """step → (this host's rows of the training batch, the damaged), as a value to pickle."""

    def __init__(self, source, batch_size, seed, rows, columns, collate, repeats, threads):
        self.source, self.batch_size, self.seed, self.rows = source, batch_size, seed, rows
        self.columns, self.collate, self.repeats, self.threads = columns, collate, repeats, threads
        self.canvases = Canvases()

    def __call__(self, step: int) -> tuple[Mapping[str, np.ndarray], list]:
        positions = step * self.batch_size + self.rows
        epochs, places = np.divmod(positions, len(self.source))
        places = epochs * len(self.source) + places // self.repeats
        indices = shuffled(places, len(self.source), self.seed)
        damaged: list[tuple[int, str]] = []
        view = View(positions, self.seed, self.threads, damaged, self.canvases)
        return self.collate(self.source.read(indices, view, columns=self.columns)), damaged


class _FetchInOrder:
    """step → (this host's rows of the evaluation batch, the damaged)."""

    def __init__(self, source, batch_size, rows, columns, collate, threads):
        self.source, self.batch_size, self.rows = source, batch_size, rows
        self.columns, self.collate, self.threads = columns, collate, threads

    def __call__(self, step: int) -> tuple[Mapping[str, np.ndarray], list]:
        indices = step * self.batch_size + self.rows
        real = indices < len(self.source)
        indices = np.where(real, indices, 0)
        damaged: list[tuple[int, str]] = []
        view = View(threads=self.threads, damaged=damaged)
        batch = self.collate(self.source.read(indices, view, columns=self.columns))
        real &= batch["id"] == self.source.ids[indices]
        return {**batch, "mask": real.astype(np.float32)}, damaged


def _rows(batch_size: int, rows: np.ndarray | None) -> np.ndarray:
    """The positions in a global batch that this host reads, checked."""
    rows = np.arange(batch_size) if rows is None else np.asarray(rows)
    if not len(rows) or rows.min() < 0 or rows.max() >= batch_size:
        raise ValueError(f"rows are {rows}; expected positions in a batch of {batch_size}")
    return rows


def _threads(source, threads: int | None, workers: int) -> int:
    """Decoding threads of one process: the cores, shared among the workers."""
    if threads is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return max(1, (cores or 1) // max(workers, 1))
    return max(1, threads)


def _stream(dataset, source, damage, *, nbytes, buffer, workers, threads) -> Batches:
    """Reads a MapDataset of (batch, damaged) ahead, in threads of this process or in others.

    `nbytes` are a batch's.
    """
    # An image batch is filled by many threads at once; a second one is begun before it is full.
    readers = 2 if source.encoded else max(1, threads or 1)
    options = grain.ReadOptions(num_threads=readers, prefetch_buffer_size=max(buffer, readers))
    if workers:
        _check_shared_memory(nbytes, workers, max(1, buffer // workers))
        if not flags.FLAGS.is_parsed():  # grain's workers take over the flags: give them defaults
            flags.FLAGS.mark_as_parsed()
        options = grain.ReadOptions(num_threads=readers, prefetch_buffer_size=readers)
        processes = grain.MultiprocessingOptions(workers, max(1, buffer // workers))
        iterator = iter(dataset.to_iter_dataset(options).mp_prefetch(processes))
    else:
        iterator = iter(dataset.to_iter_dataset(options))
    return Batches(iterator, source, damage, workers=workers)


def _check_shared_memory(nbytes: int, workers: int, ahead: int) -> None:
    """Raises OSError if batches of `nbytes`, `ahead` of them a worker, will not fit.

    While the consumer waits (the first step compiles) a worker has up to 2 × ahead + 3 of them
    there, as measured, and about three more are on their way to the device.
    """
    if not SHARED_MEMORY.is_dir():
        return
    needed = (workers * (2 * ahead + 3) + 3) * nbytes
    disk = os.statvfs(SHARED_MEMORY)
    free = disk.f_bavail * disk.f_frsize
    if free < needed:
        raise OSError(
            f"{SHARED_MEMORY} has {_mb(free)} free of {_mb(disk.f_blocks * disk.f_frsize)}, and "
            f"{workers} loader workers with batches of {_mb(nbytes)} need {_mb(needed)}: {ROOM}"
        )


def _mb(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.1f} MB"


def _why_ended(code: int, workers: int) -> str:
    """What a worker's exit code tells, in one line."""
    what = f"one of {workers} loader workers was ended"
    if code == -signal.SIGBUS and SHARED_MEMORY.is_dir():
        disk = os.statvfs(SHARED_MEMORY)
        size = _mb(disk.f_blocks * disk.f_frsize)
        return f"{what} by SIGBUS: {SHARED_MEMORY}, of {size}, was full; {ROOM}"
    if code == -signal.SIGKILL:
        return (
            f"{what} by SIGKILL, as a machine does that runs out of memory: fewer "
            "config.loader.workers, a smaller config.loader.buffer or batch_size need less"
        )
    if code < 0:
        return f"{what} by {signal.Signals(-code).name}; what it said is above"
    return f"{what} with exit code {code}; what it said is above"


def to_device(
    batches: Iterable[Mapping[str, np.ndarray]], put: Callable[[Mapping], Any], *, ahead: int = 2
) -> Generator:
    """Yields `put(batch)` for each batch, `ahead` of them on the device before they are asked for.

    A thread of its own reads and transfers, so both happen while the device computes. What it
    raises is raised here, in order; closing the generator ends it.
    """
    ready: queue.Queue = queue.Queue(max(1, ahead))
    ended = threading.Event()

    def offer(item) -> bool:
        while not ended.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work():
        try:
            for batch in batches:
                if not offer((put(batch), None)):
                    return
        except BaseException as error:
            offer((None, error))
        else:
            offer((None, StopIteration()))

    thread = threading.Thread(target=work, name="to_device", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        ended.set()
        thread.join()
