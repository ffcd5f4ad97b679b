import hashlib
import itertools
import math
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from noisy_fm import noise

RATES = (0.0, 0.05, 0.1, 0.2, 0.29, 0.3, 0.5, 0.999)
MATRIX = np.array(
    [[0.6, 0.4, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4], [0.25, 0.05, 0.0, 0.7]]
)
KINDS = {
    "symmetric": {},
    "subset": {"kind": "subset", "classes": (0, 2, 3)},
    "transition": {"kind": "transition", "matrix": MATRIX},
}


def some_labels(n, num_classes=4, seed=0):
    return np.random.default_rng(seed).integers(0, num_classes, n)


@pytest.mark.parametrize("n", [0, 1, 7, 50, 1000, 3811])
@pytest.mark.parametrize("rate", RATES)
def test_realised_rate_is_exact(n, rate):
    labels = some_labels(n)
    noisy, manifest = noise.flip_labels(labels, 4, rate)
    # In integers, thousandths of an example: rounding half up, free of binary fractions.
    expected = (round(rate * 1000) * n + 500) // 1000
    assert (noisy != labels).sum() == len(manifest.ids) == expected
    assert manifest.realised == (expected / n if n else 0)
    assert noisy.dtype == labels.dtype
    assert ((noisy >= 0) & (noisy < 4)).all()


def test_half_rounds_up_in_decimal():
    labels = some_labels(50)
    assert 0.29 * 50 < 14.5  # what binary floating point makes of it
    assert len(noise.flip_labels(labels, 4, 0.29)[1].ids) == 15


def test_rate_zero_is_identity_and_inputs_are_untouched():
    labels = some_labels(100)
    kept = labels.copy()
    noisy, manifest = noise.flip_labels(labels, 4, 0.0)
    np.testing.assert_array_equal(noisy, labels)
    assert len(manifest.ids) == 0
    noise.flip_labels(labels, 4, 0.5)
    np.testing.assert_array_equal(labels, kept)
    np.testing.assert_array_equal(noise.swap_captions(20, 0.0)[0], np.arange(20))


@pytest.mark.parametrize("kind", KINDS)
def test_order_of_ids_does_not_matter(kind):
    labels, ids = some_labels(2000), np.random.default_rng(3).integers(-(2**60), 2**60, 2000)
    noisy, manifest = noise.flip_labels(labels, 4, 0.2, ids=ids, seed=5, **KINDS[kind])
    shuffle = np.random.default_rng(1).permutation(2000)
    again, other = noise.flip_labels(
        labels[shuffle], 4, 0.2, ids=ids[shuffle], seed=5, **KINDS[kind]
    )
    np.testing.assert_array_equal(again, noisy[shuffle])
    assert other.hash == manifest.hash


@pytest.mark.parametrize("hosts", [2, 3, 8])
def test_shards_apply_the_global_manifest(hosts):
    labels, ids = some_labels(1000), np.arange(1000) * 13 + 4
    noisy, manifest = noise.flip_labels(labels, 4, 0.3, ids=ids)
    for host in range(hosts):
        shard = manifest.apply(labels[host::hosts], ids[host::hosts])
        np.testing.assert_array_equal(shard, noisy[host::hosts])
        np.testing.assert_array_equal(
            manifest.mask(ids[host::hosts]), (noisy != labels)[host::hosts]
        )


@pytest.mark.parametrize("kind", KINDS)
def test_rates_are_nested_with_the_same_wrong_labels(kind):
    labels = some_labels(3000)
    rates = (0.01, 0.05, 0.1, 0.2, 0.25, 0.3)
    runs = [noise.flip_labels(labels, 4, r, seed=9, **KINDS[kind]) for r in rates]
    for (few, low), (many, high) in itertools.pairwise(runs):
        assert set(low.ids) < set(high.ids)
        np.testing.assert_array_equal(many[low.ids], few[low.ids])


