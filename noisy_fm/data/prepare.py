"""Turns any storage of images into sharded array_record, shard by shard, so that it can go on.

The files are what `storage.records.RecordStorage` reads: the images' bytes, unchanged and in the
storage's order; SPLIT.npz, written last, with names and labels; and SPLIT.SHA256SUMS, which
`sha256sum -c` understands. The bytes depend on the images, the split's name and `shard_size` alone.
An image whose bytes cannot be had keeps its place, name and label with an empty record, which
training replaces as it would have replaced the original, and is listed in SPLIT.unreadable.json;
bytes are not decoded here, so those of a damaged image are copied as they are.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO
from zipfile import BadZipFile

import numpy as np
from absl import logging

from noisy_fm.data.damage import LISTED, tolerated
from noisy_fm.data.storage import Storage
from noisy_fm.data.storage.listing import ids_of
from noisy_fm.data.storage.records import VERSION, shard_names
from noisy_fm.files import read_json, write_arrays, write_json, written_whole
from noisy_fm.progress import Progress

SUMS = "SHA256SUMS"  # its whole name in folders that were made when all splits shared one
OPTIONS = "group_size:1,uncompressed"  # any record is one read away; images are compressed already
# What a file itself is to blame for; all else (a lost mount, a dying disk) may pass, so it stops.
OF_THE_FILE = (None, errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ELOOP)
NO_SPACE = [os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)]
# The names of all that this module ever writes, begun or finished.
OURS = re.compile(
    r"(?!\.noisy_fm-)\.*(?P<split>.*?)"
    r"(-\d{5}-of-\d{5}\.array_record|\.npz|\.plan|\.lock|\.unreadable\.json|\.SHA256SUMS)(\..*)?"
)


def prepare(
    storage: Storage,
    out: str | os.PathLike,
    split: str,
    *,
    shard_size: int = 10_000,
    max_bad: float = 0.001,
) -> dict[str, str]:
    """Writes `storage` to the folder `out` as `split`; what an interrupted call finished stays.

    A shard is made again if it is gone or if an image of it that could not be read now can.
    Returns the images that cannot be read, {id: "file: reason"}. Raises ValueError if they are more
    than `damage.tolerated` says, if `out` holds, or has begun, other images or shards under that
    name, or if another process is preparing it; OSError, naming the file, if it cannot write.
    """
    if shard_size < 1:
        raise ValueError(f"shard_size is {shard_size}; expected at least 1 image")
    if not 0 <= max_bad <= 1:
        raise ValueError(f"max_bad is {max_bad}; expected a fraction in [0, 1]")
    if "/" in split:
        raise ValueError(f"split is {split!r}; expected a name without '/', for it names files")
    folder = Path(out).expanduser()
    listing = storage.listing
    count = len(listing.labels)
    ids = ids_of(listing, storage.where)
    shards = shard_names(split, -(-count // shard_size))
    table = {
        "names": listing.names,
        "labels": listing.labels,
        "label_names": np.array(listing.label_names, np.str_),
        "records": np.diff(np.minimum(np.arange(len(shards) + 1) * shard_size, count)),
        "version": np.array(VERSION),
    }
    plan, finished = folder / f".{split}.plan.npz", folder / f"{split}.npz"
    listed = folder / f"{split}.unreadable.json"
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder, split):
        _claim(folder, split, plan, table)
        own = {*shards, finished.name}
        sums = {name: digest for name, digest in read_sums(folder).items() if name in own}
        bad = read_json(listed) if listed.exists() else {}
        with Progress(f"prepare {split}", count, unit="image") as bar:
            for number, shard in enumerate(shards):
                rows = range(number * shard_size, min((number + 1) * shard_size, count))
                known = [row for row in rows if str(ids[row]) in bad] if bad else []
                mended = any(_read(storage, row)[1] is None for row in known)
                if shard not in sums or not (folder / shard).exists() or mended:
                    if sums.pop(shard, None):
                        _write_sums(folder, split, sums)
                    for row in known:
                        del bad[str(ids[row])]
                    _write_shard(storage, rows, ids, folder / shard, bad, max_bad)
                    _write_bad(listed, bad)
                    sums[shard] = _sha256(folder / shard)
                    _write_sums(folder, split, sums)
                bar.update(len(rows), shard)
        _check_few(bad, max_bad, count)  # those that an earlier call let pass too
        sums[finished.name] = _sha256(plan if plan.exists() else finished)
        _write_sums(folder, split, sums | ({listed.name: _sha256(listed)} if bad else {}))
        if plan.exists():
            with _writing(finished):
                os.replace(plan, finished)
    return bad


def verify(out: str | os.PathLike) -> list[str]:
    """Reads all of `out` back and returns one line for each file that is not as SHA256SUMS says.

    Among those are files of `prepare`'s that are listed nowhere, what an ended call left behind,
    and shards that a finished split lacks. A split that is being prepared meanwhile is left out,
    with a warning.
    """
    folder = Path(out).expanduser()
    running = _running(folder)
    there = {file.name for file in folder.glob("*") if OURS.fullmatch(file.name)}
    running |= _running(folder)  # before and after, so that none begins or ends unseen
    for split in sorted(running):
        logging.warning("%s: %r is being prepared, so it is not verified", folder, split)
    sums = read_sums(folder)
    if not (sums or running):
        raise FileNotFoundError(f"{folder} has no {SUMS}; expected a folder made by prepare")
    names = sorted(n for n in there.union(sums) if _split_of(n) not in running)
    wrong: list[str] = []
    expected: set[str] = set()
    with Progress("verify", len(names), unit="file") as bar:
        for name in names:
            fault = _fault(folder / name, sums.get(name))
            if fault:
                wrong.append(f"{folder / name} {fault}")
            elif name.endswith(".npz"):
                with np.load(folder / name) as table:
                    expected |= {*shard_names(name.removesuffix(".npz"), len(table["records"]))}
            bar.update(1, name)
    return wrong + [f"{folder / name} is missing" for name in sorted(expected.difference(names))]


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
    """{file: SHA-256} of the finished files of all splits."""
    sums = {}
    for file in (folder / SUMS, *sorted(folder.glob(f"[!.]*.{SUMS}"))):
        lines = file.read_text().splitlines() if file.is_file() else []
        for line in lines:
            digest, gap, name = line.partition("  ")
            if not re.fullmatch("[0-9a-f]{64}", digest) or not gap or not name:
                raise ValueError(
                    f"{file} is damaged (its line {line!r}); delete it, and the line that prepared "
                    "the folder makes it again"
                )
            sums[name] = digest
    return sums


def _split_of(name: str) -> str | None:
    match = OURS.fullmatch(name)
    return match["split"] if match else None


def _fault(file: Path, digest: str | None) -> str | None:
    """What is wrong with a file of ours whose listed digest is `digest`, or None."""
    if digest:
        if not file.exists():
            return "is missing"
        return None if _sha256(file) == digest else f"is not what {SUMS} says"
    if file.name.startswith("."):
        return "is left of a preparation that did not end"
    return None if file.name.endswith(f".{SUMS}") else f"is listed in no {SUMS}"


@contextlib.contextmanager
def _alone(folder: Path, split: str) -> Iterator[None]:
    """Keeps other processes from writing the split, and clears away what an ended one left.

    The lock is the operating system's, which takes it back when its process ends, however it does.
    """
    file = folder / f".{split}.lock"
    with _writing(file):
        lock = _locked(file)
    try:
        with _writing(file):
            os.ftruncate(lock.fileno(), 0)
            os.pwrite(lock.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        for begun in folder.glob(".*"):
            kept = begun.name in (file.name, f".{split}.plan.npz")
            if _split_of(begun.name) == split and not kept:
                begun.unlink()
        yield
    finally:
        file.unlink(missing_ok=True)
        lock.close()


def _locked(file: Path) -> TextIO:
    """The file, opened and locked; raises ValueError if another process has it, and keeps it."""
    patient = True
    while True:
        lock = file.open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read() or "another process"
            lock.close()
            if patient:  # a verification has it for a moment, to see whether it is held
                patient = False
                time.sleep(0.1)
                continue
            raise ValueError(
                f"{file.parent}: {_split_of(file.name)!r} is being prepared by {holder}; wait for "
                "it, or write to another folder"
            ) from None
        except OSError as error:  # some network file systems
            logging.warning(
                "%s cannot be locked (%s): let no other process prepare it", file, error.strerror
            )
            return lock
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), file.stat()):
                return lock
        lock.close()  # its holder ended and removed it just now


def _running(folder: Path) -> set[str]:
    """The splits that processes are writing now."""
    return {file.name[1:-5] for file in folder.glob(".*.lock") if _is_held(file)}


def _is_held(file: Path) -> bool:
    try:
        with file.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@contextlib.contextmanager
def _writing(file: Path) -> Iterator[None]:
    """Words what the body cannot write as one line that says how to go on."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # array_record raises the latter
        reason = getattr(error, "strerror", None) or str(error).split(";")[0]
        remedy = "make space, and" if any(text in reason for text in NO_SPACE) else "mend that, and"
        raise OSError(
            f"{file} cannot be written ({reason}): {remedy} the same line goes on from there; "
            "what is finished stays"
        ) from None


