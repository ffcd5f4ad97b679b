import jax
import jax.flatten_util
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier

from noisy_fm import probe
from noisy_fm.models.heads import initialize
from noisy_fm.probe import fit as engine
from noisy_fm.probe import plan, step
from noisy_fm.probe.fast import cross_entropy

CLASSES, WIDTH = 4, 12


def blobs(rows: int, seed: int, spread: float = 1.5):
    labels = np.random.default_rng(seed).permutation(np.arange(rows) % CLASSES)
    centres = np.random.default_rng(99).normal(size=(CLASSES, WIDTH))
    noise = np.random.default_rng(seed + 1).normal(size=(rows, WIDTH))
    return (centres[labels] + spread * noise).astype(np.float32), labels


TRAIN, TEST = blobs(150, 0), blobs(90, 5)


def fit(heads, train=TRAIN, **settings):
    settings = {"num_classes": CLASSES, "test_sets": {"test": TEST}, **settings}
    return probe.fit_heads(*train, heads, **settings)


def assert_same(a, b, **tolerance):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, **tolerance),
        (a.parameters, a.statistics),
        (b.parameters, b.statistics),
    )


GRID = [
    probe.Head("lp", fraction=0.3, epochs=3, batch_size=32),
    probe.Head("lp", seed=1, label_noise=0.2, epochs=2, batch_size=32, learning_rate=0.1),
    probe.Head("lp", seed=2, epochs=1, batch_size=32, weight_decay=0.1),
    probe.Head("mlp", fraction=0.5, epochs=2, batch_size=32),
    probe.Head("mlp", seed=3, epochs=1, batch_size=32),
    probe.Head("nmtune", fraction=0.5, epochs=2, batch_size=32),
    probe.Head("nmtune", seed=3, epochs=1, batch_size=32, weights=(0.1, 0.2, 0.3)),
    probe.Head("nmtune", preset="release", epochs=1, batch_size=32),
    probe.Head("ridge"),
    probe.Head("logreg", fraction=0.5),
    probe.Head("knn", neighbors=3),
]


def test_every_head_of_a_grid_equals_training_it_alone():
    together = fit(GRID)
    for head, result in zip(GRID, together, strict=True):
        (alone,) = fit([head])
        assert result.head == head
        assert_same(result, alone, atol=2e-6, rtol=1e-5)
        np.testing.assert_allclose(result.losses, alone.losses, rtol=1e-5)
        assert result.examples == alone.examples
        np.testing.assert_array_equal(result.predictions["test"], alone.predictions["test"])
        assert result.metrics == alone.metrics


def test_lanes_spread_over_devices_change_nothing():
    heads = GRID[:3]
    for one, many in zip(fit(heads), fit(heads, devices=jax.devices()[:2]), strict=True):
        assert_same(one, many, atol=2e-6, rtol=1e-5)


def test_a_small_budget_makes_fewer_lanes_and_the_same_heads():
    for wide, narrow in zip(fit(GRID[:3]), fit(GRID[:3], memory_budget=1), strict=True):
        assert_same(wide, narrow, atol=2e-6, rtol=1e-5)


def test_the_seed_decides_everything():
    first, again, other = fit([GRID[0], GRID[0], probe.Head("lp", seed=5, epochs=3)])
    assert_same(first, again, rtol=0, atol=0)
    assert np.abs(first.parameters["kernel"] - other.parameters["kernel"]).max() > 0.01


def test_linear_probe_reaches_the_convex_optimum():
    (ours,) = fit([probe.Head("lp", epochs=300, learning_rate=0.05)])
    exact = LogisticRegression(C=np.inf, max_iter=5000).fit(*TRAIN)
    log_p = exact.predict_log_proba(TRAIN[0])
    scores = ours.decision_function(TRAIN[0])
    log_q = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
    rows = np.arange(len(TRAIN[1]))
    assert -log_q[rows, TRAIN[1]].mean() <= -log_p[rows, TRAIN[1]].mean() + 2e-3
    assert np.mean(ours.predict(TEST[0]) == exact.predict(TEST[0])) > 0.97


