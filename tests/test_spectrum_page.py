"""Sets of features side by side: equal rows, paired differences, and what the page says of them."""

import html
import re
import sys
import tracemalloc

import numpy as np
import pytest
from scipy import stats

from noisy_fm import features, figures, spectrum
from noisy_fm.spectrum.__main__ import main
from noisy_fm.spectrum.measure import measure
from noisy_fm.spectrum.report import page
from noisy_fm.spectrum.sample import equal_rows
from noisy_fm.spectrum.words import cautions, headline


def power_law(n, d, *, exponent=0.7, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)) * np.arange(1, d + 1) ** -exponent


def sve(x):
    values = np.linalg.svd(np.asarray(x, np.float64), compute_uv=False)
    share = values / values.sum()
    return -(share[share > 0] * np.log(share[share > 0])).sum()


A = power_law(90, 8)
WIDER = A + 0.2 * np.random.default_rng(1).normal(size=A.shape)


def left_out(x, groups):
    return np.array([sve(x[groups != g]) for g in np.unique(groups)])


def test_a_paired_difference_leaves_the_same_rows_out_of_both():
    groups = np.arange(90) // 6
    got = spectrum.difference(A, WIDER, paired=True, groups=groups, blocks=15)["sve"]
    error = np.sqrt(14 * np.var(left_out(WIDER, groups) - left_out(A, groups)))
    assert got.value == pytest.approx(sve(WIDER) - sve(A))
    assert got.error == pytest.approx(error, rel=1e-6)
    assert got.high - got.value == pytest.approx(stats.t.ppf(0.975, 14) * error, rel=1e-6)
    apart = spectrum.difference(A, WIDER, paired=False)["sve"]
    assert got.error < 0.5 * apart.error


def test_an_unpaired_difference_is_welchs():
    other = power_law(60, 8, exponent=0.5, seed=2)
    groups = np.arange(90) // 9, np.arange(60) // 3
    got = spectrum.difference(A, other, paired=False, groups=groups, blocks=30)["sve"]
    squares = [
        (len(np.unique(g)) - 1) * np.var(left_out(x, g))
        for x, g in zip((A, other), groups, strict=True)
    ]
    df = sum(squares) ** 2 / (squares[0] ** 2 / 9 + squares[1] ** 2 / 19)
    assert got.value == pytest.approx(sve(other) - sve(A))
    assert got.error == pytest.approx(np.sqrt(sum(squares)), rel=1e-6)
    assert got.high - got.value == pytest.approx(stats.t.ppf(0.975, df) * got.error, rel=1e-6)


@pytest.mark.parametrize(("paired", "same"), [(True, True), (True, False), (False, False)])
def test_difference_intervals_cover_the_expected_difference(paired, same):
    """Of 100 draws, 89 to 100 intervals of 95 % hold E[SVE(y) − SVE(x)], also of false pairs."""
    rng = np.random.default_rng(0)

    def draw():
        x = rng.normal(size=(80, 6)) * np.arange(1, 7) ** -1.0
        source = x if same else rng.normal(size=(80, 6)) * np.arange(1, 7) ** -1.0
        return x, source + 0.3 * rng.normal(size=x.shape)

    truth = np.mean([sve(y) - sve(x) for x, y in (draw() for _ in range(500))])
    found = [spectrum.difference(*draw(), paired=paired)["sve"] for _ in range(100)]
    assert np.mean([i.low <= truth <= i.high for i in found]) >= 0.89
    # And at half the width they would not: the intervals are not just wide.
    assert np.mean([abs(i.value - truth) <= (i.high - i.low) / 4 for i in found]) <= 0.85


def test_paired_rows_must_be_as_many():
    with pytest.raises(ValueError, match="need the same rows, got 90 and 60"):
        spectrum.difference(A, A[:60], paired=True)


SETS = {"a": power_law(40, 8), "b": power_law(40, 8, seed=1), "c": power_law(25, 8, seed=2)}


