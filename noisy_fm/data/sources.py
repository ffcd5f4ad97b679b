"""The data sets by name: `emoji_domains` (shipped), `digits` (scikit-learn's), images on disk.

This is the only file that knows data set names. A source is images with labels and stable ids.
"""

import csv
import dataclasses
import hashlib
import io
import json
import os
from functools import cache
from pathlib import Path

import numpy as np

from noisy_fm.data.images import ImageSource, open_images
from noisy_fm.data.storage import FORMATS, TFDS
from noisy_fm.messages import unknown

PACKAGE_DATA = Path(__file__).parent / "emoji"
FOLDER_VARIABLE = "NOISY_FM_EMOJI"
SIZES = (32, 64)
IDS_PER_DOMAIN = 10_000
MOST_COMPARED = 1000

# A task is a column of the table below; `classes` names its labels: a tuple of the column's values,
# or label → values. `minimum` keeps the values that at least so many concept groups have. Examples
# of no class, not in `only`, or in `without`, do not belong to the task and are dropped.
ONE_A_CONCEPT = {"skin_tone": ("none", "default")}
TASKS = {
    "subcategory": {"column": "subcategory", "minimum": 10},
    "category": {
        "column": "category",
        "classes": (
            "Smileys & Emotion",
            "People & Body",
            "Animals & Nature",
            "Food & Drink",
            "Travel & Places",
            "Activities",
            "Objects",
            "Symbols",
        ),  # not Flags, of which half of the artists have next to none
        "only": ONE_A_CONCEPT,
    },
    "subject": {
        "column": "subcategory",
        "classes": {
            "face": (
                "face-smiling",
                "face-affection",
                "face-tongue",
                "face-hand",
                "face-neutral-skeptical",
                "face-sleepy",
                "face-unwell",
                "face-hat",
                "face-glasses",
                "face-concerned",
                "face-negative",
            ),
            "hand": (
                "hand-fingers-open",
                "hand-fingers-partial",
                "hand-single-finger",
                "hand-fingers-closed",
                "hands",
                "hand-prop",
            ),
            "person": (
                "person",
                "person-gesture",
                "person-role",
                "person-fantasy",
                "person-activity",
                "person-sport",
                "person-resting",
            ),
            "animal": (
                "animal-mammal",
                "animal-bird",
                "animal-amphibian",
                "animal-reptile",
                "animal-marine",
                "animal-bug",
            ),
            "plant": ("plant-flower", "plant-other", "food-fruit", "food-vegetable"),
            "meal": ("food-prepared", "food-asian", "food-sweet", "drink"),
            "vehicle": ("transport-ground", "transport-water", "transport-air"),
            "place": ("place-map", "place-geographic", "place-building", "place-religious"),
            "clothing": ("clothing",),
            "sign": ("transport-sign", "warning", "arrow", "av-symbol", "alphanum", "keycap"),
        },
        "only": ONE_A_CONCEPT,
    },
    "person_kind": {
        "column": "subcategory",
        "classes": {
            "portrait": ("person",),
            "gesture": ("person-gesture",),
            "role": ("person-role",),
            "fantasy": ("person-fantasy",),
            "activity": ("person-activity", "person-resting"),
            "sport": ("person-sport",),
        },
    },
    "skin_tone": {
        "column": "skin_tone",
        "classes": ("default", "light", "medium-light", "medium", "medium-dark", "dark"),
        "without": {"domain": ("lineart",)},
    },
    "gender": {"column": "gender", "classes": ("person", "man", "woman")},
    "artist": {
        "column": "domain",
        "classes": ("noto", "twemoji", "openmoji", "lineart", "fluent3d", "fluentflat"),
        "only": ONE_A_CONCEPT,
        "without": {"category": ("Flags",)},
    },
}


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
    """Labelled images in memory; an example is {"image", "label", "id"}."""

    images: np.ndarray  # uint8 [n h w c]
    labels: np.ndarray  # int32 [n]
    ids: np.ndarray  # int64 [n], unique in the data set and the same in every selection of it
    label_names: tuple[str, ...]
    captions: tuple[str, ...] | None
    groups: np.ndarray  # int64 [n], the concept group: what splits and clustered statistics go by
    meta: dict[str, np.ndarray]  # per-example columns, [n] each

    @property
    def num_classes(self):
        """The number of labels, those of classes that this selection lacks included."""
        return len(self.label_names)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"image": self.images[index], "label": self.labels[index], "id": self.ids[index]}

    def take(self, indices):
        """The examples at `indices` [b] as one batch: image [b h w c], label [b], id [b]."""
        return self[np.asarray(indices)]

    def select(self, indices) -> "ArraySource":
        """The examples at `indices` [m], in that order, as a source."""
        rows = np.asarray(indices, np.int64)
        captions = None if self.captions is None else tuple(self.captions[i] for i in rows)
        return dataclasses.replace(
            self,
            images=self.images[rows],
            labels=self.labels[rows],
            ids=self.ids[rows],
            captions=captions,
            groups=self.groups[rows],
            meta={name: column[rows] for name, column in self.meta.items()},
        )


