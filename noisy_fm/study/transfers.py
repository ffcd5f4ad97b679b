"""What heads are tuned and tested on: `config.transfers` as sources, by their full specification.

A transfer is (tuned on, tested on), under one labelling. Several share their images, whose features
are extracted once: `Images` are what a feature store is of, whatever their labels.
"""

import functools
import json
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from noisy_fm import config as config_lib
from noisy_fm import data as data_lib
from noisy_fm.data import Source, loader, sources


class Images(NamedTuple):
    """The images of one split of one domain. `data` are the keys of `config.data`, no labels."""

    dataset: str  # what records call it
    domain: str  # likewise
    data: Mapping
    split: str

    @property
    def spec(self) -> dict:
        """What tells them from all others, as JSON."""
        return {"data": config_lib.plain(self.data), "split": self.split}

    @property
    def mark(self) -> str:
        return config_lib.hash_of(self.spec)


class Transfer(NamedTuple):
    """Heads tuned on `train` and tested on `tests`, by target; the first of them is in domain."""

    name: str
    dataset: str
    labels: str
    source: str  # the domain of `train`
    train: Images
    tests: dict[str, Images]


def collect(config: ConfigDict) -> list[Transfer]:
    """The transfers of a completed study config."""
    return [_transfer(name, one) for name, one in config.transfers.items()]


def _transfer(name: str, one: ConfigDict) -> Transfer:
    data = one.data.to_dict()
    # Paths are long and "folder" says nothing: images on disk go by the transfer's own name.
    dataset = data["name"] if data["name"] in sources.IN_MEMORY else name

    def images(domain: str, changes: Mapping, split: str) -> Images:
        changed = {**data, **changes, "labels": ""}
        changed.pop("eval_split", None)
        changed["domain"] = _domain(changed)
        return Images(dataset, domain, changed, changes.get("eval_split") or split)

    source = _domain(data)
    tests = {source: images(source, {}, one.eval_split)}
    for target, changes in one.unseen.items():
        tests[target] = images(target, changes.to_dict(), one.eval_split)
    return Transfer(
        name, dataset, data["labels"] or "", source, images(source, {}, one.split), tests
    )


def _domain(data: Mapping) -> str:
    """One or several domains in a word, "" for none."""
    domain = data["domain"] or ""
    return domain if isinstance(domain, str) else "+".join(domain)


def wanted(transfers: Iterable[Transfer]) -> list[Images]:
    """All images that the transfers need, each once."""
    return _once(images for one in transfers for images in (one.train, *one.tests.values()))


def tested(transfers: Iterable[Transfer]) -> list[Images]:
    """The images that heads are tested on, each once."""
    return _once(images for one in transfers for images in one.tests.values())


def _once(images: Iterable[Images]) -> list[Images]:
    found: dict[tuple[str, ...], Images] = {}
    for one in images:
        found.setdefault((one.mark, one.dataset, one.domain), one)
    return sorted(found.values(), key=lambda one: (one.dataset, one.domain, one.split))


def load(images: Images, size: int, *, labels: str = "") -> Source:
    """The source of `images` under `labels`, at `size` pixels a side where there is a choice."""
    name, own = images.data["name"], images.data["size"]
    given = {**images.data, "labels": labels, "size": size}
    if images.data["domain"]:
        given["domain"] = tuple(images.data["domain"].split("+"))
    where = f"config.transfers, {images.dataset}"
    if name not in sources.IN_MEMORY:
        return _listed(json.dumps(given), images.split, where)
    given["size"] = own or (size if size in sources.SIZES else sources.SIZES[0])
    return data_lib.load_split(given, images.split, where=where)


def relation(one: Transfer, pretrained: Mapping, size: int, *, column: str) -> str | None:
    """Whether the labels of a transfer follow from the supervision of pre-training, its `column`.

    "determined" where, among images of both, those of each label (or caption) of pre-training are
    of one label, "free" where they are not, None where the transfer has no images of the data that
    was pre-trained on.
    """
    if any(one.train.data[key] != pretrained[key] for key in ("name", "path")):
        return None
    ours = load(one.train, size, labels=one.labels or "")
    images = one.train._replace(data={**one.train.data, "captions": pretrained["captions"]})
    theirs = load(images, size, labels=pretrained["labels"] or "")
    _, i, j = np.intersect1d(ours.ids, theirs.ids, return_indices=True)
    if not len(i):
        return None
    given = np.unique(np.asarray(theirs.columns[column][j]).astype(str), return_inverse=True)[1]
    pairs = np.unique([given, ours.columns["label"][i]], axis=1)
    return "determined" if len(np.unique(pairs[0])) == pairs.shape[1] else "free"


@functools.lru_cache(maxsize=32)
def _listed(data: str, split: str, where: str) -> Source:
    """Images on disk, whose listing takes long where they are many."""
    return data_lib.load_split(json.loads(data), split, where=where)


def check(transfers: Iterable[Transfer], size: int) -> None:
    """Opens all that the transfers need; raises one line, ValueError or FileNotFoundError.

    For what is not there or cannot be read, for classes that differ between tuning and testing,
    and for what records could not tell apart.
    """
    heads: dict[tuple, str] = {}
    named: dict[tuple, tuple[str, str]] = {}
    for one in transfers:
        where = f"config.transfers.{one.name}"
        classes = load(one.train, size, labels=one.labels).info["label_names"]
        if len(classes) < 2:
            raise ValueError(f"{where}: one class only, {classes}; expected two to tell apart")
        for target, images in one.tests.items():
            source = load(images, size, labels=one.labels)
            if source.info["label_names"] != classes:
                ours, theirs = set(classes), set(source.info["label_names"])
                only = ", ".join(sorted(ours ^ theirs)[:3])
                raise ValueError(
                    f"{where}: split {images.split!r} of {target or 'the data'} has other classes "
                    f"than split {one.train.split!r}: only one of them has {only}"
                )
            key = (one.dataset, one.labels, one.source, target)
            if heads.setdefault(key, one.name) != one.name:
                raise ValueError(
                    f"{where} and config.transfers.{heads[key]} are both {one.dataset}, labels "
                    f"{one.labels!r}, {one.source!r} to {target!r}; expected no transfer twice"
                )
            before, mark = named.setdefault((one.dataset, target), (one.name, images.mark))
            if mark != images.mark:
                raise ValueError(
                    f"{where} and config.transfers.{before} call different images "
                    f"{target or one.dataset!r}; expected one name for each"
                )
    for images in wanted(transfers):
        loader.example(load(images, size))
