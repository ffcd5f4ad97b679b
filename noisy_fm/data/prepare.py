"""Turns any storage of images into sharded array_record, shard by shard, so that it can go on.

The files are what `storage.records.RecordStorage` reads: the images' bytes, unchanged and in the
storage's order; SPLIT.npz, written last, with names and labels; and SHA256SUMS, which `sha256sum
-c` understands. The bytes depend on the images, the split's name and `shard_size` alone.
"""

import hashlib
import os
from pathlib import Path

import numpy as np

from noisy_fm.data.storage import Storage
from noisy_fm.data.storage.records import VERSION, shard_names
from noisy_fm.progress import Progress

SUMS = "SHA256SUMS"
OPTIONS = "group_size:1,uncompressed"  # any record is one read away; images are compressed already


def prepare(storage: Storage, out: str | os.PathLike, split: str, *, shard_size: int = 10_000):
    """Writes `storage` to the folder `out` as `split`; what an interrupted call finished stays.

    Raises ValueError if `out` holds, or has begun, other images or shards under that name.
    """
    if shard_size < 1:
        raise ValueError(f"shard_size is {shard_size}; expected at least 1 image")
    folder = Path(out).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    listing = storage.listing
    count = len(listing.labels)
    shards = shard_names(split, -(-count // shard_size))
    table = {
        "names": listing.names,
        "labels": listing.labels,
        "label_names": np.array(listing.label_names, np.str_),
        "records": np.diff(np.minimum(np.arange(len(shards) + 1) * shard_size, count)),
        "version": np.array(VERSION),
    }
    plan = folder / f".{split}.plan.npz"
    _claim(folder, split, plan, table)
    with Progress(f"prepare {split}", count, unit="image") as bar:
        for number, shard in enumerate(shards):
            first, end = number * shard_size, min((number + 1) * shard_size, count)
            if shard not in read_sums(folder) or not (folder / shard).exists():
                _write_shard(storage, range(first, end), folder, shard)
            bar.update(end - first, shard)
    if plan.exists():
        _add_sum(folder, f"{split}.npz", _sha256(plan))
        os.replace(plan, folder / f"{split}.npz")


def verify(out: str | os.PathLike) -> list[str]:
    """Reads all that SHA256SUMS lists and returns one line for each file that is not as it says."""
    folder = Path(out).expanduser()
    sums = read_sums(folder)
    if not sums:
        raise FileNotFoundError(f"{folder} has no {SUMS}; expected a folder made by prepare")
    wrong = []
    with Progress("verify", len(sums), unit="file") as bar:
        for name, expected in sums.items():
            if not (folder / name).exists():
                wrong.append(f"{folder / name} is missing")
            elif _sha256(folder / name) != expected:
                wrong.append(f"{folder / name} is not what {SUMS} says")
            bar.update(1, name)
    return wrong


def prepare_tfds(name: str, data_dir: str | None) -> None:
    """Has TFDS download and prepare `name` as array_record in `data_dir`, with TensorFlow."""
    try:
        import tensorflow  # noqa: F401  (TFDS' own message is a page long)
    except ImportError:
        raise ValueError(
            f"preparing tfds:{name} needs TensorFlow: pip install 'noisy-fm[prepare]' "
            "(reading what is prepared does not)"
        ) from None
    import tensorflow_datasets as tfds

    tfds.builder(name, data_dir=data_dir, file_format="array_record").download_and_prepare()


def read_sums(folder: Path) -> dict[str, str]:
    """{file: SHA-256} of the finished files."""
    file = folder / SUMS
    lines = file.read_text().splitlines() if file.is_file() else []
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}


def _claim(folder: Path, split: str, plan: Path, table: dict[str, np.ndarray]) -> None:
    """Leaves the plan, or checks that what is finished or begun is the same."""
    finished = folder / f"{split}.npz"
    for file in (finished, plan):
        if not file.exists():
            continue
        with np.load(file) as before:
            differs = [k for k, v in table.items() if not np.array_equal(before[k], v)]
        if differs:
            raise ValueError(
                f"{folder} holds another {split!r} (its {' and '.join(differs)} differ: other "
                "images, or another shard size); choose another folder or delete that one"
            )
        return
    temporary = folder / f".{split}.plan.tmp.npz"
    np.savez(temporary, **table)  # type: ignore[arg-type]
    os.replace(temporary, plan)


def _write_shard(storage: Storage, rows: range, folder: Path, shard: str) -> None:
    """Writes a shard whole or not at all: it counts once SHA256SUMS lists it."""
    from array_record.python.array_record_module import ArrayRecordWriter

    temporary = folder / f".{shard}.tmp"
    writer = ArrayRecordWriter(str(temporary), OPTIONS)
    try:
        for row in rows:
            writer.write(storage.read(row))
    finally:
        writer.close()
    os.replace(temporary, folder / shard)
    _add_sum(folder, shard, _sha256(folder / shard))


def _add_sum(folder: Path, name: str, digest: str) -> None:
    sums = read_sums(folder) | {name: digest}
    temporary = folder / f".{SUMS}.tmp"
    temporary.write_text("".join(f"{sums[key]}  {key}\n" for key in sorted(sums)))
    os.replace(temporary, folder / SUMS)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