def test_seeds_and_ids_matter_and_selections_are_independent():
    labels, n = some_labels(40_000), 40_000
    flipped = [noise.flip_labels(labels, 4, 0.3, seed=s)[0] != labels for s in range(6)]
    for a in range(6):
        for b in range(a):
            overlap = (flipped[a] & flipped[b]).sum()
            # Hypergeometric mean and deviation of two independent 30 % draws.
            assert abs(overlap - 0.09 * n) < 5 * math.sqrt(n * 0.3 * 0.3 * 0.7 * 0.7)
    shifted, _ = noise.flip_labels(labels, 4, 0.3, ids=np.arange(n) + n)
    assert 0.3 < (flipped[0] & (shifted != labels)).sum() / (0.09 * n) < 1.2


@pytest.mark.parametrize("num_classes", [2, 3, 10, 97])
def test_wrong_labels_are_uniform_over_wrong_classes(num_classes):
    labels = some_labels(60_000, num_classes)
    noisy, _ = noise.flip_labels(labels, num_classes, 0.5, seed=1)
    shift = (noisy - labels)[noisy != labels] % num_classes
    counts = np.bincount(shift, minlength=num_classes)
    assert counts[0] == 0
    if num_classes > 2:
        assert scipy.stats.chisquare(counts[1:]).pvalue > 1e-3
        # Also within a class, where a bias to the first or last class would show.
        of_zero = np.bincount(noisy[(labels == 0) & (noisy != 0)], minlength=num_classes)
        assert scipy.stats.chisquare(of_zero[1:]).pvalue > 1e-3


def test_flips_are_spread_evenly_over_classes_and_positions():
    labels = np.repeat(np.arange(10), 5000)
    noisy, _ = noise.flip_labels(labels, 10, 0.2, seed=2)
    hit = noisy != labels
    assert scipy.stats.chisquare(hit.reshape(50, -1).sum(1)).pvalue > 1e-3
    assert scipy.stats.chisquare([hit[i::7][:7000].sum() for i in range(7)]).pvalue > 1e-3


def test_subset_flips_only_its_own_examples():
    labels, subset = some_labels(20_000, 10), (1, 4, 7)
    inside = np.isin(labels, subset)
    noisy, manifest = noise.flip_labels(labels, 10, 0.25, kind="subset", classes=subset)
    hit = noisy != labels
    assert not hit[~inside].any()
    assert hit.sum() == math.floor(0.25 * inside.sum() + 0.5)
    assert set(noisy[hit]) == set(subset)
    assert manifest.base == inside.sum()
    assert manifest.summary()["options"] == {"classes": [1, 4, 7], "within": True, "of": "subset"}

    noisy, _ = noise.flip_labels(labels, 10, 0.25, kind="subset", classes=subset, within=False)
    hit = noisy != labels
    assert not hit[~inside].any()
    counts = np.bincount(noisy[hit & (labels == 4)], minlength=10)
    assert counts[4] == 0
    assert scipy.stats.chisquare(np.delete(counts, 4)).pvalue > 1e-3

    noisy, manifest = noise.flip_labels(labels, 10, 0.1, kind="subset", classes=subset, of="all")
    assert (noisy != labels).sum() == 2000
    assert manifest.base == 20_000
    with pytest.raises(ValueError, match=r"rate 0\.5 of all 20000 examples is 10000 flips"):
        noise.flip_labels(labels, 10, 0.5, kind="subset", classes=subset, of="all")


@pytest.mark.parametrize("rate", [None, 0.1, 0.3])
def test_transition_matrix_is_followed(rate):
    labels = np.repeat(np.arange(4), (30_000, 1000, 20_000, 9000))
    noisy, manifest = noise.flip_labels(labels, 4, rate, kind="transition", matrix=MATRIX, seed=3)
    hit = noisy != labels
    sizes, mass = np.bincount(labels), 1 - MATRIX.diagonal()
    expected = sizes * mass
    if rate is not None:
        expected *= rate * len(labels) / expected.sum()
    assert hit.sum() == round(expected.sum())
    flips = np.array([(hit & (labels == c)).sum() for c in range(4)])
    assert (np.abs(flips - expected) <= 1).all()
    assert set(noisy[hit & (labels == 0)]) == {1}
    for c in (2, 3):
        counts = np.bincount(noisy[hit & (labels == c)], minlength=4)
        wanted = np.where(np.arange(4) == c, 0, MATRIX[c]) / mass[c]
        assert (counts[wanted == 0] == 0).all()
        some = wanted > 0
        assert scipy.stats.chisquare(counts[some], wanted[some] * flips[c]).pvalue > 1e-3
    np.testing.assert_array_equal(manifest.options["matrix"], MATRIX)


