"""Pairs in Hugging Face's parquet: an image column of {bytes, path} beside one of texts."""

import os
from collections.abc import Iterator

from noisy_fm.data.pairs import texts
from noisy_fm.data.pairs.base import Pair, Pairs, stats_of
from noisy_fm.data.pairs.texts import LeftOut, cleaned
from noisy_fm.data.storage.parquet import RowGroups, image_column
from noisy_fm.data.storage.shards import base_of, find_shards
from noisy_fm.messages import unknown
from noisy_fm.progress import Progress


class ParquetPairs(Pairs):
    """*.parquet at `path`, of `split` if given; `captions` is a column of texts.

    Reading in random order is slow, as for `ParquetStorage`.
    """

    def __init__(self, path: str, split: str | None, captions: str):
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.files, self.column = find_shards(path, split, ".parquet"), captions
        self.where, self.base = str(path), base_of(path)
        self.damaged: list[str] = []
        image, groups = "", []
        counts: list[int] = []
        self.first_row: list[int] = []  # of each file
        for number, file in enumerate(self.files):
            self.first_row.append(sum(counts))
            try:
                with pq.ParquetFile(file) as opened:
                    own = self._check(opened.schema_arrow, file)
                    for group in range(opened.num_row_groups):
                        groups.append((number, group))
                        counts.append(opened.metadata.row_group(group).num_rows)
            except (pa.ArrowException, OSError) as error:
                texts.raise_passing(error)
                self.damaged.append(str(file))
                continue
            if image and own != image:
                raise ValueError(f"image column: {own!r} in {file}, {image!r} in others")
            image = own
        if not image:
            raise ValueError(f"{self.damaged[0]} is no whole parquet file, and there is no other")
        self.rows = RowGroups(self.files, image, groups, counts)
        folder = self.files[0].parent
        # Rows are numbered over the whole files, so the index is of these.
        stats = [*stats_of(self.files, folder), *((name, 0, 0) for name in self.damaged)]
        below = os.path.relpath(self.base, folder)  # what pairs' folders are told from
        self._open(folder, ["parquet", captions, below, *(name for name, *_ in stats)], stats)

    def read(self, index: int) -> bytes:
        return self.rows.read(int(self._cell("offset", index)))

    def _check(self, schema, file) -> str:
        """The image column; raises ValueError if the captions' is missing, or of no texts."""
        import pyarrow.types as types

        image = image_column(schema, str(file))
        if self.column not in schema.names:
            raise ValueError(f"{file}: {unknown('column of captions', self.column, schema.names)}")
        kind = schema.field(self.column).type
        kind = kind.value_type if types.is_dictionary(kind) else kind
        known = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
        if not any(test(kind) for test in known):
            raise ValueError(
                f"{file}: column {self.column!r} holds {kind}; expected one text an image"
            )
        return image

    def _pairs(self, left_out: LeftOut) -> Iterator[Pair]:
        import pyarrow as pa

        for file in self.damaged:
            left_out.add(texts.NO_PARQUET, file)
        start = 0
        with Progress("list captions", len(self.rows.groups), unit="row group") as bar:
            for (number, group), end in zip(self.rows.groups, self.rows.ends, strict=True):
                try:
                    yield from self._group(number, group, start, left_out)
                except (pa.ArrowException, OSError) as error:
                    texts.raise_passing(error)
                    left_out.add(texts.CUT, f"{self.files[number]}: row group {group}")
                start = int(end)
                bar.update()

    def _group(self, number: int, group: int, start: int, left_out: LeftOut) -> Iterator[Pair]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        file, image = self.files[number], self.rows.image
        folder = os.path.relpath(file.parent, self.base)
        with pq.ParquetFile(file) as opened:
            table = opened.read_row_group(group, [f"{image}.path", self.column])
            there = _have_images(opened, group, image)
        paths = table[image].combine_chunks().field("path").to_pylist()
        column = table[self.column]
        if not pa.types.is_null(column.type):
            column = column.cast(pa.large_binary())  # not to fail at one that is no UTF-8
        captions = column.to_pylist()
        for i, (path, caption) in enumerate(zip(paths, captions, strict=True)):
            row = start + i - self.first_row[number]
            name = path or f"{file.stem}-row{row}"
            caption, fault = cleaned(caption)
            if there is not None and not there[i]:
                fault = texts.NO_IMAGE
            if fault:
                left_out.add(fault, f"{file.name}: row {row}")
            else:
                yield Pair(name, folder, number, start + i, 0, caption)


def _have_images(opened, group: int, image: str) -> list[bool] | None:
    """Whether there is an image in each row; None if in all, as the file's statistics may say."""
    about = opened.metadata.row_group(group)
    columns = (about.column(i) for i in range(about.num_columns))
    found = [c.statistics for c in columns if c.path_in_schema == f"{image}.bytes"]
    if found and found[0] is not None and found[0].has_null_count and not found[0].null_count:
        return None
    content = opened.read_row_group(group, [f"{image}.bytes"])[image].combine_chunks()
    return content.field("bytes").is_valid().to_pylist()
