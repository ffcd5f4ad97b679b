"""Small photographs in every storage that the sources read."""

import io
import json
import struct
import tarfile

import numpy as np
from PIL import Image

from noisy_fm.data import prepare
from noisy_fm.data.storage import FolderStorage

STORAGES = ("folder", "tar", "array_record", "parquet", "tfds:photos")
CLASSES = ("n01440764", "n01443537", "n02084071")


def jpeg(seed: int, height: int = 96, width: int = 128, **options) -> bytes:
    """A smooth random picture as a JPEG file."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return save(image, "JPEG", **{"quality": 90, **options})


def save(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def examples(count: int = 24, first: int = 0) -> list[tuple[str, int, bytes]]:
    """(file name, label, bytes): names as ImageNet's, labels in turn, pictures from `first` on."""
    rows = [(f"{CLASSES[i % 3]}_{100 + i}.JPEG", i % 3, jpeg(first + i)) for i in range(count)]
    return sorted(rows, key=lambda row: (row[1], row[0]))


def write_folder(root, rows, split="train"):
    for name in CLASSES:
        (root / split / name).mkdir(parents=True)
    for name, label, content in rows:
        (root / split / CLASSES[label] / name).write_bytes(content)


def write_tar(root, rows, split="train", *, shards=3, kind="cls"):
    root.mkdir(exist_ok=True)
    for shard in range(shards):
        with tarfile.open(root / f"{split}-{shard:06d}.tar", "w") as archive:
            for name, label, content in rows[shard::shards]:
                about = {"cls": str(label), "json": json.dumps({"label": label})}[kind]
                key = name.removesuffix(".JPEG")
                for suffix, data in (("jpg", content), (kind, about.encode())):
                    member = tarfile.TarInfo(f"{key}.{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))


def write_parquet(root, rows, split="train", *, files=2, group=5):
    """As Hugging Face's `datasets` does, its ImageNet's file names included."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (root / "data").mkdir(parents=True)
    feature = {"label": {"_type": "ClassLabel", "names": list(CLASSES)}}
    about = {"info": {"features": {"image": {"_type": "Image"}, **feature}}}
    for number in range(files):
        part = rows[number::files]
        images = [
            {"bytes": content, "path": f"{name.removesuffix('.JPEG')}_{CLASSES[label]}.JPEG"}
            for name, label, content in part
        ]
        table = pa.table(
            {"image": images, "label": pa.array([label for _, label, _ in part], pa.int64())}
        ).replace_schema_metadata({"huggingface": json.dumps(about)})
        file = root / "data" / f"{split}-{number:05d}-of-{files:05d}.parquet"
        pq.write_table(table, file, row_group_size=group)


def write_tfds(root, rows, split="train", *, name="photos", shards=2):
    """What TFDS 4.9.10 with TensorFlow 2.21 leaves for an AdhocBuilder, file by file."""
    from array_record.python.array_record_module import ArrayRecordWriter

    folder = root / name / "1.0.0"
    folder.mkdir(parents=True)
    lengths = []
    for shard in range(shards):
        file = folder / f"{name}-{split}.array_record-{shard:05d}-of-{shards:05d}"
        writer = ArrayRecordWriter(str(file), "group_size:1")
        part = rows[shard::shards]
        for file_name, label, content in part:
            writer.write(tf_example(file_name=file_name.encode(), image=content, label=label))
        writer.close()
        lengths.append(str(len(part)))
    core = "tensorflow_datasets.core.features"
    shape = {"dimensions": ["-1", "-1", "3"]}
    features = {
        "file_name": {"pythonClassName": f"{core}.text_feature.Text", "text": {}},
        "image": {
            "image": {"dtype": "uint8", "shape": shape},
            "pythonClassName": f"{core}.image_feature.Image",
        },
        "label": {
            "classLabel": {"numClasses": str(len(CLASSES))},
            "pythonClassName": f"{core}.class_label_feature.ClassLabel",
        },
    }
    about = {
        "featuresDict": {"features": features},
        "pythonClassName": f"{core}.features_dict.FeaturesDict",
    }
    (folder / "features.json").write_text(json.dumps(about))
    (folder / "label.labels.txt").write_text("\n".join(CLASSES) + "\n")
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    info = {
        "fileFormat": "array_record",
        "moduleName": "tensorflow_datasets.core.dataset_builders.adhoc_builder",
        "name": name,
        "splits": [
            {"filepathTemplate": template, "name": split, "numBytes": "1", "shardLengths": lengths}
        ],
        "version": "1.0.0",
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))


def tf_example(**features: bytes | int) -> bytes:
    """A serialised tf.train.Example, written out by the protocol buffers' wire format."""

    def field(number: int, content: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(content)) + content

    def varint(value: int) -> bytes:
        out = b""
        while value > 127:
            out += struct.pack("B", value & 127 | 128)
            value >>= 7
        return out + struct.pack("B", value)

    entries = b""
    for key, value in features.items():
        if isinstance(value, bytes):
            feature = field(1, field(1, value))
        else:
            feature = field(3, field(1, varint(value)))
        entries += field(1, field(1, key.encode()) + field(2, feature))
    return field(1, entries)


def write_all(root) -> dict:
    """The same 24 photographs in each of `STORAGES`: {name: path}."""
    rows = examples()
    write_folder(root / "folder", rows)
    write_tar(root / "tar", rows)
    (root / "tar" / "labels.txt").write_text("\n".join(CLASSES))
    write_parquet(root / "parquet", rows)
    write_tfds(root / "tfds", rows)
    prepare.prepare(
        FolderStorage(str(root / "folder"), "train"), root / "records", "train", shard_size=10
    )
    places = (root / name for name in ("folder", "tar", "records", "parquet", "tfds"))
    return dict(zip(STORAGES, places, strict=True))