def test_transition_can_flip_whole_classes_but_not_more():
    cycle = np.roll(np.eye(3), 1, axis=1)
    labels = np.array([0, 1, 2, 2, 1, 0, 0])
    noisy, _ = noise.flip_labels(labels, 3, None, kind="transition", matrix=cycle)
    np.testing.assert_array_equal(noisy, (labels + 1) % 3)
    same, manifest = noise.flip_labels(labels, 3, None, kind="transition", matrix=np.eye(3))
    np.testing.assert_array_equal(same, labels)
    assert manifest.realised == 0
    with pytest.raises(ValueError, match="more than every example of some class"):
        noise.flip_labels(some_labels(100), 4, 0.9, kind="transition", matrix=MATRIX)


@pytest.mark.parametrize("n", [0, 2, 3, 10, 101, 2000])
@pytest.mark.parametrize("rate", RATES)
def test_displaced_captions_are_exact_and_never_their_own(n, rate):
    permutation, manifest = noise.swap_captions(n, rate, seed=4)
    np.testing.assert_array_equal(np.sort(permutation), np.arange(n))
    moved = np.flatnonzero(permutation != np.arange(n))
    wanted = (round(rate * 1000) * n + 500) // 1000
    assert len(moved) == (wanted if wanted != 1 else 2 * (rate * n >= 1))
    np.testing.assert_array_equal(manifest.ids, moved)
    np.testing.assert_array_equal(manifest.apply(np.arange(n)), permutation)


def test_captions_are_nested_and_independent_of_order():
    ids = np.random.default_rng(0).permutation(5000) * 3
    runs = [noise.swap_captions(ids, rate, seed=1) for rate in (0.05, 0.1, 0.2, 0.3)]
    for (few, low), (many, high) in itertools.pairwise(runs):
        assert set(low.ids) < set(high.ids)
        assert (few[low.mask(ids)] != many[low.mask(ids)]).sum() == 1  # the cycle's last
    permutation, manifest = runs[-1]
    shuffle = np.random.default_rng(1).permutation(5000)
    again, other = noise.swap_captions(ids[shuffle], 0.3, seed=1)
    assert other.hash == manifest.hash
    np.testing.assert_array_equal(ids[shuffle][again], ids[permutation][shuffle])


@pytest.mark.parametrize(
    ("rate", "displaced"), [(0.05, 0.094), (0.1, 0.179), (0.2, 0.329), (0.3, 0.454)]
)
def test_pair_swaps_displace_what_the_release_did(rate, displaced):
    n = 40_000
    permutation, manifest = noise.swap_captions(n, rate, pair_swaps=True)
    assert manifest.realised == np.mean(permutation != np.arange(n))
    assert manifest.realised == pytest.approx(1 - math.exp(-2 * rate), abs=0.006)
    assert manifest.realised == pytest.approx(displaced, abs=0.01)
    shuffle = np.random.default_rng(1).permutation(n)
    assert noise.swap_captions(shuffle, rate, pair_swaps=True)[1].hash == manifest.hash


@settings(deadline=None, max_examples=60)
@given(
    data=st.data(),
    num_classes=st.integers(2, 300),
    rate=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 2**63 - 1),
)
def test_properties_of_symmetric_flips(data, num_classes, rate, seed):
    ids = data.draw(st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, max_size=40))
    labels = np.array([i % num_classes for i in ids], np.int64)
    ids = np.array(ids, np.int64)
    noisy, manifest = noise.flip_labels(labels, num_classes, rate, ids=ids, seed=seed)
    assert abs((noisy != labels).sum() - rate * len(ids)) <= 0.5 + 1e-9
    assert ((noisy >= 0) & (noisy < num_classes)).all()
    np.testing.assert_array_equal(manifest.apply(labels, ids), noisy)
    assert manifest.ids.tolist() == sorted(ids[labels != noisy].tolist())


