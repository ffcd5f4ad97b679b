"""NMTune's terms and gradients against float64 NumPy, autodiff of an SVD, and closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.datasets
from jax.test_util import check_grads

from noisy_fm import nmtune

METHODS = ("svd", "matmul")
# Each compilation takes seconds on a busy machine: the second of a pair of like cases is slow.
SLOW_SVD = (pytest.param("svd", marks=pytest.mark.slow), "matmul")
TOP_KS = (pytest.param(1, marks=pytest.mark.slow), 5)
SHAPES = ((96, 200), (200, 96), pytest.param((80, 80), marks=pytest.mark.slow))


def graded(loss):
    """Value and gradient, compiled as a whole: operation by operation takes longer to compile."""
    return jax.jit(jax.value_and_grad(loss))


def features(m, d, *, decay=0.0, mean=0.3, seed=0):
    """Rows with singular values falling from 1 to `decay` (0: Gaussian rows) and a common mean."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(m, d))
    if decay:
        u, s, vt = np.linalg.svd(z, full_matrices=False)
        z = (u * np.geomspace(1, decay, len(s))) @ vt
        mean = 0
    return (z + mean * rng.normal(size=d)).astype(np.float32)


def mse(z, f):
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (np.float64(f), np.float64(z))]
    return ((unit[0] - unit[1]) ** 2).sum(axis=1).mean()


def cov(z):
    c = np.cov(np.float64(z).T)
    return ((c - np.diag(np.diag(c))) ** 2).sum() / len(c)


def svd(z, k):
    s = np.linalg.svd(np.float64(z), compute_uv=False)
    return -(s[:k] / s.sum()).mean()


def cov_gradient(z):
    z = np.float64(z)
    c = np.cov(z.T)
    c -= np.diag(np.diag(c))
    return 4 * (z - z.mean(0)) @ c / (len(z) - 1) / len(c)


def svd_gradient(z, k):
    u, s, vt = np.linalg.svd(np.float64(z), full_matrices=False)
    ratio = (s[:k] / s.sum()).mean()
    return (u * ((ratio - (np.arange(len(s)) < k) / k) / s.sum())) @ vt


def relative(got, expected):
    return np.linalg.norm(np.float64(got) - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_match_float64(shape):
    z = features(*shape, decay=0.2)
    value, gradient = graded(nmtune.covariance_loss)(z)
    assert relative(value, cov(z)) < 1e-5
    assert relative(gradient, cov_gradient(z)) < 1e-5
    for method in METHODS:
        for k in (1, 5):
            loss = functools.partial(nmtune.singular_value_loss, top_k=k, method=method)
            value, gradient = jax.jit(jax.value_and_grad(loss))(z)
            assert relative(value, svd(z, k)) < 2e-6
            # Singular values 2 % apart turn rounding of the Gram matrix into 1e-5 of a vector.
            assert relative(gradient, svd_gradient(z, k)) < 4e-5


@pytest.mark.slow
@pytest.mark.parametrize("top_k", TOP_KS)
@pytest.mark.parametrize(("decay", "tolerance"), [(1 / 30, 1e-5), (1 / 150, 1e-3)])
def test_methods_agree_within_the_stated_tolerance(decay, tolerance, top_k):
    z = features(128, 512, decay=decay)
    values = [nmtune.singular_value_loss(z, top_k, method=method) for method in METHODS]
    np.testing.assert_allclose(values, svd(z, top_k), rtol=tolerance)


@pytest.mark.parametrize("top_k", TOP_KS)
def test_a_dominant_direction_does_not_hide_the_others(top_k):
    """σ_1 at 50 times σ_2, as with features that have a mean."""
    z = features(96, 200, decay=0.2) + np.float32(50 / np.sqrt(96 * 200))
    loss = functools.partial(nmtune.singular_value_loss, top_k=top_k, method="matmul")
    value, gradient = jax.jit(jax.value_and_grad(loss))(z)
    assert relative(value, svd(z, top_k)) < 2e-5
    assert relative(gradient, svd_gradient(z, top_k)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(5, 9), (9, 5)])
