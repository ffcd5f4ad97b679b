"""Sharded array_record as tools/prepare.py writes it: a record is an image file's bytes."""

from zipfile import BadZipFile

import numpy as np
from etils import epath

from noisy_fm.data.storage.listing import contents, make_listing

VERSION = 1


class RecordStorage:
    """SPLIT-00000-of-00064.array_record … in `path`, listed in SPLIT.npz.

    SPLIT.npz holds, in the records' order, `names`, `labels`, and also `label_names`, each shard's
    number of `records` and the `version`. `path` may be in an object store that array_record reads.
    """

    def __init__(self, path: str, split: str | None = None):
        self.folder = epath.Path(path).expanduser()
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{path} is no folder; expected one made by tools/prepare.py")
        there = sorted(file.name.removesuffix(".npz") for file in self.folder.glob("[!.]*.npz"))
        split = there[0] if not split and len(there) == 1 else split
        if split not in there:
            raise FileNotFoundError(
                f"{path} has no finished split {split!r}; it has "
                f"{', '.join(there) or contents(self.folder)} "
                "(tools/prepare.py makes splits, and finishes one that it began)"
            )
        self.where = f"{path}/{split}"
        try:
            with (self.folder / f"{split}.npz").open("rb") as file, np.load(file) as table:
                arrays = {name: table[name] for name in table.files}
            if arrays["version"] != VERSION:
                raise ValueError(f"it is of version {arrays['version']}, expected {VERSION}")
            self.records = arrays["records"]
            label_names = [str(name) for name in arrays["label_names"]]
            self.listing = make_listing(arrays["names"], arrays["labels"], label_names, self.where)
        except (ValueError, KeyError, EOFError, BadZipFile) as error:
            raise ValueError(f"{self.where}.npz cannot be used: {error}") from None
        self.shards = shard_names(str(split), len(self.records))
        missing = [shard for shard in self.shards if not (self.folder / shard).exists()]
        if missing:
            raise FileNotFoundError(f"{path}: {missing[0]} of {len(self.shards)} shards is missing")
        self.source = _records([str(self.folder / shard) for shard in self.shards], self.records)

    def read(self, index: int) -> bytes:
        try:
            return self.source[index]
        except (ValueError, RuntimeError) as error:
            raise OSError(f"{self.where}: record {index}: {error}") from None


def shard_names(split: str, count: int) -> list[str]:
    """The shards' file names."""
    return [f"{split}-{i:05d}-of-{count:05d}.array_record" for i in range(count)]


def _records(files: list[str], counts: np.ndarray):
    """Random access over the files, which are opened when they are first read."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    return ArrayRecordDataSource(
        [f"{file}[0:{count}]" for file, count in zip(files, counts, strict=True)]
    )