def test_hash_is_splitmix64_and_stays_what_it_is():
    # First outputs of the reference generator seeded with 0: its state grows by the golden gamma.
    golden = np.uint64(0x9E3779B97F4A7C15)
    state = np.array([1, 2, 3], np.uint64) * golden
    assert [hex(x) for x in noise.splitmix64(state).tolist()] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
        "0x6c45d188009454f",
    ]
    # Results in the wild cite these: a change to either is a change of everybody's noise.
    noisy, manifest = noise.flip_labels(np.arange(12) % 4, 4, 0.5, seed=7)
    assert noisy.tolist() == GOLDEN_LABELS
    assert manifest.hash == GOLDEN_HASH


GOLDEN_LABELS = [0, 3, 1, 3, 2, 1, 2, 1, 0, 0, 2, 0]
GOLDEN_HASH = "ce78000cf8cd359b"


@pytest.mark.parametrize("kind", KINDS)
def test_manifest_survives_the_file(kind, tmp_path):
    labels, ids = some_labels(500), np.arange(500) + 10
    noisy, manifest = noise.flip_labels(labels, 4, 0.2, ids=ids, **KINDS[kind])
    manifest.save(tmp_path / "noise.npz")
    loaded = noise.Manifest.load(tmp_path / "noise.npz")
    assert loaded.hash == manifest.hash
    assert loaded.summary() == manifest.summary()
    np.testing.assert_array_equal(loaded.apply(labels, ids), noisy)
    np.testing.assert_array_equal(loaded.old, labels[loaded.ids - 10])
    np.testing.assert_array_equal(loaded.new, noisy[loaded.ids - 10])
    assert [p.name for p in tmp_path.iterdir()] == ["noise.npz"]


def test_manifest_hash_covers_every_field():
    labels = some_labels(200)
    _, manifest = noise.flip_labels(labels, 4, 0.2)
    others = [
        noise.flip_labels(labels, 4, 0.2, seed=1)[1],
        noise.flip_labels(labels, 4, 0.201)[1],
        noise.flip_labels(labels, 5, 0.2)[1],
        noise.flip_labels(labels, 4, 0.2, ids=np.arange(200) + 1)[1],
        noise.flip_labels(labels, 4, 0.2, kind="subset", classes=range(4))[1],
        noise.flip_labels(labels, 4, 0.2, kind="transition", matrix=np.full((4, 4), 0.25))[1],
        noise.flip_labels(labels, 4, 0.2, kind="transition", matrix=MATRIX)[1],
        noise.swap_captions(200, 0.2)[1],
        noise.swap_captions(200, 0.2, pair_swaps=True)[1],
    ]
    assert len({manifest.hash, *(m.hash for m in others)}) == 10


def test_manifest_is_frozen():
    _, manifest = noise.flip_labels(some_labels(20), 4, 0.5)
    with pytest.raises(AttributeError):
        manifest.seed = 3
    with pytest.raises(ValueError, match="read-only"):
        manifest.new[0] = 0


def test_damaged_manifests_are_one_clear_line(tmp_path):
    _, manifest = noise.flip_labels(some_labels(5000), 4, 0.2)
    path = tmp_path / "noise.npz"
    manifest.save(path)
    whole = path.read_bytes()
    for damaged in (
        b"",
        b"nonsense",
        whole[: len(whole) // 2],
        whole[:1000] + b"\0" + whole[1001:],
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"noise\.npz") as error:
            noise.Manifest.load(path)
        assert "\n" not in str(error.value)
    np.savez(path, anything=np.zeros(3))
    with pytest.raises(ValueError, match="not a readable noise manifest"):
        noise.Manifest.load(path)
    with pytest.raises(FileNotFoundError, match="no noise manifest at"):
        noise.Manifest.load(tmp_path / "none.npz")


def test_tampered_manifest_is_refused(tmp_path):
    path = tmp_path / "noise.npz"
    noise.flip_labels(some_labels(100), 4, 0.2)[1].save(path)
    arrays = dict(np.load(path))
    arrays["new"] = (arrays["new"] + 1) % 4
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match="has changed since it was written"):
        noise.Manifest.load(path)


