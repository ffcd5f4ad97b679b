"""NMTune's regularizers (eqs. 4-7): pure functions of features Z [m d] and frozen features F [m d].

Everything is computed in float32 (float64 for float64 inputs) from one Gram matrix of the smaller
side, and the gradients are written by hand, so that no D×D covariance (when M < D), no SVD and no
derivative of an eigendecomposition is ever formed. `mask` [m] marks the rows that count; with it
every term equals that of the remaining rows alone.
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
    mean = jnp.sum(squares) / jnp.maximum(jnp.sum(mask), 1)
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
    """z in float32 or wider with the rows that do not count set to zero, and the mask as 0/1."""
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
    return jnp.where(mask[:, None] != 0, z, 0), (mask != 0).astype(z.dtype)


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
    return z[half:], f[:half], mask[half:] * mask[:half]


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
    count = jnp.sum(mask)
    mean = jnp.sum(z, axis=0) / jnp.maximum(count, 1)
    centred = (z - mean) * mask[:, None]
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
            cross = jnp.outer(centred @ mean, mask)
            raw = gram + cross + cross.T + jnp.sum(mean * mean) * jnp.outer(mask, mask)
        else:
            raw = gram + count * jnp.outer(mean, mean)
        k = jnp.minimum(min(top_k, m, d), jnp.maximum(count, 1))
        # A small matrix, or a double one, is not worth iterating on.
        small = min(m, d) < 64 or z.dtype == jnp.float64
        method = method or ("eigh" if small else "matmul")
        term = _svd_by_eigh if method == "eigh" else _svd_by_matmul
        svd, polar = term(raw, min(top_k, m, d), k, mask if wide else jnp.ones(d, z.dtype))
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
        # Wide: K_c 1 = 0, so the product may take Z for Z_c; else the mean is taken out here.
        shift = step * (z - mean) * variances if wide else mean @ matrix
    if polar is not None:
        matrix = matrix + svd_bar * polar
    z_bar = (matrix @ z if wide else z @ matrix) - shift
    return z_bar * mask[:, None], jnp.zeros_like(mask)


_gram_terms.defvjp(_gram_terms_forward, _gram_terms_backward)


def _off_diagonal(matrix):
    return matrix - jnp.diag(jnp.diag(matrix))


def _svd_by_eigh(gram, top_k, k, mask):
    """L_SVD and W with dL_SVD/dZ = W Z (or Z W), from the eigenvectors of the Gram matrix."""
    eigenvalues, vectors = jnp.linalg.eigh(gram)
    inverse = _inverse_sqrt(eigenvalues, eigenvalues[-1])
    sigma = eigenvalues * inverse
    total = jnp.maximum(jnp.sum(sigma), _tiny(gram))
    ratio = jnp.minimum(jnp.sum(sigma[-top_k:]) / (k * total), 1)
    top = jnp.arange(len(sigma)) >= len(sigma) - top_k
    coefficients = (ratio - top / k) / total * inverse
    return -ratio, (vectors * jnp.where(eigenvalues[-1] > 0, coefficients, 0)) @ vectors.T


def _svd_by_matmul(gram, top_k, k, mask):
    """The same as `_svd_by_eigh` from products of n×n matrices and a thin block's QR and `eigh`."""
    values, vectors = _leading_eigenpairs(gram, top_k)
    # The leading eigenvalue is approached from below, and the iteration wants a spectrum below 1.
    scale = jnp.maximum(1.01 * values[0], _tiny(gram))
    # A masked row is a null vector: an eigenvalue of 1 keeps it from prolonging the iteration.
    polar = _matrix_inverse_sqrt(gram / scale + jnp.diag(1 - mask)) * mask[:, None]
    root = jnp.sqrt(scale)
    total = jnp.maximum(root * jnp.sum(gram / scale * polar), _tiny(gram))
    inverse = _inverse_sqrt(values, values[0])
    ratio = jnp.minimum(jnp.sum(values * inverse) / (k * total), 1)
    leading = (vectors * (inverse / (k * total))) @ vectors.T
    matrix = ratio / (total * root) * polar - leading
    return -ratio, jnp.where(values[0] > 0, matrix, 0)


def _inverse_sqrt(eigenvalues, largest):
    """1/σ, bounded where rounding of the Gram matrix hides σ (below about 1e-3 σ₁ in float32)."""
    resolution = 8 * jnp.finfo(eigenvalues.dtype).eps * largest
    return jax.lax.rsqrt(jnp.maximum(jnp.maximum(eigenvalues, resolution), _tiny(eigenvalues)))


def _tiny(x):
    return jnp.finfo(x.dtype).tiny


