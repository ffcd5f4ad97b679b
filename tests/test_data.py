"""The embedded data: counts, alignment, no leaks, stable ids, tasks, one-line errors."""

import csv
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from noisy_fm import data
from noisy_fm.data import emoji_domains

COLOUR = ("noto", "twemoji", "openmoji", "fluent3d", "fluentflat")
DOMAINS = (*COLOUR[:3], "lineart", *COLOUR[3:])
SPLITS = ("pretrain", "train", "test")
COUNTS = {
    "noto": 3495,
    "twemoji": 3480,
    "openmoji": 3356,
    "lineart": 1566,
    "fluent3d": 3125,
    "fluentflat": 3005,
}
GROUPS = 1669
# Of all ids, code points and splits, in order: a change moves examples between splits or noise.
IDENTITY = "c36da63057be097cbedaa90c06e402121ce1eb89dc2cd6ea487e6961005742e2"


@pytest.fixture(scope="module")
def everything():
    return data.load("emoji_domains")


def test_package_data_is_what_sha256sums_says_and_fits():
    folder = emoji_domains.PACKAGE_DATA
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    listed = dict(reversed(line.split("  ")) for line in lines)
    assert set(listed) == {path.name for path in folder.iterdir()} - {"SHA256SUMS"}
    for name, expected in listed.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == expected, name
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 24e6


def test_counts_shapes_and_types(everything):
    counts = {d: int(np.sum(everything.columns["domain"] == d)) for d in DOMAINS}
    assert counts == COUNTS
    assert everything.images.shape == (sum(COUNTS.values()), 32, 32, 3)
    assert everything.images.dtype == np.uint8
    assert everything.labels.dtype == np.int32
    assert everything.ids.dtype == everything.groups.dtype == np.int64
    n = len(everything)
    columns = everything.columns.values()
    assert {len(everything.ids), len(everything.columns["caption"]), *map(len, columns)} == {n}
    assert len(set(everything.columns["concept"])) == 1897


def test_examples_and_batches_agree(everything):
    batch = everything.read([5, 3])
    assert set(batch) == {"image", "label", "id"}
    assert batch["image"].shape == (2, 32, 32, 3)
    assert np.array_equal(batch["image"][1], everything.images[3])
    assert batch["label"][1] == everything.labels[3]
    assert batch["id"][1] == everything.ids[3]
    captions = everything.read([5, 3], columns=("caption",))["caption"]
    assert captions.tolist() == everything.columns["caption"][[5, 3]].tolist()
    with pytest.raises(ValueError, match="no column 'boxes'; there are"):
        everything.read([5], columns=("boxes",))


def test_no_image_is_blank_and_line_art_is_grey(everything):
    assert everything.images.min((1, 2, 3)).max() < 255
    ranges = np.ptp(everything.images, axis=-1)
    assert ranges[everything.columns["domain"] == "lineart"].max() <= 1
    assert ranges[everything.columns["domain"] == "noto"].mean() > 20


def test_no_two_drawings_of_a_domain_are_identical_at_their_native_size(everything):
    # At 32×32 a few pairs become equal; at 64×64 none is, so nearly none may be here.
    for domain in DOMAINS:
        images = everything.images[everything.columns["domain"] == domain]
        distinct = len({image.tobytes() for image in images})
        assert len(images) - distinct <= 3, domain


def test_domains_are_aligned_by_code_point():
    noto = data.load("emoji_domains", domain="noto")
    for domain in COLOUR[1:]:
        other = data.load("emoji_domains", domain=domain)
        shared, i, j = np.intersect1d(
            noto.columns["codepoints"], other.columns["codepoints"], return_indices=True
        )
        assert len(shared) > 2900
        assert [noto.columns["caption"][k] for k in i] == [other.columns["caption"][k] for k in j]
        a, b = standardised(noto.images[i[::4]]), standardised(other.images[j[::4]])
        similarity = a @ b.T
        # The true partner is far above a random one and is mostly in the nearest tenth.
        assert np.mean(np.diag(similarity)) > np.mean(similarity) + 0.2, domain
        better = np.mean(similarity > np.diag(similarity)[:, None], axis=1)
        assert np.median(better) < 0.1, domain


def standardised(images):
    flat = images.reshape(len(images), -1).astype(np.float32)
    flat -= flat.mean(0)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def test_openmoji_and_its_line_art_share_their_lines():
    colour, line = (data.load("emoji_domains", domain=d) for d in ("openmoji", "lineart"))
    _, i, j = np.intersect1d(
        colour.columns["codepoints"], line.columns["codepoints"], return_indices=True
    )
    dark = line.images[j].mean(-1) < 64
    assert np.mean(colour.images[i].mean(-1)[dark] < 128) > 0.85


def test_groups_and_concepts_are_in_one_split_in_all_domains(everything):
    for key in (everything.groups, everything.columns["concept"]):
        pairs = set(zip(key.tolist(), everything.columns["split"].tolist(), strict=True))
        assert len(pairs) == len({k for k, _ in pairs})
    parts = [data.load("emoji_domains", split=split) for split in SPLITS]
    assert np.array_equal(np.sort(np.concatenate([p.ids for p in parts])), np.sort(everything.ids))
    shares = [len(set(part.groups)) / len(set(everything.groups)) for part in parts]
    np.testing.assert_allclose(shares, (0.6, 0.2, 0.2), atol=0.01)


