"""Estimators against scikit-learn's own checks, its models, and closed forms."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits, make_blobs
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from noisy_fm import (
    LinearProbe,
    MLPTuneClassifier,
    NMTuneClassifier,
    NMTuneClassifierCV,
    NMTuneTransformer,
)
from noisy_fm.estimator import rows
from noisy_fm.estimator.check import warn_scale
from noisy_fm.probe import Head
from noisy_fm.probe.fit import fit_plans
from noisy_fm.probe.plan import Plan, subset

CLASSIFIERS = [LinearProbe, MLPTuneClassifier, NMTuneClassifier]


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return x[:600, 20:44] / 16, y[:600]


@parametrize_with_checks([LinearProbe()])
def test_scikit_learn_checks_linear(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks(
    [
        MLPTuneClassifier(),
        NMTuneClassifier(),
        NMTuneTransformer(),
        NMTuneClassifierCV(cv=2, weights=(0.01,)),
    ]
)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def test_linear_probe_trained_to_the_end_is_logistic_regression():
    x, y = make_blobs(400, centers=3, n_features=4, cluster_std=6.0, random_state=3)
    x = StandardScaler().fit_transform(x)
    weight = np.random.default_rng(0).uniform(0.2, 3, len(x))
    ours = LinearProbe(0.05, epochs=1500, batch_size=400, random_state=0)
    theirs = LogisticRegression(C=1e8, tol=1e-8, max_iter=5000).fit(x, y, weight)
    found = ours.fit(x, y, sample_weight=weight).predict_proba(x)
    np.testing.assert_allclose(found, theirs.predict_proba(x), atol=2e-3)


@pytest.mark.parametrize("estimator", CLASSIFIERS)
def test_weights_equal_repetition_in_any_order(digits, estimator):
    x, y = digits
    random = np.random.default_rng(0)
    weight = random.integers(0, 4, len(x))
    repeated = np.repeat(np.arange(len(x)), weight)
    random.shuffle(repeated)
    model = estimator(epochs=2, min_steps=0, random_state=0)
    a = clone(model).fit(x, y, sample_weight=weight).decision_function(x)
    b = clone(model).fit(x[repeated], y[repeated]).decision_function(x)
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - clone(model).fit(x, y).decision_function(x)).max() > 1e-3


@pytest.mark.parametrize("standardize", [False, True])
def test_fit_is_the_probe_of_the_same_seed(digits, standardize):
    x, y = digits
    model = NMTuneClassifier(epochs=3, min_steps=0, random_state=7, standardize=standardize)
    model.fit(x, y)
    f = x.astype(np.float32)
    kept, _ = rows.merge(f, y, np.ones(len(f)))
    if standardize:
        unique = np.unique(f, axis=0)
        scale = unique.std(axis=0, dtype=np.float64)
        f = (f - unique.mean(axis=0, dtype=np.float64)) / np.where(scale == 0, 1, scale)
    head = Head("nmtune", seed=7, epochs=3)
    plan = Plan(head, kept.astype(np.int32), y[kept].astype(np.int32))
    (expected,) = fit_plans(f.astype(np.float32), [plan], num_classes=10)
    np.testing.assert_allclose(
        model.decision_function(x), expected.decision_function(f), rtol=2e-3, atol=2e-3
    )


def test_probabilities(digits):
    x, y = digits
    names = np.array([f"digit {i}" for i in range(10)])
    model = NMTuneClassifier(epochs=2, random_state=0).fit(x, names[y])
    p = model.predict_proba(x)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(model.predict_log_proba(x), np.log(p), rtol=1e-6)
    assert list(model.classes_) == list(names)
    assert model.score(x, names[y]) > 0.8
    two = LinearProbe(random_state=0).fit(x[y < 2], names[y[y < 2]])
    scores = two.decision_function(x[y < 2])
    assert scores.shape == ((y < 2).sum(),)
    np.testing.assert_array_equal(two.predict(x[y < 2]) == "digit 1", scores > 0)
    np.testing.assert_allclose(
        two.predict_proba(x[y < 2])[:, 1], 1 / (1 + np.exp(-scores)), rtol=1e-9
    )


def test_standardize_undoes_units(digits):
    x, y = digits
    units = 2.0 ** np.arange(-12, 12)  # exact in floating point
    model = LinearProbe(epochs=3, standardize=True, random_state=0)
    plain = clone(model).fit(x, y).mean_
    scaled = clone(model).fit(x * units, y)
    np.testing.assert_allclose(scaled.mean_ / units, plain, rtol=1e-6)
    assert scaled.score(x * units, y) > 0.8
    assert LinearProbe(epochs=3, random_state=0).fit(x * units, y).score(x * units, y) < 0.7


def test_early_stopping_keeps_the_best_epoch(digits):
    x, y = digits
    model = NMTuneClassifier(
        epochs=30, early_stopping=True, validation_fraction=0.2, n_iter_no_change=3, random_state=0
    ).fit(x, y)
    scores = model.validation_scores_
    assert model.n_iter_ == len(scores) == len(model.loss_curve_) < 30
    assert int(np.argmax(scores)) == model.n_iter_ - 1 - 3
    assert model.score(x, y) > 0.85


def test_early_stopping_scales_by_the_rows_it_trains_on(digits):
    x, y = digits[0].copy(), digits[1]
    model = LinearProbe(
        epochs=1, min_steps=0, early_stopping=True, standardize=True, random_state=0
    )
    before = clone(model).fit(x, y)
    f = x.astype(np.float32)
    kept, _ = rows.merge(f, y, np.ones(len(f)))
    train = subset(y[kept], 0.9, seed=0)
    np.testing.assert_allclose(before.mean_, f[kept[train]].mean(axis=0), rtol=1e-5)
    held = np.delete(kept, train)
    assert np.abs(f[held].mean(axis=0) - before.mean_).max() > 0.01


@pytest.mark.parametrize("verbose", [0, 1])
def test_a_fit_shows_its_progress_where_asked(digits, verbose, capsys):
    x, y = digits
    LinearProbe(epochs=2, min_steps=0, verbose=verbose, random_state=0).fit(x, y)
    arguments = {"weights": (0.0,), "cv": 2, "epochs": 1, "min_steps": 0, "random_state": 0}
    NMTuneClassifierCV(verbose=verbose, **arguments).fit(x, y)
    lines = capsys.readouterr().out.splitlines()
    starts = ["LinearProbe: 20/20 steps", "probe: 10/10 head-steps", "NMTuneClassifierCV: 10/10"]
    assert len(lines) == (3 if verbose else 0)
    assert all(line.startswith(start) for line, start in zip(lines, starts, strict=False))


def test_partial_fit_after_arguments_changed(digits):
    x, y = digits[0] * 100 + 300, digits[1]
    fitted = LinearProbe(epochs=3, standardize=True, random_state=0).fit(x, y)
    kept = fitted.set_params(standardize=False, learning_rate=1e-4)
    score = kept.score(x, y)
    for _ in range(3):
        kept.partial_fit(x, y)
    assert kept.score(x, y) > score - 0.02
    model = MLPTuneClassifier(epochs=1, min_steps=0, random_state=0).fit(x, y)
    with pytest.raises(ValueError, match="not that of preset='release': set the preset back"):
        model.set_params(preset="release").partial_fit(x, y)
    with pytest.raises(ValueError, match="partial_fit cannot standardize"):
        model.set_params(preset="paper", standardize=True).partial_fit(x, y)


def test_partial_fit_goes_on_from_where_it_stands(digits):
    x, y = digits
    model = MLPTuneClassifier(random_state=0)
    with pytest.raises(ValueError, match="needs classes="):
        model.partial_fit(x, y)
    for _ in range(5):
        model.partial_fit(x[:300], y[:300], classes=np.arange(10))
    copy = pickle.loads(pickle.dumps(model))
    before = model.score(x, y)
    for _ in range(10):
        model.partial_fit(x[300:], y[300:])
        copy.partial_fit(x[300:], y[300:])
    np.testing.assert_array_equal(model.decision_function(x), copy.decision_function(x))
    assert model.n_iter_ == 15
    assert before + 0.02 < model.score(x, y) > 0.85
    with pytest.raises(ValueError, match="y has 11, which is not among the classes"):
        model.partial_fit(x[:3], [0, 1, 11])
    fitted = LinearProbe(random_state=0).fit(x, y)
    score = fitted.score(x, y)
    assert fitted.partial_fit(x, y).score(x, y) > score - 0.05


@pytest.mark.parametrize(
    "estimator",
    [
        *(pytest.param(one, marks=pytest.mark.slow) for one in CLASSIFIERS),
        NMTuneTransformer,
    ],
)
def test_saved_and_loaded_in_another_process(digits, estimator, tmp_path):
    x, y = digits
    frame = pd.DataFrame(x, columns=[f"f{i}" for i in range(x.shape[1])])
    model = estimator(epochs=1, standardize=True, random_state=3).fit(frame, y.astype(str))
    model.save(tmp_path / "m.safetensors")
    method = "transform" if estimator is NMTuneTransformer else "predict_proba"
    np.save(tmp_path / "x.npy", x)
    code = f"""
