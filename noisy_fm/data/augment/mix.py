"""Mixup and CutMix of a batch: images and soft targets mixed with those of another row."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats

MODES = ("batch", "elem")
KNOTS = 4096


class Mix(NamedTuple):
    """What is drawn for a batch: scalars (mode "batch") or one value a row (mode "elem")."""

    ratio: jax.Array  # float32, λ: the share of the row's own image
    cut: jax.Array  # bool: CutMix, else Mixup
    centre: jax.Array  # int32 […, 2]: the middle (y, x) of the box that CutMix pastes


def mix(
    key,
    images,
    targets,
    *,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    mode: str = "batch",
    probability: float = 1.0,
    switch_probability: float = 0.5,
    label_smoothing: float = 0.0,
    groups: int = 1,
):
    """x ← λ x + (1 − λ) x′ (Mixup), or x with a box of x′ (CutMix), and y ← λ y + (1 − λ) y′.

    images: float [n h w c]; targets: [n classes], one-hot or soft, smoothed first, as in timm, to
    y (1 − ε) + ε/classes with ε = `label_smoothing`. λ ~ Beta(α, α) with α = `mixup` or `cutmix`, 0
    turns one off; `switch_probability` is that of CutMix where both are on, `probability` that of
    mixing at all. λ becomes the share that the box, clipped at the border, leaves. Mode "batch"
    draws once, "elem" for each row.

    x′ is the row at the same place from the end of its group: `groups` equal runs of rows. Where
    they are a multiple of the devices that share the batch, no row leaves its device. Zhang et al.,
    arXiv 1710.09412; Yun et al., arXiv 1905.04899.
    """
    check_mix(
        mixup=mixup,
        cutmix=cutmix,
        mode=mode,
        probability=probability,
        switch_probability=switch_probability,
    )
    n, h, w, _ = images.shape
    if jnp.ndim(targets) != 2 or len(targets) != n:
        raise ValueError(f"targets have shape {jnp.shape(targets)}: expected ({n}, classes)")
    if n % groups:
        raise ValueError(f"groups is {groups}; expected a divisor of the batch size {n}")
    targets = optax.smooth_labels(targets, label_smoothing)
    if not (mixup or cutmix):
        return images, targets
    draw = _draw(
        mixup=mixup,
        cutmix=cutmix,
        probability=probability,
        switch_probability=switch_probability,
        size=(h, w),
    )
    if mode == "elem":
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(n))
        return apply_mix(jax.vmap(draw)(keys), images, targets, groups=groups)
    return apply_mix(draw(key), images, targets, groups=groups)


def check_mix(*, mixup, cutmix, mode, probability, switch_probability):
    """Raises ValueError for settings of `mix` that it cannot follow."""
    if mode not in MODES:
        raise ValueError(f"mix: mode is {mode!r}; expected one of {', '.join(MODES)}")
    for name, value in {"mixup": mixup, "cutmix": cutmix}.items():
        if value < 0:
            raise ValueError(f"mix: {name} is {value!r}; expected α of Beta(α, α), or 0 for none")
    probabilities = {"probability": probability, "switch_probability": switch_probability}
    for name, value in probabilities.items():
        if not 0 <= value <= 1:
            raise ValueError(f"mix: {name} is {value!r}; expected 0 … 1")


def _draw(*, mixup, cutmix, probability, switch_probability, size):
    """The function key → `Mix` of one row or batch."""
    switch = switch_probability if mixup and cutmix else float(cutmix > 0)

    def draw(key):
        mixed_key, cut_key, ratio_key, centre_key = jax.random.split(key, 4)
        cut = jax.random.bernoulli(cut_key, switch)
        u = jax.random.uniform(ratio_key)
        ratio = jnp.where(cut, _beta_quantile(u, cutmix), _beta_quantile(u, mixup))
        mixed = jax.random.bernoulli(mixed_key, probability)
        centre = jax.random.randint(centre_key, (2,), 0, jnp.array(size))
        return Mix(jnp.where(mixed, ratio, 1.0), cut, centre)

    return draw


def _beta_quantile(u, alpha: float):
    """The `u` quantile of Beta(α, α), interpolated between `KNOTS` exact ones.

    A sampler by rejection loops until every row of the batch, on every device, has its value.
    """
    if not alpha:
        return jnp.ones_like(u)
    quantiles = stats.beta.ppf(np.linspace(0, 1, KNOTS + 1), alpha, alpha).astype(np.float32)
    table = jnp.asarray(quantiles)
    place = u * KNOTS
    below = jnp.floor(place).astype(jnp.int32)
    part = place - below
    return table[below] * (1 - part) + table[below + 1] * part


def apply_mix(draw: Mix, images, targets, *, groups: int = 1):
    """images [n h w c] and targets [n classes], mixed as drawn."""
    _, h, w, _ = images.shape
    top, bottom, left, right = _box(draw, h, w)
    area = (bottom - top) * (right - left)
    ratio = jnp.where(draw.cut, 1 - area / (h * w), draw.ratio)

    def along(value, ndim):
        """A scalar, or values [n], against an array of `ndim` axes."""
        return jnp.reshape(value, (-1,) + (1,) * (ndim - 1))

    y, x = jnp.arange(h)[:, None, None], jnp.arange(w)[:, None]
    in_rows = (y >= along(top, 4)) & (y < along(bottom, 4))
    pasted = in_rows & (x >= along(left, 4)) & (x < along(right, 4))
    weights = jnp.where(along(draw.cut, 4), 1.0 - pasted, along(draw.ratio, 4))
    weights = weights.astype(images.dtype)
    images = images * weights + _partners(images, groups) * (1 - weights)
    ratio = along(ratio, 2)
    return images, targets * ratio + _partners(targets, groups) * (1 - ratio)


def _box(draw: Mix, h, w):
    """The pasted box, cut off at the border: top, bottom, left, right."""
    side = jnp.sqrt(1 - draw.ratio)
    edges = []
    for length, centre in ((h, draw.centre[..., 0]), (w, draw.centre[..., 1])):
        cut = (length * side).astype(jnp.int32)
        edges += [centre - cut // 2, centre + (cut + 1) // 2]
    top, bottom, left, right = edges
    return jnp.clip(top, 0, h), jnp.clip(bottom, 0, h), jnp.clip(left, 0, w), jnp.clip(right, 0, w)


def _partners(rows, groups):
    """The rows in reverse within each of `groups` equal runs."""
    return rows.reshape(groups, -1, *rows.shape[1:])[:, ::-1].reshape(rows.shape)