def test_larger_sets_are_cut_to_the_rows_of_the_smallest():
    rows = equal_rows({"a": 40, "b": 40, "c": 25}, {})
    assert set(rows) == {"a", "b"}
    assert len(np.unique(rows["a"])) == len(rows["a"]) == 25
    assert rows["a"].max() < 40
    np.testing.assert_array_equal(rows["a"], rows["b"])  # sets of one length stay paired
    found = measure(SETS)
    assert found.summaries["a"]["sve"] == pytest.approx(sve(SETS["a"][rows["a"]]))
    assert found.summaries["c"]["sve"] == pytest.approx(sve(SETS["c"]))
    assert found.bounds["b"] == spectrum.jackknife(SETS["b"][rows["b"]])
    assert found.paired == {"b"}
    whole = measure(SETS, whole=True)
    assert whole.summaries["a"]["sve"] == pytest.approx(sve(SETS["a"]))
    assert set(whole.differences["c"]) == {"sve_share"}


def test_drawn_rows_are_any_row_alike():
    counts = sum(
        np.bincount(equal_rows({"a": 12, "b": 3}, {}, seed=seed)["a"], minlength=12)
        for seed in range(2000)
    )
    assert stats.chisquare(counts).pvalue > 1e-3


def test_whole_groups_are_drawn():
    groups = np.repeat(np.arange(14), [1, 2, 3, 4, 1, 2, 3, 4, 5, 3, 4, 4, 2, 2])
    found = measure({"a": SETS["a"], "c": SETS["c"]}, groups={"a": groups})
    (rows,) = equal_rows({"a": 40, "c": 25}, {"a": groups}).values()
    assert len(rows) == found.summaries["a"]["n"] <= 25
    kept = set(groups[rows])
    np.testing.assert_array_equal(rows, np.flatnonzero(np.isin(groups, list(kept))))
    left = set(groups) - kept
    assert all((groups == g).sum() > 25 - len(rows) for g in left)  # none of the rest would fit
    assert "whole groups were drawn" in cautions(found)[0]
    with pytest.raises(ValueError, match="a: no whole group fits into 25 rows"):
        measure({"a": SETS["a"], "c": SETS["c"]}, groups={"a": np.zeros(40)})


def test_a_large_mapped_file_is_not_read_whole(tmp_path):
    shape = (1_000_000, 64)  # 256 MB, of which the disk holds what is written
    big = np.lib.format.open_memmap(tmp_path / "big.npy", "w+", np.float32, shape)
    (rows,) = equal_rows({"big": len(big), "small": 200}, {}).values()
    big[rows] = power_law(200, 64).astype(np.float32)
    big = np.load(tmp_path / "big.npy", mmap_mode="r")
    tracemalloc.start()
    found = measure({"big": big, "small": power_law(200, 64, seed=1)})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24
    assert found.summaries["big"]["sve"] == pytest.approx(sve(big[rows]))
    assert "big" in found.bounds


def test_faults_in_drawn_rows_say_so():
    rows = equal_rows({"a": 40, "c": 25}, {})["a"]
    bad = SETS["a"].copy()
    bad[rows[3]] = np.nan
    with pytest.raises(ValueError, match=r"^a: .* at row 3 \(of the 25 rows drawn\)$"):
        measure({"a": bad, "c": SETS["c"]})
    with pytest.raises(ValueError, match=r"^c: a spectrum needs at least 2 rows, got 1$"):
        measure({"a": bad, "c": SETS["c"][:1]})


def save(folder, **sets):
    for name, x in sets.items():
        np.save(folder / f"{name}.npy", x)
    return [f"{name}={folder / name}.npy" for name in sets]


