"""NMTune's regularizers (eqs. 4-7): pure functions of features Z [m d] and frozen features F [m d].

Everything is computed in float32 (float64 for float64 inputs) from one Gram matrix of the smaller
side, and the gradients are written by hand, so that no D×D covariance (when M < D), no SVD and no
derivative of an eigendecomposition is ever formed. `mask` [m] ≥ 0 weighs the rows; with it every
term is that of rows given as often as it says: 0 leaves a row out, 2 counts it twice.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

# `weights` are of L_MSE, L_COV and L_SVD; a term without a weight is not computed.
# `views`: 2 means rows [view 1; view 2]; consistency then compares z of view 2 with f of view 1.
PRESETS = {
    "paper": {
        "weights": {"mse": 0.01, "cov": 0.01, "svd": 0.01},
        "top_k": 1,
        "reduction": "sample",
        "views": 1,
    },
    "release": {
        "weights": {"mse": 1.0, "cov": 0.04, "svd": 0.001},
        "top_k": 5,
        "reduction": "element",
        "views": 2,
    },
}


def nmtune_loss(z, f=None, preset="paper", *, weights=None, mask=None, **options):
    """λ_MSE L_MSE + λ_COV L_COV + λ_SVD L_SVD (eq. 7 without L_CE), a scalar.

    z, f: [m d]; `preset` names a row of PRESETS. `weights` replaces the preset's: one number for
    all its terms, or a mapping of "mse", "cov" and "svd"; the values may be traced, and a missing
    key leaves its term out (the release's LoRA has no "mse", and then needs no f). Other options
    are those of `nmtune_terms`.
    """
    chosen = _preset(preset)["weights"]
    if isinstance(weights, Mapping):
        chosen = weights
    elif weights is not None:
        chosen = dict.fromkeys(chosen, weights)
    terms = nmtune_terms(z, f, preset, terms=tuple(chosen), mask=mask, **options)
    return sum(chosen[name] * term for name, term in terms.items())


def nmtune_terms(
    z,
    f=None,
    preset="paper",
    *,
    terms=None,
    top_k=None,
    reduction=None,
    views=None,
    mask=None,
    method=None,
):
    """The unweighted terms {"mse": L_MSE, "cov": L_COV, "svd": L_SVD} of a preset.

    `terms` selects some of them (the preset's by default); `top_k`, `reduction` and `views`
    replace the preset's. With two views the rows of z and f are [view 1; view 2].
    """
    settings = _preset(preset)
    terms = tuple(settings["weights"] if terms is None else terms)
    if unknown := set(terms) - {"mse", "cov", "svd"}:
        raise ValueError(f"unknown NMTune terms {sorted(unknown)}: expected 'mse', 'cov', 'svd'")
    z, mask = _prepare(z, mask)
    values = {}
    if "mse" in terms:
        if f is None:
            raise ValueError("the consistency term ('mse') needs the frozen features f")
        views = settings["views"] if views is None else views
        z2, f1, both = _pair_views(z, jnp.asarray(f), mask, views)
        reduction = settings["reduction"] if reduction is None else reduction
        values["mse"] = consistency_loss(z2, f1, mask=both, reduction=reduction)
    if "cov" in terms or "svd" in terms:
        top_k = settings["top_k"] if top_k is None else top_k
        wanted = (top_k if "svd" in terms else 0, "cov" in terms, _method(method))
        cov, svd = _gram_terms(wanted, z, mask)
        values |= {"cov": cov} if "cov" in terms else {}
        values |= {"svd": svd} if "svd" in terms else {}
    return values


def consistency_loss(z, f, *, mask=None, reduction="sample"):
    """L_MSE (eq. 4): ‖f/‖f‖ − z/‖z‖‖² of rows z, f [m d]; a row of zeros stays zero.

    reduction: "sample" averages over the rows (the paper), "element" over rows × d (the release).
    """
    if reduction not in ("sample", "element"):
        raise ValueError(f"reduction is {reduction!r}: expected 'sample' or 'element'")
    z, mask = _prepare(z, mask)
    f, _ = _prepare(f, mask)
    if z.shape != f.shape:
        raise ValueError(f"z is {z.shape} and f is {f.shape}: expected the same shape")
    squares = jnp.sum((_unit_rows(f) - _unit_rows(z)) ** 2, axis=1)
    mean = jnp.sum(squares * mask) / jnp.maximum(jnp.sum(mask), 1)
    return mean if reduction == "sample" else mean / z.shape[1]


def covariance_loss(z, *, mask=None):
    """L_COV (eq. 5): (1/D) Σ_{i≠j} C(Z)²_ij, C the (M−1)-normalised covariance of rows z [m d].

    Zero for fewer than two rows. For M < D from ‖C‖_F = ‖K_c‖_F/(M−1), K_c the centred Gram
    matrix, less the squared variances: absolute error about machine epsilon of ‖C‖²_F / D.
    """
    z, mask = _prepare(z, mask)
    return _gram_terms((0, True, "eigh"), z, mask)[0]


def singular_value_loss(z, top_k=1, *, mask=None, method=None):
    """L_SVD (eq. 6): −(1/k) Σ_{i≤k} σ_i / Σσ of the uncentred z [m d]; 0 where z is all zeros.

    k is `top_k`, or the number of singular values if they are fewer (the release: the mean of the
    five largest). method: "eigh" or "matmul"; by default the faster one on this backend.
    """
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}: expected at least 1")
    z, mask = _prepare(z, mask)
    return _gram_terms((top_k, False, _method(method)), z, mask)[1]


def _preset(name):
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: expected one of {sorted(PRESETS)}")
    return PRESETS[name]


def _method(method):
    if method not in (None, "eigh", "matmul"):
        raise ValueError(f"method is {method!r}: expected 'eigh', 'matmul' or None")
    return method


def _prepare(z, mask):
    """z and mask in float32 or wider, the rows that do not count set to zero."""
    z = jnp.asarray(z)
    if z.ndim != 2:
        raise ValueError(f"features have shape {z.shape}: expected [rows, dimensions]")
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    if mask is None:
        return z, jnp.ones(len(z), z.dtype)
    mask = jnp.asarray(mask)
    if mask.shape != (len(z),):
        raise ValueError(f"mask has shape {mask.shape}: expected ({len(z)},), one entry a row")
    # where, not a product: padding may hold NaN.
    return jnp.where(mask[:, None] != 0, z, 0), mask.astype(z.dtype)


def _pair_views(z, f, mask, views):
    """(z of view 2, f of view 1, rows that count in both), or the arguments for one view."""
    if views == 1:
        return z, f, mask
    if views != 2 or len(z) % 2 or len(f) != len(z):
        raise ValueError(
            f"{views} views of {len(z)} rows of z and {len(f)} of f: expected one view, or two"
            " with the same even number of rows, [view 1; view 2]"
        )
    half = len(z) // 2
    return z[half:], f[:half], jnp.minimum(mask[half:], mask[:half])


def _unit_rows(x):
    squared = jnp.sum(x * x, axis=1, keepdims=True)
    return x * jnp.where(squared > 0, jax.lax.rsqrt(jnp.where(squared > 0, squared, 1)), 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gram_terms(wanted, z, mask):
    """(L_COV, L_SVD) of z with masked rows zero; wanted: (top_k or 0, is L_COV wanted, method)."""
    return _gram_terms_forward(wanted, z, mask)[0]


def _gram_terms_forward(wanted, z, mask):
    top_k, has_cov, method = wanted
    m, d = z.shape
    # Rows times √w have the Gram matrices of rows given w times.
    root = jnp.sqrt(mask)
    count = jnp.sum(mask)
    mean = jnp.sum(z * mask[:, None], axis=0) / jnp.maximum(count, 1)
    centred = (z - mean) * root[:, None]
    wide = m < d
    gram = centred @ centred.T if wide else centred.T @ centred
    cov = svd = jnp.zeros((), z.dtype)
    scale = variances = polar = None
    if has_cov:
        scale = jnp.where(count > 1, 1 / (d * jnp.maximum(count - 1, 1) ** 2), 0)
        variances = jnp.sum(centred * centred, axis=0)
        if wide:
            cov = scale * jnp.maximum(jnp.sum(gram**2) - jnp.sum(variances**2), 0)
        else:
            cov = scale * jnp.sum(_off_diagonal(gram) ** 2)
    if top_k:
        # The uncentred Gram matrix is the centred one and a correction of rank two or one.
        if wide:
            cross = jnp.outer(centred @ mean, root)
            raw = gram + cross + cross.T + jnp.sum(mean * mean) * jnp.outer(root, root)
        else:
            raw = gram + count * jnp.outer(mean, mean)
        k = jnp.minimum(min(top_k, m, d), jnp.maximum(count, 1))
        # A small matrix, or a double one, is not worth iterating on.
        small = min(m, d) < 64 or z.dtype == jnp.float64
        method = method or ("eigh" if small else "matmul")
        term = _svd_by_eigh if method == "eigh" else _svd_by_matmul
        # L_SVD has no scale; the products of a tiny or huge K would leave float32's range.
        unit = jnp.trace(raw)
        unit = jnp.where(unit > 0, unit, 1)
        live = (root != 0).astype(z.dtype) if wide else jnp.ones(d, z.dtype)
        svd, polar = term(raw / unit, min(top_k, m, d), k, live)
        polar = polar / unit
    return (cov, svd), (z, mask, mean, gram, scale, variances, polar)


def _gram_terms_backward(wanted, residuals, cotangents):
    """dL_COV/dZ = 4 (K_c Z_c − Z_c ⊙ v)/(D (M−1)²) and dL_SVD/dZ = W Z: one matrix product."""
    z, mask, mean, gram, scale, variances, polar = residuals
    cov_bar, svd_bar = cotangents
    wide = z.shape[0] < z.shape[1]
    matrix = 0.0
    shift = 0.0
    if scale is not None:
        step = 4 * scale * cov_bar
        matrix = step * (gram if wide else _off_diagonal(gram))
        # Wide: K_c √w = 0, so the product may take Z for Z_c; else the mean is taken out here.
        shift = step * (z - mean) * variances if wide else mean @ matrix
    if polar is not None:
        matrix = matrix + svd_bar * polar
    if wide:
        root = jnp.sqrt(mask)[:, None]
        z_bar = root * (matrix @ (z * root)) - shift * mask[:, None]
    else:
        z_bar = (z @ matrix - shift) * mask[:, None]
    return z_bar, jnp.zeros_like(mask)


_gram_terms.defvjp(_gram_terms_forward, _gram_terms_backward)


def _off_diagonal(matrix):
    return matrix - jnp.diag(jnp.diag(matrix))


def _svd_by_eigh(gram, top_k, k, mask):
    """L_SVD and W with dL_SVD/dZ = W Z (or Z W), from the eigenvectors of the Gram matrix."""
    eigenvalues, vectors = jnp.linalg.eigh(gram)
    # Each masked row adds a null vector, whose eigenvalue is rounding: the smallest do not count.
    live = jnp.arange(len(gram)) >= jnp.sum(1 - mask)
    inverse = jnp.where(live, _inverse_sqrt(eigenvalues, eigenvalues[-1]), 0)
    sigma = eigenvalues * inverse
    total = jnp.maximum(jnp.sum(sigma), _tiny(gram))
    ratio = jnp.minimum(jnp.sum(sigma[-top_k:]) / (k * total), 1)
    top = jnp.arange(len(sigma)) >= len(sigma) - top_k
    coefficients = (ratio - top / k) / total * inverse
    return -ratio, (vectors * jnp.where(eigenvalues[-1] > 0, coefficients, 0)) @ vectors.T


def _svd_by_matmul(gram, top_k, k, mask):
    """The same as `_svd_by_eigh` from products of n×n matrices and a thin block's QR and `eigh`.

    The leading eigenvalues are found first and moved among the others, which are much closer
    together: features have a mean, and σ_1 is many times σ_2.
    """
    values, x, rest_of = _leading_eigenpairs(gram, top_k)
    # Below the floor the first polynomial would swell the rounding of the Gram matrix.
    scale = jnp.maximum(jnp.maximum(1.02 * rest_of, 3e-4 * values[0]), _tiny(gram))
    values = values / scale
    rest = gram / scale - (x.T * (values - 0.5)) @ x
    noise = 4 * jnp.finfo(gram.dtype).eps * values[0]
    # A masked row is a null vector: an eigenvalue of 1 keeps it from prolonging the iteration.
    polar = _matrix_inverse_sqrt(rest + jnp.diag(1 - mask), noise) * mask[:, None]
    inverse = _inverse_sqrt(values, values[0])
    sigma = values * inverse
    total = jnp.sum(rest * polar) + jnp.sum(sigma - 0.5**0.5)
    total = jnp.maximum(jnp.maximum(total, jnp.sum(sigma)), _tiny(gram))
    ratio = jnp.minimum(jnp.sum(sigma) / (k * total), 1)
    leading = (x.T * (ratio * (inverse - 2**0.5) - inverse / k)) @ x
    matrix = (ratio * polar + leading) / (scale * total)
    return -ratio, jnp.where(values[0] > 0, matrix, 0)


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
    too small, but never so large that σ P exceeds 1.
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
    return p @ last


def _leading_eigenpairs(k, count, *, tolerance=2e-6, max_rounds=12):
    """The `count` largest eigenvalues and vectors (rows, [count n]) of a positive semidefinite k.

    Also a bound on the next eigenvalue. Subspace iteration with a Chebyshev filter. Each round
    damps the spectrum below the block's smallest Ritz value b; Ritz vectors beyond 3b are
    projected out of the filter, whose range would else exceed float32's, and take plain power
    steps. It ends when the residuals are below `tolerance` of the last wanted eigenvalue and twice
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
        bound = tolerance * values[count - 1] + 2 * jnp.finfo(k.dtype).eps * values[0]
        return (rounds < max_rounds) & (now > bound**2) & (4 * now < before)

    start = (0, jnp.array(jnp.inf, k.dtype), *rayleigh_ritz(y @ k @ k))
    _, _, values, x, xk, residual = jax.lax.while_loop(unfinished, refine, start)
    following = min(count, block - 1)
    bound = values[following] + jnp.sqrt(residual[following])
    # One more power step, at no cost, for the vectors that stand apart.
    apart = (values > 3 * jnp.maximum(bound, floor * values[0]))[:, None]
    x = jnp.where(apart, xk * jax.lax.rsqrt(jnp.sum(xk * xk, axis=1, keepdims=True)), x)
    return values[:count], x[:count], bound