def test_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "noise.npz"
    _, manifest = noise.flip_labels(some_labels(100), 4, 0.2)
    manifest.save(path)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="No space"):
        noise.flip_labels(some_labels(100), 4, 0.3)[1].save(path)
    assert noise.Manifest.load(path).hash == manifest.hash
    assert len(list(tmp_path.iterdir())) == 1


def test_apply_refuses_other_data():
    labels = some_labels(100)
    _, manifest = noise.flip_labels(labels, 4, 0.2)
    with pytest.raises(ValueError, match="expected the same data"):
        manifest.apply((labels + 1) % 4)
    with pytest.raises(ValueError, match="expected ids="):
        manifest.apply(labels[:50])


def call(**changes):
    arguments = {"labels": [0, 1, 2, 3], "num_classes": 4, "rate": 0.5, **changes}
    return noise.flip_labels(**arguments)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"rate": 1.0}, r"rate is 1\.0; expected γ in \[0, 1\)"),
        ({"rate": -0.1}, r"rate is -0\.1; expected"),
        ({"rate": math.nan}, "rate is nan; expected"),
        ({"rate": None}, "rate is None; expected"),
        ({"rate": "0.1"}, "rate is '0.1'; expected"),
        ({"labels": [0, 4]}, r"labels span 0 to 4; expected 0 to 3"),
        ({"labels": [-1, 0]}, r"labels span -1 to 0; expected"),
        ({"labels": [0.0, 1.0]}, "labels are float64; expected integers"),
        ({"labels": [[0], [1]]}, r"shape \(2, 1\); expected one axis"),
        ({"labels": np.zeros(3, np.uint8), "num_classes": 999}, "uint8, which cannot hold"),
        ({"ids": [1, 2, 2, 3]}, "id 2 is given more than once"),
        ({"ids": [1, 2]}, "got 2 ids for 4 labels"),
        ({"ids": [0.0, 1.0, 2.0, 3.0]}, "ids are float64; expected integers, or texts"),
        ({"ids": list("abca")}, "id a is given more than once"),
        ({"ids": ["a", "b", None, "d"]}, "ids are str, but at 2 None; expected one type"),
        ({"labels": ["a", "b", math.nan]}, "labels are str, but at 2 nan; expected one type"),
        ({"labels": ["a", "b"], "num_classes": 3}, "num_classes is 3, the labels are of 2 classes"),
        ({"labels": ["a", "a"], "num_classes": None}, r"hold the classes \['a'\]; expected two or"),
        ({"num_classes": 0.1, "rate": None}, r"num_classes is 0\.1; a rate is given as rate=0\.1"),
        ({"num_classes": 1}, "num_classes is 1; expected at least 2"),
        ({"num_classes": 4.0}, "num_classes is 4.0; expected a whole number"),
        ({"seed": -1}, "seed is -1; expected at least 0"),
        ({"seed": 0.5}, "seed is 0.5; expected a whole number"),
        ({"kind": "symetric"}, "unknown noise kind 'symetric'; did you mean 'symmetric'"),
        ({"kind": "zzz"}, "known: symmetric, subset, transition"),
        ({"classes": [1, 2]}, "classes= is an argument of kind='subset'"),
        ({"within": False}, "within= is an argument of kind='subset'"),
        ({"of": "some"}, "of is 'some'"),
        ({"matrix": MATRIX}, "matrix= is an argument of kind='transition'"),
        ({"kind": "subset"}, "needs classes="),
        ({"kind": "subset", "classes": [2, 4]}, "classes span 2 to 4"),
        ({"kind": "subset", "classes": [2]}, "no wrong class within"),
        ({"kind": "subset", "classes": []}, r"classes are \[\]; expected at least one integer"),
        ({"kind": "subset", "classes": 3}, "classes are 3; expected a sequence of classes"),
        ({"kind": "transition"}, "needs matrix="),
        ({"kind": "transition", "matrix": np.eye(3)}, r"shape \(3, 3\); expected \(4, 4\)"),
        ({"kind": "transition", "matrix": np.eye(4) * 0.9}, "row 0 sums to 0.9; expected 1"),
        ({"kind": "transition", "matrix": np.eye(4) * math.nan}, "negative or NaN"),
    ],
)
def test_mistakes_are_one_line(changes, line):
    with pytest.raises((ValueError, TypeError), match=line) as error:
        call(**changes)
    assert "\n" not in str(error.value)


