"""Files of odd origin: what is a split, a shard, a label or an image, and what is refused."""

import io
import json
import os
import subprocess
import tarfile
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import pictures
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from noisy_fm import config, data, messages, noise, train
from noisy_fm.data.storage.shards import expand_braces, find_shards

NFC = "é"
NFD = unicodedata.normalize("NFD", NFC)
# Of 24 examples at a rate of 0.4: a change moves ids, classes or noise of data that people have.
MANIFESTS = {
    "files": "2accabf423bc1b6d",
    "classes": "184547a230fff7ff",
    "words": "3ad4f5b5ad227fe9",
}


def write_tar(file: Path, labels, *, suffix="cls", first=0, more=()):
    """A shard with an image `i.jpg` for each label, which is bytes, text, or dumped as JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    members = list(more)
    for i, label in enumerate(labels):
        content = json.dumps(label) if suffix == "json" else label
        content = content if isinstance(content, bytes) else content.encode()
        image = pictures.jpeg(first + i, 24, 24)
        members += [(f"{i:03}.jpg", image), (f"{i:03}.{suffix}", content)]
    with tarfile.open(file, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_parquet(file: Path, labels, names=None, *, first=0, image="image", label="label"):
    """`names`: of a ClassLabel, as Hugging Face's `datasets` writes it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    content = [
        {"bytes": pictures.jpeg(first + i, 24, 24), "path": f"{file.stem}-{i}.jpg"}
        for i in range(len(labels))
    ]
    table = pa.table({image: content, label: labels})
    if names:
        about = {"info": {"features": {label: {"_type": "ClassLabel", "names": names}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    pq.write_table(table, file)


def write_folder(root: Path, *classes, images=2, first=0):
    for k, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(images):
            (root / name / f"{i}.jpg").write_bytes(pictures.jpeg(first + 10 * k + i, 24, 24))


def load(name, path, split=None):
    return data.load(name, path=str(path), split=split, size=16)


def refused(name, path, words, split=None):
    with pytest.raises((ValueError, FileNotFoundError), match=words) as caught:
        load(name, path, split)
    assert "\n" not in str(caught.value)


def setup(name, path, split="train", eval_split="val", **changes):
    cfg = config.train()
    cfg.data = {**cfg.data, "name": name, "path": str(path), "labels": "", "domain": (), "size": 16}
    cfg.split, cfg.eval_split, cfg.task.augment.name = split, eval_split, "imagenet"
    cfg.model = {"name": "resnet10_narrow", "width": 4}
    cfg.batch_size = 8
    return train.setup(config.updated(cfg, changes))


# Splits and shards ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern",
    [
        "train-{000..011}.tar",
        "{train,val}-{0..2}.tar",
        "a{b,{c,d{1..3}}}e{,f}",
        "{8..12}{03..1}{10..0..4}{c..a}",
        "{-2..2}{-01..1}",
        "{x}{}{a,b}{c",
        "plain",
    ],
)
def test_braces_are_those_of_bash(pattern):
    run = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {pattern}"], capture_output=True, text=True, check=True
    )
    assert expand_braces(pattern) == run.stdout.split("\n")[:-1]


@pytest.mark.parametrize(("name", "suffix"), [("tar", ".tar"), ("parquet", ".parquet")])
def test_a_pattern_is_read_by_split(name, suffix, tmp_path):
    write = {"tar": write_tar, "parquet": write_parquet}[name]
    for file, count in (("train-0", 4), ("train-1", 3), ("val-0", 2)):
        write(tmp_path / f"{file}{suffix}", [file] * count)
    counts = {"train": 7, "val": 2, None: 9}
    for pattern in ("*", "{train-{0..1},val-0}", "{train,val}-*", "[tv]*-?"):
        path = f"{tmp_path}/{pattern}{suffix}"
        for split, count in counts.items():
            files = find_shards(path, split, suffix)
            assert files == sorted(tmp_path.glob(f"{split or ''}*{suffix}"))
            if split and pattern == "*":
                assert len(load(name, path, split)) == count
    refused(
        name, f"{tmp_path}/train-{{0..2}}{suffix}", "stands for 3 files, of which 1 do.*train-2"
    )
    refused(name, f"{tmp_path}/train-*{suffix}", "of split 'val' .* 2 others, as train-0", "val")
    one = tmp_path / f"train-0{suffix}"
    assert len(load(name, one, "train")) == 4
    refused(name, one, "does not say that it is of split 'val'; expected", "val")
    (tmp_path / "val" / "sub").mkdir(parents=True)
    moved = one.rename(tmp_path / "val" / f"photos{suffix}")
    assert len(load(name, moved, "val")) == 4
    refused(name, moved, "does not say that it is of split 'train'", "train")


def test_splits_that_share_images_are_refused_and_shared_numbers_are_not(tmp_path):
    write_tar(tmp_path / "train-0.tar", ["0", "1"] * 4)
    write_tar(tmp_path / "val-0.tar", ["0", "1"], first=50)
    train_and_val = [load("tar", f"{tmp_path}/*.tar", split) for split in ("train", "val")]
    assert len(np.intersect1d(*[source.ids for source in train_and_val])) == 2  # 000.jpg, 001.jpg
    assert data.shared(*train_and_val) == []
    with pytest.raises(ValueError, match="both 'train'; expected two splits"):
        setup("tar", tmp_path, "train", "train")
    write_tar(tmp_path / "valid-0.tar", ["1", "0", "1"])
    with pytest.raises(ValueError, match=r"have images in common \(3 found, as .*: 000.jpg\)"):
        setup("tar", tmp_path, "train", "valid")


def test_slices_of_tfds_are_compared_by_place(tmp_path):
    pictures.write_tfds(tmp_path, pictures.examples())
    features = tmp_path / "photos" / "1.0.0" / "features.json"
    about = json.loads(features.read_text())
    del about["featuresDict"]["features"]["file_name"]  # so that a slice's ids are its own
    features.write_text(json.dumps(about))
    parts = [load("tfds:photos", tmp_path, split) for split in ("train[:60%]", "train[50%:]")]
    assert not set(parts[0].ids) & set(parts[1].ids)
    assert len(data.shared(*parts)) == len(parts[0]) + len(parts[1]) - 24
    assert data.shared(parts[0], load("tfds:photos", tmp_path, "train[60%:]")) == []
    with pytest.raises(ValueError, match=r"tfds:cars: .* holds photos/1\.0\.0"):
        load("tfds:cars", tmp_path / "photos" / "1.0.0", "train")


def test_emoji_and_digits_share_nothing_between_splits():
    for name, splits in (("digits", ("train", "test")), ("emoji_domains", ("pretrain", "test"))):
        one, other = (data.load(name, split=split) for split in splits)
        assert data.shared(one, other) == []
        assert data.shared(one, one.select([5, 3])) == [3, 5]


# Labels --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        (["0\r\n", "10\r\n", "2\n"], 11, [0, 10, 2]),
        (["0.0", "10.0", "1"], 11, [0, 10, 1]),
        ([b"\xef\xbb\xbf1", "0"], 2, [1, 0]),
        (["b", "a", "caf\u00e9"], ("a", "b", "café"), [1, 0, 2]),
        (["None", "a"], ("None", "a"), [0, 1]),
    ],
)
def test_labels_of_cls_files(labels, names, numbers, tmp_path):
    write_tar(tmp_path / "a.tar", labels)
    source = load("tar", tmp_path)
    names = tuple(map(str, range(names))) if isinstance(names, int) else names
    assert (source.label_names, source.labels.tolist()) == (names, numbers)