def load(
    name, *, split=None, domain=None, task=None, size=None, path=None, canvas=None
) -> ArraySource | ImageSource:
    """The named data set; raises ValueError or FileNotFoundError naming what exists.

    `emoji_domains`: emoji by several artists, `domain` one name, a tuple of them, or None for all
    (noto, twemoji, openmoji, lineart, fluent3d, fluentflat). `split` is "pretrain" (60 %), "train"
    (20 %), "test" (20 %) or None for all: the skin tones, genders and directions of a concept, and
    concepts that an artist draws alike, are one group, and a group is in one split in all domains.
    `task` is a key of `TASKS`, or None: every example, labelled with its concept group.
    Ids: 10,000 × the domain's number + the row in drawings.csv.
    `size` is 32 (None) or 64 pixels. The 64×64 emoji are too big for the package: build them with
    tools/build_emoji_domains.py (extra `build-data`) and name their folder in the environment
    variable NOISY_FM_EMOJI.

    `digits`: scikit-learn's 1,797 handwritten digits, dark on white; `split` "train" or "test",
    `size` as above.

    Images on disk, at `path`: `folder` (one subfolder a class, under a subfolder `split`), `tar`
    (WebDataset shards), `array_record` (what tools/prepare.py makes), `parquet` (Hugging Face's),
    `tfds:NAME` (prepared as array_record; `path` is the data_dir, None for TFDS' own). For `tar`
    and `parquet`, `path` is a folder, a file or a pattern such as "train-{000..127}.tar", and a
    `split` is a word of the files' names. Ids are a
    hash of the file's name without extension (where two classes have files of one name, of
    CLASS/name), so the same in all of them. `size` (None: 224) is
    that of evaluation; training crops lie on a `canvas` of 2 × size pixels. See `ImageSource`.
    """
    loaders = {"emoji_domains": _load_emoji, "digits": _load_digits}
    if name in FORMATS or name.startswith(TFDS):
        given = {k: v for k, v in {"domain": domain, "task": task}.items() if v is not None}
        if given:
            raise ValueError(
                f"{name}: images on disk have no domain and no task, got "
                f"{' and '.join(f'{k} {v!r}' for k, v in given.items())}; expected None (or "
                """--config.data.domain="()" --config.data.task="", as in the _in1k.py configs)"""
            )
        size = 224 if size is None else size
        return open_images(name, path=path, split=split, size=size, canvas=canvas)
    loader = loaders[_known(name, [*loaders, *FORMATS, f"{TFDS}NAME"], "data set")]
    if path is not None or canvas is not None:
        raise ValueError(
            f"{name}: it has no path and no canvas; those are for images on disk "
            f"(--config.data.name={', '.join(FORMATS)} or {TFDS}NAME)"
        )
    size = SIZES[0] if size is None else size
    if size not in SIZES:
        raise ValueError(f"{name}: size {size!r} does not exist; there are 32 and 64")
    return loader(split, domain, task, size)


