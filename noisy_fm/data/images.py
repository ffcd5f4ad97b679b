"""Encoded images on disk as a source: decoded when asked for, by several threads."""

import dataclasses
import functools
import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from noisy_fm.data import decode
from noisy_fm.data.storage import TFDS, Listing, Storage, open_storage
from noisy_fm.data.storage.listing import ids_of

MOST_IN_A_ROW = 100  # unreadable examples one after another
ROWS_A_TASK = 8


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSource:
    """Labelled images in a `Storage`; examples are {"image", "label", "id"}.

    `take` gives the evaluation view, image uint8 [n size size 3]. `crops` gives the host's part of
    random resized cropping: image uint8 [n canvas canvas 3], whose top left corner `extent` int32
    [n 2] = (h, w) is the crop and whose rest is zero. What happens to unreadable files is up to the
    caller: see `crops`.
    """

    storage: Storage
    ids: np.ndarray  # int64 [n], the same in every storage: see `listing.ids_of`
    size: int
    canvas: int
    crop_fraction: float = 0.95
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    @property
    def labels(self) -> np.ndarray:
        """int32 [n]."""
        return self.storage.listing.labels

    @property
    def label_names(self) -> tuple[str, ...]:
        return self.storage.listing.label_names

    @property
    def num_classes(self) -> int:
        return len(self.label_names)

    @property
    def groups(self) -> np.ndarray:
        """int64 [n]: every example is a group of its own."""
        return self.ids

    @property
    def captions(self) -> None:
        return None

    @property
    def meta(self) -> dict[str, np.ndarray]:
        return {}

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict:
        return {name: value[0] for name, value in self.take([index]).items()}

    def name(self, index: int) -> str:
        """Where the example comes from, for a reader of messages."""
        file = self.storage.listing.names[index].decode(errors="backslashreplace")
        return f"{self.storage.where}: {file}"

    def select(self, indices) -> "ImageSource":
        """The examples at `indices` [m], in that order, as a source."""
        rows = np.asarray(indices, np.int64)
        return dataclasses.replace(self, storage=_Selection(self.storage, rows), ids=self.ids[rows])

    def take(self, indices, *, threads: int = 1, damaged: list[tuple[int, str]] | None = None):
        """The evaluation views at `indices` [b] as a batch: image, label, id.

        An unreadable file raises ValueError, or, if there is a list `damaged`, is replaced and
        appended to it as in `crops`.
        """

        def render(index, row, out):
            out["image"][row] = decode.evaluation_view(
                self.storage.read(index), self.size, self.crop_fraction
            )

        out = {"image": np.zeros((len(indices), self.size, self.size, 3), np.uint8)}
        return self._fill(out, indices, render, threads, damaged)

    def crops(
        self,
        indices,
        places,
        *,
        seed: int,
        threads: int = 1,
        damaged: list[tuple[int, str]] | None = None,
        memory: "Canvases | None" = None,
    ):
        """A random crop of each example at `indices` [b] as a batch: image, extent, label, id.

        `places` [b] are theirs in the endless training order; a box depends on (seed, place) and
        the image's shape alone. An unreadable file raises ValueError, or, if there is a
        list `damaged`, (index, reason) is appended to it and the storage's next readable example
        stands in, with its own id and label. `memory` lends the canvases of batches long gone.
        """
        shape = (len(indices), self.canvas, self.canvas, 3)
        image, before = (memory or Canvases()).lend(shape)
        extent = np.zeros((len(indices), 2), np.int32)
        first, last = int(np.min(places)), int(np.max(places))  # of one batch: near each other
        draws = decode.uniforms(seed, first, last + 1 - first)[np.asarray(places) - first]

        def render(index, row, out):
            content = self.storage.read(index)
            height, width = decode.random_crop(
                content, draws[row], image[row], scale=self.scale, ratio=self.ratio
            )
            old_height, old_width = before[row]
            image[row, height:old_height, :old_width] = 0
            image[row, :height, width:old_width] = 0
            before[row] = extent[row] = height, width

        return self._fill({"image": image, "extent": extent}, indices, render, threads, damaged)

    def _fill(self, out, indices: Sequence[int], render: Callable, threads: int, damaged):
        used = np.array(indices, np.int64)

        def rows(first):
            for row in range(first, min(first + ROWS_A_TASK, len(used))):
                used[row] = self._readable(int(used[row]), row, out, render, damaged)

        tasks = range(0, len(used), ROWS_A_TASK)
        if threads > 1:
            list(pool(threads).map(rows, tasks))
        else:
            list(map(rows, tasks))
        return {**out, "label": self.labels[used], "id": self.ids[used]}

    def _readable(self, index, row, out, render, damaged) -> int:
        """Renders example `index`, or the next that can be, into `row` and returns which."""
        for candidate in range(index, index + MOST_IN_A_ROW):
            candidate %= len(self)
            try:
                render(candidate, row, out)
                return candidate
            except (decode.UnreadableError, OSError) as error:
                if damaged is None:
                    raise ValueError(f"{self.name(candidate)} cannot be read: {error}") from None
                damaged.append((candidate, str(error)))
        raise ValueError(
            f"{MOST_IN_A_ROW} images in a row cannot be read, from {self.name(index)} on: "
            f"{damaged[-1][1]}"
        )


