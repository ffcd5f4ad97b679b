"""Weights of examples and classes against closed forms, repeated rows and scikit-learn."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.utils.class_weight import compute_class_weight

from noisy_fm import (
    LinearProbe,
    MLPTuneClassifier,
    NMTuneClassifier,
    NMTuneClassifierCV,
    NMTuneTransformer,
    nmtune,
)
from noisy_fm.estimator import weighting
from noisy_fm.probe import Head, fit
from noisy_fm.probe.plan import Plan
from noisy_fm.probe.step import loss

CLASSIFIERS = (LinearProbe, MLPTuneClassifier, NMTuneClassifier)


def blobs(rows: int, share: float, *, seed: int = 0, width: int = 8):
    """Two overlapping classes, 1.7 standard deviations apart; `share` of the rows are class 1."""
    random = np.random.default_rng(seed)
    labels = (random.random(rows) < share).astype(int)
    return random.normal(size=(rows, width)) + labels[:, None] * (
        np.arange(width) < 2
    ) * 1.2, labels


RARE, BALANCED = blobs(3000, 0.01), blobs(6000, 0.5, seed=1)


@pytest.mark.parametrize("estimator", [LinearProbe, NMTuneClassifier])
@pytest.mark.parametrize("away", [1, 1000])
def test_a_weight_near_0_is_a_row_left_out(estimator, away):
    """99 of 100 rows, wrongly labelled and perhaps far away, do not count."""
    random = np.random.default_rng(3)
    truth = np.repeat([0, 1], 2500)
    x = random.normal(size=(5000, 2)) + np.c_[4 * truth - 2, 0 * truth]
    good = random.random(5000) < 0.01
    given, y = np.where(good[:, None], x, away * x), np.where(good, truth, 1 - truth)
    model = estimator(random_state=0, epochs=10)
    tiny, out = (
        clone(model).fit(given, y, np.where(good, 1, least)).score(x, truth) for least in (1e-12, 0)
    )
    assert out > 0.96
    assert tiny == pytest.approx(out, abs=0.012)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("estimator", "batch"),
    [(LinearProbe, 64), (LinearProbe, 8), (LinearProbe, 1), (MLPTuneClassifier, 64),
     (NMTuneClassifier, 8)],
)  # fmt: skip
def test_balanced_classes_are_recalled_at_any_batch_size(estimator, batch):
    theirs = LogisticRegression(class_weight="balanced").fit(*RARE)
    ours = estimator(epochs=5, batch_size=batch, class_weight="balanced", random_state=0)
    found = ours.fit(*RARE)
    x, y = BALANCED
    linear = estimator is LinearProbe
    recall = recall_score(y, theirs.predict(x))
    assert recall_score(y, found.predict(x)) == pytest.approx(recall, abs=0.1 if linear else 0.25)
    assert found.score(x, y) > theirs.score(x, y) - (0.02 if linear else 0.08)
    plain = clone(ours).set_params(class_weight=None).fit(*RARE)
    assert recall_score(y, plain.predict(x)) < 0.2


def test_the_batches_of_an_epoch_add_up_to_the_weighted_gradient():
    """Closed form in float64: Σ_b count_b · gradient_b is n times Xᵀ diag(w) (p − Y) / Σw."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(45, 5)).astype(np.float32), random.integers(0, 3, 45)
    w = random.exponential(size=45) ** 3 * 1e-290
    params = {"kernel": random.normal(size=(5, 3)).astype(np.float32), "bias": np.ones(3, "f4")}
    p = Plan(Head("lp", batch_size=8, epochs=1), np.arange(45), y, w)
    rows, labels, counts = p.batches(0, p.steps)
    weighing = p.weighing(0, p.steps)
    scores = x.astype(np.float64) @ params["kernel"] + 1
    log_p = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
    residual = np.exp(log_p) - np.eye(3)[y]
    relative = w / w.mean()
    total = 0
    for step in range(p.steps):
        gradient, (_, value) = jax.grad(loss, has_aux=True)(
            params, {}, x[rows[step]][:, None], labels[step], weighing["masks"][step],
            weighing["shares"][step], weighing["momenta"][step], np.zeros(3), preset=None,
        )  # fmt: skip
        real = rows[step][: counts[step]]
        by_hand = x[real].T @ (relative[real, None] * residual[real]) / counts[step]
        np.testing.assert_allclose(gradient["kernel"], by_hand, atol=2e-6, rtol=1e-5)
        losses = -log_p[real, y[real]]
        np.testing.assert_allclose(value, (relative[real] * losses).sum() / counts[step], rtol=1e-5)
        total += counts[step] * gradient["kernel"]
    whole = x.T @ (relative[:, None] * residual)
    np.testing.assert_allclose(total, whole, atol=1e-4, rtol=1e-5)