def _claim(folder: Path, split: str, plan: Path, table: dict[str, np.ndarray]) -> None:
    """Leaves the plan, or checks that what is finished or begun is the same."""
    for file in (folder / f"{split}.npz", plan):
        if not file.exists():
            continue
        try:
            with np.load(file) as before:
                differs = [k for k, v in table.items() if not np.array_equal(before[k], v)]
        except (ValueError, KeyError, EOFError, BadZipFile):
            raise ValueError(
                f"{file} is damaged; delete it, and the same line makes it again"
            ) from None
        if differs:
            raise ValueError(
                f"{folder} holds another {split!r} (its {' and '.join(differs)} differ: other "
                "images, or another shard size); choose another folder or delete that one"
            )
        return
    with _writing(plan):
        write_arrays(plan, table)


def _write_shard(
    storage: Storage, rows: range, ids: np.ndarray, file: Path, bad: dict[str, str], max_bad: float
) -> None:
    """Writes a shard whole or not at all: it counts once SHA256SUMS lists it.

    What cannot be read becomes an empty record and an entry of `bad`.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    with _writing(file), written_whole(file) as temporary:
        writer = ArrayRecordWriter(str(temporary), OPTIONS)
        try:
            for row in rows:
                content, fault = _read(storage, row)
                if fault:
                    _note(bad, str(ids[row]), fault, max_bad, len(ids))
                writer.write(content)
        finally:
            writer.close()
        with temporary.open("rb") as written:
            os.fsync(written.fileno())  # some disks say only now that they are full


def _read(storage: Storage, row: int) -> tuple[bytes, str | None]:
    """(The image's bytes, None), or (none, where it is and why it has none)."""
    name = f"{storage.where}: {storage.listing.names[row].decode(errors='backslashreplace')}"
    try:
        content = storage.read(row)
        return content, None if content else f"{name}: it is empty"
    except OSError as error:
        if error.errno in OF_THE_FILE:
            return b"", f"{name}: {error}"
        raise ValueError(
            f"{name} cannot be read ({error}), which may be more than the file's fault; once it "
            "is mended the same line goes on from there"
        ) from None


def _note(bad: dict[str, str], id_: str, fault: str, max_bad: float, count: int) -> None:
    """Lists an unreadable image in `bad`, and checks how many those are."""
    bad[id_] = fault
    if len(bad) <= LISTED:
        logging.warning("cannot be read, an empty record: %s", fault)
    _check_few(bad, max_bad, count)


def _check_few(bad: dict[str, str], max_bad: float, count: int) -> None:
    """Raises ValueError for more than are `tolerated`."""
    if len(bad) > tolerated(max_bad, count):
        raise ValueError(
            f"{len(bad)} of {count} images cannot be read, more than max_bad = {max_bad:g} "
            f"(--max-bad); the last: {list(bad.values())[-1]}"
        )


def _write_bad(file: Path, bad: dict[str, str]) -> None:
    with _writing(file):
        if bad:
            write_json(file, bad)
        else:
            file.unlink(missing_ok=True)


def _write_sums(folder: Path, split: str, sums: dict[str, str]) -> None:
    file = folder / f"{split}.{SUMS}"
    with _writing(file), written_whole(file) as temporary:
        temporary.write_text("".join(f"{sums[name]}  {name}\n" for name in sorted(sums)))


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