def test_two_linear_steps_against_numpy_in_float64():
    head = probe.Head("lp", preset="release", epochs=2, batch_size=200, weight_decay=0.3)
    (ours,) = fit([head])
    start, _ = initialize("linear", 0, WIDTH, CLASSES)
    x = np.hstack([TRAIN[0], np.ones((150, 1))]).astype(np.float64)
    w = np.vstack([start["kernel"], start["bias"]]).astype(np.float64)
    mean, square, losses = 0, 0, []
    for t in (1, 2):
        p = np.exp(x @ w)
        p /= p.sum(1, keepdims=True)
        losses.append(-np.log(p[np.arange(150), TRAIN[1]]).mean())
        gradient = x.T @ (p - np.eye(CLASSES)[TRAIN[1]]) / 150
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        rate = 0.01 * (1 + np.cos(np.pi * (t - 1) / 2)) / 2
        ratio = mean / (1 - 0.9**t) / (np.sqrt(square / (1 - 0.999**t)) + 1e-8)
        w = w * (1 - rate * 0.3) - rate * ratio
    np.testing.assert_allclose(ours.parameters["kernel"], w[:-1], atol=1e-6)
    np.testing.assert_allclose(ours.parameters["bias"], w[-1], atol=1e-6)
    np.testing.assert_allclose(ours.losses, losses, rtol=1e-5)


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_cross_entropy_and_its_gradient_against_float64(size):
    rng = np.random.default_rng(0)
    scores = (size * rng.normal(size=(9, 5))).astype(np.float32)
    labels, mask = rng.integers(0, 5, 9), rng.uniform(0.5, 2, 9).astype(np.float32)
    mask[4:6] = 0  # padding
    value, gradient = jax.value_and_grad(cross_entropy)(scores, labels, mask)
    exact, weights = scores.astype(np.float64), mask / mask.sum(dtype=np.float64)
    log_p = exact - np.logaddexp.reduce(exact, axis=1, keepdims=True)
    one_hot = np.eye(5)[labels]
    np.testing.assert_allclose(value, -(weights[:, None] * one_hot * log_p).sum(), rtol=1e-6)
    expected = weights[:, None] * (np.exp(log_p) - one_hot)
    np.testing.assert_allclose(gradient, expected, atol=1e-7)
    assert not np.asarray(gradient)[4:6].any()


def test_decay_spares_vectors_in_the_paper_preset_only():
    def biases(preset, decay):
        head = probe.Head("lp", preset=preset, epochs=1, weight_decay=decay, learning_rate=0.1)
        return fit([head])[0].parameters["bias"]

    np.testing.assert_allclose(biases("paper", 0.0) / biases("release", 0.0), 1, rtol=1e-6)
    assert np.abs(biases("release", 0.9) - biases("paper", 0.9)).max() > 1e-3


def test_cosine_goes_from_the_peak_to_zero():
    np.testing.assert_allclose(step.cosine(0.2, 4), [0.2, 0.17071068, 0.1, 0.02928932])


def test_nmtune_without_weights_is_mlp_tuning():
    for preset in ("paper", "release"):
        settings = {"preset": preset, "epochs": 1, "batch_size": 32}
        mlp, nmtune = fit(
            [probe.Head("mlp", **settings), probe.Head("nmtune", weights=0, **settings)]
        )
        assert_same(mlp, nmtune, rtol=0, atol=0)


