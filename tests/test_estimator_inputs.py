"""What estimators are given and how they fail: tables, masks, splits, forks, full disks."""

import resource
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.model_selection import GroupKFold, KFold, PredefinedSplit, StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler

from noisy_fm import LinearProbe, NMTuneClassifierCV
from noisy_fm.probe import Head, fit_heads

Y = np.arange(120) % 3
X = np.random.default_rng(0).normal(size=(120, 6)) + 3 * np.eye(6)[Y]
NAMES = np.array(["cat", "dog", "owl"])[Y]
QUICK = {"epochs": 1, "min_steps": 0, "random_state": 0}
MASKED = np.ma.masked_greater(X, 3)


@pytest.mark.parametrize(
    "arguments",
    [
        {"early_stopping": True, "validation_fraction": 0.001},
        {"learning_rate": 1e38, "epochs": 50},
        {"epochs": -1},
    ],
)
def test_a_failed_refit_changes_nothing(arguments):
    model = LinearProbe(**QUICK).fit(pd.DataFrame(X).add_prefix("f"), Y).set_params(**arguments)
    before = vars(model).copy()
    with pytest.raises(ValueError, match=r"validation rows|diverged|epochs"):
        model.fit(X[:, :4], NAMES)
    assert vars(model).keys() == before.keys()
    assert all(vars(model)[name] is value for name, value in before.items())


@pytest.mark.parametrize(
    "given",
    [
        pd.Series(X.tolist()),
        pd.Series(list(X)).to_numpy(),
        pd.DataFrame({"embedding": list(X)}),
        pa.table({"embedding": X.tolist()}),
        list(X),
        np.ma.array(X),
    ],
    ids=["series", "objects", "frame", "arrow", "list", "unmasked"],
)
def test_a_column_of_embeddings_is_a_matrix(given):
    model = LinearProbe(**QUICK).fit(X, Y)
    found = LinearProbe(**QUICK).fit(given, NAMES.tolist())
    np.testing.assert_array_equal(found.decision_function(given), model.decision_function(X))


def test_masked_values_are_refused():
    y, w = np.ma.masked_equal(Y, 2), np.ma.masked_less(X[:, 0] ** 2, 0.1)
    for given in [(MASKED, Y), (X, y), (X, Y, w)]:
        with pytest.raises(ValueError, match="are masked in"):
            LinearProbe(**QUICK).fit(*given)
    with pytest.raises(ValueError, match="are masked in"):
        LinearProbe(**QUICK).fit(X, Y).predict(MASKED)
    for pair in [(MASKED, Y), (X, y)]:
        with pytest.raises(ValueError, match="are masked in"):
            fit_heads(*pair, [Head("lp", epochs=1)], num_classes=3)
        with pytest.raises(ValueError, match="test set 't'"):
            fit_heads(X, Y, [Head("lp", epochs=1)], num_classes=3, test_sets={"t": pair})


TEXTS = X.astype(str)
FRAME = pd.DataFrame(X).add_prefix("f")


@pytest.mark.parametrize(
    ("given", "weight", "message"),
    [
        (TEXTS, None, "X must be real numbers, got dtype <U32: convert them first"),
        (TEXTS.tolist(), None, "X must be real numbers, got dtype <U"),
        (TEXTS.astype(object), None, f"X must be real numbers, got the text '{TEXTS[0, 0]}'"),
        (FRAME.assign(n="1.5"), None, "X, in column 'n', must be real numbers, got the text '1.5'"),
        (X.astype("M8[s]"), None, r"X must be real numbers, got dtype datetime64\[s\]"),
        (X + 0j, None, "X must be real numbers, got complex128"),
        (FRAME + 0j, None, "X, in column 'f0', must be real numbers, got complex128"),
        (X, ["1"] * 120, "sample_weight must be real numbers, got dtype <U1"),
        (X, X[:, 0] + 0j, "sample_weight must be real numbers, got complex128"),
    ],
)
def test_texts_dates_and_complex_numbers_are_no_features(given, weight, message):
    model = LinearProbe(**QUICK)
    with pytest.raises((TypeError, ValueError), match=message) as error:
        model.fit(given, Y, weight)
    assert "\n" not in str(error.value)
    if weight is None:
        with pytest.raises((TypeError, ValueError), match=message):
            model.fit(FRAME if hasattr(given, "columns") else X, Y).predict(given)