def test_unlike_sets_are_told_on_the_page_and_the_command_line(tmp_path, capsys):
    sources = save(tmp_path, a=power_law(40, 12), b=power_law(10, 12), c=power_law(99, 6))
    assert main([*sources, "--out", str(tmp_path / "r.html")]) == 0
    out, err = capsys.readouterr()
    text = html.unescape((tmp_path / "r.html").read_text())
    n, d = (line.removeprefix("warning: ") for line in err.splitlines())
    assert n.startswith("n differs (a 40, b 10, c 99), and SVE and LSVR depend on it: 10 rows")
    assert "from a and c, and the rest left out; --whole" in n
    assert d.startswith("d differs (a 12, b 12, c 6): raw SVE and LSVR are not comparable. SVE / ")
    for line in (n, d):
        assert f'<p class="missing">{line}.</p>' in text
    table = [line.split() for line in out.splitlines()]
    cut = power_law(99, 6)[equal_rows({"c": 99, "b": 10}, {})["c"]]
    assert table[6][:4] == ["c", "10", "6", f"{sve(cut):.4g}"]
    assert table[6][4] == f"{sve(cut) / np.log(6):.4g}"
    assert f"{sve(cut) / np.log(6):.4g}" in text
    assert "<small>of 99</small>" in text
    panels = re.findall(r'aria-label="([^"]*), difference from a: ([^"]*)"', text)
    assert [(title, told.count(" ")) for title, told in panels] == [
        *(("SVE, nats", 1), ("LSVR, nats", 1)),  # b alone, which has the d of a
        ("SVE / log min(n, d)", 3),
    ]