def test_gradients_by_finite_differences(shape, method):
    with jax.enable_x64(True):
        z = jnp.asarray(np.random.default_rng(1).normal(size=shape))
        f = jnp.asarray(np.random.default_rng(2).normal(size=shape))
        weights = {"mse": 0.7, "cov": 0.4, "svd": 1.3}

        def loss(z, f):
            return nmtune.nmtune_loss(z, f, weights=weights, top_k=2, method=method)

        check_grads(loss, (z, f), order=1, modes=["rev"], atol=1e-4, rtol=1e-4)


def test_gradient_matches_autodiff_of_an_svd():
    z = features(40, 90, decay=0.1)

    def direct(z):
        s = jnp.linalg.svd(z, full_matrices=False)[1]
        return -jnp.mean(s[:3]) / jnp.sum(s)

    ours = graded(functools.partial(nmtune.singular_value_loss, top_k=3, method="matmul"))(z)[1]
    assert relative(ours, jax.jit(jax.grad(direct))(z)) < 2e-4


@pytest.mark.parametrize("top_k", TOP_KS)
@pytest.mark.parametrize("method", METHODS)
def test_degenerate_spectra_have_bounded_gradients(method, top_k):
    rng = np.random.default_rng(0)
    orthogonal = np.linalg.qr(rng.normal(size=(200, 70)))[0].T
    cases = {
        "repeated": orthogonal,
        "tiny": orthogonal * np.geomspace(1, 1e-12, 70)[:, None],
        "zero": orthogonal * (np.arange(70) < 30)[:, None],
        "all zero": np.zeros((70, 200)),
        "rank one": np.outer(rng.normal(size=70), rng.normal(size=200)),
        "equal rows": np.ones((70, 200)),
        "small": 1e-12 * orthogonal,
        "large": 1e9 * orthogonal,
    }
    loss = functools.partial(nmtune.singular_value_loss, top_k=top_k, method=method)
    run = jax.jit(jax.value_and_grad(loss))
    for name, z in cases.items():
        value, gradient = run(jnp.asarray(z, jnp.float32))
        s = np.linalg.svd(z, compute_uv=False)
        gradient = np.asarray(gradient, np.float64)
        assert np.isfinite(value), name
        # |∂(σ_1/Σσ)/∂Z| is at most 1/Σσ in the spectral norm.
        assert np.linalg.norm(gradient, 2) * s.sum() <= 1.05, name
        expected = svd(z, top_k) if name != "all zero" else 0
        np.testing.assert_allclose(value, expected, rtol=0.05, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_closed_forms(method):
    loss = functools.partial(nmtune.singular_value_loss, method=method)
    np.testing.assert_allclose(loss(jnp.eye(64, 100) * 3), -1 / 64, rtol=1e-5)
    rank_one = np.outer(np.arange(1.0, 81), np.linspace(-1, 2, 120))
    np.testing.assert_allclose(loss(rank_one), -1, rtol=2e-3)
    np.testing.assert_allclose(loss(rank_one, 5), -1 / 5, rtol=2e-3)


def test_fewer_singular_values_than_top_k_average_those_there_are():
    z = features(3, 8)
    np.testing.assert_allclose(nmtune.singular_value_loss(z, 5), -1 / 3, rtol=1e-5)


def test_decorrelated_features_have_no_covariance_loss():
    z = np.random.default_rng(0).normal(size=(300, 20))
    z -= z.mean(0)
    whitened = np.linalg.qr(z)[0] * np.arange(1, 21) * 17 + 5
    assert nmtune.covariance_loss(whitened) < 1e-6 * np.var(whitened, axis=0).max() ** 2
    # The other side of the Gram matrix: no two features are ever active in one example.
    sparse = np.zeros((6, 9))
    sparse[0, 0], sparse[1, 0] = 1, -1
    assert nmtune.covariance_loss(sparse) == 0


def test_consistency_reductions_and_scale_invariance():
    z, f = features(20, 30), features(20, 30, seed=1)
    np.testing.assert_allclose(nmtune.consistency_loss(z, f), mse(z, f), rtol=1e-5)
    element = nmtune.consistency_loss(z, f, reduction="element")
    np.testing.assert_allclose(element, mse(z, f) / 30, rtol=1e-5)
    assert nmtune.consistency_loss(3 * f, f) < 1e-12
    value, gradient = graded(nmtune.consistency_loss)(jnp.zeros((2, 3)), jnp.ones((2, 3)))
    assert value == pytest.approx(1)
    assert np.isfinite(gradient).all()


def test_paper_preset():
    z, f = features(70, 90), features(70, 90, seed=1)
    expected = 0.01 * (mse(z, f) + cov(z) + svd(z, 1))
    np.testing.assert_allclose(nmtune.nmtune_loss(z, f), expected, rtol=1e-5)


def test_release_preset():
    z, f = features(128, 160), features(128, 160, seed=1)
    consistency = mse(z[64:], f[:64]) / 160
    expected = 1.0 * consistency + 0.04 * cov(z) + 0.001 * svd(z, 5)
    np.testing.assert_allclose(nmtune.nmtune_loss(z, f, "release"), expected, rtol=1e-5)
    terms = nmtune.nmtune_terms(z, f, "release")
    np.testing.assert_allclose(
        [terms["mse"], terms["cov"], terms["svd"]], [consistency, cov(z), svd(z, 5)], rtol=1e-5
    )


@pytest.mark.slow
def test_weights_choose_and_scale_the_terms():
    z, f = features(66, 80), features(66, 80, seed=1)
    total = mse(z, f) + cov(z) + svd(z, 1)
    np.testing.assert_allclose(nmtune.nmtune_loss(z, f, weights=0.3), 0.3 * total, rtol=1e-5)
    without = nmtune.nmtune_loss(z, weights={"cov": 2.0})
    np.testing.assert_allclose(without, 2 * cov(z), rtol=1e-5)
    assert set(nmtune.nmtune_terms(z, terms=("svd",))) == {"svd"}
    weights = jnp.array([0.0, 0.01, 1.0])
    swept = jax.jit(jax.vmap(lambda w: nmtune.nmtune_loss(z, f, weights=w)))(weights)
    np.testing.assert_allclose(swept, weights * total, rtol=1e-5)


@pytest.mark.parametrize(
    ("preset", "shape", "method"),
    [
        ("paper", (96, 120), "matmul"),
        pytest.param("paper", (96, 120), "svd", marks=pytest.mark.slow),
        pytest.param("release", (192, 90), "matmul", marks=pytest.mark.slow),
        pytest.param("release", (192, 90), "svd", marks=pytest.mark.slow),
    ],
)
def test_mask_is_removal_of_rows(preset, shape, method):
    z, f = features(*shape), features(*shape, seed=1)
    half = len(z) // 2
    keep = np.arange(len(z)) % half < half - 9
    z_padded, f_padded = z.copy(), f.copy()
    z_padded[~keep] = np.nan
    f_padded[~keep] = np.inf

    @jax.jit
    def run(z, f, mask=None):
        loss = functools.partial(nmtune.nmtune_loss, f=f, preset=preset, mask=mask, method=method)
        return jax.value_and_grad(lambda z: loss(z, weights=1.0))(z)

    value, gradient = run(z_padded, f_padded, keep)
    expected, expected_gradient = run(z[keep], f[keep])
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert relative(gradient[keep], expected_gradient) < 1e-4
    assert not np.any(gradient[~keep])


@pytest.mark.parametrize("preset", ["paper", "release"])
def test_weights_are_rows_given_as_often_and_small_ones_switch_nothing_off(preset):
    z, f = features(4, 40), features(4, 40, seed=1)
    thrice = nmtune.nmtune_terms(z, f, preset, mask=np.full(4, 3.0), views=1)
    for name, term in nmtune.nmtune_terms(*(np.repeat(x, 3, 0) for x in (z, f)), preset,
                                          views=1).items():  # fmt: skip
        np.testing.assert_allclose(thrice[name], term, rtol=1e-5)
    plain, small = (
        nmtune.nmtune_terms(z, f, preset, terms=("mse", "svd"), mask=np.full(4, w), views=1)
        for w in (1.0, 0.01)
    )
    for name, term in plain.items():
        np.testing.assert_allclose(small[name], term, rtol=1e-5)


def test_masked_rows_add_nothing_to_the_sum_of_singular_values():
    z, mask = features(24, 300, mean=0), np.arange(24) % 3 > 0
    value = nmtune.singular_value_loss(z, mask=mask, method="svd")
    assert relative(value, svd(z[mask], 1)) < 2e-6


@pytest.mark.parametrize("rows", [0, 1])
def test_too_few_rows_that_count(rows):
    z = features(8, 12)
    mask = np.arange(8) < rows
    value, gradient = graded(nmtune.covariance_loss)(z, mask=mask)
    assert value == 0
    assert not np.any(gradient)
    value, gradient = graded(nmtune.nmtune_loss)(z, z, mask=mask)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(nmtune.singular_value_loss(z, mask=mask), -rows, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("method", SLOW_SVD)
def test_vmap_equals_one_at_a_time(method):
    z = jnp.stack([features(70, 90, decay=d, seed=i) for i, d in enumerate((0.5, 0.02, 0))])
    f = jnp.stack([features(70, 90, seed=9 + i) for i in range(3)])
    run = jax.value_and_grad(lambda z, f: nmtune.nmtune_loss(z, f, weights=1.0, method=method))
    values, gradients = jax.jit(jax.vmap(run))(z, f)
    for i in range(3):
        value, gradient = run(z[i], f[i])
        np.testing.assert_allclose(values[i], value, rtol=1e-5)
        assert relative(gradients[i], np.asarray(gradient)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("method", SLOW_SVD)
def test_sharded_over_the_batch_equals_one_device(method):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.NamedSharding(mesh, jax.P("data"))
    z, f, mask = features(96, 120), features(96, 120, seed=1), np.arange(96) < 90

    def loss(z, f, mask):
        return nmtune.nmtune_loss(z, f, "release", weights=1.0, mask=mask, method=method)

    run = jax.jit(jax.value_and_grad(loss))
    value, gradient = run(z, f, mask)
    sharded, sharded_gradient = run(*(jax.device_put(x, rows) for x in (z, f, mask)))
    np.testing.assert_allclose(sharded, value, rtol=1e-5)
    assert relative(sharded_gradient, np.asarray(gradient)) < 1e-4


def test_half_precision_is_computed_in_float32():
    z = jnp.asarray(features(70, 90), jnp.bfloat16)
    f = jnp.asarray(features(70, 90, seed=1), jnp.bfloat16)
    value, gradient = graded(lambda z: nmtune.nmtune_loss(z, f, "release"))(z)
    assert value.dtype == jnp.float32
    assert gradient.dtype == jnp.bfloat16
    exact = nmtune.nmtune_loss(z.astype(jnp.float32), f.astype(jnp.float32), "release")
    np.testing.assert_allclose(value, exact, rtol=1e-6)


def test_no_wide_covariance_is_formed():
    z = jax.ShapeDtypeStruct((96, 1000), jnp.float32)
    for method in METHODS:
        loss = functools.partial(nmtune.nmtune_loss, weights={"cov": 1, "svd": 1}, method=method)
        assert "1000,1000" not in str(jax.make_jaxpr(jax.grad(loss))(z))


def conditioned(m, d, condition):
    return features(m, d, decay=1 / condition, mean=0)


SQUARE, WIDE = (64, 64), (96, 200)
SWEEP = ((128, 128), (64, 72), (96, 64), (128, 512), (512, 128), (2, 5), (1, 9), (9, 1), (40, 90))


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape", [SQUARE, WIDE, *(pytest.param(s, marks=pytest.mark.slow) for s in SWEEP)]
)
@pytest.mark.parametrize("top_k", TOP_KS)
def test_gradient_up_to_condition_ten_thousand(shape, top_k):
    run = jax.jit(jax.value_and_grad(lambda z: nmtune.singular_value_loss(z, top_k)))
    k = min(top_k, *shape)
    for condition in (1e1, 3e1, 1e2, 1e3, 1e4):
        z = conditioned(*shape, condition)
        value, gradient = run(z)
        assert relative(value, svd(z, k)) < 1e-5
        expected = svd_gradient(z, k)
        if k == min(shape):  # these singular values are all of the sum: nothing to gain
            assert np.linalg.norm(gradient) < 1e-6
        else:
            # Of two singular values float32's own SVD loses as much at the largest condition.
            bound = 5e-4 if condition == 1e4 and min(shape) < 8 else 1e-4
            assert relative(gradient, expected) < bound, condition


def test_a_batch_of_digits_whose_pixels_are_partly_always_zero():
    z = sklearn.datasets.load_digits().data[:64]
    u, s, vt = np.linalg.svd(z, full_matrices=False)
    rank = np.linalg.matrix_rank(z)
    assert rank < 64
    expected = (u[:, :rank] * (s[0] / s.sum() - (np.arange(rank) == 0)) / s.sum()) @ vt[:rank]
    value, gradient = graded(nmtune.singular_value_loss)(z.astype(np.float32))
    assert relative(value, -s[0] / s.sum()) < 1e-6
    assert relative(gradient, expected) < 1e-4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z: nmtune.nmtune_loss(z, z, "papers"), "unknown preset 'papers'"),
        (lambda z: nmtune.nmtune_loss(z), "needs the frozen features"),
        (lambda z: nmtune.nmtune_loss(z, z, weights={"mes": 1.0}), "unknown NMTune terms"),
        (lambda z: nmtune.nmtune_loss(z[:5], z[:5], "release"), "even number"),
        (lambda z: nmtune.consistency_loss(z, z[:, 1:]), "expected the same shape"),
        (lambda z: nmtune.consistency_loss(z, z, reduction="sum"), "'sample' or 'element'"),
        (lambda z: nmtune.covariance_loss(z[0]), "expected \\[rows, dimensions\\]"),
        (lambda z: nmtune.covariance_loss(z, mask=np.ones(3)), "one entry a row"),
        (lambda z: nmtune.covariance_loss(z, mask=np.arange(len(z)) - 1), "≥ 0, got -1 in row 0"),
        (lambda z: nmtune.singular_value_loss(z, 0), "at least 1"),
        (lambda z: nmtune.singular_value_loss(z, method="eigh"), "'svd', 'matmul'"),
    ],
)
def test_mistakes_get_one_line(call, message):
    with pytest.raises(ValueError, match=message):
        call(features(6, 8))


