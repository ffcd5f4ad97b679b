"""Columns of many rows in a file: mapped into memory, read by rows, and pickled as a path."""

from pathlib import Path

import numpy as np


class Table:
    """An Arrow file; `take` gives some of a column's cells, and nothing else is read of it."""

    def __init__(self, path):
        import pyarrow as pa

        self.path = Path(path).absolute()
        file = pa.ipc.open_file(pa.memory_map(str(self.path)))
        self.batches = [file.get_batch(i) for i in range(file.num_record_batches)]
        self.ends = np.cumsum([batch.num_rows for batch in self.batches], dtype=np.int64)

    def __reduce__(self):
        return Table, (self.path,)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def take(self, name: str, rows: np.ndarray) -> np.ndarray:
        """object [b]: the cells of column `name` at `rows` [b], as Python has them."""
        import pyarrow as pa

        rows = np.asarray(rows, np.int64)
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {self.path}, of {len(self)}")
        numbers = np.searchsorted(self.ends, rows, side="right")
        order = np.argsort(numbers, kind="stable")
        found = np.empty(len(rows), object)
        for where in np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1):
            if len(where):
                batch = self.batches[number := int(numbers[where[0]])]
                start = int(self.ends[number]) - batch.num_rows
                found[where] = batch[name].take(pa.array(rows[where] - start)).to_pylist()
        return found


class Cells:
    """A column of a `Table` at `rows` [n] of it (None: all), as sources have columns.

    Only `rows` is in memory; indexing with rows [b] reads those, as objects [b].
    """

    def __init__(self, table: Table, name: str, rows: np.ndarray | None = None):
        self.table, self.name, self.rows = table, name, rows

    def __len__(self) -> int:
        return len(self.table if self.rows is None else self.rows)

    def __getitem__(self, rows):
        """The cell at one row, or those at a slice, a mask or rows [b]; negative ones as in NumPy.

        Raises IndexError for rows that are not there.
        """
        if isinstance(rows, int | np.integer):
            return self[[rows]][0]
        if isinstance(rows, slice):
            places = np.arange(*rows.indices(len(self)))
        else:
            places = np.asarray(rows)
            if places.dtype == bool:
                if places.shape != (len(self),):
                    raise IndexError(f"a mask of {places.shape} for {len(self)} rows")
                places = np.flatnonzero(places)
            places = places.astype(np.int64)
            places = np.where(places < 0, places + len(self), places)
            if len(places) and not 0 <= places.min() <= places.max() < len(self):
                raise IndexError(f"rows {np.min(rows)} to {np.max(rows)} of {len(self)}")
        return self.table.take(self.name, places if self.rows is None else self.rows[places])

    def select(self, rows: np.ndarray) -> "Cells":
        """The rows [m] as a column; the very array `rows` is kept where it can be."""
        return Cells(self.table, self.name, rows if self.rows is None else self.rows[rows])
