"""The same state inside `jit`: an R factor that needs no float64 and merges over devices.

On a device without float64 a Gram matrix loses every singular value under 3e-4 σ₁. QR does not
square the condition number: each singular value is right to a few eps·σ₁ in whatever dtype the
state has. Features stay on the device; only a [d d] factor leaves it.

    state = device.init(d)
    state = jax.jit(device.update)(state, features, mask)      # batch by batch
    state = device.psum(state, "data")                         # inside shard_map, over its axis
    device.to_spectrum(state).summary()                        # on the host, in float64
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from noisy_fm.spectrum.moments import Moments, Seen, Spectrum


class State(NamedTuple):
    """Rows seen (rows []), their mean [d] (zeros unless centred) and R [d d], RᵀR = FᵀF."""

    rows: jax.Array
    mean: jax.Array
    factor: jax.Array


def init(d: int, *, dtype=jnp.float32) -> State:
    """The state of no rows; its dtype is that of all arithmetic (float64: `jax_enable_x64`)."""
    return State(jnp.zeros((), jnp.int32), jnp.zeros(d, dtype), jnp.zeros((d, d), dtype))


def update(state: State, x, mask=None, *, center=False, normalize=False) -> State:
    """Adds the rows of x [n d] where mask [n] is true: one QR of [d + n + 2, d].

    `center` and `normalize` as in `Spectrum`, the same at every call; a masked row does not count
    whatever is in it, so padded batches of one shape compile once.
    """
    dtype = state.factor.dtype
    keep = jnp.ones(len(x), bool) if mask is None else jnp.asarray(mask).astype(bool)
    x = jnp.where(keep[:, None], x, 0).astype(dtype)
    if normalize:
        x /= jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), jnp.finfo(dtype).tiny)
    if center == "samples":
        x -= x.mean(axis=1, keepdims=True)
    count = keep.sum()
    mean = jnp.zeros_like(state.mean)
    if center in (True, "columns"):
        mean = x.sum(axis=0) / jnp.maximum(count, 1)
        x = jnp.where(keep[:, None], x - mean, 0)
    return merge(State(count.astype(jnp.int32), mean, x), state)


def merge(a: State, b: State) -> State:
    """The state of both sets of rows."""
    return _reduce(
        jnp.stack([a.rows, b.rows]),
        jnp.stack([a.mean, b.mean]),
        jnp.concatenate([a.factor, b.factor]),
    )


def psum(state: State, axis_name: str) -> State:
    """The state of the rows of every device along a mapped axis, the same on each of them."""
    counts, means, factors = jax.lax.all_gather(state, axis_name)
    return _reduce(counts, means, factors.reshape(-1, factors.shape[-1]))


def _reduce(counts, means, factors) -> State:
    """One QR of all parts' factors [k d] and of each part's distance from the common mean."""
    share = (counts / jnp.maximum(counts.sum(), 1)).astype(means.dtype)
    mean = means[0] + share @ (means - means[0])
    joint = jnp.sqrt(counts.astype(means.dtype))[:, None] * (means - mean)
    return State(counts.sum(), mean, jnp.linalg.qr(jnp.concatenate([factors, joint]), mode="r"))


def to_spectrum(state: State, *, center=False, normalize=False) -> Spectrum:
    """A host `Spectrum` of a device state; `center` and `normalize` as they were in `update`.

    Its numerical rank counts the singular values above d roundings, of σ₁, of the state's dtype
    (float32: a few were seen after hundreds of updates).
    """
    spectrum = Spectrum(center=center, normalize=normalize)
    factor = np.asarray(state.factor, np.float64)
    if not np.isfinite(factor).all():
        raise ValueError("device features had NaN or infinite values")
    n, d = int(state.rows), factor.shape[1]
    mean = np.asarray(state.mean, np.float64) if spectrum.settings["center"] == "columns" else None
    single = state.factor.dtype != jnp.float64
    noise = d * float(jnp.finfo(state.factor.dtype).eps) if single else None
    spectrum.seen = Seen(n, d, Moments(n, mean, None, factor), (), noise)
    return spectrum