def test_pair_swaps_are_swaps_one_after_another():
    """Of a list, by the definition; across the pieces that are drawn at once."""
    n, count = 50, 2**20 + 40
    first = noise._below(noise._hash(3, noise._SELECT, np.arange(count)), n)
    second = noise._below(noise._hash(3, noise._PARTNER, np.arange(count)), n - 1)
    expected = list(range(n))
    for a, b in zip(first.tolist(), second.tolist(), strict=True):
        b += b >= a
        expected[a], expected[b] = expected[b], expected[a]
    assert noise._random_pair_swaps(n, count, 3).tolist() == expected


@pytest.mark.parametrize("pair_swaps", [False, True])
def test_a_manifest_of_captions_is_kept_in_half_the_space(tmp_path, pair_swaps):
    ids = np.random.default_rng(0).integers(0, 2**63 - 1, 20_000)
    manifest = noise.swap_captions(ids, 0.3, pair_swaps=pair_swaps)[1]
    manifest.save(tmp_path / "noise.npz")
    assert (tmp_path / "noise.npz").stat().st_size < 12 * len(manifest.ids)
    with np.load(tmp_path / "noise.npz") as file:  # what it says is plain without us
        assert np.array_equal(file["ids"][file["place"]], manifest.new)
        header = file["header"]
    found = noise.Manifest.load(tmp_path / "noise.npz")
    assert found.hash == manifest.hash
    for name in ("ids", "old", "new"):
        assert np.array_equal(getattr(found, name), getattr(manifest, name))
    arrays = {name: getattr(manifest, name) for name in ("ids", "old", "new")}
    np.savez(tmp_path / "before.npz", header=header, **arrays)  # as it was until 2026-11
    assert noise.Manifest.load(tmp_path / "before.npz").hash == manifest.hash
    with np.load(tmp_path / "noise.npz") as file:
        np.savez(tmp_path / "bad.npz", **{**file, "place": file["place"] + np.uint32(1)})
    with pytest.raises(ValueError, match="is not a readable noise manifest"):
        noise.Manifest.load(tmp_path / "bad.npz")


def test_caption_mistakes_are_one_line():
    for rate in (1.0, -0.1, math.nan):
        with pytest.raises(ValueError, match="expected γ in"):
            noise.swap_captions(10, rate)
    with pytest.raises(ValueError, match="n is -1"):
        noise.swap_captions(-1, 0.1)
    with pytest.raises(ValueError, match="id 3 is given more than once"):
        noise.swap_captions([3, 3], 0.1)


def test_imagenet_sized_flips_take_under_two_seconds():
    labels = some_labels(1_281_167, 1000).astype(np.int32)
    start = time.perf_counter()
    noisy, _ = noise.flip_labels(labels, 1000, 0.3)
    assert time.perf_counter() - start < 2
    assert (noisy != labels).sum() == 384_350


def test_imports_cold():
    code = "import sys, noisy_fm.noise; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not {"jax", "flax", "tensorflow", "absl", "scipy"} & set(loaded.stdout.split())


def test_masked_labels_are_refused():
    hidden = np.ma.masked_equal(some_labels(100), 3)
    with pytest.raises(ValueError, match=r"labels are masked in [0-9]+ of 100 examples"):
        noise.flip_labels(hidden, 4, 0.2)


WORDS = np.array(["ant", "bee", "cat", "dog"])