@pytest.mark.parametrize(
    ("suffix", "labels", "words"),
    [
        ("cls", ["0", "", "1", " \n"], r"2 of 4 images have no label, as 001\.jpg"),
        ("cls", ["0", "nan", "1"], r"1 are not, as 'nan' of a\.tar: 001\.jpg"),
        (
            "cls",
            ["cat", "3"],
            "1 labels are numbers, as 3 of .* expected one kind, or the classes'",
        ),
        ("cls", ["0.5", "1"], "1 of 2 labels are no whole numbers"),
        ("cls", ["0", "-1"], "1 labels are outside 0 … 0, as -1 of 001.jpg"),
        ("cls", ["0", "1700000000"], "1,700,000,001 classes of 2 images"),
        ("cls", [b"caf\xe9", b"caf\xe8"], r"000\.cls is no UTF-8 text"),
        ("cls", [NFC, NFD], r"look the same: 'e\\u0301' and '\\xe9'"),
        ("json", [{"label": 1}, {"label": None}], r"1 of 2 images have no label, as 001\.jpg"),
        ("json", [{"label": 1.0}, {"label": float("nan")}], "1 of 2 images have no label"),
        ("json", [{"label": [0, 1]}, {"label": 1}], r"no single label, as 000\.jpg with \[0, 1\]"),
        ("json", [{"label": 1}, {"cls": 1}], "under 'cls' in .* and 'label' in .* one key in all"),
    ],
)
def test_labels_in_tar_that_are_none(suffix, labels, words, tmp_path):
    write_tar(tmp_path / "a.tar", labels, suffix=suffix)
    for _ in range(2):  # and again from the index
        refused("tar", tmp_path, words)