def test_numbers_held_as_objects_are_features():
    model = LinearProbe(**QUICK).fit(X, Y)
    found = LinearProbe(**QUICK).fit(X.astype(object), Y, pd.Series(np.ones(120), dtype=object))
    np.testing.assert_array_equal(found.coef_, model.coef_)


@pytest.mark.parametrize("given", ["a", -1, 2**32, 1.5, np.random.default_rng(0)])
def test_seeds_that_are_none(given):
    with pytest.raises(
        ValueError, match=r"^random_state must be None, a whole number below 2³² or"
    ):
        LinearProbe(random_state=given).fit(X, Y)


@pytest.mark.parametrize("dtype", [np.int64, np.float64])
def test_features_far_from_zero_are_centred_before_they_are_rounded(dtype):
    far = (np.arange(120)[:, None] + 1_700_000_000_000).astype(dtype)
    y = np.arange(120) > 60
    model = LinearProbe(standardize=True, random_state=0).fit(far, y)
    near = StandardScaler().fit_transform(far)
    other = LinearProbe(standardize=True, random_state=0).fit(near, y)
    assert model.score(far, y) == pytest.approx(other.score(near, y), abs=0.02)
    assert model.score(far, y) > 0.95
    with pytest.warns(UserWarning, match="float32 rounds that away, set standardize=True"):
        LinearProbe(**QUICK).fit(far, y)
    with pytest.warns(UserWarning, match="float32 rounds that away, subtract their mean before"):
        LinearProbe(standardize=True, **QUICK).fit((X + 1.3e7 * 8).astype(np.float32), Y)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("standardize", [False, True])
def test_coefficients_are_those_of_the_features_as_given(classes, standardize):
    x, y = 5 * X[classes > Y] + 2, Y[classes > Y]
    model = LinearProbe(standardize=standardize, **QUICK).fit(x, y)
    assert model.coef_.shape == (1 if classes == 2 else 3, 6)
    scores = (x @ model.coef_.T + model.intercept_).squeeze()
    np.testing.assert_allclose(scores, model.decision_function(x), atol=1e-12)


def test_numpy_scalars_mean_what_they_print_as(tmp_path):
    head = Head("nmtune", weights=np.float32([0.1, 0, 0]), learning_rate=np.array(0.1, "f"))
    assert head == Head("nmtune", weights=(0.1, 0.0, 0.0), learning_rate=0.1)
    model = LinearProbe(np.float32(0.1), np.float16(0.1), epochs=1, min_steps=np.uint8(5))
    model.set_params(random_state=np.int8(0), standardize=np.bool_(True)).fit(X, Y)
    plain = LinearProbe(0.1, 0.1, epochs=1, min_steps=5, random_state=0, standardize=True)
    np.testing.assert_array_equal(model.coef_, plain.fit(X, Y).coef_)
    model.save(tmp_path / "m")
    assert LinearProbe.load(tmp_path / "m").get_params() == plain.get_params()


def search(cv):
    return NMTuneClassifierCV(weights=(0.0,), cv=cv, **QUICK)


def test_splits_of_a_search():
    groups = np.arange(120) // 10
    found = search(GroupKFold(3)).fit(X, Y, groups=groups)
    pairs = list(GroupKFold(3).split(X, Y, groups))
    assert found.best_score_ == search(pairs).fit(X, Y).best_score_
    generator = search(KFold(3).split(X))
    assert generator.fit(X, Y).best_score_ == generator.fit(X, Y).best_score_
    half = np.arange(120) < 60
    places = (np.flatnonzero(half), np.flatnonzero(~half))
    assert search([(half, ~half)]).fit(X, Y).best_score_ == search([places]).fit(X, Y).best_score_


@pytest.mark.parametrize(
    ("cv", "grouped"), [(3, False), (3, True), (KFold(3), False), (GroupKFold(3), True)]
)
def test_rows_of_weight_0_are_in_no_fold(cv, grouped):
    weight = np.random.default_rng(1).integers(0, 2, 120)
    groups, used = np.arange(120) // 10 if grouped else None, weight > 0
    found = search(cv).fit(X, Y, weight, groups)
    other = search(cv).fit(X[used], Y[used], groups=groups[used] if grouped else None)
    for i in range(3):
        name = f"split{i}_test_score"
        assert found.cv_results_[name] == other.cv_results_[name]
    np.testing.assert_array_equal(found.predict_proba(X), other.predict_proba(X))


