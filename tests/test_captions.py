"""Captions as a column: the same from every storage, broken pairs counted, and none in memory."""

import contextlib
import csv
import hashlib
import io
import json
import pickle
import tarfile

import numpy as np
import pairs
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noisy_fm import config, data
from noisy_fm.corruptions import CORRUPTIONS
from noisy_fm.data import loader, sources
from noisy_fm.data.pairs import base
from noisy_fm.data.pairs.members import CutShortError, NoTarError, members
from noisy_fm.data.source import View
from noisy_fm.study import settings as study_settings
from noisy_fm.train import build

ROWS = pairs.pairs()
WAYS = {
    "txt": ("tar", pairs.write_tar, "txt"),
    "json": ("tar", pairs.write_tar, "json:caption"),
    "csv": ("folder", pairs.write_folder, "captions.csv:title"),
    "tsv": ("folder", lambda *a: pairs.write_folder(*a, kind="tsv"), "captions.tsv:title"),
    "jsonl": ("folder", lambda *a: pairs.write_folder(*a, kind="jsonl"), "captions.jsonl:title"),
    "parquet": ("parquet", pairs.write_parquet, "caption"),
}


@pytest.fixture(scope="module", params=WAYS)
def source(request, tmp_path_factory):
    name, write, captions = WAYS[request.param]
    root = tmp_path_factory.mktemp(request.param)
    write(root, ROWS)
    return data.load(name, path=str(root), captions=captions, size=16)


