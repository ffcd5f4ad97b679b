"""Images on disk: one identity in every storage, pixels as PIL's and timm's, one-line errors."""

import concurrent.futures
import hashlib
import io
import os
import pickle
import struct
import subprocess
import sys
import types
import zlib
from pathlib import Path

import numpy as np
import pictures
import pytest
from PIL import Image

from noisy_fm import data, noise
from noisy_fm.data import decode, images, prepare
from noisy_fm.data.storage import FolderStorage, listing, open_storage

REFERENCE = Path(__file__).parent / "references" / "input.npz"
STORAGES = pictures.STORAGES


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """The same 24 photographs in each storage: {name: path}."""
    return pictures.write_all(tmp_path_factory.mktemp("photographs"))


def open_one(roots, name, **options):
    return data.load(name, path=str(roots[name]), **{"split": "train", "size": 32, **options})


@pytest.mark.parametrize("name", STORAGES)
def test_every_storage_gives_the_same_examples(roots, name):
    source = open_one(roots, name)
    assert source.label_names == pictures.CLASSES
    assert source.ids.dtype == np.int64
    assert source.labels.dtype == np.int32
    assert source.ids.min() >= 0
    expected = {}
    for file, label, content in pictures.examples():
        digest = hashlib.blake2b(file.removesuffix(".JPEG").encode(), digest_size=8).digest()
        expected[int.from_bytes(digest, "little") >> 1] = (label, content)
    for i in range(len(source)):
        assert (source.labels[i], source.storage.read(i)) == expected.pop(int(source.ids[i]))
    assert not expected
    noisy = {}
    for each in (source, open_one(roots, "folder")):
        labels, _ = noise.flip_labels(each.labels, 3, 0.4, ids=each.ids, seed=1)
        noisy[each] = dict(zip(each.ids.tolist(), labels.tolist(), strict=True))
    assert len({frozenset(one.items()) for one in noisy.values()}) == 1


@pytest.mark.parametrize("name", STORAGES)
def test_a_pickled_source_reads_alike_from_many_threads(roots, name):
    source = open_one(roots, name)
    expected = source.read(np.arange(24))
    copy = pickle.loads(pickle.dumps(source))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: copy.read([i % 24]), range(96)))
    for i, example in enumerate(found):
        assert example["id"] == expected["id"][i % 24]
        assert np.array_equal(example["image"][0], expected["image"][i % 24])