import numpy as np, pandas as pd
from noisy_fm import {estimator.__name__} as E
m = E.load({str(tmp_path / "m.safetensors")!r})
x = np.load({str(tmp_path / "x.npy")!r})
np.save({str(tmp_path / "y.npy")!r}, m.{method}(pd.DataFrame(x, columns=m.feature_names_in_)))
print(m.random_state, m.standardize, m.epochs, *m.classes_)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["3", "True", "1", *"0123456789"]
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), getattr(model, method)(frame))


def test_a_search_is_saved_with_its_results(digits, tmp_path):
    x, y = digits
    model = NMTuneClassifierCV(
        weights=(0.0, (0.1, 0.0, 0.0)), cv=2, epochs=1, min_steps=0, random_state=0
    )
    model.fit(x, y).save(tmp_path / "m.safetensors")
    found = NMTuneClassifierCV.load(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(found.predict(x), model.predict(x))
    for name in ("best_score_", "best_index_", "n_splits_"):
        assert getattr(found, name) == getattr(model, name)
    assert found.best_params_ == found.cv_results_["params"][found.best_index_]
    assert found.best_params_["learning_rate"] == model.best_params_["learning_rate"]
    assert list(found.cv_results_) == list(model.cv_results_)
    for name, values in model.cv_results_.items():
        if isinstance(values, np.ndarray):
            np.testing.assert_array_equal(found.cv_results_[name], values)
            assert found.cv_results_[name].dtype == values.dtype
    model.set_params(cv=[(np.arange(600), np.arange(600))])
    with pytest.raises(ValueError, match=r"^cv=.* cannot be stored: set a plain") as error:
        model.save(tmp_path / "m.safetensors")
    assert len(str(error.value)) < 300
    assert "\n" not in str(error.value)


def test_dates_as_labels_are_saved(tmp_path):
    x, path = np.random.default_rng(0).normal(size=(20, 3)), tmp_path / "m.safetensors"
    y = np.array(["2020-01-01", "2021-01-01"], "datetime64[D]")[np.arange(20) % 2]
    model = LinearProbe(epochs=1, min_steps=0).fit(x, y)
    model.save(path)
    np.testing.assert_array_equal(LinearProbe.load(path).predict(x), model.predict(x))
    with pytest.raises(ValueError, match="Unknown label type"):  # Python's own dates: no training
        LinearProbe().fit(x, y.astype(object))


@pytest.mark.parametrize("cv", [0, 1, True])
def test_a_search_has_two_folds_at_least(cv):
    with pytest.raises(ValueError, match="cv must be a whole number ≥ 2, got"):
        NMTuneClassifierCV(cv=cv).fit(np.eye(8), np.arange(8) % 2)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [LinearProbe, NMTuneClassifierCV])