def test_the_residual_head_starts_from_its_formula():
    """z = s ⊙ MLP(f) + f at evaluation, written out in NumPy, running statistics included."""
    (head,) = fit([GRID[7]])
    p, f = head.parameters["mlp"], TEST[0].astype(np.float64)
    hidden = f @ p["kernel_in"] + p["bias_in"]
    hidden = (hidden - head.statistics["mean"]) / np.sqrt(head.statistics["var"] + 1e-5)
    hidden = np.maximum(hidden * p["norm_scale"] + p["norm_bias"], 0)
    z = p["scale"] * (hidden @ p["kernel_out"] + p["bias_out"]) + f
    np.testing.assert_allclose(head.transform(TEST[0]), z, atol=1e-5)
    scores = z @ head.parameters["kernel"] + head.parameters["bias"]
    np.testing.assert_allclose(head.decision_function(TEST[0]), scores, atol=1e-5)
    assert not np.allclose(p["scale"], 1)


@pytest.mark.slow
def test_padded_rows_do_not_count():
    """150 rows in one batch of 150, and in one of 200 with 50 rows of padding."""
    for method, weights in (("lp", None), ("mlp", None), ("nmtune", 0.5)):
        full, padded = (
            fit([probe.Head(method, weights=weights, epochs=3, batch_size=size)])[0]
            for size in (150, 200)
        )
        # BatchNorm makes the bias before it irrelevant: its gradient is rounding, which AdamW
        # scales up. The function, not the parameters, is compared.
        np.testing.assert_allclose(
            full.decision_function(TEST[0]), padded.decision_function(TEST[0]), atol=2e-3
        )
        np.testing.assert_allclose(full.losses, padded.losses, rtol=1e-5)


def test_a_single_left_over_row_is_left_out_under_batch_norm():
    labels = np.arange(65) % 2
    rows = np.arange(65)
    steps = {m: plan.Plan(probe.Head(m), rows, labels).steps_per_epoch for m in ("lp", "mlp")}
    assert steps == {"lp": 2, "mlp": 1}


def test_batches_cover_every_row_once_an_epoch_at_any_cut():
    p = plan.Plan(probe.Head("lp", batch_size=7, epochs=3), np.arange(100, 125), np.arange(25))
    rows, labels, counts = p.batches(0, p.steps)
    for epoch in range(3):
        steps = slice(4 * epoch, 4 * epoch + 4)
        real = [r[:c] for r, c in zip(rows[steps], counts[steps], strict=True)]
        assert sorted(np.concatenate(real)) == list(range(100, 125))
    assert (labels == rows - 100).all()
    cut = np.concatenate([p.batches(0, 5)[0], p.batches(5, 12)[0]])
    np.testing.assert_array_equal(cut, rows)


def test_fractions_are_nested_per_class_and_blind_to_the_order_of_rows():
    labels = np.repeat([0, 1, 2], [100, 37, 1])
    ids = np.arange(138) + 1000
    small, large = (set(plan.subset(labels, p, seed=3, ids=ids)) for p in (0.1, 0.5))
    assert small < large
    assert np.bincount(labels[list(small)]).tolist() == [10, 4, 1]
    assert np.bincount(labels[list(large)]).tolist() == [50, 19, 1]
    assert small != set(plan.subset(labels, 0.1, seed=4, ids=ids))
    mixed = np.random.default_rng(0).permutation(138)
    again = plan.subset(labels[mixed], 0.1, seed=3, ids=ids[mixed])
    assert {ids[i] for i in small} == {ids[mixed][i] for i in again}
    assert len(plan.subset(labels, 1.0)) == 138


def test_label_noise_is_exact_and_comes_after_the_subset():
    labels, ids = TRAIN[1], np.arange(150)
    p = plan.make_plan(probe.Head("lp", fraction=0.5, label_noise=0.3), labels, CLASSES, ids)
    clean = plan.make_plan(probe.Head("lp", fraction=0.5), labels, CLASSES, ids)
    np.testing.assert_array_equal(p.rows, clean.rows)
    assert (p.labels != labels[p.rows]).sum() == np.floor(0.3 * len(p.rows) + 0.5)
    assert (clean.labels == labels[clean.rows]).all()