def test_equal_sets_get_no_warning(tmp_path, capsys):
    assert main([*save(tmp_path, a=A, b=WIDER), "--out", str(tmp_path / "r.html")]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    said, paired = out.splitlines()[-3:-1]
    assert said == headline(measure({"a": A, "b": WIDER}))
    assert paired.startswith("Paired: rows of b are taken to be the examples of a, in its order (")
    assert 'class="missing"' not in (tmp_path / "r.html").read_text()


def test_whole_takes_every_row(tmp_path, capsys):
    assert main([*save(tmp_path, a=A, b=WIDER[:50]), "--whole"]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("warning: n differs (a 90, b 50), and SVE and LSVR depend on it: all row")
    assert f"{sve(A):.4g}" in out
    assert "from 50 to 90 rows, on which it depends" in out


@pytest.mark.parametrize("order", [1, -1])
def test_stores_are_paired_by_their_ids(order, tmp_path, capsys):
    for name, x, ids in (("a", A, np.arange(90)), ("b", WIDER, np.arange(90)[::order])):
        features.write_store(tmp_path / name, features=x, ids=ids, meta={})
    out = tmp_path / "r.html"
    assert main([str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(out)]) == 0
    text = out.read_text()
    assert ("Paired: rows of b are taken" in text) == (order == 1)
    assert ("Not paired: the sets have other rows" in text) == (order == -1)
    expected = spectrum.difference(A, WIDER, paired=order == 1)["sve"]
    decimals = 3 if order == 1 else 2  # paired is sharper
    bounds = f"[{expected.low:.{decimals}f}, {expected.high:.{decimals}f}]".replace("-", "−")
    assert bounds in capsys.readouterr().out


def test_the_first_sentence_says_what_differs():
    broad = A + 0.6 * np.random.default_rng(1).normal(size=A.shape)
    found = measure({"a": A, "b": broad})
    wide, long = (
        f"{d.value:.{n}f} nats above a [{d.low:.{n}f}, {d.high:.{n}f}]"
        for d, n in ((found.differences["b"]["sve"], 2), (found.differences["b"]["lsvr"], 2))
    )
    assert headline(found) == f"b has SVE {wide} and LSVR {long}, at 90 rows each."
    down = headline(measure({"a": broad, "b": A}))
    assert down.startswith(f"b has SVE {wide.replace('above', 'below')}")
    same = headline(measure({"a": A, "b": power_law(90, 8, seed=5)}))
    assert same.startswith("b shows no difference from a in SVE [−0.")
    three = headline(measure({"a": A, "b": broad, "c": A * 2}))
    assert three.startswith("Against a, SVE is higher in b (+0.")
    assert three.count("not seen to differ in c (0.00 nats)") == 2
    alone = headline(measure({"a": A}))
    assert alone.startswith(f"a: SVE is {sve(A):.3g} [")
    assert f"{sve(A) / np.log(8):.0%} of the most" in alone
    bare = headline(measure({"a": A, "b": broad}, intervals=False))
    assert bare.startswith(f"b has SVE {sve(broad) - sve(A):.2f} nats above a and LSVR")
    assert bare.endswith("; without intervals, chance is not judged.")


def test_the_page_is_of_the_study_reports_language():
    text = page(measure({f"set {i}": power_law(30, 6, seed=i) for i in range(9)}))
    assert (
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src'
        in text
    )
    assert "prefers-color-scheme: dark" in text
    assert text.count("<details>") == 2
    assert "<script" not in text
    assert not re.search(r"\ssrc=|@import|url\((?!#)", text)
    body = text.partition("</style></head>")[2]
    for colour in (*figures.PAGE_COLOURS, *figures.ramp(9)):
        assert colour not in body
    assert "var(--level-8)" in body
    assert "--level-8: #" in text
    ids = re.findall(r' id="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    assert "DejaVu" not in body


def test_what_is_left_out_is_said(monkeypatch):
    monkeypatch.setattr(sys.modules["noisy_fm.spectrum.measure"], "INTERVAL_WORK", 30 * 8**2)
    found = measure({"a": A, "b": WIDER})
    assert not found.bounds
    assert cautions(found) == [
        "no intervals of a and b: too large for the page's jackknife: spectrum.jackknife has no "
        "limit"
    ]
    assert "Without intervals, chance is not judged" in page(found)
    monkeypatch.undo()
    few = measure({"a": A[:5]})
    assert cautions(few) == ["no intervals of a: fewer than 6 rows"]
    two = measure({"a": A}, groups=np.arange(90) % 2)
    assert cautions(two) == ["no intervals of a: fewer than 3 groups"]
    assert cautions(measure({"a": A}, intervals=False)) == []  # as it was asked for


def test_many_sets_are_counted_and_not_listed():
    sets = {f"s{i}": A + 0.1 * i * WIDER[::-1] for i in range(9)}
    found = measure({**sets, "s9": power_law(50, 8)})
    n, *_ = cautions(found)
    assert n.startswith("n differs (50 to 90), and")
    assert "from the 9 larger sets, and the rest" in n
    changes = {name: d["sve"].value for name, d in found.differences.items()}
    furthest = max(changes, key=lambda name: abs(changes[name]))
    assert re.search(rf"\d sets \({furthest} ", headline(found))


def test_sets_that_share_no_scale_are_compared_by_their_share():
    narrow = power_law(90, 5, seed=3)
    groups = np.arange(90) // 6
    found = measure({"a": A, "b": narrow}, groups=groups)
    got = found.differences["b"]["sve_share"]
    assert got.value == pytest.approx(sve(narrow) / np.log(5) - sve(A) / np.log(8))
    left = left_out(narrow, groups) / np.log(5) - left_out(A, groups) / np.log(8)
    assert got.error == pytest.approx(np.sqrt(14 * np.var(left)), rel=1e-6)
    assert list(found.panels) == ["SVE / log min(n, d)"]
    assert "SVE / log min(n, d)" in headline(found)
    assert "LSVR" not in headline(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": {"c": np.arange(90)}}, "unknown name in groups 'c'"),
        ({"groups": {"a": np.arange(9)}}, r"a: groups must be \[90\], one a row"),
        ({"ids": {"c": np.arange(90)}}, "unknown name in ids 'c'"),
        ({"ids": {"b": np.arange(9)}}, r"b: ids must be \[90\], got \[9\]"),
        ({"whole": "yes"}, "whole must be True or False"),
    ],
)
def test_arguments_that_would_be_ignored_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        measure({"a": A, "b": WIDER}, **options)
