"""Images with captions, written as others write them: img2dataset, pandas, Hugging Face."""

import functools
import hashlib
import io
import json
import tarfile
import time

import pandas as pd
import pictures

TEXTS = (
    "a dog on a bench",
    "Ein Mädchen läuft",
    "猫が座っている",
    'he said "no", twice',
    "IMG_1234.jpg",
)


@functools.cache
def jpeg(seed: int) -> bytes:
    return pictures.jpeg(seed, 24, 32)


def pairs(count: int = 24, first: int = 0) -> list[tuple[str, str, bytes]]:
    """(key, caption, image) …, keys as img2dataset numbers them."""
    return [
        (f"{i:09d}", f"{TEXTS[i % len(TEXTS)]} {i}", jpeg(i % 6))
        for i in range(first, first + count)
    ]


def img2dataset(key: str, caption, image: bytes) -> dict[str, bytes]:
    """The members of one sample, sorted as its WebDatasetSampleWriter (webdataset's TarWriter)."""
    about = {
        "caption": caption,
        "url": f"https://example.org/{key}.jpg",
        "key": key,
        "status": "success",
        "error_message": None,
        "width": 32,
        "height": 24,
        "original_width": 320,
        "original_height": 240,
        "exif": "{}",
        "sha256": hashlib.sha256(image).hexdigest(),
    }
    text = str(caption) if caption is not None else ""
    return {"jpg": image, "json": json.dumps(about, indent=4).encode(), "txt": text.encode()}


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.uname = len(content), 0o0444, "bigdata"
    member.mtime = time.time()  # not whole, as TarWriter's: each member gets a pax header
    archive.addfile(member, io.BytesIO(content))


def write_shard(path, samples) -> None:
    """A shard of (key, {extension: content}) …"""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file, tarfile.open(fileobj=file, mode="w|") as archive:
        for key, members in samples:
            for extension, content in members.items():
                add(archive, f"{key}.{extension}", content)


def write_tar(root, rows, *, shards: int = 3) -> None:
    for shard in range(shards):
        samples = [(key, img2dataset(key, *rest)) for key, *rest in rows[shard::shards]]
        write_shard(root / f"{shard:05d}.tar", samples)
        (root / f"{shard:05d}_stats.json").write_text("{}")


def write_folder(root, rows, *, kind: str = "csv") -> None:
    for i, (key, _, image) in enumerate(rows):
        folder = root / "images" / str(i % 2)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{key}.jpg").write_bytes(image)
    names = [f"images/{i % 2}/{key}.jpg" for i, (key, _, _) in enumerate(rows)]
    table = pd.DataFrame({"filepath": names, "title": [caption for _, caption, _ in rows]})
    file = root / f"captions.{kind}"
    if kind == "jsonl":
        table.to_json(file, orient="records", lines=True)
    else:
        table.to_csv(file, sep={"csv": ",", "tsv": "\t"}[kind], index=False)


def write_parquet(root, rows, *, files: int = 2) -> None:
    for i in range(files):
        write_parquet_file(root / f"train-{i:05d}-of-{files:05d}.parquet", rows[i::files])


def write_parquet_file(file, rows, *, group: int = 5) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    images = [None if image is None else {"bytes": image, "path": f"{key}.jpg"}
              for key, _, image in rows]  # fmt: skip
    table = pd.DataFrame({"image": images, "caption": [caption for _, caption, _ in rows]})
    table.to_parquet(file, row_group_size=group, index=False)
