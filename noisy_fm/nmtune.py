"""NMTune's regularizers (eqs. 4-7): pure functions of features Z [m d] and frozen features F [m d].

Everything is computed in float32 (float64 for float64 inputs). The gradients are written by hand,
so that no D×D covariance (when M < D) and no derivative of a decomposition is ever formed; L_COV
and, where its precision allows, L_SVD come from one Gram matrix of the smaller side. `mask` [m] ≥ 0
weighs the rows; with it every term is that of rows given as often as it says: 0 leaves a row out,
2 counts it twice. L_COV therefore depends on the scale of the weights, and is 0 where they sum to 1
or less.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from noisy_fm import polar

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
    mean = jnp.sum(squares * mask) / _divisor(jnp.sum(mask))
    return mean if reduction == "sample" else mean / z.shape[1]


def covariance_loss(z, *, mask=None):
    """L_COV (eq. 5): (1/D) Σ_{i≠j} C(Z)²_ij, C the (M−1)-normalised covariance of rows z [m d].

    Zero for fewer than two rows. For M < D from ‖C‖_F = ‖K_c‖_F/(M−1), K_c the centred Gram
    matrix, less the squared variances: absolute error about machine epsilon of ‖C‖²_F / D.
    """
    z, mask = _prepare(z, mask)
    return _gram_terms((0, True, None), z, mask)[0]


def singular_value_loss(z, top_k=1, *, mask=None, method=None):
    """L_SVD (eq. 6): −(1/k) Σ_{i≤k} σ_i / Σσ of the uncentred z [m d]; 0 where z is all zeros.

    k is `top_k`, or the number of singular values if they are fewer (the release: the mean of the
    five largest). method: "svd" of z, or "matmul", products of a Gram matrix and an SVD of z where
    their precision does not do; by default the faster one for the shape. Gradients are within 1e-4
    of the exact one up to condition number 1e3, and at 1e4 within 4e-4 (small or flat batches being
    the worst). Singular values within rounding of 0 have none.
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
    if method not in (None, "svd", "matmul"):
        raise ValueError(f"method is {method!r}: expected 'svd', 'matmul' or None")
    return method


def _faster(z):
    """A small matrix, or a double one, is not worth iterating on, and one near square defies it."""
    least, most = sorted(z.shape)
    return "svd" if least < 64 or most < 1.1 * least or z.dtype == jnp.float64 else "matmul"


def _prepare(z, mask):
    """z and mask in float32 or wider, the rows that do not count set to zero."""
    z = jnp.asarray(z)
    if z.ndim != 2:
        raise ValueError(f"features have shape {z.shape}: expected [rows, dimensions]")
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    if mask is None:
        return z, jnp.ones(len(z), z.dtype)
    if not isinstance(mask, jax.core.Tracer) and np.any(np.asarray(mask) < 0):
        raise ValueError(f"mask must be ≥ 0, got {np.min(mask)} in row {np.argmin(mask)}")
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


def _divisor(total):
    """A sum of weights, 1 where no row counts: what is divided by it is 0 then."""
    return jnp.where(total > 0, total, 1)


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
    mean = jnp.sum(z * mask[:, None], axis=0) / _divisor(count)
    centred = (z - mean) * root[:, None]
    wide = m < d
    gram = centred @ centred.T if wide else centred.T @ centred
    cov = svd = jnp.zeros((), z.dtype)
    scale = variances = product = gradient = doubt = k = None
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
        given = jnp.maximum(count, jnp.sum(mask > 0))  # rows; of weights below 1 each is one
        k = jnp.minimum(min(top_k, d), jnp.maximum(given, 1))
        leading = min(top_k, m, d)
        rows = z * root[:, None]
        if (method or _faster(z)) == "svd":
            svd, gradient = polar.by_svd(rows, leading, k)
        else:
            live = (root != 0).astype(z.dtype) if wide else jnp.ones(d, z.dtype)
            svd, product, doubt = polar.by_gram(raw, rows, leading, k, live)
    return (cov, svd), (z, mask, mean, gram, scale, variances, product, gradient, doubt, k)


def _gram_terms_backward(wanted, residuals, cotangents):
    """dL_COV/dZ = 4 (K_c Z_c − Z_c ⊙ v)/(D (M−1)²) and dL_SVD/dZ = W Z + G: one product."""
    z, mask, mean, gram, scale, variances, product, gradient, doubt, k = residuals
    cov_bar, svd_bar = cotangents
    wide = z.shape[0] < z.shape[1]
    matrix = 0.0
    shift = 0.0
    if scale is not None:
        step = 4 * scale * cov_bar
        matrix = step * (gram if wide else _off_diagonal(gram))
        # Wide: K_c √w = 0, so the product may take Z for Z_c; else the mean is taken out here.
        shift = step * (z - mean) * variances if wide else mean @ matrix
    if product is not None:
        matrix = matrix + svd_bar * product
    root = jnp.sqrt(mask)[:, None]
    z_bar = jnp.zeros_like(z)
    if wide and not isinstance(matrix, float):
        z_bar = root * (matrix @ (z * root)) - shift * mask[:, None]
    elif not isinstance(matrix, float):
        z_bar = (z @ matrix - shift) * mask[:, None]
    if gradient is not None:
        z_bar = z_bar + svd_bar * root * gradient
    if doubt is not None:

        def corrected(z_bar, rows):
            exact = polar.by_svd(rows, min(wanted[0], *z.shape), k)[1]
            return z_bar + svd_bar * root * exact

        z_bar = polar.unless(~doubt, z_bar, corrected, z * root)
    return z_bar, jnp.zeros_like(mask)


_gram_terms.defvjp(_gram_terms_forward, _gram_terms_backward)


def _off_diagonal(matrix):
    return matrix - jnp.diag(jnp.diag(matrix))
