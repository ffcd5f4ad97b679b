"""Encoded images on disk as a source: decoded when asked for, by several threads."""

import dataclasses
import functools
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from noisy_fm.data import decode
from noisy_fm.data.pairs import open_pairs
from noisy_fm.data.source import EVALUATION, Columns, View, compact, selected, taken
from noisy_fm.data.storage import TFDS, Listing, Storage, open_storage
from noisy_fm.data.storage.listing import ids_of

MOST_IN_A_ROW = 100  # unreadable examples one after another
ROWS_A_TASK = 8


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ImageSource(Columns):
    """Images in a `Storage`, decoded as they are read; see `Source`.

    The evaluation view is image uint8 [b size size 3]. The training view is the host's part of
    random resized cropping: image uint8 [b canvas canvas 3], whose top left corner `extent` int32
    [b 2] = (h, w) is the crop and whose rest is zero.
    """

    storage: Storage
    ids: np.ndarray  # int64 [n], the same in every storage: see `listing.ids_of`
    size: int
    canvas: int
    columns: Mapping[str, Any]
    fit: decode.Fit | None = None  # of the evaluation view; by default `decode.fitted(size)`
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    encoded = True

    def __getstate__(self):
        # Ids that the storage has, in a file, are not copied into every worker.
        return self.__dict__ | ({"ids": None} if hasattr(self.storage, "ids") else {})

    def __setstate__(self, state):
        ids = state["storage"].ids if state["ids"] is None else state["ids"]
        self.__dict__.update(state, ids=ids)

    @property
    def label_names(self) -> tuple[str, ...]:
        return self.storage.listing.label_names

    @property
    def num_classes(self) -> int:
        return len(self.label_names)

    @property
    def info(self) -> dict:
        return {"label_names": list(self.label_names), "encoded": True}

    @property
    def groups(self) -> np.ndarray:
        """int64 [n]: every example is a group of its own."""
        return self.ids

    @property
    def origins(self) -> np.ndarray:
        return getattr(self.storage, "places", self.ids)

    def name(self, row: int) -> str:
        file = self.storage.listing.names[row].decode(errors="backslashreplace")
        return f"{self.storage.where}: {file}"

    def content(self, row: int) -> bytes | None:
        try:
            return self.storage.read(row)
        except OSError:
            return None

    def nbytes(self, view: View) -> int:
        return (self.size if view.places is None else self.canvas) ** 2 * 3

    def select(self, rows) -> "ImageSource":
        rows = compact(rows)
        return dataclasses.replace(
            self,
            storage=_Selection(self.storage, rows),
            ids=self.ids[rows],
            columns=selected(self.columns, rows),
        )

    def read(self, rows, view: View = EVALUATION, *, columns=("label",)) -> dict[str, np.ndarray]:
        if view.places is None:
            out, render = self._whole(rows)
        else:
            out, render = self._crops(rows, np.asarray(view.places), view)
        used = self._fill(rows, render, view)
        return {**out, **self.supervision(used, columns)}

    def _whole(self, rows) -> tuple[dict[str, np.ndarray], Callable]:
        image = np.zeros((len(rows), self.size, self.size, 3), np.uint8)

        def render(row, place):
            image[place] = decode.evaluation_view(self.storage.read(row), self.fit or self.size)

        return {"image": image}, render

    def _crops(
        self, rows, places: np.ndarray, view: View
    ) -> tuple[dict[str, np.ndarray], Callable]:
        shape = (len(rows), self.canvas, self.canvas, 3)
        image, before = (view.memory or Canvases()).lend(shape)
        extent = np.zeros((len(rows), 2), np.int32)
        first, last = int(places.min()), int(places.max())  # of one batch: near each other
        draws = decode.uniforms(view.seed, first, last + 1 - first)[places - first]

        def render(row, place):
            content = self.storage.read(row)
            height, width = decode.random_crop(
                content, draws[place], image[place], scale=self.scale, ratio=self.ratio
            )
            old_height, old_width = before[place]
            image[place, height:old_height, :old_width] = 0
            image[place, :height, width:old_width] = 0
            before[place] = extent[place] = height, width

        return {"image": image, "extent": extent}, render

    def _fill(self, rows: Sequence[int], render: Callable, view: View) -> np.ndarray:
        """Renders every row into its place; returns which rows they are in the end [b]."""
        used = np.array(rows, np.int64)

        def some(first):
            for place in range(first, min(first + ROWS_A_TASK, len(used))):
                used[place] = self._readable(int(used[place]), place, render, view.damaged)

        parts = range(0, len(used), ROWS_A_TASK)
        if view.threads > 1:
            list(pool(view.threads).map(some, parts))
        else:
            list(map(some, parts))
        return used

    def _readable(self, row: int, place: int, render: Callable, damaged) -> int:
        """Renders example `row`, or the next that can be read, and returns which."""
        for candidate in range(row, row + MOST_IN_A_ROW):
            candidate %= len(self)
            try:
                render(candidate, place)
                return candidate
            except (decode.UnreadableError, OSError) as error:
                if damaged is None:
                    raise ValueError(f"{self.name(candidate)} cannot be read: {error}") from None
                damaged.append((candidate, str(error)))
        raise ValueError(
            f"{MOST_IN_A_ROW} images in a row cannot be read, from {self.name(row)} on: "
            f"{damaged[-1][1]}"
        )


class _Selection:
    """Some of a storage's images, as a storage."""

    def __init__(self, storage: Storage, rows: np.ndarray):
        self.storage, self.rows, self.where = storage, rows, storage.where
        names, labels, label_names, named = storage.listing
        labels = labels[rows] if len(labels) else labels  # of pairs there are none
        self.listing = Listing(taken(names, rows), labels, label_names, named)

    @property
    def ids(self) -> np.ndarray:
        return self.storage.ids[self.rows]  # type: ignore[attr-defined]

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
    captions: str | None = None,
    crop: float | None = None,
) -> ImageSource:
    """The images of storage `name` at `path`; `canvas` pixels hold a training crop (2 × size).

    A training crop is at least the share `crop` of an image's area (None: 0.08, ImageNet's).

    With `captions` (see `pairs`) they have the column "caption", and none of labels.
    Raises FileNotFoundError or ValueError, one line, for what is missing, unlabelled or ambiguous.
    """
    canvas = 2 * size if canvas is None else canvas
    if size < 1 or canvas < size:
        raise ValueError(f"{name}: size {size} and canvas {canvas}; expected canvas ≥ size ≥ 1")
    if crop is not None and not 0 < crop <= 1:
        raise ValueError(f"{name}: crop is {crop}; expected a share of the area, in (0, 1]")
    scale = (0.08 if crop is None else float(crop), 1.0)
    if not path and not name.startswith(TFDS):
        raise ValueError(f"{name}: path is missing; expected where the images lie")
    if captions:
        paired = open_pairs(name, str(path), split, captions)
        columns = {"caption": paired.captions}
        return ImageSource(paired, paired.ids, size, canvas, columns, scale=scale)
    storage = open_storage(name, path, split)
    ids, labels = ids_of(storage.listing, storage.where), storage.listing.labels
    return ImageSource(storage, ids, size, canvas, {"label": labels}, scale=scale)


def pool(threads: int) -> ThreadPoolExecutor:
    """This process' decoding threads; they wait when there is nothing to decode."""
    with _pools:
        return _pool(threads, os.getpid())


_pools = threading.Lock()


@functools.cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="decode")