def shared(one, other) -> list[int]:
    """Which examples of `one`, by index, `other` has too: the same file or id and the same bytes.

    Numbers begin anew in most people's folders, so a name in both is not yet the same image. Of
    more than `MOST_COMPARED` names in both, so many are compared, spread evenly.
    """
    first, second = (
        getattr(getattr(source, "storage", None), "places", source.ids) for source in (one, other)
    )
    _, ours, theirs = np.intersect1d(first, second, assume_unique=True, return_indices=True)
    order = np.argsort(ours, kind="stable")
    if len(order) > MOST_COMPARED:
        order = order[np.linspace(0, len(order) - 1, MOST_COMPARED).astype(int)]
    pairs = zip(ours[order].tolist(), theirs[order].tolist(), strict=True)
    return [i for i, j in pairs if (content := _content(one, i)) and content == _content(other, j)]


def _content(source, index) -> bytes | None:
    if isinstance(source, ArraySource):
        return source.images[index].tobytes()
    try:
        return source.storage.read(index)
    except OSError:
        return None


def _known(name, names, what):
    """`name` if it is one of `names`, else an error that lists them."""
    if name not in names:
        raise ValueError(unknown(what, name, names))
    return name


def _load_emoji(split, domain, task, size):
    folder = _emoji_folder(size)
    table, domains = _read_table(folder)
    chosen = list(domains) if domain is None else [domain] if isinstance(domain, str) else domain
    chosen = [_known(one, domains, "emoji_domains domain") for one in dict.fromkeys(chosen)]
    if split is not None:
        _known(split, ("pretrain", "train", "test"), "emoji_domains split")
    if task is not None:
        _known(task, TASKS, "emoji_domains task")
    parts = []
    for one in chosen:
        rows = np.flatnonzero(table[one] == "1")
        columns = {key: table[key][rows] for key in table if key not in domains}
        columns["domain"] = np.full(len(rows), one)
        columns["source"] = np.full(len(rows), domains[one]["source"])
        columns["licence"] = np.full(len(rows), domains[one]["licence"])
        labels, label_names = _label(columns, table, task)
        keep = labels >= 0
        if split is not None:
            keep &= columns["split"] == split
        if keep.any():
            images = _read_cells(folder, f"{one}_{size}.webp", size, len(rows), keep)
            ids = IDS_PER_DOMAIN * list(domains).index(one) + rows[keep]
            parts.append(
                (images, labels[keep], ids, {key: values[keep] for key, values in columns.items()})
            )
    if not parts:
        where = " of split " + split if split else ""
        raise ValueError(f"emoji_domains: no example{where} in {', '.join(chosen)} has task {task}")
    images, labels, ids = (np.concatenate([part[i] for part in parts]) for i in range(3))
    meta = {key: np.concatenate([part[3][key] for part in parts]) for key in parts[0][3]}
    groups = meta.pop("group").astype(np.int64)
    return ArraySource(images, labels, ids, label_names, tuple(meta["name"].tolist()), groups, meta)


def _label(columns, table, task):
    """Labels [n] (−1: not of the task) and their names for one domain's columns."""
    if task is None:
        names = dict(zip(table["group"][::-1], table["name"][::-1], strict=True))
        return columns["group"].astype(np.int32), tuple(names[str(g)] for g in range(len(names)))
    about = TASKS[task]
    if "minimum" in about:
        pairs = np.unique(np.stack([table[about["column"]], table["group"]]), axis=1)
        values, counts = np.unique(pairs[0], return_counts=True)
        classes = {str(value): (value,) for value in values[counts >= about["minimum"]]}
    elif isinstance(about["classes"], dict):
        classes = about["classes"]
    else:
        classes = {value: (value,) for value in about["classes"]}
    labels = np.full(len(columns["name"]), -1, np.int32)
    for label, values in enumerate(classes.values()):
        labels[np.isin(columns[about["column"]], values)] = label
    for column, values in about.get("only", {}).items():
        labels[~np.isin(columns[column], values)] = -1
    for column, values in about.get("without", {}).items():
        labels[np.isin(columns[column], values)] = -1
    return labels, tuple(classes)