def test_packing_keeps_the_study_grid_in_eight_full_lanes():
    lengths = [round(4710 * p) for p in (0.1, 0.25, 0.5, 0.75, 1.0)] * 3
    lanes = plan.choose_lanes(lengths, 8)
    queues = plan.pack(lengths, lanes)
    assert sorted(job for queue in queues for job in queue) == list(range(15))
    longest = max(sum(lengths[j] for j in queue) for queue in queues)
    assert lanes * longest < 1.1 * sum(lengths)


def test_two_views_train_the_release_preset_and_the_first_alone_the_paper():
    rng = np.random.default_rng(0)
    views = np.stack([TRAIN[0], TRAIN[0] + rng.normal(size=TRAIN[0].shape)], 1).astype(np.float32)
    release = probe.Head("nmtune", preset="release", epochs=1, batch_size=32)
    two, paper = fit([release, GRID[5]], train=(views, TRAIN[1]))
    one, expected = fit([release, GRID[5]])
    assert_same(paper, expected, atol=2e-6, rtol=1e-5)
    assert np.abs(two.statistics["var"] - one.statistics["var"]).max() > 0.01


def test_reference_points_agree_with_scikit_learn():
    ridge, logreg, knn = fit(
        [
            probe.Head("ridge", weight_decay=3.0),
            probe.Head("logreg", weight_decay=0.02),
            probe.Head("knn", neighbors=5),
        ]
    )
    theirs = RidgeClassifier(alpha=3.0).fit(*TRAIN)
    np.testing.assert_allclose(
        ridge.decision_function(TEST[0]), theirs.decision_function(TEST[0]), atol=1e-4
    )
    theirs = LogisticRegression(C=1 / (0.02 * 150), tol=1e-9, max_iter=5000).fit(*TRAIN)
    p = np.exp(logreg.decision_function(TEST[0]))
    np.testing.assert_allclose(
        p / p.sum(1, keepdims=True), theirs.predict_proba(TEST[0]), atol=1e-3
    )
    theirs = KNeighborsClassifier(5).fit(*TRAIN)
    np.testing.assert_allclose(
        knn.decision_function(TEST[0]), theirs.predict_proba(TEST[0]), atol=1e-6
    )


def test_metrics_predictions_and_groups_come_for_every_test_set():
    groups = np.arange(90) // 3
    tests = {"id": TEST, "ood": blobs(60, 8, spread=4.0)}
    (r,) = fit([GRID[0]], test_sets=tests, groups={"id": groups}, keep_parameters=False)
    for name, (x, y) in tests.items():
        assert r.metrics[name]["accuracy"] == np.mean(r.predictions[name] == y)
        assert r.metrics[name]["n"] == len(x)
    (plain,) = fit([GRID[0]], test_sets=tests)
    assert r.metrics["id"]["low"] != plain.metrics["id"]["low"]
    assert r.metrics["ood"] == plain.metrics["ood"]
    with pytest.raises(ValueError, match="keep_parameters"):
        r.predict(TEST[0])


def test_float16_features_are_computed_in_float32():
    half = TRAIN[0].astype(np.float16)
    a, b = (fit([GRID[2]], train=(x, TRAIN[1]))[0] for x in (half, half.astype(np.float32)))
    assert_same(a, b, atol=1e-6, rtol=1e-5)
    assert a.parameters["kernel"].dtype == np.float32


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "nmtun"}, "unknown method 'nmtun'.*did you mean 'nmtune'"),
        ({"preset": "papr"}, "unknown preset 'papr'.*did you mean 'paper'"),
        ({"learning_rate": -1.0}, r"learning_rate must lie in \(0, inf\), got -1.0"),
        ({"weight_decay": float("nan")}, "weight_decay must lie"),
        ({"fraction": 0.0}, r"fraction must lie in \(0, 1\]"),
        ({"label_noise": 1.0}, r"label_noise must lie in \[0, 1\)"),
        ({"epochs": 0}, "epochs must be a whole number ≥ 1"),
        ({"batch_size": 2.5}, "batch_size must be a whole number"),
        ({"batch_size": 1}, "batch_size must be at least 2 for BatchNorm, got 1"),
        ({"weights": (1, 2)}, "weights must be one number or"),
        ({"weights": -1}, "weights must lie"),
        ({"method": "lp", "weights": 0.1}, "weights belong to method 'nmtune'"),
    ],
)
def test_a_wrong_head_says_what_is_wrong(settings, words):
    with pytest.raises(ValueError, match=words):
        probe.Head(**settings)