def test_masks_tend_to_those_of_the_rows_left():
    y, rows = np.arange(16) % 2, np.arange(16)
    head = Head("mlp", batch_size=16, epochs=1)
    even, left = (
        Plan(head, rows, y, weights).weighing(0, 1)["masks"][0]
        for weights in (np.full(16, 0.3), np.where(rows < 5, 7.0, 1e-200))
    )
    np.testing.assert_array_equal(even, 1)
    np.testing.assert_allclose(np.sort(left)[11:], 1, rtol=1e-6)
    assert np.all((np.sort(left)[:11] > 0) & (np.sort(left)[:11] < 1e-30))


@pytest.mark.parametrize("shape", [(9, 5), (6, 12)])
@pytest.mark.parametrize("preset", ["paper", "release"])
def test_regularisers_weigh_a_row_as_often_as_it_is_given(shape, preset):
    random = np.random.default_rng(1)
    z, f = random.normal(size=(2, *shape))
    w = random.integers(0, 4, shape[0])
    again = np.repeat(np.arange(shape[0]), w)

    def value(z, f, mask):
        return nmtune.nmtune_loss(z, f, preset, mask=mask, views=1)

    run = jax.jit(jax.value_and_grad(value))
    with jax.enable_x64(True):
        found, slope = run(jnp.asarray(z), f, jnp.asarray(w, float))
        expected, each = run(jnp.asarray(z[again]), f[again], None)
    np.testing.assert_allclose(found, expected, rtol=1e-8)
    summed = np.zeros(shape)
    np.add.at(summed, again, each)
    np.testing.assert_allclose(slope, summed, atol=1e-8)
    covariance = np.cov(z.T, fweights=w)
    off = covariance - np.diag(np.diag(covariance))
    np.testing.assert_allclose(
        nmtune.covariance_loss(z.astype("f4"), mask=w), (off**2).sum() / shape[1], rtol=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [*CLASSIFIERS, NMTuneClassifierCV])
@pytest.mark.parametrize("scale", [1e-310, 1e300])
def test_the_scale_of_weights_is_of_no_consequence(estimator, scale):
    x, y = blobs(300, 0.3)
    w = np.random.default_rng(0).integers(1, 40, 300)
    search = {"cv": 2, "weights": (0.01,)} if estimator is NMTuneClassifierCV else {}
    model = estimator(epochs=2, min_steps=0, random_state=0, **search)
    a, b = (clone(model).fit(x, y, weights) for weights in (w, w * scale))
    # Of 1e-310, float64 keeps 13 digits.
    np.testing.assert_allclose(a.decision_function(x), b.decision_function(x), atol=2e-5)
    if search:
        assert a.best_score_ == pytest.approx(b.best_score_, abs=1e-6)
        return
    for m, weights in ((a, w), (b, w * scale)):
        m.partial_fit(x, y, sample_weight=weights).partial_fit(x, y, sample_weight=0.1 * weights)
    np.testing.assert_allclose(a.decision_function(x), b.decision_function(x), atol=2e-4)


@pytest.mark.parametrize("start", ["fit", "partial_fit", "load"])
def test_weights_mean_the_same_in_every_call_of_partial_fit(start, tmp_path):
    x, y = blobs(600, 0.5)
    model = LinearProbe(random_state=0, epochs=5)
    if start == "partial_fit":
        for _ in range(30):
            model.partial_fit(x, y, classes=[0, 1])
    else:
        model.fit(x, y)
    if start == "load":
        model.save(tmp_path / "m.safetensors")
        model = LinearProbe.load(tmp_path / "m.safetensors")
    before = model.score(x, y)
    for _ in range(5):
        model.partial_fit(x, 1 - y, sample_weight=np.full(600, 1e-12))
    assert model.score(x, y) == pytest.approx(before, abs=0.01)
    for _ in range(30):
        model.partial_fit(x, 1 - y, sample_weight=np.full(600, 1.0))
    assert model.score(x, y) < 0.5