def test_two_labels_of_an_image_and_labels_of_none_are_said(tmp_path, caplog):
    more = [("000.json", b'{"label": 1}'), ("001.json", b'{"label": null}'), ("x.cls", b"0")]
    write_tar(tmp_path / "a.tar", ["0", "1"], more=more)
    for _ in range(2):
        caplog.clear()
        messages.warn.cache_clear()
        assert load("tar", tmp_path).labels.tolist() == [1, 1]
        assert "1 labels have no image, as a.tar: x" in caplog.text
        assert "another label in .json than in .cls; .json counts, as for 000.jpg" in caplog.text


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"\xef\xbb\xbfcat\r\ndog\r\nemu\r\n\r\n", ("cat", "dog", "emu")),
        (b"cat\n\ndog\nemu\n", r"labels.txt: line 2 is blank"),
        ("cat\ndog\nemu\n".encode("utf-16"), r"labels\.txt is no UTF-8 text"),
        (b"cat\ndog\n", "1 labels are outside 0 … 1, as 2 of 002.jpg"),
    ],
)
def test_labels_txt(content, names, tmp_path):
    write_tar(tmp_path / "train" / "0.tar", ["0", "1", "2"])
    (tmp_path / "labels.txt").write_bytes(content)  # above the shards
    if isinstance(names, str):
        return refused("tar", tmp_path, names, "train")
    assert load("tar", tmp_path, "train").label_names == names
    (tmp_path / "train" / "labels.txt").write_text("emu\ndog\ncat\n")
    refused("tar", tmp_path, "name the classes differently", "train")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0.0, 10.0, 1.0], tuple(map(str, range(11)))),
        ([True, False], ("False", "True")),
        (pa.array(["dog", "cat"]).dictionary_encode(), ("cat", "dog")),
        ([0.0, float("nan"), 1.0], r"1 of 3 labels are missing, as that of a-1\.jpg"),
        ([0, None], "1 of 2 labels are missing"),
        (["cat", None], "1 of 2 labels are missing"),
        (["cat", " "], "1 of 2 labels are missing"),
        ([None, None], "2 of 2 labels are missing"),
        ([0.5, 1.0], r"no whole numbers \(0\.5\), as that of a-0\.jpg"),
        ([[0, 1], [1]], "column 'label' holds list<.*>; expected one class an image"),
        ([b"cat", b"dog"], "column 'label' holds binary"),
    ],
)
def test_labels_of_parquet(labels, expected, tmp_path):
    write_parquet(tmp_path / "a.parquet", labels)
    if isinstance(expected, str):
        return refused("parquet", tmp_path, expected)
    assert load("parquet", tmp_path).label_names == expected


def test_parquet_classes_are_mapped_by_name(tmp_path):
    write_parquet(tmp_path / "0.parquet", [0, 1, 2], ["cat", "dog", "emu"])
    write_parquet(tmp_path / "1.parquet", [0, 1, 2], ["emu", "dog", "cat"])
    source = load("parquet", tmp_path)
    said = [source.label_names[label] for label in source.labels]
    assert said == ["cat", "dog", "emu", "emu", "dog", "cat"]
    for labels, about, words in (
        ([0, 1], {}, r"0\.parquet names 3 classes and .*2\.parquet 0"),
        ([0], {"names": ["cat", "dog", "fox"]}, "emu is in one alone"),
        ([0], {"names": ["cat", "dog", "emu"], "image": "img"}, "image column: 'image' in .*'img'"),
        (["cat"], {}, "labels of label: 'numbers' in .*, 'text' in"),
    ):
        write_parquet(tmp_path / "2.parquet", labels, **about)
        refused("parquet", tmp_path, words)


def test_ids_and_noise_are_what_they_were(tmp_path):
    rows = [(name, label, b"") for name, label, _ in pictures.examples()]
    shared = [(f"{i // 3:03}.JPEG", i % 3, b"") for i in range(24)]
    pictures.write_folder(tmp_path / "files", rows)
    pictures.write_folder(tmp_path / "classes", shared)
    words = ("tench", "goldfish", "dog")
    pictures.write_tar(tmp_path / "words", [(n, words[label], b"") for n, label, _ in rows])
    for name, expected in MANIFESTS.items():
        source = load("tar" if name == "words" else "folder", tmp_path / name, "train")
        _, manifest = noise.flip_labels(source.labels, 3, 0.4, ids=source.ids, seed=1)
        assert manifest.hash == expected


# Folders -------------------------------------------------------------------------------------