def test_batches_beyond_the_rows_take_no_memory(estimator, monkeypatch):
    x = np.random.default_rng(0).normal(size=(300, 4))
    arguments = {"epochs": 2, "min_steps": 0, "random_state": 0}
    arguments |= {"cv": 2, "weights": (0.0,)} if estimator is NMTuneClassifierCV else {}
    sizes = []
    monkeypatch.setattr(Plan, "batches", watched(Plan.batches, sizes))
    found = estimator(batch_size=10**6, **arguments).fit(x, x[:, 0] > 0)
    assert sizes
    assert set(sizes) == {512}
    whole = estimator(batch_size=600, **arguments).fit(x, x[:, 0] > 0)
    np.testing.assert_allclose(found.predict_proba(x), whole.predict_proba(x), atol=1e-6)


def watched(method, sizes):
    def batches(plan, *span):
        result = method(plan, *span)
        sizes.append(result[0].shape[1])
        return result

    return batches


def test_files_that_cannot_be_loaded(digits, tmp_path):
    x, y = digits
    path = tmp_path / "m.safetensors"
    LinearProbe(epochs=1, random_state=0).fit(x, y).save(path)
    with pytest.raises(ValueError, match="holds LinearProbe, expected NMTuneClassifier"):
        NMTuneClassifier.load(path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        LinearProbe.load(path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        LinearProbe.load(tmp_path / "none")
    drawn = LinearProbe(epochs=1, random_state=np.random.RandomState(0)).fit(x, y)
    with pytest.raises(ValueError, match=r"random_state=.* cannot be stored"):
        drawn.save(path)
    with pytest.raises(IsADirectoryError, match=r"is a folder; expected what LinearProbe\.save"):
        LinearProbe.load(tmp_path)


def test_places_that_cannot_be_saved_to(digits, tmp_path):
    x, y = digits
    # A search's parameters are NumPy's scalars, which JSON does not hold as they are.
    model = LinearProbe(np.float32(0.5), epochs=np.int64(1), random_state=0).fit(x, y)
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*missing"):
        model.save(tmp_path / "missing" / "m.safetensors")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        model.save(tmp_path)
    model.save(tmp_path / "m.safetensors")
    found = LinearProbe.load(tmp_path / "m.safetensors")
    assert (found.learning_rate, found.epochs) == (0.5, 1)
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_pandas_and_pipelines(digits):
    x, y = digits
    frame = pd.DataFrame(x, columns=[f"f{i}" for i in range(x.shape[1])])
    model = NMTuneTransformer(epochs=2, random_state=0).set_output(transform="pandas")
    z = model.fit_transform(frame, pd.Series(y))
    assert list(z.columns) == list(model.get_feature_names_out())
    assert list(z.columns[:2]) == ["nmtunetransformer0", "nmtunetransformer1"]
    assert list(model.feature_names_in_) == list(frame.columns)
    pipeline = make_pipeline(NMTuneTransformer(random_state=0), LogisticRegression(max_iter=2000))
    assert pipeline.fit(frame, y).score(frame, y) > 0.95


@pytest.mark.slow
def test_grid_search_and_workers(digits):
    x, y = digits
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LinearProbe(random_state=0)),
        {"linearprobe__learning_rate": [1e-6, 1e-2]},
        cv=3,
    ).fit(x, y)
    assert search.best_params_ == {"linearprobe__learning_rate": 1e-2}
    model = LinearProbe(random_state=0)
    alone = cross_val_score(model, x, y, cv=3)
    np.testing.assert_allclose(cross_val_score(model, x, y, cv=3, n_jobs=2), alone, atol=0.006)


