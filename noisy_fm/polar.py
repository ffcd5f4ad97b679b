"""The share of leading singular values, and its gradient: the spectral half of L_SVD (eq. 6).

With Z = U Σ Vᵀ and S = Σσ the gradient of −(1/k) Σ_{i≤k} σ_i / S is (r U Vᵀ − U_k V_kᵀ / k)/S, r
the share itself: it needs the polar factor U Vᵀ, in which the smallest singular value weighs as
much as the largest. `by_svd` takes it from an SVD of Z. `by_gram` takes it from products of the
smaller Gram matrix, many times faster; they square the condition number, so it also says what
rounding has cost, and takes the SVD where that is too much.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

# Estimated relative error (Frobenius) of the gradient above which the Gram matrix is not trusted.
TOLERANCE = 1.1e-4


def by_svd(z, top_k, k):
    """(L_SVD, dL_SVD/dZ) of z [m d] from its SVD: the sum of `top_k` singular values over k.

    Singular values within rounding of 0 have no direction: they are left out, which is the
    subgradient of least norm. z of zeros has value and gradient 0.
    """
    unit = jnp.max(jnp.abs(z))
    unit = jnp.where(unit > 0, unit, 1)
    u, sigma, vt = jnp.linalg.svd(z / unit, full_matrices=False)
    total = jnp.maximum(jnp.sum(sigma), _tiny(z))
    ratio = jnp.sum(sigma[:top_k]) / (k * total)
    top = jnp.arange(len(sigma)) < top_k
    live = sigma > 2 * jnp.finfo(z.dtype).eps * max(z.shape) ** 0.5 * sigma[0]
    coefficients = jnp.where(live, (ratio - top / k) / total, 0)
    return -ratio, (u * coefficients) @ vt / unit


def by_gram(gram, z, top_k, k, mask):
    """(L_SVD, W, doubt) with dL_SVD/dZ = W Z (Z W where z is tall), from the Gram matrix of z.

    Where there is doubt, W is 0 and the gradient is `by_svd`'s: see `unless`.
    """
    # L_SVD has no scale; the products of a tiny or huge K would leave float32's range.
    unit = jnp.trace(gram)
    unit = jnp.where(unit > 0, unit, 1)
    value, matrix, error = from_products(gram / unit, top_k, k, mask)
    # Beyond these the Gram matrix, or W, has entries that its precision lacks digits for.
    least = _tiny(z) / jnp.finfo(z.dtype).eps ** 2
    normal = (unit > least) & (unit < 1 / least)
    doubt = ~(normal & (error < TOLERANCE))
    value = unless(~doubt, value, lambda _, z: by_svd(z, top_k, k)[0], z)
    return value, jnp.where(doubt, 0, matrix / unit), doubt


def unless(sure, value, otherwise, *arguments):
    """`value` where `sure`, else `otherwise(value, *arguments)`, paid for only then, vmap or not.

    A loop of at most one turn: a `cond` that is mapped always pays for both. The barrier keeps
    what does not depend on the loop from being moved out of it.
    """

    def turn(state):
        (_, value), given = jax.lax.optimization_barrier((state, arguments))
        return jnp.zeros_like(state[0]), otherwise(value, *given)

    return jax.lax.while_loop(lambda state: state[0], turn, (~sure, value))[1]


def from_products(gram, top_k, k, mask):
    """(L_SVD, W, error of the gradient) of a Gram matrix [n n] of trace 1, from n×n products.

    The leading eigenvalues are found first and moved among the others, which are much closer
    together: features have a mean, and σ_1 is many times σ_2.
    """
    values, x, following, rest_of = _leading_eigenpairs(gram, top_k)
    gap = values[-1] - following
    # Below the floor the first polynomial would swell the rounding of the Gram matrix.
    scale = jnp.maximum(jnp.maximum(1.02 * rest_of, 3e-4 * values[0]), _tiny(gram))
    values = values / scale
    # Their place is taken by ½. What rounding leaves of them among the others, which is far smaller
    # than they are and yet not than ½, is projected out.
    rest = gram / scale - (x.T * values) @ x
    left = x @ rest
    moved = x.T @ (left - 0.5 * (left @ x.T) @ x - 0.25 * x)
    rest = rest - moved - moved.T
    noise = 4 * jnp.finfo(gram.dtype).eps * values[0]
    # A masked row is a null vector: an eigenvalue of 1 keeps it from prolonging the iteration.
    polar, converged = _matrix_inverse_sqrt(rest + jnp.diag(1 - mask), noise)
    polar = polar * mask[:, None]
    inverse = _inverse_sqrt(values, values[0])
    sigma = values * inverse
    total = jnp.sum(rest * polar) + jnp.sum(sigma - 0.5**0.5)
    total = jnp.maximum(jnp.maximum(total, jnp.sum(sigma)), _tiny(gram))
    ratio = jnp.minimum(jnp.sum(sigma) / (k * total), 1)
    leading = (x.T * (ratio * (inverse - 2**0.5) - inverse / k)) @ x
    matrix = (ratio * polar + leading) / (scale * total)
    # Rounding of the Gram matrix, entries E_ij about eps/n, moves the polar factor by
    # E_ij/(σ_i σ_j) and the last of the leading vectors by E/gap. The weights, and the last term,
    # what is left of a dominant value among the others, are fits to matrices of many kinds:
    # tests/test_polar.py holds them to it.
    eps = jnp.finfo(gram.dtype).eps
    lost = jnp.sum(polar * polar) / scale / len(gram) ** 0.5
    turned = 1 / jnp.maximum(gap, _tiny(gram)) if top_k < len(gram) else 0
    error = eps / jnp.maximum(jnp.sum(mask), 1) * (1.5 * lost + turned)
    error = error + 0.1 * eps * values[0] ** 1.5
    error = jnp.where(converged, error, jnp.inf)
    return -ratio, matrix, error


def _inverse_sqrt(eigenvalues, largest):
    """1/σ, bounded where rounding of the Gram matrix hides σ (below about 1e-3 σ₁ in float32)."""
    resolution = 8 * jnp.finfo(eigenvalues.dtype).eps * largest
    return jax.lax.rsqrt(jnp.maximum(jnp.maximum(eigenvalues, resolution), _tiny(eigenvalues)))


def _tiny(x):
    return jnp.finfo(x.dtype).tiny


# q of σ → σ q(σ²), ascending in t = σ² − centre: the odd polynomials nearest to 1 in the maximum
# norm (Remez), one optimal step after another. FIRST takes [0.18, 1] to 1 ± 0.101; NEXT takes
# [0.203, 1.101] to the same, so that each of them reaches 5.4 times further down. FINE and FINER
# make an error of 0.101 (0.22) one of 5e-6 (1e-5).
_FIRST = (1.46516577, -0.15449815, -1.67929556, -18.8158574, 39.757515)  # centre 0.5
_NEXT = (1.33147783, -0.104279078, -0.860295075, -10.0019644, 16.7298471)  # centre 0.6
_FINE = (0.999999132, -0.49987298, 0.37518177, -0.325091566, 0.274489015)  # centre 1
_FINER = (
    *(0.999998154, -0.499924959, 0.375482367, -0.318375251),
    *(0.247784249, -0.162870513, 0.62661031),
)


def _matrix_inverse_sqrt(k, noise):
    """K^(-1/2) of a symmetric k [n n] with spectrum in [0, 1], from 7 matrix products on.

    A composite minimax iteration for the matrix sign, run on the Gram side: with Q = q(K),
    P ← P Q and K ← Q K Q, until K is near I; 7 products where σ ≥ 0.18, 8 from 0.14 and five more
    for each 5.4 times further down. `noise` is the size of k's errors: what they hide comes out
    too small, but never so large that σ P exceeds 1. Also whether all of K came near I.
    """
    eye = jnp.eye(len(k), dtype=k.dtype)
    probe = jnp.asarray(np.random.default_rng(1).standard_normal((4, len(k))), k.dtype)

    def polynomial(c, t, square):
        last = c[3] * t + c[4] * square
        if len(c) > 5:
            last = last + square @ (c[5] * t + c[6] * square)
        return c[0] * eye + c[1] * t + c[2] * square + square @ last

    def advance(k, p, c, centre):
        t = k - centre * eye
        q = polynomial(c, t, t @ t)
        k = (k @ q) @ q
        square = (k - eye) @ (k - eye)
        # The largest eigenvalue of (K − I)², squared, from a few power steps.
        x = probe @ square @ square
        y = x @ square
        error = jnp.sum(y * y) / jnp.maximum(jnp.sum(x * x), _tiny(k))
        return k, square, q if p is None else p @ q, error

    def body(state):
        swell, k, _, p, _ = state
        return swell * 35, *advance(k, p, _NEXT, 0.6)

    # Each step swells the smallest eigenvalues, and with them the noise, by q(0)².
    _, k, square, p, error = jax.lax.while_loop(
        lambda state: (state[-1] > 0.19**2) & (state[0] * noise < 0.03),
        body,
        (36.0, *advance(k, None, _FIRST, 0.5)),
    )
    t = k - eye
    last = jax.lax.cond(
        error < 0.05**2,
        functools.partial(polynomial, _FINE),
        functools.partial(polynomial, _FINER),
        *(t, square),
    )
    return p @ last, error <= 0.19**2


def _leading_eigenpairs(k, count):
    """The `count` largest eigenvalues and vectors (rows, [count n]) of a positive semidefinite k.

    Also the next eigenvalue, and a bound on it. Subspace iteration with a Chebyshev filter. Each
    round damps the spectrum below the block's smallest Ritz value b; Ritz vectors beyond 3b are
    projected out of the filter, whose range would else exceed float32's, and take plain power
    steps. It ends when the residuals are below 2e-6 of the last wanted eigenvalue and twice
    the rounding of the largest, or no longer halve: rounding is all that is left of them. The
    vectors, which the gradient needs, are good to that over the distance to the next eigenvalue.
    """
    n = len(k)
    block = min(n, count + 7)
    # A round's QR and `eigh` cost as much as a few products; more so at a large n, of tall blocks.
    degree = 8 if n < 256 else 12
    y = jnp.asarray(np.random.default_rng(0).standard_normal((block, n)), k.dtype)
    floor = 16 * jnp.finfo(k.dtype).eps

    def rayleigh_ritz(y):
        q = jnp.linalg.qr(y.T)[0].T
        qk = q @ k
        values, rotation = jnp.linalg.eigh(qk @ q.T)
        values, rotation = values[::-1], rotation[:, ::-1].T
        x, xk = rotation @ q, rotation @ qk
        residual = jnp.sum((xk - x * values[:, None]) ** 2, axis=1)
        return values, x, xk, residual

    def refine(state):
        rounds, _, values, x, xk, residual = state
        edge = jnp.maximum(values[-1], floor * values[0])
        locked = (values > 3 * edge)[:, None]
        done = jnp.where(locked, x, 0)

        def filtered(v):
            w = v @ k
            return 2 / edge * (w - (w @ done.T) @ done) - v

        old = jnp.where(locked, 0, x)
        new = filtered(old)
        for _ in range(degree - 1):
            old, new = new, 2 * filtered(new) - old
        y = jnp.where(locked, xk @ k / values[:, None] ** 2, new)
        return rounds + 1, jnp.sum(residual[:count]), *rayleigh_ritz(y)

    def unfinished(state):
        rounds, before, values, _, _, residual = state
        now = jnp.sum(residual[:count])
        bound = 2e-6 * values[count - 1] + 2 * jnp.finfo(k.dtype).eps * values[0]
        return (rounds < 12) & (now > bound**2) & (4 * now < before)

    start = (0, jnp.array(jnp.inf, k.dtype), *rayleigh_ritz(y @ k @ k))
    _, _, values, x, xk, residual = jax.lax.while_loop(unfinished, refine, start)
    following = min(count, block - 1)
    bound = values[following] + jnp.sqrt(residual[following])
    # One more power step, at no cost, for the vectors that stand apart.
    apart = (values > 3 * jnp.maximum(bound, floor * values[0]))[:, None]
    x = jnp.where(apart, xk * jax.lax.rsqrt(jnp.sum(xk * xk, axis=1, keepdims=True)), x)
    return values[:count], x[:count], values[following], bound