@pytest.mark.parametrize("kind", KINDS)
def test_labels_in_words_are_flipped_as_their_numbers_are(kind, tmp_path):
    labels, options = some_labels(300), dict(KINDS[kind])
    numbers, manifest = noise.flip_labels(labels, 4, 0.2, **options)
    if kind == "subset":
        options["classes"] = [str(WORDS[c]) for c in options["classes"]]
    given = WORDS[labels].tolist()
    for each in (given, pd.Series(given), pd.Series(given, dtype="category"), WORDS[labels]):
        noisy, named = noise.flip_labels(each, rate=0.2, **options)
        assert noisy.tolist() == WORDS[numbers].tolist()
        np.testing.assert_array_equal(named.old, manifest.old)
        assert named.options["label_names"].tolist() == WORDS.tolist()
    named.save(tmp_path / "noise.npz")
    loaded = noise.Manifest.load(tmp_path / "noise.npz")
    assert loaded.hash == named.hash
    np.testing.assert_array_equal(loaded.apply(given), noisy)
    np.testing.assert_array_equal(loaded.apply(given[7:90], range(7, 90)), noisy[7:90])
    with pytest.raises(ValueError, match="label 'eel' is none of the 4 classes, 'ant' to 'dog'"):
        loaded.apply(["eel"], [3])
    wrong = str(WORDS[(loaded.old[0] + 1) % 4])
    with pytest.raises(
        ValueError, match=f"has label {wrong}, the manifest .* from {WORDS[loaded.old[0]]}"
    ):
        loaded.apply([wrong], loaded.ids[:1])


def test_classes_that_are_not_numbered_from_0_are_those_that_occur():
    labels = some_labels(200)
    numbers, manifest = noise.flip_labels(labels, 4, 0.3)
    same, inferred = noise.flip_labels(labels, rate=0.3)
    np.testing.assert_array_equal(same, numbers)
    assert inferred.hash == manifest.hash
    odd = np.array([3, 10, 20, 1000], np.int32)
    noisy, sparse = noise.flip_labels(odd[labels], rate=0.3)
    np.testing.assert_array_equal(noisy, odd[numbers])
    assert (noisy.dtype, sparse.num_classes) == (np.int32, 4)
    truth, _ = noise.flip_labels(labels > 1, rate=0.3)
    assert (truth != (labels > 1)).sum() == 60


def test_the_width_of_an_array_of_texts_is_no_part_of_the_hash():
    narrow, wide = WORDS[some_labels(50)], WORDS[some_labels(50)].astype("U40")
    a, b = (
        noise.flip_labels(each, rate=0.2, ids=each + np.arange(50).astype(str))[1]
        for each in (narrow, wide)
    )
    assert a.hash == b.hash


def test_ids_in_words_are_hashed_and_kept():
    labels, ids = some_labels(400), [f"image{i}" for i in range(400)]
    hashed = [
        int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
        for text in ids
    ]
    np.testing.assert_array_equal(noise.text_ids(ids), hashed)
    noisy, manifest = noise.flip_labels(labels, 4, 0.1, ids=ids)
    np.testing.assert_array_equal(noisy, noise.flip_labels(labels, 4, 0.1, ids=hashed)[0])
    np.testing.assert_array_equal(manifest.apply(labels[::3], ids[::3]), noisy[::3])
    np.testing.assert_array_equal(manifest.mask(ids), noisy != labels)
    table = manifest.to_frame()
    changed = np.flatnonzero(noisy != labels)
    assert dict(zip(table["name"], table["new"], strict=True)) == {
        ids[i]: noisy[i] for i in changed
    }

    permutation, captions = noise.swap_captions(ids, 0.1)
    moved = dict(captions.to_frame()[["name", "new"]].to_numpy().tolist())
    assert moved == {ids[i]: ids[p] for i, p in enumerate(permutation) if i != p}


def test_a_table_traces_ids_to_files_and_numbers_to_classes():
    labels, ids = some_labels(100), np.arange(100) + 5
    noisy, manifest = noise.flip_labels(labels, 4, 0.1, ids=ids)
    assert list(manifest.to_frame()) == ["id", "old", "new"]
    files = {i: f"{i}.jpg" for i in ids.tolist()}
    table = manifest.to_frame(names=files, label_names=WORDS.tolist())
    rows = np.flatnonzero(noisy != labels)
    assert table["name"].tolist() == [f"{i + 5}.jpg" for i in rows]
    assert table["old"].tolist() == WORDS[labels[rows]].tolist()
    assert table["new"].tolist() == WORDS[noisy[rows]].tolist()
    with pytest.raises(ValueError, match=f"names lack {manifest.ids[0]}"):
        manifest.to_frame(names={})
    assert repr(manifest) == (
        f"Manifest(symmetric, rate 0.1, 10 of 100 changed (10.00% of 100), seed 0, hash "
        f"{manifest.hash})"
    )