def test_cv_scores_are_those_of_single_fits(digits):
    x, y = digits
    splits = list(StratifiedKFold(3, shuffle=True, random_state=0).split(x, y))
    model = NMTuneClassifierCV(
        weights=(0.01,), learning_rates=(1e-6, 1e-3), cv=splits, epochs=3, standardize=True,
        random_state=1,
    ).fit(x, y)  # fmt: skip
    single = NMTuneClassifier(
        weights=0.01, learning_rate=1e-3, epochs=3, standardize=True, random_state=1
    )
    found = [model.cv_results_[f"split{i}_test_score"][1] for i in range(3)]
    np.testing.assert_allclose(found, cross_val_score(single, x, y, cv=splits), atol=0.006)
    assert model.best_params_ == {"weights": 0.01, "learning_rate": 1e-3}
    assert list(model.cv_results_["rank_test_score"]) == [2, 1]
    assert model.best_score_ == pytest.approx(np.mean(found))
    np.testing.assert_allclose(
        model.decision_function(x), single.fit(x, y).decision_function(x), atol=1e-4
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "papers"}, "unknown preset 'papers'.*did you mean 'paper'"),
        ({"weights": -1.0}, "weights must lie in"),
        ({"learning_rate": 0}, "learning_rate must lie in"),
        ({"epochs": 1.5}, "epochs must be a whole number"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"min_steps": -1}, "min_steps must be a whole number"),
        ({"validation_fraction": 1.0}, "validation_fraction must lie between"),
        ({"early_stopping": True, "validation_fraction": 0.01}, "no validation rows"),
        ({"learning_rate": 1e30}, "training diverged"),
        ({"weights": "a"}, r"weights must be one number or three \(mse, cov, svd\), got 'a'"),
        ({"weights": [1, [2, 3], 4]}, "weights must be one number or three"),
        ({"standardize": "yes"}, "standardize must be True or False, got 'yes'"),
        ({"early_stopping": "no"}, "early_stopping must be True or False"),
        ({"batch_size": "a"}, "batch_size must be a whole number"),
        ({"validation_fraction": "a"}, "validation_fraction must lie between"),
        ({"verbose": "loud"}, "verbose must be a whole number"),
    ],
)
def test_bad_arguments_are_one_line(arguments, message):
    x = np.random.default_rng(0).normal(size=(20, 3))
    with pytest.raises(ValueError, match=message) as error:
        NMTuneClassifier(**arguments).fit(x, np.arange(20) % 2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.full((4, 2), np.nan), [0, 1, 0, 1], "4 of 4 rows have NaN or inf, the first is nan"),
        (np.full((4, 2), 1e300), [0, 1, 0, 1], "X must fit float32"),
        (np.ones((4, 2)), [1, 1, 1, 1], "got 1 class"),
        (np.ones((4, 2)), ["a", "b", None, "a"], "y are missing .* in 1 of 4 rows, the first at r"),
        (np.ones((4, 2)), ["a", "b", np.nan, "a"], "y are missing .* in 1 of 4 rows"),
        (np.ones((4, 2)), [0.0, 1.0, np.nan, 0.0], "y are missing .* in 1 of 4 rows"),
        (np.ones((4, 2)), pd.Series([0, 1, None, 0], dtype="Int64"), "y are missing"),
        (np.ones((4, 2)), ["a", 1, "b", 1], "y must be of one type, got int, str"),
        (np.ones((4, 2)), [0, 1, 0], "inconsistent numbers of samples"),
        (np.ones((4, 2)), [0.1, 0.2, 0.3, 0.4], "Unknown label type"),
    ],
)
def test_bad_data(x, y, message):
    with pytest.raises(ValueError, match=message) as error:
        LinearProbe().fit(x, y)
    assert "\n" not in str(error.value)