def test_streamed_weights_are_those_in_memory(tmp_path):
    x, y = blobs(150, 0.3)
    np.save(tmp_path / "features.npy", x.astype(np.float32))
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    w = np.where(y, 50.0, 0.5)
    p = Plan(Head("mlp", epochs=3, batch_size=8), np.arange(150), y, w)
    (memory,) = fit.fit_plans(x.astype(np.float32), [p], num_classes=2)
    (stream,) = fit.fit_plans(mapped, [p], num_classes=2, memory_budget=mapped.nbytes)
    np.testing.assert_allclose(memory.losses, stream.losses, rtol=1e-6)
    np.testing.assert_allclose(memory.decision_function(x), stream.decision_function(x), atol=1e-5)
    scores = memory.decision_function(x)
    assert recall_score(y, scores.argmax(1)) > 0.8
    with pytest.raises(ValueError, match="method 'ridge' takes no weights of examples"):
        fit.fit_plans(x, [Plan(Head("ridge"), np.arange(150), y, w)], num_classes=2)


@pytest.mark.parametrize("estimator", CLASSIFIERS)
def test_class_weight_is_a_factor_on_sample_weight(estimator):
    x, y = blobs(300, 0.2)
    names = np.array(["cat", "dog"])[y]
    w = np.random.default_rng(0).integers(0, 3, 300)
    factor = compute_class_weight(
        "balanced", classes=np.unique(names),
        y=np.repeat(names, w),
    )  # fmt: skip
    model = estimator(epochs=1, min_steps=0, random_state=0)
    by_hand = clone(model).fit(x, names, w * factor[y])
    for given in ("balanced", dict(zip(["cat", "dog"], factor.tolist(), strict=True))):
        found = clone(model).set_params(class_weight=given).fit(x, names, w)
        np.testing.assert_allclose(
            found.decision_function(x), by_hand.decision_function(x), atol=1e-5
        )
    repeated = np.repeat(np.arange(300), w)
    again = clone(model).set_params(class_weight="balanced").fit(x[repeated], names[repeated])
    found = clone(model).set_params(class_weight="balanced").fit(x, names, w)
    np.testing.assert_array_equal(again.decision_function(x), found.decision_function(x))


def test_folds_balance_by_their_own_training_rows():
    x, y = blobs(400, 0.1)
    splits = list(StratifiedKFold(3, shuffle=True, random_state=0).split(x, y))
    splits = [(np.delete(a, np.flatnonzero(y[a])[: 5 * i]), b) for i, (a, b) in enumerate(splits)]
    settings = {"epochs": 3, "min_steps": 0, "random_state": 1, "class_weight": "balanced"}
    search = NMTuneClassifierCV(weights=(0.01,), cv=splits, **settings).fit(x, y)
    single = NMTuneClassifier(weights=0.01, **settings)
    found = [search.cv_results_[f"split{i}_test_score"][0] for i in range(3)]
    np.testing.assert_allclose(found, cross_val_score(single, x, y, cv=splits), atol=0.008)
    plain = clone(search).set_params(class_weight=None).fit(x, y)
    assert np.abs(np.subtract(found, plain.best_score_)).max() > 0.02
    np.testing.assert_allclose(
        search.decision_function(x), single.fit(x, y).decision_function(x), atol=1e-5
    )


def test_partial_fit_takes_a_dict_only():
    x, y = blobs(300, 0.1)
    w = np.where(y, 9.0, 0.5)
    by_hand = LinearProbe(random_state=0).partial_fit(x, y, [0, 1], w)
    found = LinearProbe(random_state=0, class_weight={0: 0.5, 1: 9}).partial_fit(x, y, [0, 1])
    np.testing.assert_allclose(found.decision_function(x), by_hand.decision_function(x), rtol=1e-6)
    with pytest.raises(ValueError, match="partial_fit cannot take class_weight='balanced'"):
        LinearProbe(class_weight="balanced").partial_fit(x, y, [0, 1])