def test_the_index_of_shards_is_built_once_and_again_when_they_change(tmp_path):
    pictures.write_tar(tmp_path / "tar", pictures.examples())
    load = {"name": "tar", "path": str(tmp_path / "tar"), "size": 32}
    first = data.load(**load)
    shard = next((tmp_path / "tar").glob("*.tar"))
    content, about = shard.read_bytes(), shard.stat()
    shard.write_bytes(bytes([1]) * len(content))  # not to be seen without reading it
    os.utime(shard, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert np.array_equal(data.load(**load).ids, first.ids)
    index = next((tmp_path / "tar").glob(".noisy_fm-*"))
    index.write_bytes(index.read_bytes()[:100])
    with pytest.raises(ValueError, match="no whole uncompressed tar"):
        data.load(**load)
    shard.write_bytes(content)
    assert np.array_equal(data.load(**load).ids, first.ids)
    pictures.write_tar(tmp_path / "tar", pictures.examples(30))
    assert len(data.load(**load)) == 30
    os.chmod(tmp_path / "tar", 0o500)  # root writes all the same: then it is only built
    assert len(data.load(**load)) == 30
    os.chmod(tmp_path / "tar", 0o700)


def test_tar_labels_may_be_json_or_class_names(tmp_path):
    pictures.write_tar(tmp_path / "json", pictures.examples(), kind="json")
    source = data.load("tar", path=str(tmp_path / "json"), split="train")
    assert source.label_names == ("0", "1", "2")
    assert np.bincount(source.labels).tolist() == [8, 8, 8]
    named = [(n, i % 3, b) for i, (n, _, b) in enumerate(pictures.examples(6))]
    words = {0: "tench", 1: "goldfish", 2: "dog"}
    pictures.write_tar(tmp_path / "words", [(n, words[k], b) for n, k, b in named])
    source = data.load("tar", path=str(tmp_path / "words" / "train-*.tar"))
    assert source.label_names == ("dog", "goldfish", "tench")


@pytest.mark.parametrize("name", ["folder/a.b.jpg", "a.b.jpeg", "x\\a.b.JPEG", "a.b", "é.b.png"])
def test_the_stem_is_the_identity(name):
    expected = {"a.b": "a", "é.b.png": "é.b"}.get(name, "a.b")
    assert listing.stem(name.encode()) == expected
    assert listing.stem(b"n01440764_10026_n01440764.JPEG") == "n01440764_10026"
    assert listing.stem(b"n01440764.JPEG") == "n01440764"


def test_what_is_no_image_is_said(tmp_path, caplog):
    for name, content in (("cat/1.jpg", pictures.jpeg(0)), ("cat/a.gif", b""), ("cat/b.txt", b"")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "beside.jpg").write_bytes(pictures.jpeg(0))
    source = data.load("folder", path=str(tmp_path))
    assert (len(source), source.label_names) == (1, ("cat",))
    assert "2 files are no images by their names and ignored, as cat/a.gif" in caplog.text
    assert "1 files beside the class folders are in no class and ignored, as bes" in caplog.text


def test_names_that_are_no_text_are_names_too():
    names = [b"caf\xe9.jpg", "café.jpg".encode()]
    found = listing.make_listing(names, [0, 1], ["a", "b"], "here")
    assert len(set(listing.ids_of(found, "here"))) == 2
    source = images.ImageSource(types.SimpleNamespace(where="here", listing=found), None, 8, 16, {})
    assert source.name(0).encode() == b"here: caf\\xe9.jpg"


def test_shared_names_in_classes_without_names_are_refused(tmp_path):
    """Their ids would be others once the classes are named."""
    rows = [(f"{i % 3}/{i // 3:03}.JPEG", i % 3, pictures.jpeg(i)) for i in range(6)]
    pictures.write_tar(tmp_path, rows)
    with pytest.raises(ValueError, match=r"expected names of the classes \(labels\.txt"):
        data.load("tar", path=str(tmp_path))
    (tmp_path / "labels.txt").write_text("\n".join(pictures.CLASSES))
    assert len(data.load("tar", path=str(tmp_path))) == 6


@pytest.mark.parametrize("name", STORAGES)
def test_files_of_one_name_in_two_classes_are_told_apart_alike_in_every_storage(name, tmp_path):
    rows = [(f"{i // 3:03}.JPEG", i % 3, pictures.jpeg(i)) for i in range(9)]
    rows.append(("other.JPEG", 0, pictures.jpeg(9)))
    pictures.write_folder(tmp_path / "folder", rows)
    if name == "tar":  # as `tar -c train` would: the class is in the key too
        inside = [(f"{pictures.CLASSES[label]}/{n}", label, b) for n, label, b in rows]
        pictures.write_tar(tmp_path / "tar", inside)
        (tmp_path / "tar" / "labels.txt").write_text("\n".join(pictures.CLASSES))
    elif name == "parquet":
        pictures.write_parquet(tmp_path / "parquet", rows)
    elif name == "tfds:photos":
        pictures.write_tfds(tmp_path / "tfds:photos", rows)
    elif name == "array_record":
        storage = FolderStorage(str(tmp_path / "folder"), "train")
        prepare.prepare(storage, tmp_path / "array_record", "train", shard_size=4)
    if name in ("tar", "parquet", "tfds:photos"):  # and what is prepared from them
        storage = open_storage(name, str(tmp_path / name), "train")
        prepare.prepare(storage, tmp_path / "prepared", "train")
    expected = {}
    for file, label, content in rows:
        text = f"{pictures.CLASSES[label]}/{file.removesuffix('.JPEG')}".encode()
        digest = hashlib.blake2b(text, digest_size=8).digest()
        expected[int.from_bytes(digest, "little") >> 1] = (label, content)
    for each, path in ((name, name), ("array_record", "prepared")):
        if (tmp_path / path).exists():
            source = data.load(each, path=str(tmp_path / path), split="train", size=32)
            assert set(source.ids.tolist()) == set(expected)
            for i, id_ in enumerate(source.ids.tolist()):
                assert (source.labels[i], source.storage.read(i)) == expected[id_]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_what_is_missing_or_ambiguous_is_one_line(roots, tmp_path):
    photo = pictures.jpeg(0)
    write(tmp_path / "flat" / "one.jpg", photo)
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    write(tmp_path / "twice" / "cat" / "a" / "1.jpg", photo)
    write(tmp_path / "twice" / "cat" / "b" / "1.png", photo)
    pictures.write_tar(tmp_path / "bare", [("a.JPEG", 0, photo)], shards=1)
    shard = tmp_path / "bare" / "train-000000.tar"
    shard.write_bytes(shard.read_bytes().replace(b"a.cls", b"a.txt"))
    pictures.write_tar(tmp_path / "cut", pictures.examples(), shards=1)
    shard = tmp_path / "cut" / "train-000000.tar"
    shard.write_bytes(shard.read_bytes()[:20_000])
    write(tmp_path / "parquet" / "train.parquet", b"PAR1 and no more")
    write(tmp_path / "names" / "labels.txt", b"tench\ngoldfish\n")
    pictures.write_tar(tmp_path / "names", pictures.examples())
    path = "^/.*/"
    cases = [
        ("folder", {}, "folder: path is missing"),
        ("folder", {"path": tmp_path / "no"}, path + "no is no folder; expected CLASS/IMAGE"),
        (
            "folder",
            {"path": roots["folder"], "split": "val"},
            path + "folder has no folder val/ .* has train/; expected val/CLASS",
        ),
        *(
            (
                name,
                {"path": roots[name], "split": "train[:50%]"},
                f"^{name}: .* slices are of tfds:NAME only; expected a whole split, as 'train'",
            )
            for name in ("folder", "tar", "array_record", "parquet")
        ),
        ("folder", {"path": tmp_path / "flat"}, "no classes; it has one.jpg; expected a folder"),
        (
            "folder",
            {"path": tmp_path / "empty"},
            r"no image in cat/; looked for .*\*.jpg",
        ),
        ("folder", {"path": roots["folder"]}, "has train/, which look like splits, not classes"),
        ("folder", {"path": tmp_path / "twice"}, "cat/a/1.jpg and cat/b/1.png"),
        ("tar", {"path": tmp_path / "no"}, path + r"no does not exist; expected \*.tar"),
        ("tar", {"path": tmp_path / "flat"}, r"has no \*.tar in it; it has one.jpg"),
        (
            "tar",
            {"path": roots["tar"], "split": "val"},
            r"no \*.tar of split 'val' .* 3 others, as train-0",
        ),
        (
            "tar",
            {"path": tmp_path / "bare"},
            "1 of 1 images have no label, as a.jpg; expected it in a.cls",
        ),
        ("tar", {"path": tmp_path / "cut"}, "no whole uncompressed tar"),
        ("tar", {"path": tmp_path / "names"}, "8 labels are outside 0 … 1"),
        ("parquet", {"path": tmp_path / "parquet"}, "no whole parquet"),
        ("array_record", {"path": roots["tar"], "split": "train"}, "no finished split 'train'"),
        ("array_record", {"path": roots["array_record"], "split": "val"}, "it has train"),
        ("tfds:photos", {"path": roots["tfds:photos"]}, "split is missing; there is train"),
        ("tfds:photos", {"path": roots["tfds:photos"], "split": "x"}, "Unknown split 'x'"),
        (
            "tfds:cars",
            {"path": roots["tfds:photos"]},
            path + "tfds has no prepared tfds:cars; .*prepare.py tfds:cars",
        ),
        (
            "folder",
            {"path": roots["folder"], "labels": "gender"},
            "no domain and one labelling, got labels 'gender'",
        ),
        ("folder", {"path": roots["folder"], "split": "train", "canvas": 8}, "canvas ≥ size"),
        ("digits", {"path": roots["folder"]}, "images on disk .--config.data.name=folder, tar"),
    ]
    for name, options, words in cases:
        options = {k: str(v) if k == "path" else v for k, v in options.items()}
        with pytest.raises((ValueError, FileNotFoundError), match=words) as caught:
            data.load(name, **options)
        assert "\n" not in str(caught.value), words


def test_evaluation_views_are_timms():
    reference = np.load(REFERENCE)
    views = [key for key in reference.files if key.startswith("view")]
    assert len(views) == 7
    for key in views:
        file = reference[key.replace("view", "file")].tobytes()
        assert np.array_equal(decode.evaluation_view(file, 64), reference[key]), key


@pytest.mark.parametrize("shape", [(40, 900), (900, 40), (2, 300), (300, 1), (16, 257)])
def test_the_view_of_a_long_image_is_the_whole_ones_centre(shape):
    height, width = shape
    coarse = np.random.default_rng(0).random((height // 8 + 1, width // 8 + 1, 3)) * 256
    image = Image.fromarray(coarse.astype(np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    resized = (33, int(33 * height / width)) if width < height else (int(33 * width / height), 33)
    whole = np.asarray(image.resize(resized, Image.Resampling.BICUBIC)).astype(int)
    top, left = round((resized[1] - 32) / 2), round((resized[0] - 32) / 2)
    view = decode.evaluation_view(pictures.save(image, "PNG"), 32)
    assert np.abs(view - whole[top : top + 32, left : left + 32]).max() <= 1


def test_a_line_of_pixels_takes_no_more_memory_than_it_has():
    code = (
        "import io, resource, sys; from PIL import Image; from noisy_fm.data import decode;"
        "file = io.BytesIO(); Image.new('L', eval(sys.argv[1]), 7).save(file, 'PNG');"
        "most = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "before = most(); view = decode.evaluation_view(file.getvalue(), 224);"
        "print(view.shape, view.min(), view.max(), (most() - before) // 1024)"
    )
    for size in ("(30000, 1)", "(1, 30000)"):
        run = subprocess.run(
            [sys.executable, "-c", code, size], capture_output=True, text=True, check=True
        )
        assert run.stdout.startswith("(224, 224, 3) 7 7 ")
        assert int(run.stdout.split()[-1]) < 50  # MiB; resized whole it took 6,700


def bombs():
    claimed = bytearray(pictures.jpeg(0))
    frame = decode.frame_of(bytes(claimed))
    claimed[frame.at : frame.at + 4] = (30000).to_bytes(2, "big") * 2
    yield bytes(claimed)
    yield b"P6 30000 30000 255\n"
    header = b"IHDR" + struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    yield (
        b"\x89PNG\r\n\x1a\n\0\0\0\r"
        + header
        + struct.pack(">I", zlib.crc32(header))
        + b"\0\0\0\0IDAT"
    )


@pytest.mark.parametrize("content", list(bombs()), ids=["jpeg", "ppm", "png"])
def test_more_pixels_than_memory_has_are_unreadable_before_they_are_decoded(content):
    for read in (
        decode.decode,
        lambda data: decode.evaluation_view(data, 32),
        lambda data: decode.random_crop(
            data, draws_for(0, 0, 0.1), np.zeros((64, 64, 3), np.uint8)
        ),
    ):
        with pytest.raises(decode.UnreadableError, match="900000000 pixels"):
            read(content)


def test_pixels_whose_range_nothing_says_are_unreadable():
    ramp = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    for pixels, words in ((ramp, "floats"), ((ramp * 255).astype(np.int32), "32-bit integers")):
        with pytest.raises(decode.UnreadableError, match=f"its pixels are {words}"):
            decode.decode(pictures.save(Image.fromarray(pixels), "TIFF"))
    for depth in (255, 1023, 65535):  # what a PPM's maximum says
        dtype = ">u2" if depth > 255 else "u1"
        content = b"P5 8 8 %d\n" % depth + np.round(ramp * depth).astype(dtype).tobytes()
        expected = np.floor(ramp * 255.999).astype(int)
        assert np.abs(decode.decode(content)[..., 0] - expected).max() <= 1


def test_random_boxes_are_timms():
    reference = np.load(REFERENCE)
    boxes = [
        decode.random_box(int(height), int(width), draws)
        for (height, width), draws in zip(reference["shapes"], reference["draws"], strict=True)
    ]
    assert np.array_equal(np.array(boxes), reference["boxes"])


def test_draws_depend_on_seed_and_position_alone():
    base = decode.uniforms(1, 20, 5)
    assert base.shape == (5, 10, 4)
    for i in range(5):
        assert np.array_equal(base[i], decode.uniforms(1, 20 + i, 1)[0])
    assert np.abs(base - decode.uniforms(2, 20, 5)).min() > 1e-6
    many = decode.uniforms(0, 2**40, 2000).reshape(2000, -1)
    assert abs(many.mean() - 0.5) < 0.005
    assert np.abs(np.corrcoef(many.T) - np.eye(40)).max() < 0.12


def draws_for(top, left, area, aspect=0.5):
    return np.tile([area, aspect, top, left], (10, 1))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_partial_decoding_gives_the_pixels_of_pil(options, subsampling):
    content = pictures.jpeg(3, 203, 157, subsampling=subsampling, **options)
    whole = np.asarray(Image.open(io.BytesIO(content)))
    assert np.array_equal(decode.decode(content), whole)
    for i in range(40):
        draws = decode.uniforms(0, i, 1)[0]
        box = decode.random_box(203, 157, draws)
        out = np.zeros((210, 210, 3), np.uint8)
        assert decode.random_crop(content, draws, out) == box[2:]
        crop = whole[box.top : box.top + box.height, box.left : box.left + box.width]
        assert np.array_equal(out[: box.height, : box.width], crop)
        assert not out[box.height :].any()
        assert not out[:, box.width :].any()


def test_rows_below_the_crop_are_not_decoded():
    content = pictures.jpeg(3, 400, 320)
    frame = decode.frame_of(content)
    assert (frame.height, frame.width, frame.sequential, frame.rows) == (400, 320, True, 16)
    assert len(decode.decode_jpeg(content, frame, 100, 1)) == 116


@pytest.mark.parametrize(("canvas", "factor"), [(150, 2), (75, 4), (38, 8), (20, 8)])
def test_a_crop_larger_than_the_canvas_is_scaled_to_fit(canvas, factor):
    content = pictures.jpeg(5, 300, 300)
    draws = draws_for(0.8, 0.7, 0.65)
    box = decode.random_box(300, 300, draws)
    out = np.zeros((canvas, canvas, 3), np.uint8)
    height, width = decode.random_crop(content, draws, out)
    assert max(height, width) <= canvas
    assert max(height, width) == min(canvas, round(max(box[2:]) / factor))
    whole = decode.decode(content)
    errors = []
    for top, left in ((box.top, box.left), (0, 0)):
        crop = whole[top : top + box.height, left : left + box.width]
        expected = Image.fromarray(crop).resize((width, height), Image.Resampling.BOX)
        errors.append(np.abs(np.asarray(expected).astype(int) - out[:height, :width]).mean())
    assert errors[0] < 9
    assert errors[0] < errors[1] / 4
    assert not out[height:].any()


def kinds():
    rgb = Image.open(io.BytesIO(pictures.jpeg(1)))
    alpha = rgb.convert("RGBA")
    alpha.putalpha(Image.linear_gradient("L").resize(rgb.size))
    deep = np.arange(96 * 128, dtype=np.uint16).reshape(96, 128) * 5
    palette = rgb.quantize(16)
    yield "grey jpeg", pictures.save(rgb.convert("L"), "JPEG")
    yield "cmyk jpeg", pictures.save(rgb.convert("CMYK"), "JPEG")
    yield "bytes after the end", pictures.jpeg(1) + b"\0\0"
    yield (
        "turned by exif",
        pictures.save(
            rgb,
            "JPEG",
            exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0",
        ),
    )
    yield "png", pictures.save(rgb, "PNG")
    yield "alpha", pictures.save(alpha, "PNG")
    yield "palette", pictures.save(palette, "PNG", transparency=bytes(range(16)))
    later = rgb.transpose(Image.Transpose.ROTATE_180)
    yield "animated gif", pictures.save(rgb, "GIF", save_all=True, append_images=[later])
    yield (
        "animated webp",
        pictures.save(rgb, "WEBP", save_all=True, append_images=[later], lossless=True),
    )
    yield "animated png", pictures.save(rgb, "PNG", save_all=True, append_images=[later])
    yield "grey and alpha", pictures.save(alpha.convert("LA"), "PNG")
    yield "rgb jpeg", pictures.save(rgb, "JPEG", keep_rgb=True)
    yield "cmyk tiff", pictures.save(rgb.convert("CMYK"), "TIFF")
    yield "webp", pictures.save(rgb, "WEBP", lossless=True)
    yield "bits", pictures.save(rgb.convert("1"), "PNG")
    yield "16 bits", pictures.save(Image.fromarray(deep), "PNG")


@pytest.mark.parametrize("kind", [name for name, _ in kinds()])
@pytest.mark.filterwarnings("ignore:Palette images:UserWarning")  # PIL's, in the reference
def test_unusual_images_are_read_as_pil_reads_them(kind):
    content = dict(kinds())[kind]
    if kind == "16 bits":
        grey = np.arange(96 * 128, dtype=np.uint16).reshape(96, 128) * 5 >> 8
        expected = np.repeat(grey.astype(np.uint8)[..., None], 3, -1)
    else:
        expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert np.array_equal(decode.decode(content), expected)
    out = np.zeros((128, 128, 3), np.uint8)
    draws = draws_for(0.3, 0.6, 0.3)
    box = decode.random_box(96, 128, draws)
    decode.random_crop(content, draws, out)
    crop = expected[box.top :, box.left :][: box.height, : box.width]
    assert np.array_equal(out[: box.height, : box.width], crop)


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xd8", b"\xff\xd8\xff\xd9", bytes(5000), pictures.jpeg(0)[:1500],
     pictures.jpeg(0)[:40] + b"\xff\xd9", b"\xff\xd8" + bytes(range(256)) * 20 + b"\xff\xd9",
     pictures.save(Image.new("RGB", (64, 64)), "PNG")[:60]],
)  # fmt: skip
def test_damaged_bytes_are_unreadable(content):
    for read in (
        decode.decode,
        lambda data: decode.evaluation_view(data, 32),
        lambda data: decode.random_crop(
            data, draws_for(0, 0, 0.1), np.zeros((64, 64, 3), np.uint8)
        ),
    ):
        with pytest.raises(decode.UnreadableError):
            read(content)


def test_taking_a_damaged_image_names_it(tmp_path):
    pictures.write_folder(tmp_path, pictures.examples(6))
    source = data.load("folder", path=str(tmp_path), split="train")
    bad = tmp_path / "train" / source.storage.listing.names[2].decode()
    bad.write_bytes(b"")
    with pytest.raises(ValueError, match=f"{bad.name} cannot be read"):
        source.read([1, 2])


def test_a_selection_is_a_source_of_its_own(roots):
    source = open_one(roots, "tar")
    rows = [7, 3, 20]
    part = source.select(rows)
    assert len(part) == 3
    assert part.num_classes == 3
    for name, value in source.read(rows).items():
        assert np.array_equal(part.read([0, 1, 2])[name], value)
    assert np.array_equal(part.ids, source.ids[rows])
    assert part.name(1) == source.name(3)


def test_reading_tfds_needs_no_tensorflow(roots):
    code = (
        "import sys; from noisy_fm import data; assert 'tensorflow_datasets' not in sys.modules;"
        f"s = data.load('tfds:photos', path={str(roots['tfds:photos'])!r}, split='train[:50%]');"
        "s.read([0]); print(len(s), 'tensorflow' in sys.modules, 'jax' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "12 False False"