def id_of(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def by_id(source) -> dict[int, str]:
    return dict(zip(source.ids.tolist(), source.columns["caption"][:].tolist(), strict=True))


def load_tar(root, captions="txt"):
    return data.load("tar", path=str(root), captions=captions, size=16)


def test_captions_are_those_of_the_images(source):
    assert by_id(source) == {id_of(key): caption for key, caption, _ in ROWS}
    assert list(source.columns) == ["caption"]
    assert source.info["label_names"] == []
    contents = {id_of(key): image for key, _, image in ROWS}
    assert all(source.content(row) == contents[source.ids[row]] for row in range(len(source)))
    assert str(source.name(3)).endswith(".jpg")
    assert "24 examples" in repr(source)


def test_a_caption_column_is_indexed_as_arrays_are(source):
    column = source.columns["caption"]
    whole = column[:]
    assert len(column) == len(whole) == len(ROWS)
    assert whole.dtype == object
    assert all(type(text) is str for text in whole)
    mask = np.arange(len(ROWS)) % 3 == 0
    for rows in ([4, 0, 4], np.array([], int), slice(3, 9, 2), slice(None, None, -1), [-1], mask):
        assert column[rows].tolist() == whole[rows].tolist()
        chosen = column.select(np.array([7, 2, 9, 2]))
    assert chosen[[1, 3]].tolist() == whole[[2, 2]].tolist()
    assert column[5] == whole[5]
    for rows in ([24], [-25], mask[:3]):
        with pytest.raises(IndexError):
            column[rows]


def test_a_selection_a_copy_and_a_swap_keep_pairs_apart(source):
    n = len(source)
    noisy, manifest = CORRUPTIONS["captions"](source, 0.3, seed=5)
    true, given_ = by_id(source), by_id(noisy)
    assert {i for i in true if true[i] != given_[i]} == set(manifest.ids.tolist())
    assert len(manifest.ids) == round(0.3 * n)
    assert sorted(true.values()) == sorted(given_.values())
    assert {i: true[k] for i, k in zip(manifest.ids, manifest.new, strict=True)} == {
        i: given_[i] for i in manifest.ids
    }
    rows = np.array([17, 3, 3, 11])
    for made in (noisy, pickle.loads(pickle.dumps(noisy))):
        some = pickle.loads(pickle.dumps(made.select(rows)))
        assert by_id(some) == {i: given_[i] for i in source.ids[rows].tolist()}
        batch = some.read([3, 0], View(places=np.arange(2)), columns=("caption",))
        assert batch["id"].tolist() == source.ids[[11, 17]].tolist()
        assert batch["caption"].tolist() == [given_[i] for i in batch["id"].tolist()]
        assert some.name(0) == source.name(17)
    replaced = source.replace(caption=np.array(["same"] * n))
    names = ("caption",)
    marks = [
        data.identity(s, columns=names) for s in (source, noisy, replaced, source.select(rows))
    ]
    assert len(set(marks)) == 4
    assert data.identity(pickle.loads(pickle.dumps(noisy)), columns=names) == marks[1]


def test_every_storage_has_one_identity_and_one_noise(tmp_path):
    found = set()
    for way, (name, write, captions) in WAYS.items():
        (tmp_path / way).mkdir()
        write(tmp_path / way, ROWS)
        source = data.load(name, path=str(tmp_path / way), captions=captions)
        swapped, manifest = CORRUPTIONS["captions"](source, 0.25, seed=1)
        found.add((tuple(sorted(by_id(swapped).items())), manifest.hash))
    assert len(found) == 1


@pytest.mark.slow
def test_worker_processes_read_captions_by_path(tmp_path):
    pairs.write_tar(tmp_path, ROWS)
    source, _ = CORRUPTIONS["captions"](load_tar(tmp_path), 0.5)
    expected = by_id(source)
    batches = loader.train_batches(
        source, batch_size=8, seed=0, stop=3, columns=("caption",), workers=1
    )
    seen = {}
    for batch in batches:
        seen |= dict(zip(batch["id"].tolist(), batch["caption"].tolist(), strict=True))
    batches.close()
    assert seen == expected


def test_what_goes_to_workers_is_small(tmp_path):
    count = 20_000
    many = (base.Pair(f"{i}.jpg", "", 0, 0, 9, f"caption {i} {'x' * 60}") for i in range(count))
    pairs.write_tar(tmp_path, ROWS)
    source = load_tar(tmp_path)
    storage = source.storage
    base.write(storage.index, many, base.LeftOut())
    source = load_tar(tmp_path)  # from the index, so without another look at the shards
    assert len(source) == count
    assert len(pickle.dumps(source)) < 3000
    noisy, _ = CORRUPTIONS["captions"](source, 0.3)
    assert len(pickle.dumps(noisy)) < 3500 + 4 * count  # the permutation, uint32
    assert len(pickle.dumps(noisy.select(np.arange(count)[::-1]))) < 4000 + 2 * 4 * count
    chosen = pickle.loads(pickle.dumps(noisy)).columns["caption"][[3, count - 1]]
    assert chosen.tolist() == noisy.columns["caption"][[3, count - 1]].tolist()


def test_an_identity_is_of_every_row_whatever_the_piece(monkeypatch):
    source = emoji(None)
    labels = np.asarray(source.columns["label"]).astype("<i4").tobytes()
    whole = hashlib.sha256(source.ids.astype("<i8").tobytes() + labels).hexdigest()[:12]
    monkeypatch.setattr(sources, "PIECE", 50)
    names = ("caption",)
    assert data.identity(source) == whole  # as before there were pieces
    captions = source.columns["caption"].astype(object)
    mark = data.identity(source, columns=names)
    assert data.identity(source.replace(caption=captions), columns=names) == mark
    wide = captions.astype("<U300")
    assert data.identity(source.replace(caption=wide), columns=names) == mark
    for row in (0, 49, 50, len(source) - 1):
        other = captions.copy()
        other[row] += "."
        assert data.identity(source.replace(caption=other), columns=names) != mark
    shifted = captions.copy()  # the same letters, divided otherwise
    shifted[0], shifted[1] = captions[0] + captions[1][0], captions[1][1:]
    assert data.identity(source.replace(caption=shifted), columns=names) != mark


# What is no pair --------------------------------------------------------------------------


def broken_shard(root):
    """One of each fault beside two pairs."""
    good = [(key, pairs.img2dataset(key, caption, image)) for key, caption, image in ROWS[:2]]

    def faulty(key, **changes):
        whole = pairs.img2dataset(key, f"text {key}", ROWS[0][2])
        members = {**whole, **{k: v for k, v in changes.items() if v is not None}}
        return key, {k: v for k, v in members.items() if k not in changes or changes[k] is not None}

    samples = [
        *good,
        faulty("alone", txt=None, json=None),
        faulty("nopicture", jpg=None),
        faulty("blank", txt=b" \n\t ", json=b'{"caption": "  "}'),
        faulty("blank2", txt=b"", json=b'{"caption": ""}'),
        faulty("latin", txt="Mädchen".encode("latin-1"), json='{"caption": "ä"}'.encode("latin-1")),
        faulty("nan", txt=b"nan", json=b'{"caption": NaN}'),
    ]
    pairs.write_shard(root / "00000.tar", samples)
    with tarfile.open(root / "00000.tar", "a") as archive:
        pairs.add(archive, "000000001.jpg", ROWS[3][2])  # a second image of the second pair
        pairs.add(archive, "._hidden.jpg", b"")
    pairs.write_shard(root / "00001.tar", good[:1])  # a key again
    pairs.write_shard(
        root / "00002.tar", [(k, pairs.img2dataset(k, c, i)) for k, c, i in ROWS[5:9]]
    )
    whole = (root / "00002.tar").read_bytes()
    with tarfile.open(root / "00002.tar") as archive:
        third = archive.getmember(f"{ROWS[7][0]}.jpg")
    (root / "00002.tar").write_bytes(whole[: third.offset_data + third.size - 1])
    (root / "00003.tar").write_bytes(b"<html>503</html>" * 100)
    (root / "00004.tar").write_bytes(b"")
    (root / "00005.tar").write_bytes(bytes(5 * 2**20))


@pytest.mark.parametrize("captions", ["txt", "json:caption"])
def test_broken_pairs_of_shards_are_left_out_counted_and_said(tmp_path, caplog, captions):
    broken_shard(tmp_path)
    source = load_tar(tmp_path, captions)
    there = {id_of(key): caption for key, caption, _ in (*ROWS[:2], *ROWS[5:7])}
    assert by_id(source) == there
    (line,) = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    assert line.startswith(f"{tmp_path}: 4 pairs of image and caption; left out ")
    suffix = "txt" if captions == "txt" else "json"
    for said in (
        "1 images without a caption, as 00000.tar: alone.jpg",
        f"1 captions without an image, as 00000.tar: nopicture.{suffix}",
        f"2 captions that are blank, as 00000.tar: blank.{suffix}",
        f"1 captions that are no UTF-8, as 00000.tar: latin.{suffix}",
        "1 captions that are missing (null, NaN, or the word for it), as 00000.tar: nan.",
        "1 captions or images after the first of their name (an image has one caption), as "
        "00000.tar: 000000001.jpg",
        "1 pairs whose name another has, as 000000000.jpg",
        f"2 files cut short or damaged, from there on, as {tmp_path}/00002.tar",
        f"2 files that cannot be read as uncompressed tar, as {tmp_path}/00003.tar",
    ):
        assert said in line, line
    caplog.clear()
    load_tar(tmp_path, captions)  # from the index: said once a process
    assert not [r for r in caplog.records if "left out" in r.getMessage()]


def test_nothing_left_is_one_line(tmp_path):
    pairs.write_shard(tmp_path / "a.tar", [("x", {"jpg": b"", "json": b'{"text": 1, "url": 2}'})])
    message = "there is no pair of image and caption; members are .jpg, .json"
    with pytest.raises(ValueError, match=message) as error:
        load_tar(tmp_path)
    assert "1 images without a caption, as a.tar: x.jpg" in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(
        ValueError, match="and a JSON one has text, url; 1 captions in JSON without"
    ):
        load_tar(tmp_path, "json:caption")
    with pytest.raises(ValueError, match="1 captions that are no text"):
        load_tar(tmp_path, "json:url")
    assert not list(tmp_path.glob(".noisy*"))
    for captions in ("json", "jpg", ":caption", "json:", "."):
        with pytest.raises(ValueError, match="tar: captions are"):
            load_tar(tmp_path, captions)


def test_keys_that_two_folders_share_are_told_apart(tmp_path, caplog):
    pairs.write_tar(tmp_path / "yfcc", ROWS)
    pairs.write_tar(tmp_path / "cc12m", pairs.pairs(10))
    found = by_id(load_tar(tmp_path))
    assert found == {id_of(f"yfcc/{k}"): c for k, c, _ in ROWS} | {
        id_of(f"cc12m/{k}"): c for k, c, _ in ROWS[:10]
    }
    assert "left out" not in caplog.text


def test_tables_with_faults_are_read_around_them(tmp_path, caplog):
    pairs.write_folder(tmp_path, ROWS[:8])
    table = pd.read_csv(tmp_path / "captions.csv")
    table.loc[1, "title"] = np.nan
    table.loc[2, "title"] = "None"
    table.loc[3, "filepath"] = "images/gone.jpg"
    table.loc[4, "filepath"] = np.nan
    table.loc[5, "title"] = 'two\nlines, and "quotes"'
    table = pd.concat([table, table.iloc[[0]]])  # another caption of the first image
    table.to_csv(tmp_path / "captions.csv", index=False)
    with (tmp_path / "captions.csv").open("ab") as file:
        file.write(b"too,many,fields\n\n")
        file.write(b"images/1/000000003.jpg,M\xe4dchen\n")
    source = data.load("folder", path=str(tmp_path), captions="captions.csv:title")
    texts = {0: ROWS[0][1], 5: 'two\nlines, and "quotes"', 6: ROWS[6][1], 7: ROWS[7][1]}
    assert by_id(source) == {id_of(ROWS[i][0]): text for i, text in texts.items()}
    (line,) = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    for said in (
        "1 captions that are blank, as captions.csv: line 3",
        "1 captions that are missing (null, NaN, or the word for it), as captions.csv: line 4",
        "2 captions without an image, as captions.csv: line 5",
        "1 captions or images after the first of their name (an image has one caption), as "
        "captions.csv: line 11",
        "1 lines of another number of fields, or that are no JSON object, as captions.csv: line 12",
        "1 captions that are no UTF-8, as captions.csv: line 14",
        "1 images without a caption, as images/0/000000004.jpg",
    ):
        assert said in line, line


def test_a_table_that_is_not_clear_is_one_line(tmp_path):
    pairs.write_folder(tmp_path, ROWS[:4])

    def load(captions="captions.csv:title", **options):
        return data.load("folder", path=str(tmp_path), captions=captions, **options)

    table = pd.read_csv(tmp_path / "captions.csv")
    table["file_name"] = [name.rpartition("/")[2] for name in table["filepath"]]
    table.to_csv(tmp_path / "captions.csv", index=False)
    with pytest.raises(ValueError, match=r"named in filepath, file_name, of the columns"):
        load()
    for column in ("filepath", "file_name"):  # a path from the table, or a name alone
        assert len(load(f"captions.csv:title:{column}")) == 4
    with pytest.raises(ValueError, match=r"unknown column 'titel'; did you mean 'title'\?"):
        load("captions.csv:titel")
    with pytest.raises(
        FileNotFoundError, match=r"there is no .*/caption\.csv; expected TABLE:COLUMN"
    ):
        load("caption.csv:title")
    for captions in ("captions.csv", "captions.xlsx:title", "a.csv:b:c:d", ":title"):
        with pytest.raises(ValueError, match=r"folder: captions are .*; expected TABLE:COLUMN"):
            load(captions)
    with pytest.raises(FileNotFoundError, match="has no folder val/"):
        load(split="val")
    (tmp_path / "open.csv").write_text('filepath,title\nimages/0/1.jpg,"never closed\nb,c\nd,e\n')
    with pytest.raises(ValueError, match=r"open\.csv: line 4: .*; expected quotes around a field"):
        load("open.csv:title")
    table.to_csv(tmp_path / "wide.csv", index=False, encoding="utf-16")
    with pytest.raises(ValueError, match=r"wide\.csv is no UTF-8 text"):
        load("wide.csv:title")
    (tmp_path / "images" / "1" / "000000000.jpg").write_bytes(b"")  # the name of another
    table.to_csv(tmp_path / "captions.csv", index=False)
    assert len(load("captions.csv:title:file_name")) == 3


def test_parquet_with_faults(tmp_path, caplog):
    rows = [list(row) for row in ROWS[:12]]
    rows[1][1], rows[2][1], rows[3][2] = None, "  ", None
    pairs.write_parquet_file(tmp_path / "a.parquet", rows)
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    source = data.load("parquet", path=str(tmp_path), captions="caption")
    expected = {id_of(k): c for i, (k, c, _) in enumerate(ROWS[:12]) if i not in (1, 2, 3)}
    assert by_id(source) == expected
    for said in (
        "1 captions that are missing (null, NaN, or the word for it), as a.parquet: row 1",
        "1 captions that are blank, as a.parquet: row 2",
        "1 captions without an image, as a.parquet: row 3",
        f"1 files that are no whole parquet, as {tmp_path}/b.parquet",
    ):
        assert said in caplog.text
    with pytest.raises(
        ValueError, match=r"unknown column of captions 'text'; .*known: image, capti"
    ):
        data.load("parquet", path=str(tmp_path), captions="text")
    with pytest.raises(ValueError, match="column 'image' holds struct"):
        data.load("parquet", path=str(tmp_path), captions="image")


@pytest.mark.parametrize("name", ["array_record", "tfds:photos", "digits"])
def test_data_without_captions_are_refused_by_name(tmp_path, name):
    path = {} if name == "digits" else {"path": str(tmp_path)}
    with pytest.raises(ValueError, match=f"{name}: .*captions"):
        data.load(name, captions="txt", **path)


# The file beside them ------------------------------------------------------------------------


def test_pairs_are_listed_again_when_they_change(tmp_path, monkeypatch):
    pairs.write_tar(tmp_path, ROWS[:6])
    first = data.identity(load_tar(tmp_path), columns=("caption",))
    monkeypatch.setattr(base, "write", None)  # not called where nothing has changed
    assert data.identity(load_tar(tmp_path), columns=("caption",)) == first
    monkeypatch.undo()
    (index,) = tmp_path.glob(".noisy_fm-captions-*")
    (index / "pairs.arrow").write_bytes(b"damaged")
    assert data.identity(load_tar(tmp_path), columns=("caption",)) == first
    changed = [(key, caption.upper(), image) for key, caption, image in ROWS[:6]]
    pairs.write_tar(tmp_path, changed)
    assert set(by_id(load_tar(tmp_path)).values()) == {caption for _, caption, _ in changed}
    assert len(list(tmp_path.glob(".noisy_fm-captions-*"))) == 1


def test_where_nothing_can_be_written_the_list_is_kept_at_home(tmp_path, monkeypatch, caplog):
    pairs.write_tar(tmp_path / "shards", ROWS[:6])
    whole = base.files.written_whole

    def written_whole(path):
        if path.parent == tmp_path / "shards":
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path)

    monkeypatch.setattr(base.files, "written_whole", written_whole)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    source = load_tar(tmp_path / "shards")
    assert len(by_id(pickle.loads(pickle.dumps(source)))) == 6
    assert source.storage.index.is_relative_to(tmp_path / "home")
    assert "listed elsewhere" in caplog.text