def test_given_splits_count_the_rows_of_weight_0():
    weight, place = np.arange(120) % 5 > 0, np.arange(120) % 4 - 1
    pairs = list(PredefinedSplit(place).split())
    scores = {search(cv).fit(X, Y, weight).best_score_ for cv in (pairs, PredefinedSplit(place))}
    left = search(PredefinedSplit(place[weight])).fit(X[weight], Y[weight])
    assert scores == {left.best_score_}


def test_a_number_of_folds_keeps_groups_together():
    groups = np.arange(120) // 10
    found = search(3).fit(X, Y, groups=groups)
    assert found.best_score_ == search(StratifiedGroupKFold(3)).fit(X, Y, groups=groups).best_score_
    assert found.best_score_ != search(3).fit(X, Y).best_score_
    with pytest.raises(ValueError, match="5 folds need 5 groups at least, got 3"):
        search(5).fit(X, Y, groups=groups // 4)
    with pytest.raises(ValueError, match=r"groups must be \[120\], one a row, got shape \(9,\)"):
        search(5).fit(X, Y, groups=groups[:9])


def test_a_class_of_one_row_has_no_folds():
    weight = np.where(Y == 2, np.arange(120) == 2, 1)
    with pytest.raises(ValueError, match=r"^class 'owl' has 1 row .* folds need 2 of each class"):
        search(5).fit(X, NAMES, weight)


def test_candidates_that_diverge_are_told_and_come_last(tmp_path):
    model = search(2).set_params(learning_rates=(1e30, 1e-3))
    with pytest.warns(RuntimeWarning, match="1 of 2 .* weights=0.0, learning_rate=1e") as said:
        model.fit(X, Y)
    assert said[0].filename == __file__
    assert "Head" not in str(said[0].message)
    assert np.isnan(model.cv_results_["split0_test_score"][0])
    assert np.isnan(model.cv_results_["mean_test_score"][0])
    assert list(model.cv_results_["rank_test_score"]) == [2, 1]
    assert model.best_params_["learning_rate"] == 1e-3
    model.save(tmp_path / "m")
    found = NMTuneClassifierCV.load(tmp_path / "m").cv_results_["mean_test_score"]
    np.testing.assert_array_equal(found, model.cv_results_["mean_test_score"])
    with pytest.raises(ValueError, match="1 of 1 candidates diverged"):
        model.set_params(learning_rates=(1e30,)).fit(X, Y)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (([0, 1, 2], [2, 3]), "trains and validates on the same 1 rows, the first is row 2"),
        (([0, 1, 2], []), "fold 0 has no validation rows"),
        (([0, 1, 2], [120]), r"must be positions 0\.\.119"),
        (([0, 1, 2], [-1]), r"must be positions 0\.\.119"),
        ((np.ones(5, bool), [3]), r"a mask \[120\]"),
        ([0, 1, 2], "must be a pair"),
    ],
)
def test_splits_that_are_none(split, message):
    with pytest.raises(ValueError, match=message):
        search([split]).fit(X, Y)


def test_lists_of_labels():
    with pytest.raises(ValueError, match="y must be one label a row"):
        LinearProbe(**QUICK).fit(X, [["a"], ["b", "c"]] * 60)
    with pytest.raises(ValueError, match="at least 2 classes, got 1 class: 'a'"):
        LinearProbe(**QUICK).fit(X, ["a"] * 120)


def test_a_child_forked_after_jax_started_says_so():
    code = """
import multiprocessing, numpy as np, warnings
from noisy_fm import LinearProbe
warnings.simplefilter("ignore")
X, y = np.eye(6).repeat(9, 0), np.arange(54) % 2
def fit(_):
    try:
        LinearProbe(epochs=1, min_steps=0).fit(X, y)
    except RuntimeError as error:
        return str(error)
fit(0)
print(multiprocessing.get_context("fork").Pool(1).map_async(fit, [0]).get(30)[0])
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "forked after JAX had started" in out.stdout


def test_a_full_disk_leaves_the_old_file(tmp_path):
    x = np.random.default_rng(0).normal(size=(60, 600))
    model = LinearProbe(**QUICK).fit(x, np.arange(60) % 30)
    model.save(tmp_path / "m")
    before = (tmp_path / "m").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match="cannot be written"):
            model.save(tmp_path / "m")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "m").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_partial_fit_does_not_stop_early():
    with pytest.raises(ValueError, match="partial_fit cannot stop early"):
        LinearProbe(early_stopping=True).partial_fit(X, Y, classes=np.unique(Y))