@pytest.mark.parametrize("method", ["svd", "matmul"])
@pytest.mark.parametrize("scale", [1e-12, 1e-5, 1e5, 1e10])
def test_the_singular_value_term_does_not_depend_on_the_scale(method, scale):
    z = np.random.default_rng(0).standard_normal((96, 128)).astype(np.float32)
    loss = graded(lambda z: nmtune.singular_value_loss(z, 5, method=method))
    value, gradient = loss(jnp.asarray(z * np.float32(scale)))
    sigma = np.linalg.svd(z.astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(value, -sigma[:5].mean() / sigma.sum(), rtol=1e-5)
    whole = loss(jnp.asarray(z))[1]
    np.testing.assert_allclose(gradient * np.float32(scale), whole, rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize(
    ("shape", "top_k", "least", "bound"),
    [
        ((128, 512), 1, -np.inf, 1e-5),
        ((64, 512), 1, -np.inf, 1e-5),
        ((64, 512), 5, -np.inf, 1e-5),
        # Rectified: σ_1 is five times σ_2, and rounding of its square hides what σ_2 to σ_6 differ.
        ((128, 2048), 5, 0, 5e-5),
    ],
)
def test_matmul_gradient_where_the_leading_values_lie_close(shape, top_k, least, bound):
    """Against a float64 SVD; the σ of a normal matrix lie about a percent apart."""
    z = np.random.default_rng(0).normal(size=shape).clip(least).astype(np.float32)
    u, sigma, v = np.linalg.svd(z.astype(np.float64), full_matrices=False)
    total = sigma.sum()
    ratio = sigma[:top_k].sum() / (top_k * total)
    leading = np.arange(len(sigma)) < top_k
    expected = (u * (ratio - leading / top_k) / total) @ v
    loss = functools.partial(nmtune.singular_value_loss, top_k=top_k, method="matmul")
    value, gradient = jax.value_and_grad(loss)(z)
    assert value == pytest.approx(-ratio, rel=1e-5)
    assert np.linalg.norm(gradient - expected) < bound * np.linalg.norm(expected)