# Tar files, as Python's tarfile reads them ---------------------------------------------------

NAMES = st.text(st.characters(exclude_characters="\0/", exclude_categories=("Cs",)), min_size=1)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.one_of(NAMES, NAMES.map(lambda n: n * 60), NAMES.map(lambda n: f"d/{n}" * 40)),
                  st.binary(max_size=1500), st.sampled_from(["file", "link", "folder"])),
        min_size=1, max_size=6,
    ),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    st.booleans(),
)  # fmt: skip
def test_members_are_those_that_tarfile_finds(entries, kind, whole):
    file = io.BytesIO()
    headers = {"comment": "é" * 300} if kind == tarfile.PAX_FORMAT else None
    with tarfile.open(fileobj=file, mode="w", format=kind, pax_headers=headers) as archive:
        for name, content, what in entries:
            info = tarfile.TarInfo(name)
            info.mtime = 1234 if whole else 1234.5
            if what == "file":
                info.size = len(content)
            else:
                info.type = {"link": tarfile.SYMTYPE, "folder": tarfile.DIRTYPE}[what]
                info.linkname = "x" * 150 if what == "link" else ""
            archive.addfile(info, io.BytesIO(content) if what == "file" else None)
    content = file.getvalue()
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        expected = [(m.name, m.offset_data, m.size) for m in archive if m.isfile()]
    assert list(members(io.BytesIO(content), len(content))) == expected