class _Selection:
    """Some of a storage's images, as a storage."""

    def __init__(self, storage: Storage, rows: np.ndarray):
        self.storage, self.rows, self.where = storage, rows, storage.where
        names, labels, label_names, named = storage.listing
        self.listing = Listing(names[rows], labels[rows], label_names, named)

    def read(self, index: int) -> bytes:
        return self.storage.read(int(self.rows[index]))


class Canvases:
    """Memory of batches that nobody holds any more, to write the next ones into.

    Fresh pages cost about a third of decoding what goes there. A canvas is lent again only once
    no one refers to it, so a batch that is kept never changes. Pickles as an empty one.
    """

    MOST = 8

    def __init__(self) -> None:
        self.kept: list[tuple[np.ndarray, np.ndarray]] = []
        self.lock = threading.Lock()

    def __reduce__(self):
        return Canvases, ()

    def lend(self, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """(canvases uint8 of `shape`, the extents [b 2] outside which each is zero)."""
        with self.lock:
            for pair in self.kept:
                if pair[0].shape == shape and _references(pair) == IDLE:
                    break
            else:
                pair = np.zeros(shape, np.uint8), np.zeros((shape[0], 2), np.int32)
                if len(self.kept) < self.MOST:
                    self.kept.append(pair)
            image, extent = pair  # referred to before another thread may look
        return image, extent


def _references(pair: tuple) -> int:
    return sys.getrefcount(pair[0])


IDLE = _references((object(),))  # when the tuple alone holds it; Python versions count differently


def open_images(
    name: str,
    *,
    path: str | None = None,
    split: str | None = None,
    size: int = 224,
    canvas: int | None = None,
) -> ImageSource:
    """The images of storage `name` at `path`; `canvas` pixels hold a training crop (2 × size).

    Raises FileNotFoundError or ValueError, one line, for what is missing, unlabelled or ambiguous.
    """
    canvas = 2 * size if canvas is None else canvas
    if size < 1 or canvas < size:
        raise ValueError(f"{name}: size {size} and canvas {canvas}; expected canvas ≥ size ≥ 1")
    if not path and not name.startswith(TFDS):
        raise ValueError(f"{name}: path is missing; expected where the images lie")
    storage = open_storage(name, path, split)
    return ImageSource(storage, ids_of(storage.listing, storage.where), size, canvas)


def pool(threads: int) -> ThreadPoolExecutor:
    """This process' decoding threads; they wait when there is nothing to decode."""
    with _pools:
        return _pool(threads, os.getpid())


_pools = threading.Lock()


@functools.cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="decode")