def spoiled(value, dtype=np.float32):
    x = TRAIN[0].astype(dtype)
    x[7, 3] = value
    return x


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"features": spoiled(np.nan)}, ValueError, "nan at row 7, column 3"),
        ({"features": spoiled(np.inf, np.float16)}, ValueError, "an overflow of float16"),
        ({"features": spoiled(1e300, np.float64)}, ValueError, "finite in float32: 1e.300"),
        ({"features": TRAIN[0][:1], "labels": [0]}, ValueError, "at least 2 rows, got 1"),
        ({"features": TRAIN[0][:, 0]}, ValueError, r"\[n, d\] or \[n, views, d\]"),
        ({"features": TRAIN[0].astype(str)}, TypeError, "must be numbers"),
        ({"labels": TRAIN[1][:5]}, ValueError, r"labels must be \[150\]"),
        ({"labels": TRAIN[1] + 1}, ValueError, r"labels must lie in 0..3, got 1..4"),
        ({"labels": TRAIN[1].astype(float)}, TypeError, "labels must be integers"),
        ({"labels": TRAIN[1] * 0}, ValueError, "one class only"),
        ({"num_classes": 1}, ValueError, "num_classes must be a whole number ≥ 2"),
        ({"heads": []}, ValueError, "no heads to fit"),
        ({"heads": ["lp"]}, TypeError, r"heads\[0\] must be a probe.Head"),
        ({"ids": np.zeros(150, int)}, ValueError, "ids must be unique"),
        ({"test_sets": {"a": (TEST[0][:, :5], TEST[1])}}, ValueError, "5 dimensions.*have 12"),
        ({"test_sets": {"a": TEST[0]}}, TypeError, "'a' must be a pair"),
        ({"groups": {"b": [1]}}, ValueError, "not among the test sets"),
    ],
)
def test_wrong_input_says_what_is_wrong(change, error, words):
    settings = {"features": TRAIN[0], "labels": TRAIN[1], "heads": GRID[:1], **change}
    settings = {"num_classes": CLASSES, "test_sets": {"test": TEST}, **settings}
    with pytest.raises(error, match=words):
        probe.fit_heads(**settings)


def test_constant_features_are_told():
    with pytest.warns(UserWarning, match="features are constant"):
        fit([GRID[0]], train=(np.ones_like(TRAIN[0]), TRAIN[1]))


def test_features_beyond_the_budget_stream_from_a_mapped_file(tmp_path):
    np.save(tmp_path / "features.npy", TRAIN[0].astype(np.float16))
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    budget = mapped.nbytes
    heads = [*GRID[:3], probe.Head("lp", epochs=300, learning_rate=0.05)]
    streamed = fit(heads, train=(mapped, TRAIN[1]), memory_budget=budget)
    for head, result in zip(heads, streamed, strict=True):
        (alone,) = fit([head], train=(mapped, TRAIN[1]), memory_budget=budget)
        assert_same(result, alone, atol=2e-6, rtol=1e-5)
    (resident,) = fit(heads[-1:], train=(mapped, TRAIN[1]))
    assert streamed[-1].losses[-1] == pytest.approx(resident.losses[-1], abs=1e-3)