@pytest.mark.parametrize(
    "names",
    [
        ("person running", "man running", "woman running", "woman running: facing right"),
        ("firefighter", "woman firefighter", "man firefighter: dark skin tone"),
        ("person with crown", "prince", "princess"),
        ("Santa Claus", "Mrs. Claus", "Mx Claus"),
        ("family: man, man, boy", "family: woman, girl", "family"),
        ("flag: Romania", "flag: Chad"),
    ],
)
def test_variants_of_a_person_and_like_drawings_are_one_group(everything, names):
    captions = np.array(everything.columns["caption"])
    assert all(np.any(captions == name) for name in names)
    assert len(set(everything.groups[np.isin(captions, names)])) == 1


def test_ids_are_unique_and_the_same_in_every_selection(everything):
    assert len(set(everything.ids)) == len(everything)
    digest = hashlib.sha256(everything.ids.astype("<i8").tobytes())
    digest.update("\n".join(everything.columns["codepoints"]).encode())
    digest.update("\n".join(everything.columns["split"]).encode())
    assert digest.hexdigest() == IDENTITY
    where = {int(id_): i for i, id_ in enumerate(everything.ids)}
    part = data.load("emoji_domains", domain=("fluent3d", "noto"), split="test", labels="gender")
    rows = [where[int(id_)] for id_ in part.ids]
    assert np.array_equal(everything.images[rows], part.images)
    assert np.array_equal(everything.columns["caption"][rows], part.columns["caption"])


@pytest.mark.parametrize("task", data.LABELS)
def test_every_class_of_a_task_can_be_learnt_and_tested(task):
    for domain in DOMAINS:
        if task == "artist" or (task, domain) == ("skin_tone", "lineart"):
            continue
        for split in SPLITS:
            part = data.load("emoji_domains", domain=domain, split=split, labels=task)
            counts = np.bincount(part.labels, minlength=part.num_classes)
            absent = {part.label_names[k] for k in np.flatnonzero(counts == 0)}
            assert absent <= ({"country-flag"} if domain not in COLOUR[:3] else set()), domain
            small = task in ("gender", "person_kind") and domain == "lineart"
            assert len(part) >= (40 if small else 150)


def test_task_sizes_and_labels():
    sizes = {
        task: data.load("emoji_domains", domain="lineart", split="test", labels=task).num_classes
        for task in data.LABELS
        if task != "skin_tone"
    }
    assert sizes == {
        "subcategory": 55,
        "category": 8,
        "subject": 10,
        "person_kind": 6,
        "gender": 3,
        "artist": 6,
    }
    tone = data.load("emoji_domains", labels="skin_tone", split="test")
    assert tone.num_classes == 6
    assert np.array_equal(np.array(tone.label_names)[tone.labels], tone.columns["skin_tone"])
    assert all(
        f": {label} skin tone" in name or f", {label} skin tone" in name
        for label, name in zip(tone.columns["skin_tone"], tone.columns["caption"], strict=True)
        if label != "default"
    )
    subject = data.load("emoji_domains", labels="subject", domain="noto")
    cat = subject.columns["caption"].tolist().index("cat")
    assert subject.label_names[subject.labels[cat]] == "animal"
    artist = data.load("emoji_domains", labels="artist", split="test")
    assert np.bincount(artist.labels).min() > 250


def test_without_a_task_labels_are_concept_groups(everything):
    assert np.array_equal(everything.labels, everything.groups)
    assert everything.label_names[everything.labels[0]] == "grinning face"
    assert everything.num_classes == len(set(everything.groups)) == GROUPS


def test_each_image_says_its_source_and_licence(everything):
    licences = {
        (str(d), str(s).split("@1")[0].lstrip("@"), str(licence))
        for d, s, licence in zip(
            *(everything.columns[k] for k in ("domain", "source", "licence")), strict=True
        )
    }
    assert licences == {
        ("noto", "emoji-datasource-google", "Apache-2.0"),
        ("twemoji", "emoji-datasource-twitter", "CC-BY-4.0"),
        ("openmoji", "openmoji", "CC-BY-SA-4.0"),
        ("lineart", "openmoji", "CC-BY-SA-4.0"),
        ("fluent3d", "lobehub/fluent-emoji-3d", "MIT"),
        ("fluentflat", "lobehub/fluent-emoji-flat", "MIT"),
    }
    notice = (Path(__file__).parents[1] / "NOTICE").read_text()
    for name in ("Noto", "Twemoji", "OpenMoji", "Fluent", "Attribution-ShareAlike 4.0"):
        assert name in notice