@pytest.mark.parametrize("classes", [np.array([3, 7, 8]), np.array(["a", "b", "c"])])
@pytest.mark.parametrize("given", ["balanced", "all", "some", "more", None])
def test_class_weights_are_scikit_learns(classes, given):
    labels = np.random.default_rng(0).integers(0, 3, 50)
    a, b, c = classes.tolist()
    chosen = {"all": {a: 2.0, b: 0, c: 5}, "some": {b: 4}, "more": {a: 1, b: 2, c: 3, "z": 4}}
    chosen = chosen.get(given, given)
    expected = compute_class_weight(chosen, classes=classes, y=classes[labels])
    found = weighting.of_classes(chosen, classes, labels, np.ones(50))
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("balance", "class_weight must be None, 'balanced' or a dict of class: weight"),
        ([1, 2], "class_weight must be None"),
        ({"cat": 1, "dgo": 3}, "unknown class in class_weight 'dgo'; did you mean 'dog'"),
        ({"cat": -1}, r"class_weight\['cat'\] must be a number ≥ 0, got -1"),
        ({"cat": np.nan}, r"class_weight\['cat'\] must be a number ≥ 0"),
        ({"cat": "a"}, r"class_weight\['cat'\] must be a number ≥ 0"),
        ({"cat": 0, "dog": 0}, "class_weight is 0 for every class"),
    ],
)
@pytest.mark.parametrize("estimator", [LinearProbe, NMTuneClassifierCV])
def test_bad_class_weights_are_one_line(estimator, given, message):
    x, y = blobs(20, 0.5)
    with pytest.raises(ValueError, match=message) as error:
        estimator(class_weight=given).fit(x, np.array(["cat", "dog"])[y])
    assert "\n" not in str(error.value)


def test_names_that_are_no_class_are_told_with_their_type():
    classes, labels = np.arange(100), np.arange(100)
    for given in ({"3": 2.0}, {111: 1}):
        (name,) = given
        with pytest.raises(
            ValueError, match=r"none of the 100 classes \(int\): \[0, 1, 2"
        ) as error:
            weighting.of_classes(given, classes, labels, np.ones(100))
        assert f"names {name!r} ({type(name).__name__})" in str(error.value)
        assert "did you mean" not in str(error.value)
        assert len(str(error.value)) < 120


def test_partial_fit_after_a_file_without_past_weights(tmp_path):
    x, y = blobs(60, 0.5)
    fresh = {"epochs": 1, "min_steps": 0, "random_state": 0}
    LinearProbe(**fresh).fit(x, y).save(tmp_path / "new")
    with safe_open(tmp_path / "new", framework="numpy") as file:
        header = json.loads(file.metadata()["noisy_fm"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del header["weighed"]
    save_file(tensors, tmp_path / "old", metadata={"noisy_fm": json.dumps(header)})
    for arguments, weight in (({}, np.ones(60)), ({"class_weight": {0: 2}}, None)):
        model = LinearProbe.load(tmp_path / "old").set_params(**arguments)
        with pytest.raises(ValueError, match="did not keep the weights of its rows: go on without"):
            model.partial_fit(x, y, sample_weight=weight)
    model = LinearProbe.load(tmp_path / "old")
    with pytest.warns(UserWarning, match="only rows from here on are counted") as said:
        model.partial_fit(x, y)
    assert said[0].filename == __file__
    known = LinearProbe.load(tmp_path / "new").partial_fit(x, y)
    np.testing.assert_array_equal(model.coef_, known.coef_)
    model.partial_fit(x, y, sample_weight=np.full(60, 3.0))  # its rows' weights are known by now


@pytest.mark.parametrize("given", ["balanced", {1: 4, 0: 0.5}])
@pytest.mark.parametrize("estimator", [LinearProbe, NMTuneTransformer])
def test_class_weights_are_kept_in_files(estimator, given, tmp_path):
    x, y = blobs(60, 0.5)
    model = estimator(class_weight=given, epochs=1, min_steps=0, random_state=0)
    model.fit(x, y).save(tmp_path / "m.safetensors")
    found = estimator.load(tmp_path / "m.safetensors")
    assert found.class_weight == given
    assert clone(found).fit(x, y).loss_curve_ == model.loss_curve_
