"""Hugging Face parquet: an image column of {bytes, path} and a label column."""

import collections
import json
import threading

import numpy as np

from noisy_fm.data.storage.listing import find_shards, make_listing

KEPT_GROUPS = 8


class ParquetStorage:
    """*.parquet at `path`, of `split` if given.

    Parquet has no access to a single row: reading an image reads its row group (100 images as
    Hugging Face writes them), of which the last few are kept. That is good in order, for
    evaluation or for tools/prepare.py, and slow in random order: prepare what is trained on.
    """

    def __init__(self, path: str, split: str | None = None):
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.files = find_shards(path, split, ".parquet")
        self.where = str(path)
        names: list[bytes] = []
        labels: list = []
        ends: list[int] = []
        self.groups: list[tuple[int, int]] = []  # (file, row group)
        for number, file in enumerate(self.files):
            try:
                with pq.ParquetFile(file) as opened:
                    schema = opened.schema_arrow
                    self.image, label, label_names = _columns(schema, str(file))
                    rows = opened.read([f"{self.image}.path", label])
                    for group in range(opened.num_row_groups):
                        self.groups.append((number, group))
                        ends.append(opened.metadata.row_group(group).num_rows)
            except pa.ArrowException as error:
                raise ValueError(f"{file} is no whole parquet file: {error}") from None
            paths = rows[self.image].combine_chunks().field("path").to_pylist()
            names += [(name or f"{file.stem}-row{row}").encode() for row, name in enumerate(paths)]
            labels += rows[label].to_pylist()
        self.ends = np.cumsum(ends)
        self.listing = make_listing(names, labels, label_names, self.where)
        self._fresh()

    def _fresh(self) -> None:
        self.kept: collections.OrderedDict = collections.OrderedDict()
        self.lock = threading.Lock()

    def __getstate__(self):
        return {k: v for k, v in self.__dict__.items() if k not in ("kept", "lock")}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._fresh()

    def read(self, index: int) -> bytes:
        group = int(np.searchsorted(self.ends, index, side="right"))
        row = index - (int(self.ends[group - 1]) if group else 0)
        image = self._group(group)[row].as_py()
        if image is None:
            raise OSError(f"{self.files[self.groups[group][0]]}: row {index} holds no image")
        return image

    def _group(self, group: int):
        import pyarrow as pa
        import pyarrow.parquet as pq

        with self.lock:
            if group in self.kept:
                self.kept.move_to_end(group)
            else:
                number, part = self.groups[group]
                try:
                    with pq.ParquetFile(self.files[number]) as opened:
                        table = opened.read_row_group(part, [f"{self.image}.bytes"])
                except pa.ArrowException as error:
                    raise OSError(f"{self.files[number]}: row group {part}: {error}") from None
                self.kept[group] = table[self.image].combine_chunks().field("bytes")
                while len(self.kept) > KEPT_GROUPS:
                    self.kept.popitem(last=False)
            return self.kept[group]


def _columns(schema, where: str) -> tuple[str, str, list[str] | None]:
    """(image column, label column, its class names if the file tells them)."""
    import pyarrow as pa

    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = metadata.get("info", {}).get("features", {})
    images = [
        field.name
        for field in schema
        if pa.types.is_struct(field.type) and {"bytes", "path"} <= {f.name for f in field.type}
    ]
    labels = [name for name, about in features.items() if _type(about) == "ClassLabel"]
    labels += [f.name for f in schema if f.name == "label"]
    if len(images) != 1:
        raise ValueError(f"{where} has {len(images)} columns of images {{bytes, path}}; expected 1")
    if not labels:
        raise ValueError(f"{where} has no labels: expected a ClassLabel column or one named label")
    label = "label" if "label" in labels else labels[0]
    return images[0], label, features.get(label, {}).get("names")


def _type(about) -> str | None:
    return about.get("_type") if isinstance(about, dict) else None