def test_nan_to_predict_is_one_line(digits):
    x, y = digits
    model = LinearProbe(epochs=1, min_steps=0).fit(x, y)
    with pytest.raises(ValueError, match="the first is nan at row 1, column 0") as error:
        model.predict(np.where(np.arange(len(x)) == 1, np.nan, 0)[:, None] + x)
    assert "\n" not in str(error.value)


def test_constant_features_are_said():
    with pytest.warns(UserWarning, match="features are constant") as said:
        LinearProbe(epochs=1, min_steps=0).fit(np.ones((8, 2)), np.arange(8) % 2)
    assert said[0].filename == __file__


@pytest.mark.parametrize("early_stopping", [False, True])
def test_training_that_makes_it_worse_is_said(digits, early_stopping):
    x, y = digits
    settings = {"early_stopping": early_stopping, "epochs": 3, "random_state": 0}
    with pytest.warns(UserWarning, match=r"the training loss rose .* learning_rate=1e\+30") as said:
        LinearProbe(1e30, **settings).fit(x, y)
    assert said[0].filename == __file__
    LinearProbe(**settings).fit(1000 * x, y)  # a high loss, of the start's making


def test_weights_whose_gradients_overflow_are_refused(digits):
    x, y = digits
    model = NMTuneClassifier(weights=1e25, epochs=1, min_steps=0, random_state=0)
    with pytest.raises(ValueError, match=r"training stands still .* lower weights=") as error:
        model.fit(x, y)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="training stands still"):
        model.partial_fit(x, y, classes=np.unique(y))
    model.set_params(weights=1e6).fit(x, y)


