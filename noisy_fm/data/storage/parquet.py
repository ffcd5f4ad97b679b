"""Hugging Face parquet: an image column of {bytes, path} and a label column."""

import collections
import json
import threading
from typing import NamedTuple

import numpy as np

from noisy_fm.data.storage.listing import make_listing
from noisy_fm.data.storage.shards import find_shards
from noisy_fm.messages import warn

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
        groups: list[tuple[int, int]] = []  # (file, row group)
        first: Columns | None = None
        for number, file in enumerate(self.files):
            try:
                with pq.ParquetFile(file) as opened:
                    columns = _columns(opened.schema_arrow, str(file))
                    first = first or columns
                    _check_same(first, columns, self.files[0], file)
                    rows = opened.read([f"{columns.image}.path", columns.label])
                    for group in range(opened.num_row_groups):
                        groups.append((number, group))
                        ends.append(opened.metadata.row_group(group).num_rows)
            except pa.ArrowException as error:
                raise ValueError(f"{file} is no whole parquet file: {error}") from None
            paths = rows[columns.image].combine_chunks().field("path").to_pylist()
            names += [(name or f"{file.stem}-row{row}").encode() for row, name in enumerate(paths)]
            labels += _as_in(first, columns, rows[columns.label].to_pylist())
        assert first is not None
        if first.label != "label" and len(first.among) > 1:
            among = ", ".join(first.among)
            warn(f"{self.where}: labels are those of column {first.label} (of {among})")
        self.rows = RowGroups(self.files, first.image, groups, ends)
        self.listing = make_listing(names, labels, first.names, self.where)

    def read(self, index: int) -> bytes:
        return self.rows.read(index)


class RowGroups:
    """The images of parquet files by row: `groups` are (file, row group), of `counts` rows each."""

    def __init__(self, files, image: str, groups: list[tuple[int, int]], counts: list[int]):
        self.files, self.image, self.groups, self.ends = files, image, groups, np.cumsum(counts)
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


class Columns(NamedTuple):
    """What a file calls its image and its label, and what the labels are."""

    image: str
    label: str
    kind: str  # "numbers", "text", "truth values", or "null" where there is no label at all
    names: list[str] | None  # a ClassLabel's: name by number
    among: list[str]  # all columns of labels


def image_column(schema, where: str) -> str:
    """The one column of images {bytes, path}; raises ValueError if there is none, or several."""
    import pyarrow as pa

    images = [
        field.name
        for field in schema
        if pa.types.is_struct(field.type) and {"bytes", "path"} <= {f.name for f in field.type}
    ]
    if len(images) != 1:
        raise ValueError(f"{where} has {len(images)} columns of images {{bytes, path}}; expected 1")
    return images[0]


def _columns(schema, where: str) -> Columns:
    about = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        features = json.loads(about).get("info", {}).get("features", {})
    except (ValueError, AttributeError):
        raise ValueError(f"{where}: its Hugging Face metadata is damaged") from None
    image = image_column(schema, where)
    classes = [name for name, about in features.items() if _type(about) == "ClassLabel"]
    labels = [name for name in schema.names if name in classes or name == "label"]
    if not labels:
        raise ValueError(f"{where} has no labels: expected a ClassLabel column or one named label")
    label = "label" if "label" in labels else labels[0]
    kind = _kind(schema.field(label).type)
    if kind is None:
        raise ValueError(
            f"{where}: column {label!r} holds {schema.field(label).type}; expected one class an "
            "image, its number or its name"
        )
    names = features[label].get("names") if label in classes else None
    return Columns(image, label, kind, names, labels)


def _kind(type_) -> str | None:
    """What labels of this arrow type are; None for what no label can be (lists, times, …)."""
    import pyarrow.types as types

    if types.is_dictionary(type_):
        return _kind(type_.value_type)
    kinds = {
        "numbers": (types.is_integer, types.is_floating),
        "text": (types.is_string, types.is_large_string, types.is_string_view),
        "truth values": (types.is_boolean,),
        "null": (types.is_null,),
    }
    found = [kind for kind, tests in kinds.items() if any(test(type_) for test in tests)]
    return found[0] if found else None


def _check_same(first: Columns, other: Columns, first_file, file) -> None:
    """Raises ValueError if labels of two files cannot mean the same; their order may differ."""
    for what in ("image", "label", "kind"):
        one, two = getattr(first, what), getattr(other, what)
        if one != two and "null" not in (one, two):
            what = "labels of " + first.label if what == "kind" else f"{what} column"
            raise ValueError(f"{what}: {one!r} in {first_file}, {two!r} in {file}; expected one")
    one, two = first.names or [], other.names or []
    if one != two and (sorted(one) != sorted(two) or len(set(one)) < len(one)):
        alone = sorted(set(one) ^ set(two)) or ["a name that is there twice"]
        raise ValueError(
            f"{first_file} names {len(one)} classes and {file} {len(two)}; expected the same "
            f"names in each, in any order ({alone[0]} is in one alone)"
        )


def _as_in(first: Columns, other: Columns, labels: list) -> list:
    """Another file's labels, numbered as the first file names its classes."""
    if first.names == other.names or first.names is None or other.names is None:
        return labels
    if other.kind != "numbers":
        return labels
    ours = [first.names.index(name) for name in other.names]
    return [ours[int(label)] if _is_class(label, len(ours)) else label for label in labels]


def _is_class(label, count: int) -> bool:
    return label is not None and 0 <= label < count and label == int(label)


def _type(about) -> str | None:
    return about.get("_type") if isinstance(about, dict) else None
