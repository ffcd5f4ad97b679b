"""Features as other tools write them: every one is read as what it says, or refused by name."""

import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from noisy_fm import features, spectrum
from noisy_fm.spectrum.__main__ import main
from noisy_fm.spectrum.files import columns_taken

X = np.random.default_rng(0).normal(size=(40, 8)) * np.arange(8, 0, -1)
TENSORS = pa.FixedShapeTensorArray.from_numpy_ndarray


def lists(kind):
    return pa.array(list(X), kind)


@pytest.mark.parametrize(
    "column",
    [
        TENSORS(X),
        TENSORS(X[:, None]),
        pa.chunked_array([TENSORS(X)[:7], TENSORS(X)[7:]]),
        pa.array(X[:, None].tolist()),
        pa.array(X[:, None].tolist(), pa.list_(pa.list_(pa.float64(), 8), 1)),  # as polars writes
        lists(pa.list_(pa.float64(), 8)),
        lists(pa.large_list(pa.float64())),
    ],
    ids=["tensor", "tensor 1×d", "chunks", "lists 1×d", "arrays 1×d", "fixed", "large"],
)
def test_vectors_of_any_arrow_type_are_taken_before_plain_columns(column, tmp_path):
    pq.write_table(pa.table({"score": X[:, 0], "emb": column}), tmp_path / "x.parquet")
    np.testing.assert_array_equal(spectrum.load_features(tmp_path / "x.parquet"), X)
    assert columns_taken(tmp_path / "x.parquet") == ""


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (TENSORS(X.reshape(40, 2, 4)), r"'emb' holds arrays \[2, 4\] a row, not vectors"),
        (pa.array(X.reshape(40, 2, 4).tolist()), r"'emb' holds arrays \[2, 4\] a row"),
        (pa.array([[0.0, 1]] * 30 + [[None, 1]] * 10), r"empty \(null\) entries, as at row 30"),
        (pa.array([[[0.0, 1]]] * 30 + [[None]] * 10), r"empty \(null\) entries, as at row 30"),
        (pa.array([[0.0, 1]] * 30 + [[1.0]] * 10), "differ in length"),
        (pa.array([row.tobytes() for row in X]), r"not taken for features beside emb \(binary\)"),
        (pa.array([{"v": 1.0}] * 40), "not taken for features beside emb"),
    ],
)
def test_a_plain_column_never_stands_in_for_vectors(column, message, tmp_path):
    pq.write_table(pa.table({"score": X[:, 0], "emb": column}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=message):
        spectrum.load_features(tmp_path / "x.parquet")


@pytest.mark.parametrize(
    "index",
    [
        np.linspace(1e9, 1e9 + 1, 40),
        pd.Index(np.linspace(0, 1, 40), name="time"),
        pd.MultiIndex.from_arrays([np.linspace(0, 1, 40), range(40)]),
        pd.RangeIndex(5, 45, name="row"),
    ],
    ids=["floats", "named", "two levels", "range"],
)
def test_the_index_of_a_table_is_no_feature(index, tmp_path):
    pd.DataFrame(X, index=index).add_prefix("f").to_parquet(tmp_path / "x.parquet")
    np.testing.assert_array_equal(spectrum.load_features(tmp_path / "x.parquet"), X)
    assert "all 8 floating-point columns (f0 … f7)" in columns_taken(tmp_path / "x.parquet")


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_short_floats_in_safetensors_need_no_other_import(name, tmp_path):
    path = tmp_path / "x.safetensors"
    short = X.astype(name)
    save_file({"short": short, "plain": X}, path)
    code = (
        "import sys; from noisy_fm import spectrum; assert 'ml_dtypes' not in sys.modules; "
        f"print(*[spectrum.summary(spectrum.load_features('{path}:' + n))['sve'] "
        "for n in ('short', 'plain')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = [spectrum.summary(x.astype(np.float64))["sve"] for x in (short, X)]
    np.testing.assert_allclose([float(v) for v in done.stdout.split()], expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_what_np_save_makes_of_short_floats_is_told(name, suffix, tmp_path):
    path = tmp_path / f"x.{suffix}"
    np.savez(path, x=X.astype(name)) if suffix == "npz" else np.save(path, X.astype(name))
    with pytest.raises(ValueError, match=r"bytes without a type, .* bfloat16 and float8: save it"):
        spectrum.load_features(path)


def test_a_store_of_bfloat16_is_read_as_what_its_record_says(tmp_path):
    short = X.astype(ml_dtypes.bfloat16)
    features.write_store(tmp_path / "s", features=short, ids=np.arange(40), meta={})
    for found in (
        features.open_store(tmp_path / "s").features,
        spectrum.load_features(tmp_path / "s"),
    ):
        assert found.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(found, short)


@pytest.mark.parametrize("x", [X.astype(">f8"), np.asfortranarray(X), X.astype(np.longdouble)])
def test_byte_order_and_layout_do_not_matter(x, tmp_path):
    np.save(tmp_path / "x.npy", x)
    assert spectrum.summary(spectrum.load_features(tmp_path / "x.npy")) == spectrum.summary(X)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (X + 1j, "must be real numbers, got dtype complex128"),
        (np.zeros((4, 2), [("a", float)]), "must be real numbers, got dtype"),
        (np.array(3.0), r"must be 2-D \[n, d\], got shape \(\)"),
        (np.ones((5, 0)), "have no columns"),
        (np.ones((3, 4, 5)), r"got shape \(3, 4, 5\)"),
    ],
)
def test_what_is_no_matrix_of_numbers_is_refused_when_it_is_read(x, message, tmp_path):
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(ValueError, match=message) as bad:
        spectrum.load_features(tmp_path / "x.npy")
    assert str(bad.value).startswith(str(tmp_path / "x.npy"))


def test_an_archive_is_read_only_where_asked(tmp_path):
    np.savez(tmp_path / "x.npz", x=X, names=np.array(["a", None], object))
    np.testing.assert_array_equal(spectrum.load_features(tmp_path / "x.npz"), X)


@pytest.mark.parametrize("url", ["gs://bucket/x.npy", "s3://bucket/x.npz:a", "hf://data/x.parquet"])
def test_urls_are_refused_with_how_to_copy(url, capsys):
    assert main([f"mine={url}"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {url}: spectra read local files: copy it here first, as with")
    assert error.count("\n") == 1


@pytest.mark.parametrize("encoding", ["cp1252", "utf-8"])
def test_a_terminal_of_any_encoding_gets_its_table_and_page(encoding, tmp_path):
    np.save(tmp_path / "x.npy", X)
    done = subprocess.run(
        [sys.executable, "-m", "noisy_fm.spectrum", "γ=~/x.npy", "--out=~/r.html"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding, "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.decode(encoding).splitlines()
    short = encoding == "utf-8"
    assert printed[0].split()[-2:] == ["α" if short else "alpha", "numerical"]
    assert printed[2].split()[0] == ("γ" if short else "gamma")
    assert "γ" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_a_full_disk_costs_one_line_and_not_the_page(tmp_path):
    np.save(tmp_path / "x.npy", X)
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "noisy_fm.spectrum", str(tmp_path / "x.npy"), "--no-intervals",
             "--out", str(tmp_path / "r.html")],
            stdout=full, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "error: [Errno 28] No space left on device\n"
    assert (tmp_path / "r.html").stat().st_size > 1000


F = [f"f{i}" for i in range(8)]


@pytest.mark.parametrize(
    ("table", "options", "taken"),
    [
        (pd.DataFrame(X, columns=F), {}, "all 8 columns of numbers (f0 … f7); left out: the index"),
        (pd.DataFrame(X, columns=F), {"index": False}, "a header; features are all 8 columns"),
        (
            pd.DataFrame(X),
            {"index": False},
            "a header; features are all 8 columns of numbers (0 … 7)",
        ),
        (pd.DataFrame(X), {}, "(0 … 7); left out: the index ('')"),
        (pd.DataFrame(X), {"index": False, "header": False}, "no header; features are all 8"),
        (
            pd.DataFrame(X, pd.MultiIndex.from_product([list("abcd"), range(10)]), F),
            {},
            "left out: the index ('', '')",
        ),
        (
            pd.DataFrame(X, columns=F).reset_index(names="Unnamed: 0"),
            {},
            "left out: the index ('', 'Unnamed: 0')",
        ),
        (
            pd.DataFrame(X, columns=F).assign(label=7, ID=range(len(X))),
            {"index": False},
            "left out: 'label', 'ID', no features by their names",
        ),
    ],
    ids=[
        *("index", "header", "counted", "counted, index", "bare", "two levels", "saved twice"),
        "labels",
    ],
)
def test_columns_of_numbers_in_a_csv_are_the_features_to_the_last_bit(
    table, options, taken, tmp_path, capsys
):
    table.to_csv(tmp_path / "x.csv", **options)
    np.testing.assert_array_equal(spectrum.load_features(tmp_path / "x.csv"), X)
    assert main([str(tmp_path / "x.csv"), "--no-intervals"]) == 0
    said = capsys.readouterr().err
    assert taken in said
    assert said.count("\n") == 1


def test_columns_of_a_csv_are_picked_by_name_or_pattern(tmp_path):
    table = pd.DataFrame(X, columns=F)
    table.insert(0, "label", ["cat"] * 40)
    table.to_csv(tmp_path / "x.csv", index=False)
    for key, columns in (("f*", range(8)), ("f3", [3]), ("f3,f0", [3, 0])):
        found = spectrum.load_features(f"{tmp_path / 'x.csv'}:{key}")
        np.testing.assert_array_equal(found, X[:, columns])
    assert columns_taken(f"{tmp_path / 'x.csv'}:f*") == ""


@pytest.mark.parametrize(
    ("content", "key", "message"),
    [
        (
            "a,b\n1,2\n3,x\n",
            "",
            r"not of numbers: column 'b' \('x' at row 1\): name the features as",
        ),
        ("a,b\n1,2\n3,x\n", ":b", r"not of numbers: column 'b' \('x' at row 1\)$"),
        ("a,b\n1,True\n3,False\n", "", r"not of numbers: column 'b' \('True' at row 0\)"),
        (
            "a,b\n1,2\n3,\n",
            "",
            "1 of 2 rows have missing values, the first is at row 1, column 'b'",
        ),
        (
            "1,2\n3,\n5,NA\n",
            "",
            "2 of 3 rows have missing values, the first is at row 1, column '1'",
        ),
        ("a,b\n1,\n3,\n", "", "2 of 2 rows have missing values, the first is at row 0, column 'b'"),
        ("a,b\n1,2\n3\n", "", "Expected 2 columns, got 1: 3"),
        ("a,b\n1,2\n3,4,5\n", "", "Expected 2 columns, got 3: 3,4,5"),
        ("a,b\n1,2,3\n4,5,6\n", "", "3 columns under a header of 2"),
        ("a,b\n1,2\n", ":c", "no column 'c': it has a, b"),
        ("a,b\n", "", "Empty CSV file"),
        ("", "", "no first row"),
        ("a;b\n1;2\n", "", "one column, 'a;b'; expected commas between columns"),
    ],
)
def test_what_is_no_table_of_numbers_is_told_by_row_and_column(content, key, message, tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as bad:
        spectrum.load_features(f"{path}{key}")
    assert str(bad.value).startswith(f"{path}: ")
    assert "\n" not in str(bad.value)