@pytest.mark.parametrize("estimator", [LinearProbe, NMTuneClassifier])
@pytest.mark.parametrize("change", [lambda x: x + 1e6, lambda x: x * 1e-30, lambda x: x * 1e25])
def test_offsets_and_scales_that_hide_the_classes_are_said(digits, estimator, change):
    x, y = digits
    if estimator is LinearProbe:  # NMTune diverges on huge ones, which is told too
        with pytest.warns(UserWarning, match="set standardize=True") as said:
            estimator(epochs=1, min_steps=0).fit(change(x), y)
        assert len(said) == 1
        assert said[0].filename == __file__
    model = estimator(epochs=3, standardize=True, random_state=0)
    assert model.fit(change(x), y).score(change(x), y) > 0.8


@pytest.mark.parametrize("kind", ["normal", "relu", "unit", "cone", "counts", "tiny unit"])
def test_ordinary_embeddings_are_taken_without_a_word(kind):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 1536))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    x = {
        "normal": x,
        "relu": np.maximum(x, 0) * 30,
        "unit": unit,
        "cone": x + 10,  # cosines of 0.99
        "counts": rng.poisson(2e4, size=(120, 30)).astype(float),
        "tiny unit": np.tile(unit / 5, (1, 4)) + 0.01,
    }[kind]
    for linear in (True, False):
        warn_scale(x.astype(np.float32), linear=linear, standardize=False)


@pytest.mark.parametrize("arguments", [{"weights": 0.1}, {"learning_rates": ()}])
def test_candidates_are_sequences(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"{name} must be a sequence of one candidate or more"):
        NMTuneClassifierCV(**arguments).fit(np.eye(8), np.arange(8) % 2)


def test_merged_rows_are_distinct_and_in_an_order_of_their_own():
    random = np.random.default_rng(0)
    x = random.integers(0, 3, size=(500, 3)).astype(np.float32)
    y = random.integers(0, 2, size=500)
    weight = random.uniform(size=500)
    kept, merged = rows.merge(x, y, weight)
    found = {(*x[i], y[i]): w for i, w in zip(kept, merged, strict=True)}
    expected = pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "y": y, "w": weight})
    expected = expected.groupby(["a", "b", "c", "y"])["w"].sum().to_dict()
    assert found.keys() == expected.keys()
    assert all(found[key] == pytest.approx(expected[key]) for key in found)
    other = random.permutation(500)
    again, _ = rows.merge(x[other], y[other], weight[other])
    np.testing.assert_array_equal(x[other][again], x[kept])


@pytest.mark.parametrize("n", [1, 512, 513, 5000, 70_001])
def test_buckets_waste_little(n):
    size = rows.bucket(n)
    assert n <= size <= max(512, 1.13 * n + 512)
    assert rows.bucket(size) == size


@pytest.mark.slow
def test_compiled_programs_are_kept_on_disk(tmp_path):
    code = """
import numpy as np
from noisy_fm import NMTuneClassifier
NMTuneClassifier(epochs=1, min_steps=0).fit(np.eye(6), np.arange(6) % 2)
"""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION")}
    chosen = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "chosen")}
    for name, extra in {"noisy_fm": {}, "chosen": chosen}.items():
        environment = clean | {"XDG_CACHE_HOME": str(tmp_path / "home")} | extra
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
        folder = tmp_path / "home" / "noisy_fm" if name == "noisy_fm" else tmp_path / "chosen"
        assert any(file.is_file() for file in folder.rglob("jit_advance*"))
    assert len(list((tmp_path / "home").rglob("jit_advance*-cache"))) == 1