def test_a_shard_cut_anywhere_gives_what_is_whole_and_ends(tmp_path):
    samples = [(k, pairs.img2dataset(k, c, b"image")) for k, c, _ in ROWS[:3]]
    pairs.write_shard(tmp_path / "a.tar", samples)
    whole = (tmp_path / "a.tar").read_bytes()
    every = list(members(io.BytesIO(whole), len(whole)))
    assert len(every) == 9
    last = every[-1][1] + -(-every[-1][2] // 512) * 512
    for end in range(0, last + 512, 137):
        found = []
        with pytest.raises((CutShortError, NoTarError)):
            found.extend(members(io.BytesIO(whole[:end]), end))  # keeps what came before
        assert found == every[: len(found)]
        assert len(found) == sum(start + size <= end for _, start, size in every)
    for after in (whole, bytes(2**21)):  # a second archive, or a hole where one was
        with pytest.raises(CutShortError):
            list(members(io.BytesIO(whole + after), len(whole + after)))
    rng = np.random.default_rng(0)
    for _ in range(200):  # no damage makes it hang, or end in another error
        damaged = bytearray(whole)
        for at in rng.integers(0, len(whole), 8):
            damaged[at] = rng.integers(256)
        with contextlib.suppress(CutShortError, NoTarError):
            assert len(list(members(io.BytesIO(damaged), len(damaged)))) <= 9


# Captions of emoji ---------------------------------------------------------------------------


def emoji(captions, **options):
    given = {"split": "test", "domain": "noto", **options}
    return data.load("emoji_domains", captions=captions, **given)


def drawings():
    with (data.emoji_domains.PACKAGE_DATA / "drawings.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_template_is_filled_with_the_drawings_columns():
    table = drawings()
    for template, parts in (
        ("{name}, {subcategory}, {skin_tone}", ("name", "subcategory", "skin_tone")),
        ("{gender}, {name}", ("gender", "name")),
    ):
        source = emoji(template)
        rows = [table[i % 10_000] for i in source.ids.tolist()]
        assert source.columns["caption"].tolist() == [
            ", ".join(row[part] for part in parts if row[part] != "none") for row in rows
        ]
    words = emoji("a {skin_tone} {name} by {artist}").columns["caption"].tolist()
    assert "a grinning face with smiling eyes by noto" in words
    assert "a medium victory hand: medium skin tone by noto" in words
    plain, named = emoji(None), emoji("{name}")
    assert plain.columns["caption"].tolist() == named.columns["caption"].tolist()
    assert data.identity(plain, columns=("caption",)) != data.identity(
        emoji("{category}"), columns=("caption",)
    )


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{nam}", r"unknown field 'nam'; did you mean 'name'\?"),
        ("name", "the same for every example; expected a field of"),
        ("{name", "expected '}' before end of string"),
        ("{name!r}", "more than a field's name"),
        ("{skin_tone}", "leave nothing of 303 of 699 examples"),
    ],
)
def test_a_template_that_cannot_be_filled_is_one_line(template, message):
    with pytest.raises(ValueError, match=f"emoji_domains: .*{message}"):
        emoji(template)


