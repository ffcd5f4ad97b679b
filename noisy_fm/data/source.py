"""What a data set is to the rest: examples with stable ids, read when asked for, and columns.

Wrong labels, swapped captions and reference features are one thing: a source whose column has been
replaced.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np


class View(NamedTuple):
    """How images are read: for evaluation, or, with `places`, for training.

    `places` [b] are the examples' in the endless training order; what is random about an example
    depends on (seed, place) and the example alone. `threads` decode. An example that cannot be read
    raises ValueError, or, if there is a list `damaged`, (row, reason) is appended to it and the
    next one that can be read stands in, with its own id and supervision. `memory` lends the
    arrays of batches long gone.
    """

    places: np.ndarray | None = None
    seed: int = 0
    threads: int = 1
    damaged: list[tuple[int, str]] | None = None
    memory: Any = None


EVALUATION = View()


class Source(Protocol):
    """Examples in a fixed order, safe to share between threads and to pickle.

    ids: int64 [n], unique in the data set and the same in every selection of it.
    groups: int64 [n], what splits and clustered statistics go by.
    columns: name → the examples' supervision, [n …] each, indexed by rows; "label" is int32.
    info: what is known of the whole, as JSON: "label_names", "encoded".
    size: pixels a side of the evaluation view.
    encoded: images are decoded as they are read, may turn out to be damaged, and training views
      are crops, whose batches have `extent`.
    """

    @property
    def ids(self) -> np.ndarray: ...

    @property
    def size(self) -> int: ...

    @property
    def encoded(self) -> bool: ...

    @property
    def groups(self) -> np.ndarray: ...

    @property
    def columns(self) -> Mapping[str, Any]: ...

    @property
    def info(self) -> dict: ...

    def __len__(self) -> int: ...

    def name(self, row: int) -> str:
        """Where an example comes from, for a reader of messages."""

    @property
    def origins(self) -> np.ndarray:
        """[n]: which file, or which entry of one, each example is; ids where there are none."""

    def content(self, row: int) -> bytes | None:
        """An image's bytes as they are kept, to be compared; None if they cannot be read."""

    def nbytes(self, view: View) -> int:
        """The bytes of one example's image in a batch."""

    def read(
        self, rows, view: View = EVALUATION, *, columns: Sequence[str] = ("label",)
    ) -> dict[str, np.ndarray]:
        """The examples at `rows` [b] as a batch: `image` uint8 [b h w c], `id`, and the columns."""

    def supervision(self, rows, columns: Sequence[str]) -> dict[str, np.ndarray]:
        """What `read` gives besides images: `id`, and the columns."""

    def rows_of(self, ids) -> np.ndarray:
        """Where the examples `ids` [m] are; raises ValueError for an id that is not there."""

    def replace(self, **columns) -> "Source":
        """The same examples, with other columns."""

    def select(self, rows) -> "Source":
        """The examples at `rows` [m], in that order, as a source."""


def numbered(num_classes: int) -> dict:
    """The `Source.info` of so many classes without names, in memory."""
    return {"label_names": [str(k) for k in range(num_classes)], "encoded": False}


