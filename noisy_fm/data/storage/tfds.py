"""A TFDS data set that was prepared as array_record, read without TensorFlow."""

import hashlib
import os
import re
from pathlib import Path
from urllib.parse import quote

import numpy as np
from etils import epath

from noisy_fm.data.storage.listing import make_listing
from noisy_fm.data.storage.shards import cached_index
from noisy_fm.messages import warn
from noisy_fm.progress import Progress

NAME_KEYS = ("file_name", "filename", "image/filename", "id")


class TfdsStorage:
    """The data set `name` ("food101", "domainnet/real", "imagenet2012:5.1.0") under `path`.

    `path` is TFDS' data_dir (None: its default) or the folder with dataset_info.json; `split` is
    TFDS' own, slices included. Ids come from the examples' file names; a data set without them is
    identified by split and position, which no other storage knows. `places` int64 [n] are the same
    for an example in every slice.
    """

    def __init__(self, name: str, path: str | None = None, split: str | None = None):
        self.folder = find_folder(name, path)
        self.where = f"tfds:{name} in {self.folder}"
        self.split = split
        info = self._builder().info
        if not {*re.split("[/:]", name)} <= {info.name, info.config_name, str(info.version)}:
            raise ValueError(f"tfds:{name}: {self.folder} holds {info.full_name}")
        if not split:
            raise ValueError(f"tfds:{name}: split is missing; there is {', '.join(info.splits)}")
        self.keys = _keys(info.features, self.where)
        self._open()
        index = cached_index(
            Path(self.folder),
            f"tfds-{quote(split, safe='')}",
            sorted(Path(self.folder).glob("*array_record*")),
            self._build,
        )
        label_names = list(info.features[self.keys[1]].names)
        self.listing = make_listing(index["names"], index["labels"], label_names, self.where)
        parts = info.splits[split].file_instructions
        self.places = np.concatenate([_places(p.filename, p.skip, p.take) for p in parts])

    def _builder(self):
        import tensorflow_datasets as tfds

        return tfds.builder_from_directory(self.folder)

    def _open(self) -> None:
        import tensorflow_datasets as tfds

        decoders = {self.keys[0]: tfds.decode.SkipDecoding()}
        try:
            self.source = self._builder().as_data_source(split=self.split, decoders=decoders)
        except (ValueError, NotImplementedError) as error:
            raise ValueError(f"{self.where}: {' '.join(str(error).split())}") from None

    def __getstate__(self):
        return {key: value for key, value in self.__dict__.items() if key != "source"}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._open()

    def _build(self) -> dict[str, np.ndarray]:
        names, labels = [], []
        _, label, key = self.keys
        with Progress("index", len(self.source), unit="example") as bar:
            for i in range(len(self.source)):
                example = self.source[i]
                text = example[key] if key else f"{self.split}-{i:08d}"
                names.append(text if isinstance(text, bytes) else str(text).encode())
                labels.append(int(example[label]))
                bar.update()
        return {"names": np.array(names, np.bytes_), "labels": np.array(labels)}

    def read(self, index: int) -> bytes:
        try:
            return bytes(self.source[index][self.keys[0]])
        except (ValueError, RuntimeError) as error:  # what array_record says of a damaged record
            raise OSError(f"{self.where}: record {index}: {error}") from None


def _places(file: str, skip: int, count: int) -> np.ndarray:
    """int64 [count]: names for a shard's rows from `skip` on, the same in every slice of it."""
    digest = hashlib.blake2b(os.path.basename(file).encode(), digest_size=4).digest()
    return (int.from_bytes(digest, "little") << 31) + skip + np.arange(count)


def find_folder(name: str, path: str | None) -> str:
    """The folder of the newest prepared version; raises FileNotFoundError if there is none."""
    default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    data_dir = epath.Path(path or default).expanduser()
    if (data_dir / "dataset_info.json").exists():
        return str(data_dir)
    root = data_dir / name.replace(":", "/")
    found = [root] if (root / "dataset_info.json").exists() else _versions(root)
    if not found:
        raise FileNotFoundError(
            f"{data_dir} has no prepared tfds:{name}; "
            f"python tools/prepare.py tfds:{name} --path {data_dir} makes it"
        )
    return str(max(found, key=lambda folder: [int(n) for n in folder.name.split(".")]))


def _versions(root) -> list:
    if not root.is_dir():
        return []
    return [
        folder
        for folder in root.iterdir()
        if all(part.isdigit() for part in folder.name.split("."))
        and (folder / "dataset_info.json").exists()
    ]


def _keys(features, where: str) -> tuple[str, str, str | None]:
    """(image, label, file name or None), as the data set calls them."""
    import tensorflow_datasets as tfds

    images = [key for key in features if isinstance(features[key], tfds.features.Image)]
    labels = [key for key in features if isinstance(features[key], tfds.features.ClassLabel)]
    label = "label" if "label" in labels else labels[0] if labels else None
    if label != "label" and len(labels) > 1:
        warn(f"{where}: labels are those of {label} (of {', '.join(labels)})")
    if len(images) != 1 or label is None:
        raise ValueError(f"{where} has features {', '.join(features)}; expected an image, a label")
    return images[0], label, next((key for key in NAME_KEYS if key in features), None)