def test_what_desktops_and_notebooks_leave_is_left_out_and_said(tmp_path, caplog):
    write_folder(tmp_path / "f" / "train", "cat", "dog")
    image = pictures.jpeg(0, 24, 24)
    for name in (
        "cat/.ipynb_checkpoints/0-checkpoint.jpg",
        "cat/@eaDir/0.jpg/SYNOPHOTO_THUMB_M.jpg",
        "cat/deep/__MACOSX/0.jpg",
        "dog/._0.jpg",
        "dog/Thumbs.db",
        "__MACOSX/cat/0.jpg",
    ):
        (tmp_path / "f/train" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "f/train" / name).write_bytes(image)
    source = load("folder", tmp_path / "f", "train")
    assert (source.label_names, np.bincount(source.labels).tolist()) == (("cat", "dog"), [2, 2])
    assert "f/train: 6 files or folders are hidden, or left by a" in caplog.text
    assert "ignored, as __MACOSX" in caplog.text

    more = [("._000.jpg", b""), ("._000.cls", b""), ("a/__MACOSX/x.jpg", b""), (".DS_Store", b"")]
    write_tar(tmp_path / "t" / "train.tar", ["0", "1"], more=more)
    write_tar(tmp_path / "t" / ".ipynb_checkpoints" / "train-checkpoint.tar", ["2"])
    for _ in range(2):
        caplog.clear()
        messages.warn.cache_clear()
        assert load("tar", tmp_path / "t", "train").labels.tolist() == [0, 1]
        assert "4 files or folders are hidden" in caplog.text
        assert "1 files or folders are hidden" in caplog.text


def test_class_folders_without_images_are_refused(tmp_path):
    write_folder(tmp_path, "cat", "dog")
    (tmp_path / "fox").mkdir()
    refused("folder", tmp_path, "1 of 3 class folders have no image, as fox/")
    (tmp_path / "fox").rmdir()
    (tmp_path / "fox").symlink_to(tmp_path / "nowhere")
    refused("folder", tmp_path, "the link fox leads nowhere")


@pytest.mark.parametrize("name", ["folder", "tar"])
def test_folders_that_cannot_be_read_are_named(name):
    with tempfile.TemporaryDirectory() as folder:  # not tmp_path, which is its owner's alone
        os.chmod(folder, 0o755)
        write_folder(Path(folder), "cat", "dog")
        write_tar(Path(folder) / "a.tar", ["0"])
        os.chmod(f"{folder}/dog", 0)
        root = os.geteuid() == 0
        if root:  # whom nothing is hidden from
            os.seteuid(65534)
        try:
            refused(name, folder, "the folder .*/dog cannot be read: Permission denied")
        finally:
            if root:
                os.seteuid(0)
            os.chmod(f"{folder}/dog", 0o755)


# What a run refuses before anything is compiled ----------------------------------------------


def test_names_that_look_alike_are_told_apart(tmp_path):
    write_folder(tmp_path / "train", "cat", NFC)
    write_folder(tmp_path / "val", "cat", NFD, first=50)
    with pytest.raises(
        ValueError, match=r"'train' has '\\xe9' \(comp.*'val' has 'e\\u0301' \(comp"
    ):
        setup("folder", tmp_path)
    (tmp_path / "train" / NFD).mkdir()
    (tmp_path / "train" / NFD / "0.jpg").write_bytes(pictures.jpeg(0))
    refused("folder", tmp_path, "two classes look the same", "train")


def test_classes_that_cannot_be_learned_are_one_line(tmp_path, caplog):
    write_folder(tmp_path / "one" / "train", "cat")
    write_folder(tmp_path / "one" / "val", "cat", first=50)
    with pytest.raises(ValueError, match="'train' has one class only, 'cat'"):
        setup("folder", tmp_path / "one")
    names = ["cat", "dog", "emu"]
    write_parquet(tmp_path / "two" / "train.parquet", [0, 1] * 4, names)
    write_parquet(tmp_path / "two" / "val.parquet", [0, 2], names, first=50)
    with pytest.raises(ValueError, match="go up to 9, and the data have 3 classes"):
        setup("parquet", tmp_path / "two", **{"noise.kind": "subset", "noise.classes": (1, 9)})
    subset = {"noise.kind": "subset", "noise.rate": 0.5, "noise.within": False}
    with pytest.raises(
        ValueError, match=r"rate 0\.5 flips no label: no example is of these classes"
    ):
        setup("parquet", tmp_path / "two", **subset, **{"noise.classes": (2,)})
    assert "config.split 'train': 1 of 3 classes have no image, as emu" in caplog.text
    assert "config.eval_split 'val': 1 of 3 classes have no image, as dog" in caplog.text
    write_parquet(tmp_path / "two" / "val.parquet", [0, 2], names[::-1], first=50)
    with pytest.raises(
        ValueError,
        match=r"different classes \(3 each\).* is cat in one, emu in",
    ):
        setup("parquet", tmp_path / "two")
    write_parquet(tmp_path / "two" / "val.parquet", [0, 2], ["cat", "dog", "yak"], first=50)
    with pytest.raises(
        ValueError, match=r"have different classes \(3 each\); .*'train' has emu; .*'val' has yak"
    ):
        setup("parquet", tmp_path / "two")
