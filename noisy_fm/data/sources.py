"""The data sets by name: `emoji_domains` (shipped), `digits` (scikit-learn's), images on disk."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from noisy_fm.data import digits, emoji_domains
from noisy_fm.data.emoji_domains import SIZES
from noisy_fm.data.images import ImageSource, open_images
from noisy_fm.data.source import ArraySource, Source
from noisy_fm.data.storage import FORMATS, TFDS
from noisy_fm.messages import require_known

IN_MEMORY: dict[str, Callable[..., ArraySource]] = {
    "emoji_domains": emoji_domains.load,
    "digits": digits.load,
}
MOST_COMPARED = 1000
PIECE = 2**16  # rows of a column that are hashed at a time


def load(
    name,
    *,
    split=None,
    domain=None,
    labels=None,
    size=None,
    path=None,
    canvas=None,
    captions=None,
    crop=None,
) -> ArraySource | ImageSource:
    """The named data set; raises ValueError or FileNotFoundError naming what exists.

    `emoji_domains`: emoji by several artists, `domain` one name, a tuple of them, or None for all
    (noto, twemoji, openmoji, lineart, fluent3d, fluentflat). `split` is "pretrain" (60 %), "train"
    (20 %), "test" (20 %) or None for all: the skin tones, genders and directions of a concept, and
    concepts that an artist draws alike, are one group, and a group is in one split in all domains.
    `labels` is a key of `LABELS`, or None: every example, labelled with its concept group.
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

    `captions` says which texts are the column "caption". `emoji_domains`: a template of its table's
    columns, as "{name}, {subcategory}" (None: the name); of "none", what stands between two commas
    is left out, or the field alone where there are no commas. `tar`: the text member's extension,
    "txt", or EXTENSION:KEY of a JSON member, "json:caption". `folder`: TABLE:COLUMN of a .csv, .tsv
    or .jsonl in the folder that names the images, wherever below they lie. `parquet`: a column.
    Images on disk that have captions have no column "label". What is no pair (an image or a
    caption alone, a caption that is blank or no UTF-8, a shard's end that is missing, …) is left
    out, counted and said. The pairs are listed once, in a file beside them.
    """
    if name in FORMATS or name.startswith(TFDS):
        given = {k: v for k, v in {"domain": domain, "labels": labels}.items() if v is not None}
        if given:
            raise ValueError(
                f"{name}: images on disk have no domain and one labelling, got "
                f"{' and '.join(f'{k} {v!r}' for k, v in given.items())}; expected None (or "
                """--config.data.domain="()" --config.data.labels="", as in configs/pretrain/"""
                "folder.py, with captions clip_folder.py)"
            )
        size = 224 if size is None else size
        return open_images(
            name,
            path=path,
            split=split,
            size=size,
            canvas=canvas,
            captions=captions,
            crop=crop,
        )
    require_known("data set", name, [*IN_MEMORY, *FORMATS, f"{TFDS}NAME"])
    if any(one is not None for one in (path, canvas, crop)):
        raise ValueError(
            f"{name}: it has no path, no canvas and no crop; those are for images on disk "
            f"(--config.data.name={', '.join(FORMATS)} or {TFDS}NAME)"
        )
    size = SIZES[0] if size is None else size
    if size not in SIZES:
        raise ValueError(f"{name}: size {size!r} does not exist; there are 32 and 64")
    return IN_MEMORY[name](split=split, domain=domain, labels=labels, size=size, captions=captions)


def load_split(data: Mapping, split: str, *, where: str = "config.data") -> Source:
    """The source of a group of keys as `config.data`, in which empty values mean "not given".

    Its errors begin with `where`.
    """
    arguments = {key: value or None for key, value in data.items() if key != "name"}
    try:
        return load(data["name"], split=split, **arguments)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{where}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def identity(*sources: Source, columns: Sequence[str] = ("label",)) -> str:
    """Twelve hex digits for which examples there are, in which order, and their supervision."""
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.ids.astype("<i8").tobytes())
        for name in columns:
            if name not in source.columns:
                raise ValueError(
                    f"the data have no column {name!r}; there are {', '.join(source.columns)}"
                )
            for part in _hashable(source.columns[name], name):
                digest.update(part)
    return digest.hexdigest()[:12]


def _hashable(column, name: str) -> Iterator[bytes]:
    """What tells a column from another, in pieces that fit in memory whatever it holds."""
    for start in range(0, len(column), PIECE):
        values = np.asarray(column[start : start + PIECE])
        if values.dtype.kind in "OU":  # texts by their letters, not by addresses or widths
            texts = [str(value).encode("utf-8", "surrogatepass") for value in values.ravel()]
            yield np.array([len(text) for text in texts], "<i8").tobytes()
            yield b"".join(texts)
        else:
            yield (values.astype("<i4") if name == "label" else values).tobytes()


def shared(one: Source, other: Source) -> list[int]:
    """Which examples of `one`, by index, `other` has too: the same file or id and the same bytes.

    Numbers begin anew in most people's folders, so a name in both is not yet the same image. Of
    more than `MOST_COMPARED` names in both, so many are compared, spread evenly.
    """
    _, ours, theirs = np.intersect1d(
        one.origins, other.origins, assume_unique=True, return_indices=True
    )
    order = np.argsort(ours, kind="stable")
    if len(order) > MOST_COMPARED:
        order = order[np.linspace(0, len(order) - 1, MOST_COMPARED).astype(int)]
    pairs = zip(ours[order].tolist(), theirs[order].tolist(), strict=True)
    return [i for i, j in pairs if (content := one.content(i)) and content == other.content(j)]