def test_several_windows_of_a_stream_train_as_the_same_order_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "BLOCK", 8)
    monkeypatch.setattr(plan, "WINDOW", 4)
    np.save(tmp_path / "features.npy", TRAIN[0])
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    chunks, windows = [], engine.windows_of

    def spied(f, sharding):
        read = windows(f, sharding)

        def recorded(rows):
            chunks.append(np.unique(rows // 8))
            return read(rows)

        return recorded

    monkeypatch.setattr(engine, "windows_of", spied)
    head = probe.Head("lp", epochs=2, batch_size=8)
    budget = 8 * 4 * 8 * TRAIN[0][0].nbytes  # four batches a chunk
    (streamed,) = fit([head], train=(mapped, TRAIN[1]), memory_budget=budget)
    # No chunk reads further than two windows of the file (and row 0, the padding); all do.
    assert len(chunks) >= 10
    assert max(map(len, chunks)) <= 2 * 4 + 1
    assert len(np.unique(np.concatenate(chunks))) == 19
    p = plan.make_plan(head, TRAIN[1], CLASSES, np.arange(150), block=8)
    (resident,) = engine.fit_plans(TRAIN[0], [p], num_classes=CLASSES)
    assert_same(streamed, resident, atol=1e-7, rtol=1e-6)
    np.testing.assert_allclose(streamed.losses, resident.losses, rtol=1e-6)


def test_selection_refuses_features_that_would_stream():
    with pytest.raises(ValueError, match="7,200 bytes are more than half of memory_budget=9,000"):
        probe.select(*TRAIN, GRID[:1], num_classes=CLASSES, memory_budget=9000)


def test_streamed_order_visits_every_row_and_only_a_window_of_blocks_at_a_time():
    rows = np.sort(np.random.default_rng(0).permutation(4000)[:3000])
    p = plan.Plan(probe.Head("lp", seed=1), rows, rows * 0, block=100)
    order = p.order(2)
    assert sorted(order) == list(range(3000))
    blocks = [set(rows[part] // 100) for part in np.array_split(order, 10)]
    assert max(map(len, blocks)) <= 2 * plan.WINDOW
    assert not np.array_equal(order, p.order(3))
    # All heads read the same blocks at the same time, each in its own order.
    other = plan.Plan(probe.Head("lp", seed=2), rows, rows * 0, block=100).order(2)
    assert not np.array_equal(order, other)
    assert set(rows[order[:700]] // 100) == set(rows[other[:700]] // 100)


def test_selection_uses_a_part_of_the_training_set_only():
    candidates = [probe.Head("lp", learning_rate=r, epochs=3) for r in (1e-6, 0.1)]
    chosen = probe.select(*TRAIN, candidates, num_classes=CLASSES, test_sets={"test": TEST})
    assert chosen.best.head == candidates[1]
    assert chosen.scores[1] > chosen.scores[0] + 0.2
    assert_same(chosen.best, fit(candidates[1:])[0], atol=2e-6, rtol=1e-5)
    assert chosen.best.examples == 150
    groups = np.arange(150) // 2
    by_group = probe.select(*TRAIN, candidates, num_classes=CLASSES, groups=groups)
    assert not set(groups[by_group.validation]) & set(np.delete(groups, by_group.validation))
    with pytest.raises(ValueError, match=r"validation must lie in \(0, 1\)"):
        probe.select(*TRAIN, candidates, num_classes=CLASSES, validation=1.5)


def test_selection_takes_what_fit_heads_takes():
    settings = {"num_classes": CLASSES, "test_sets": {"test": TEST}}
    clusters = {"test": np.arange(90) // 3}
    chosen = probe.select(*TRAIN, GRID[:1], test_groups=clusters, keep_parameters=False, **settings)
    assert chosen.best.parameters is None
    (expected,) = fit(GRID[:1], groups=clusters)
    assert chosen.best.metrics == expected.metrics
    with pytest.raises(ValueError, match=r"got shape .*; those of test sets are test_groups"):
        probe.select(*TRAIN, GRID[:1], groups=clusters, **settings)
    with pytest.raises(ValueError, match="groups name one group only"):
        probe.select(*TRAIN, GRID[:1], groups=np.zeros(150), **settings)


@pytest.mark.parametrize("validation", [0.2, 0.95])
def test_selection_keeps_an_example_of_every_class_to_train_on(validation):
    labels = TRAIN[1].copy()
    labels[:2], labels[2] = CLASSES, CLASSES + 1
    settings = {"num_classes": CLASSES + 2, "validation": validation}
    chosen = probe.select(TRAIN[0], labels, GRID[:1], **settings)
    held = labels[chosen.validation]
    assert set(np.delete(labels, chosen.validation)) == set(labels)
    assert set(held) == set(labels) - {CLASSES + 1}
    with pytest.raises(ValueError, match="no class has two examples"):
        probe.select(TRAIN[0][:3], np.arange(3), GRID[:1], **settings)


@pytest.fixture
def tested_at_once(monkeypatch):
    """How many heads every block of a test set went through."""
    counts = []
    predictions = engine.predictions_of

    def watched(params, statistics, f):
        counts.append(len(params["bias"]))
        return predictions(params, statistics, f)

    monkeypatch.setattr(engine, "predictions_of", watched)
    return counts


@pytest.mark.slow
def test_a_small_budget_tests_fewer_heads_at_once(tested_at_once):
    together = fit(GRID[3:7], keep_parameters=False)
    assert set(tested_at_once) == {4}
    tested_at_once.clear()
    # A head's hidden layer on a block, 512 rows of 48 units, takes 98 kB.
    for budget, most in ((400_000, 2), (1, 1)):
        apart = fit(GRID[3:7], memory_budget=budget)
        for a, b in zip(together, apart, strict=True):
            np.testing.assert_array_equal(a.predictions["test"], b.predictions["test"])
            assert a.metrics == b.metrics
        assert set(tested_at_once) == {most}
        tested_at_once.clear()


def test_the_scores_of_many_classes_count_in_the_budget(tested_at_once):
    heads = [probe.Head("lp", seed=seed, epochs=1, fraction=0.2) for seed in range(4)]
    # A head's scores on a block, 512 rows of 5,000 classes, take 10 MB.
    fit(heads, num_classes=5_000, memory_budget=25_000_000)
    assert set(tested_at_once) == {2}
    tested_at_once.clear()
    fit(heads, num_classes=5_000, memory_budget=15_000_000)
    assert set(tested_at_once) == {1}


def test_a_head_that_diverges_is_told_and_never_chosen():
    rng = np.random.default_rng(0)
    features = (1e18 * rng.standard_normal((60, 8))).astype(np.float32)
    labels = np.arange(60) % 2
    heads = [
        probe.Head("lp", learning_rate=1e30, epochs=2),
        probe.Head("lp", learning_rate=1e-12, epochs=2),
    ]
    with pytest.warns(RuntimeWarning, match="1 of 2 heads diverged.*learning_rate"):
        chosen = probe.select(features, labels, heads, num_classes=2)
    assert chosen.scores[0] == -np.inf
    assert chosen.best.head is heads[1]


def test_every_seed_that_scikit_learn_takes_is_taken():
    features = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)
    heads = [probe.Head("lp", seed=s, epochs=1) for s in (2**31 - 1, 2**31, 2**32 - 1)]
    results = probe.fit_heads(features, np.arange(20) % 2, heads, num_classes=2)
    kernels = [
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(r.parameters)]) for r in results
    ]
    assert not np.allclose(kernels[0], kernels[1])
    assert not np.allclose(kernels[1], kernels[2])
    with pytest.raises(ValueError, match="seed must lie in"):
        probe.Head("lp", seed=2**32)