def test_displaced_captions_that_read_alike_are_said(caplog):
    source = emoji("{category}")
    noisy, manifest = CORRUPTIONS["captions"](source, 0.5, seed=2)
    wrong = np.mean(noisy.columns["caption"] != source.columns["caption"])
    assert wrong < 0.45 < manifest.realised
    assert f"{wrong:.2%} of all are wrong" in caplog.text


# The config ----------------------------------------------------------------------------------


def test_a_config_from_before_there_were_captions_is_read():
    now = config.plain(config.train())
    old = json.loads(json.dumps(now))
    del old["data"]["captions"]
    assert config.today(old) == now
    assert config.run_differences(old, now) == []
    assert config.hash_of(config.binding(old)) == config.hash_of(config.binding(now))
    changed = config.updated(config.train(), {"data.captions": "{name}"})
    assert config.run_differences(old, config.plain(changed)) == ["data.captions: None → {name}"]


def test_captions_go_from_the_config_to_the_source(tmp_path):
    pairs.write_tar(tmp_path, ROWS)
    keys = {"name": "tar", "path": str(tmp_path), "captions": "json:caption", "labels": "",
            "domain": (), "size": 16, "canvas": 0}  # fmt: skip
    assert len(data.load_split(keys, "")) == len(ROWS)
    with pytest.raises(ValueError, match=r"config\.data: tar: captions are 'json:'"):
        data.load_split({**keys, "captions": "json:"}, "")


def test_classes_are_not_looked_for_among_captions(tmp_path):
    for split, rows in (("train", ROWS), ("val", pairs.pairs(8, 100))):
        pairs.write_tar(tmp_path / split, rows)
    keys = {"name": "tar", "path": str(tmp_path), "captions": "txt", "labels": "", "domain": ()}
    changed = {f"data.{key}": value for key, value in keys.items()}
    one = config.updated(config.train(), {**changed, "split": "train", "eval_split": "val"})
    with pytest.raises(ValueError, match=r"config\.split 'train' has no labels; expected them"):
        build.setup(one)
    with pytest.raises(ValueError, match="no column 'label'; there are caption"):
        data.identity(data.load_split(one.data, "val"))


def test_heads_take_no_captions():
    assert "captions" not in study_settings.transfer({"name": "digits"})["data"]
    whole = study_settings.defaults()
    whole.transfers = {"digits": {"data": {"name": "digits", "captions": "x"}}}
    with pytest.raises(
        ValueError, match=r"unknown key 'config\.transfers\.digits\.data\.captions'"
    ):
        study_settings.completed(whole)
