"""`emoji_domains`: real drawings of the same concepts by different artists, which ship with us."""

import csv
import hashlib
import io
import json
import os
from functools import cache, lru_cache
from pathlib import Path

import numpy as np

from noisy_fm.data.pairs.template import filled
from noisy_fm.data.source import ArraySource
from noisy_fm.messages import require_known

PACKAGE_DATA = Path(__file__).parent / "emoji"
FOLDER_VARIABLE = "NOISY_FM_EMOJI"
SIZES = (32, 64)
IDS_PER_DOMAIN = 10_000

# A labelling is a column of drawings.csv; `classes` names its labels: a tuple of the column's
# values, or label → values. `minimum` keeps the values that at least so many concept groups have.
# Examples of no class, not in `only`, or in `without`, do not belong to it and are dropped.
ONE_A_CONCEPT = {"skin_tone": ("none", "default")}
LABELS = {
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


def load(*, split, domain, labels, size, captions) -> ArraySource:
    """See `sources.load`; `size` is one of `SIZES`, `captions` None or a template."""
    folder = _emoji_folder(size)
    table, domains = _read_table(folder)
    chosen = list(domains) if domain is None else [domain] if isinstance(domain, str) else domain
    chosen = [require_known("emoji_domains domain", one, domains) for one in dict.fromkeys(chosen)]
    if split is not None:
        require_known("emoji_domains split", split, ("pretrain", "train", "test"))
    if labels is not None:
        require_known("emoji_domains labels", labels, LABELS)
    parts = []
    for one in chosen:
        rows = np.flatnonzero(table[one] == "1")
        columns = {key: table[key][rows] for key in table if key not in domains}
        columns["domain"] = np.full(len(rows), one)
        columns["source"] = np.full(len(rows), domains[one]["source"])
        columns["licence"] = np.full(len(rows), domains[one]["licence"])
        columns["label"], label_names = _label(columns, table, labels)
        keep = columns["label"] >= 0
        if split is not None:
            keep &= columns["split"] == split
        if keep.any():
            images = _read_cells(folder, f"{one}_{size}.webp", size, len(rows), keep)
            ids = IDS_PER_DOMAIN * list(domains).index(one) + rows[keep]
            parts.append((images, ids, {key: values[keep] for key, values in columns.items()}))
    if not parts:
        where = " of split " + split if split else ""
        raise ValueError(
            f"emoji_domains: no example{where} in {', '.join(chosen)} has labels {labels!r}"
        )
    images, ids = (np.concatenate([part[i] for part in parts]) for i in range(2))
    columns = {key: np.concatenate([part[2][key] for part in parts]) for key in parts[0][2]}
    names = columns.pop("name")
    columns["caption"] = names
    if captions is not None:
        fields = {**columns, "name": names, "artist": columns["domain"]}
        del fields["caption"], fields["label"]
        columns["caption"] = filled(captions, fields, "emoji_domains")
    groups = columns.pop("group").astype(np.int64)
    return ArraySource(images, ids, groups, columns, label_names)


def _label(columns, table, labelling):
    """Labels [n] (−1: of no class) and their names for one domain's columns."""
    if labelling is None:
        names = dict(zip(table["group"][::-1], table["name"][::-1], strict=True))
        return columns["group"].astype(np.int32), tuple(names[str(g)] for g in range(len(names)))
    about = LABELS[labelling]
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
    grid = _read_sheet(folder, name, size)
    down, _, across = grid.shape[:3]
    if cells > down * across:
        raise ValueError(f"emoji_domains: {folder / name} has too few cells for drawings.csv")
    index = np.flatnonzero(keep)
    return grid[index // across, :, index % across]


@lru_cache(maxsize=6)  # a study asks for every domain many times
def _read_sheet(folder, name, size):
    """The cells of a sheet, [rows h columns w 3]."""
    from PIL import Image

    with Image.open(io.BytesIO(_read_checked(folder, name))) as image:
        pixels = np.asarray(image.convert("RGB"))
    return pixels.reshape(pixels.shape[0] // size, size, pixels.shape[1] // size, size, 3)