def _emoji_folder(size):
    """The package's data, or the folder that NOISY_FM_EMOJI names if that size is not shipped."""
    if (PACKAGE_DATA / f"noto_{size}.webp").exists() or size == SIZES[0]:
        return PACKAGE_DATA
    named = os.environ.get(FOLDER_VARIABLE)
    if named is None:
        raise FileNotFoundError(
            f"emoji_domains: {size}×{size} is not in the package; build it from a checkout with "
            f"`python tools/build_emoji_domains.py --size {size} --out FOLDER` and set "
            f"{FOLDER_VARIABLE}=FOLDER"
        )
    return Path(named).expanduser()


def _read_checked(folder, name):
    """The bytes of a data file that is what SHA256SUMS says."""
    path = folder / name
    try:
        payload = path.read_bytes()
        sums = (folder / "SHA256SUMS").read_text().split()
    except OSError as error:
        raise FileNotFoundError(
            f"emoji_domains: cannot read {error.filename}: {error.strerror}"
        ) from None
    if dict(zip(sums[1::2], sums[::2], strict=False)).get(name) != _sha256(payload):
        raise ValueError(f"emoji_domains: {path} is corrupt: not what SHA256SUMS beside it says")
    return payload


def _sha256(payload):
    return hashlib.sha256(payload).hexdigest()


@cache
def _read_table(folder):
    """The columns of drawings.csv, strings [rows] each, and domains.json."""
    rows = list(csv.reader(io.StringIO(_read_checked(folder, "drawings.csv").decode())))
    columns = dict(zip(rows[0], np.array(rows[1:]).T, strict=True))
    return columns, json.loads(_read_checked(folder, "domains.json"))


def _read_cells(folder, name, size, cells, keep):
    """The kept cells [n h w 3] of a sheet that holds `cells` of them row by row in a square."""
    from PIL import Image

    with Image.open(io.BytesIO(_read_checked(folder, name))) as image:
        pixels = np.asarray(image.convert("RGB"))
    down, across = pixels.shape[0] // size, pixels.shape[1] // size
    if cells > down * across:
        raise ValueError(f"emoji_domains: {folder / name} has too few cells for drawings.csv")
    index = np.flatnonzero(keep)
    grid = pixels.reshape(down, size, across, size, 3)
    return grid[index // across, :, index % across]


def _load_digits(split, domain, task, size):
    from PIL import Image
    from sklearn.datasets import load_digits

    if domain is not None:
        raise ValueError(f"digits: there are no domains, so domain must be None, not {domain!r}")
    if task is not None:
        _known(task, ("digit",), "digits task")
    if split is not None:
        _known(split, ("train", "test"), "digits split")
    digits = load_digits()
    labels = digits.target.astype(np.int32)
    # Every second example of each digit is for test: half, stratified, and over all the writers.
    rank = np.empty(len(labels), np.int64)
    for label in range(10):
        rank[labels == label] = np.arange(np.sum(labels == label))
    splits = np.where(rank % 2, "test", "train")
    ids = np.flatnonzero(splits == split if split else np.ones(len(labels), bool))
    ink = np.round(255 - digits.images[ids] * (255 / 16)).astype(np.uint8)
    grey = [np.asarray(Image.fromarray(i).resize((size, size), Image.BICUBIC)) for i in ink]
    images = np.repeat(np.stack(grey)[..., None], 3, axis=-1)
    meta = {"split": splits[ids]}
    names = tuple(str(label) for label in range(10))
    return ArraySource(images, labels[ids], ids, names, None, ids.copy(), meta)