class Columns:
    """What all sources do with their columns; to be inherited by a dataclass with `columns`."""

    ids: np.ndarray
    columns: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        name, images = type(self).__name__, f"{self.size} × {self.size}"  # type: ignore
        return f"{name}({len(self):,} examples of {images}, columns {', '.join(self.columns)})"

    @property
    def labels(self) -> np.ndarray:
        """int32 [n]: the column "label"."""
        return self.columns["label"]

    def replace(self, **columns):
        """The same examples, with other columns [n …]; raises ValueError for another length."""
        for name, column in columns.items():
            if len(column) != len(self):
                raise ValueError(
                    f"column {name!r} has {len(column)} rows; expected {len(self)}, one an example"
                )
        return dataclasses.replace(self, columns={**self.columns, **columns})  # type: ignore

    def rows_of(self, ids: np.ndarray) -> np.ndarray:
        """Where the examples `ids` [m] are; raises ValueError for an id that is not there."""
        order = np.argsort(self.ids)
        places = np.searchsorted(self.ids, ids, sorter=order)
        rows = order[np.minimum(places, len(order) - 1)]
        if not np.array_equal(self.ids[rows], ids):
            raise ValueError(f"no example has id {np.asarray(ids)[self.ids[rows] != ids][0]}")
        return rows

    def supervision(self, rows: np.ndarray, columns: Sequence[str]) -> dict[str, np.ndarray]:
        """`id` and the columns at `rows` [b]; raises ValueError for a column that is not there."""
        if missing := [name for name in columns if name not in self.columns]:
            raise ValueError(
                f"the data have no column {missing[0]!r}; there are {', '.join(self.columns)}"
            )
        return {**{name: self.columns[name][rows] for name in columns}, "id": self.ids[rows]}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ArraySource(Columns):
    """Images in memory; see `Source`."""

    images: np.ndarray  # uint8 [n h w c]
    ids: np.ndarray
    groups: np.ndarray
    columns: Mapping[str, Any]
    label_names: tuple[str, ...]
    encoded = False

    @property
    def num_classes(self) -> int:
        """The number of labels, those of classes that this selection lacks included."""
        return len(self.label_names)

    @property
    def info(self) -> dict:
        return {"label_names": list(self.label_names), "encoded": False}

    @property
    def size(self) -> int:
        return self.images.shape[1]

    @property
    def origins(self) -> np.ndarray:
        return self.ids

    def name(self, row: int) -> str:
        return f"id {self.ids[row]}"

    def content(self, row: int) -> bytes:
        return self.images[row].tobytes()

    def nbytes(self, view: View) -> int:
        return self.images[0].size

    def read(self, rows, view: View = EVALUATION, *, columns=("label",)) -> dict[str, np.ndarray]:
        """The examples as they are, for training and evaluation alike."""
        rows = np.asarray(rows)
        return {"image": self.images[rows], **self.supervision(rows, columns)}

    def select(self, rows) -> "ArraySource":
        rows = np.asarray(rows, np.int64)
        return dataclasses.replace(
            self,
            images=self.images[rows],
            ids=self.ids[rows],
            groups=self.groups[rows],
            columns=selected(self.columns, rows),
        )


def selected(columns: Mapping[str, Any], rows: np.ndarray) -> dict[str, Any]:
    """The columns of the examples at `rows` [m]; one in a file stays there."""
    return {name: taken(column, rows) for name, column in columns.items()}


def taken(column, rows: np.ndarray):
    """A column at `rows` [m]; one in a file, such as `Stored`, stays there."""
    return column.select(rows) if hasattr(column, "select") else column[rows]


def compact(rows) -> np.ndarray:
    """Rows [m] as uint32 where those hold them: 27 million go to every worker process."""
    rows = np.asarray(rows)
    if rows.dtype == np.uint32:
        return rows
    rows = rows.astype(np.int64, copy=False)
    return rows.astype(np.uint32) if len(rows) and 0 <= rows.min() <= rows.max() < 2**32 else rows


class Stored:
    """A column in a .npy file, read as it is asked for; pickles as the file's path.

    Worker processes open the file themselves, so that it is in memory once, if at all.
    """

    def __init__(self, path, rows: np.ndarray | None = None):
        self.path, self.rows = Path(path).absolute(), rows
        self.array = np.load(self.path, mmap_mode="r", allow_pickle=False)

    def __reduce__(self):
        return Stored, (self.path, self.rows)

    def __len__(self) -> int:
        return len(self.array if self.rows is None else self.rows)

    def __getitem__(self, rows):
        """The rows [b] in memory."""
        return np.array(self.array[rows if self.rows is None else self.rows[rows]])

    def select(self, rows: np.ndarray) -> "Stored":
        """The rows [m] as a column."""
        return Stored(self.path, rows if self.rows is None else self.rows[rows])