def test_digits():
    train, test = (data.load("digits", split=split, size=64) for split in ("train", "test"))
    assert train.images.shape == (901, 64, 64, 3)
    assert len(test) == 896
    assert not set(train.ids) & set(test.ids)
    assert "caption" not in train.columns
    assert train.label_names == tuple("0123456789")
    difference = np.bincount(train.labels) - np.bincount(test.labels)
    assert set(difference) <= {0, 1}
    from sklearn.datasets import load_digits

    reference = load_digits()
    assert np.array_equal(train.labels, reference.target[train.ids])
    small = 255 - train.images.reshape(901, 8, 8, 8, 8, 3).mean((2, 4, 5))
    assert np.corrcoef(small.ravel(), reference.images[train.ids].ravel())[0, 1] > 0.98


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "emoji"}, ("'emoji'", "emoji_domains, digits, folder, tar", "tfds:NAME")),
        ({"path": "/data"}, ("emoji_domains", "no path")),
        ({"domain": "notto"}, ("domain 'notto'", "fluent3d", "did you mean 'noto'")),
        ({"domain": ("noto", "x")}, ("domain 'x'", "lineart")),
        ({"split": "training"}, ("split 'training'", "pretrain, train, test", "'train'")),
        ({"labels": "tone"}, ("labels 'tone'", "skin_tone")),
        ({"size": 48}, ("size 48", "32 and 64")),
        ({"domain": "lineart", "labels": "skin_tone"}, ("lineart", "skin_tone")),
        ({"name": "digits", "domain": "noto"}, ("no domains", "'noto'")),
        ({"name": "digits", "split": "pretrain"}, ("'pretrain'", "train, test")),
        ({"name": "digits", "labels": "gender"}, ("'gender'", "digit")),
    ],
)
def test_what_does_not_exist_is_one_line(arguments, words):
    with pytest.raises(ValueError, match=r"known|there|no ") as caught:
        data.load(**{"name": "emoji_domains", **arguments})
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_the_larger_size_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.delenv("NOISY_FM_EMOJI", raising=False)
    with pytest.raises(FileNotFoundError, match=r"--size 64 .*NOISY_FM_EMOJI"):
        data.load("emoji_domains", size=64)
    monkeypatch.setenv("NOISY_FM_EMOJI", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"nowhere/drawings\.csv"):
        data.load("emoji_domains", size=64)


def test_the_larger_size_is_read_from_its_folder(monkeypatch, tmp_path):
    from PIL import Image

    for name in ("drawings.csv", "domains.json"):
        shutil.copy(emoji_domains.PACKAGE_DATA / name, tmp_path)
    with Image.open(emoji_domains.PACKAGE_DATA / "lineart_32.webp") as sheet:
        doubled = sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.NEAREST)
    doubled.save(tmp_path / "lineart_64.webp", lossless=True, method=0)
    sums = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in tmp_path.iterdir()]
    (tmp_path / "SHA256SUMS").write_text("".join(sums))
    monkeypatch.setenv("NOISY_FM_EMOJI", str(tmp_path))
    large = data.load("emoji_domains", domain="lineart", split="test", size=64)
    small = data.load("emoji_domains", domain="lineart", split="test")
    assert np.array_equal(large.images[:, ::2, ::2], small.images)
    assert np.array_equal(large.ids, small.ids)


@pytest.mark.parametrize("harm", ["gone", "cut", "flipped"])
def test_missing_or_corrupt_package_data_is_named(monkeypatch, tmp_path, harm):
    folder = tmp_path / "emoji"
    shutil.copytree(emoji_domains.PACKAGE_DATA, folder)
    sheet = folder / "noto_32.webp"
    payload = sheet.read_bytes()
    if harm == "gone":
        sheet.unlink()
    else:
        flipped = payload[:5000] + bytes([payload[5000] ^ 1]) + payload[5001:]
        sheet.write_bytes(payload[:5000] if harm == "cut" else flipped)
    monkeypatch.setattr(emoji_domains, "PACKAGE_DATA", folder)
    with pytest.raises((FileNotFoundError, ValueError), match=r"noto_32\.webp") as caught:
        data.load("emoji_domains", domain="noto")
    assert "\n" not in str(caught.value)
    assert len(data.load("emoji_domains", domain="lineart")) == COUNTS["lineart"]


def test_importing_the_sources_is_light():
    code = "import sys, noisy_fm.data; print([m for m in {} if m in sys.modules])"
    code = code.format(("jax", "tensorflow", "sklearn", "torch", "pandas"))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_table_has_one_row_a_drawing_in_unicode_order():
    with (emoji_domains.PACKAGE_DATA / "drawings.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    points = [row["codepoints"] for row in rows]
    assert len(points) == len(set(points)) == 3512
    assert points[0] == "1F600"
    assert not any("FE0F" in p for p in points)
    groups = [int(row["group"]) for row in rows]
    assert list(dict.fromkeys(groups)) == list(range(len(set(groups))))
    tones = {"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"}
    assert all(len(tones & set(p.split("-"))) <= 1 for p in points)


@pytest.mark.slow
def test_two_builds_give_the_package_data_byte_for_byte(tmp_path):
    pytest.importorskip("resvg_py")
    script = Path(__file__).parents[1] / "tools" / "build_emoji_domains.py"
    subprocess.run([sys.executable, script, "--out", tmp_path], check=True, capture_output=True)
    for path in emoji_domains.PACKAGE_DATA.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name
