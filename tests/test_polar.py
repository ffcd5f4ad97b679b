"""L_SVD's gradient against float64 LAPACK, for matrices of many kinds; the fits it rests on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from noisy_fm import nmtune, polar


def exact(z, top_k):
    """(L_SVD, its gradient) by LAPACK's SVD in float64; null directions have none."""
    u, s, vt = np.linalg.svd(np.float64(z), full_matrices=False)
    top = np.arange(len(s)) < top_k
    total, ratio = s.sum(), s[top].sum() / top_k / s.sum()
    return -ratio, (u * np.where(s > 1e-7 * s[0], (ratio - top / top_k) / total, 0)) @ vt


def geometric(m, d, condition, seed=0):
    """Singular values from 1 to 1/condition in equal ratios, directions at random."""
    random, n = np.random.default_rng(seed), min(m, d)
    u, v = (np.linalg.qr(random.normal(size=(size, n)))[0] for size in (m, d))
    return (u * np.geomspace(1, 1 / condition, n)) @ v.T


def kinds(m, d):
    random = np.random.default_rng(3)
    normal, columns = random.normal(size=(m, d)), np.arange(1, d + 1)
    low = random.normal(size=(m, 8)) @ random.normal(size=(8, d))
    return {
        **{f"condition {c:g}": geometric(m, d, c) for c in (1e1, 1e2, 3e2, 1e3, 1e4)},
        "normal": normal,
        "rectified": normal.clip(0),
        "decaying": normal * columns**-0.5 + 0.2 * random.normal(size=d),
        "1/i": geometric(m, d, 1.0) / columns,
        "rank 8 and noise": low + 0.05 * normal,
        **{f"mean {f}": geometric(m, d, 5.0) + f / (m * d) ** 0.5 for f in (10, 50, 300)},
        "tiny": 1e-20 * normal.clip(0),
        "huge": 1e17 * normal.clip(0),
    }


@functools.cache
def compiled(top_k, method):
    return jax.jit(
        jax.value_and_grad(
            functools.partial(nmtune.singular_value_loss, top_k=top_k, method=method)
        )
    )


def error(z, top_k, method=None):
    z = np.float32(z)
    value, gradient = compiled(top_k, method)(z)
    wanted, direction = exact(z, top_k)
    assert abs(value - wanted) < 1e-5 * abs(wanted)
    scale = np.abs(z).max()  # norms of 1e-20 and 1e17 leave float32
    return np.linalg.norm(gradient * scale - direction * scale) / np.linalg.norm(direction * scale)


def check(m, d, top_k, method=None):
    found = {name: error(z, top_k, method) for name, z in kinds(m, d).items()}
    # At condition 1e4 float32's own SVD is off by as much.
    bounds = {"condition 10000": 3e-4}
    assert {name: e for name, e in found.items() if not e <= bounds.get(name, 1e-4)} == {}


def test_the_gradient_of_products_is_exact_for_matrices_of_every_kind():
    check(96, 200, 1)


def test_the_gradient_of_square_matrices_is_exact():
    check(64, 64, 5)


@pytest.mark.slow
@pytest.mark.parametrize("top_k", [1, 5])
@pytest.mark.parametrize(
    "shape", [(128, 128), (64, 72), (128, 144), (128, 512), (512, 128), (128, 2048), (256, 300)]
)
def test_the_gradient_is_exact_at_every_shape(shape, top_k):
    check(*shape, top_k)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(96, 200), (128, 512), (512, 128), (128, 2048)])
def test_the_estimate_of_the_products_error_is_not_too_small(shape, monkeypatch):
    """By its bound nothing is trusted that should not be; the fitted weights rest on this."""
    monkeypatch.setattr(polar, "TOLERANCE", jnp.inf)
    m, d = shape
    for top_k in (1, 5):

        @jax.jit
        def products(z, top_k=top_k):
            gram = z @ z.T if m < d else z.T @ z
            unit = jnp.trace(gram)
            _, matrix, estimate = polar.from_products(
                gram / unit, top_k, top_k, jnp.ones(len(gram))
            )
            return (matrix @ z if m < d else z @ matrix) / unit, estimate

        for name, z in kinds(m, d).items():
            if name in ("tiny", "huge"):  # not normal: never trusted
                continue
            z = np.float32(z)
            gradient, estimate = products(z)
            wanted = exact(z, top_k)[1]
            off = np.linalg.norm(gradient - wanted) / np.linalg.norm(wanted)
            assert off < max(3e-5, 1.5 * float(estimate)), (name, top_k)


def test_digits_of_which_some_pixels_are_always_empty():
    pixels = load_digits().data[:64]
    for top_k in (1, 5):
        assert error(pixels, top_k) < 1e-4


@pytest.mark.slow
def test_each_lane_of_a_map_has_its_own_way():
    easy, hard = (geometric(96, 200, c) for c in (10, 1e4))
    lanes = np.float32(np.stack([easy, hard, easy]))
    mapped = jax.jit(jax.vmap(jax.grad(nmtune.singular_value_loss)))(lanes)
    for z, gradient in zip(lanes, mapped, strict=True):
        wanted = exact(z, 1)[1]
        assert np.linalg.norm(gradient - wanted) < 1e-4 * np.linalg.norm(wanted)
    np.testing.assert_array_equal(mapped[0], mapped[2])