# q_t of σ → σ q_t(σ²), ascending in σ²: the odd polynomials of degree 9 nearest to 1 in the maximum
# norm. Rows 0 and 1, in turn, take [1/30, 1] to 1 ± 0.053; rows 2 and 3 do the same for what is
# left of the singular values down to 1/300, from [0.12, 1.06]; the last is (1 − x)^(-1/2) to order
# four at x = 1 − σ², which makes an error e one of e⁵.
_SIGN = (
    (11.5811052, -102.420039, 330.322815, -418.165155, 180.299017),
    (3.19711668, -5.64311826, 5.24963609, -2.17393834, 0.324745961),
    (7.0717571, -42.4960387, 110.559886, -118.43634, 44.0786253),
    (2.5293969, -3.49362436, 3.17451366, -1.48903863, 0.278654183),
)
_SIGN_LAST = (315 / 128, -420 / 128, 378 / 128, -180 / 128, 35 / 128)


def _matrix_inverse_sqrt(k):
    """K^(-1/2) of a symmetric k [n n] with spectrum in [0, 1], from 12 to 22 matrix products.

    A composite minimax iteration for the matrix sign, run on the Gram side: with Q = q_t(K),
    P ← P Q and K ← Q K Q, until K is near I. Eigenvalues below about 1e-5 come out too small, but
    never so large that σ P exceeds 1.
    """
    eye = jnp.eye(len(k), dtype=k.dtype)
    table = jnp.asarray(_SIGN, k.dtype)

    def polynomial(c, k, square):
        return c[0] * eye + c[1] * k + c[2] * square + square @ (c[3] * k + c[4] * square)

    def advance(k, q):
        k = (k @ q) @ q
        square = k @ k
        return k, square, jnp.sum((eye - 2 * k + square) ** 2)  # tr (I − K)⁴

    def body(state):
        step, k, square, p, _ = state
        q = polynomial(table[step], k, square)
        k, square, error = advance(k, q)
        return step + 1, k, square, p @ q, error

    q = polynomial(table[0], k, k @ k)
    k, square, error = advance(k, q)
    # With all of K within 1 ± 0.11 the error is below len(k) · 1.5e-4, mostly half of it.
    _, k, square, p, _ = jax.lax.while_loop(
        lambda state: (state[0] < len(_SIGN)) & (state[-1] > 0.03 * max(1, len(k) / 128)),
        body,
        (1, k, square, q, error),
    )
    return p @ polynomial(_SIGN_LAST, k, square)


def _leading_eigenpairs(k, count, *, degree=8, tolerance=3e-5, max_rounds=12):
    """The `count` largest eigenvalues [count] and vectors [n count] of a positive semidefinite k.

    Subspace iteration with a Chebyshev filter. Each round damps the spectrum below the block's
    smallest Ritz value b; Ritz vectors beyond 3b are projected out of the filter, whose range
    would else exceed float32's, and take plain power steps. It ends when every residual is below
    `tolerance` of the last wanted eigenvalue (the values are then good to its square).
    """
    n = len(k)
    block = min(n, count + 11)
    y = jnp.asarray(np.random.default_rng(0).standard_normal((n, block)), k.dtype)
    floor = 16 * jnp.finfo(k.dtype).eps

    def rayleigh_ritz(y):
        q = jnp.linalg.qr(y)[0]
        kq = k @ q
        values, rotation = jnp.linalg.eigh(q.T @ kq)
        values, rotation = values[::-1], rotation[:, ::-1]
        x, kx = q @ rotation, kq @ rotation
        residual = jnp.sum((kx - x * values)[:, :count] ** 2)
        bound = tolerance * values[count - 1] + floor * values[0]
        return values, x, kx, residual > bound**2

    def refine(state):
        rounds, values, x, kx, _ = state
        edge = jnp.maximum(values[-1], floor * values[0])
        locked = values > 3 * edge
        done, k_done = jnp.where(locked, x, 0), jnp.where(locked, kx, 0)
        cross = done @ k_done.T
        rest = (2 / edge) * (k - cross - cross.T + (done * values) @ done.T)
        old = jnp.where(locked, 0, x)
        new = rest @ old - old
        for _ in range(degree - 1):
            old, new = new, 2 * (rest @ new - new) - old
        y = jnp.where(locked, k @ kx / values**2, new)
        return rounds + 1, *rayleigh_ritz(y)

    for _ in range(2):
        y = jnp.linalg.qr(k @ y)[0]
    state = jax.lax.while_loop(
        lambda state: (state[0] < max_rounds) & state[-1], refine, (0, *rayleigh_ritz(y))
    )
    return state[1][:count], state[2][:, :count]
