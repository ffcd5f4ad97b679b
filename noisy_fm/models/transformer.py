"""The transformer block that images and texts share (Vaswani et al., 2017), and a stack of them."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from noisy_fm.models import fast
from noisy_fm.models.layers import REMAT, DropPath, drop_rates

truncated_normal = nn.initializers.truncated_normal(0.02)

# Flax's default GELU is its tanh approximation, which is neither of these.
ACTIVATIONS: dict[str, Callable] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


class Init(NamedTuple):
    """How the four kernels of a block start."""

    qkv: Callable = truncated_normal
    proj: Callable = truncated_normal
    fc1: Callable = truncated_normal
    fc2: Callable = truncated_normal


def scaled_init(dim: int, depth: int) -> Init:
    """Normal, by width and depth: CLIP's text transformer (Radford et al., ICML 2021)."""
    normal = nn.initializers.normal
    out = normal(dim**-0.5 * (2 * depth) ** -0.5)
    return Init(normal(dim**-0.5), out, normal((2 * dim) ** -0.5), out)


def layer_norm(dtype, name: str, *, epsilon: float) -> nn.LayerNorm:
    # Flax's fast variance loses digits where the mean is large.
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, dtype=dtype, name=name)


def dense(features: int, dtype, name: str, *, init: Callable = truncated_normal, bias: bool = True):
    return nn.Dense(
        features,
        use_bias=bias,
        kernel_init=init,
        dtype=dtype,
        dot_general=fast.dot_general,
        name=name,
    )


def embed_patches(x, patch: int, dim: int, *, dtype, bias: bool = True):
    """A linear map of each patch of images [n h w c]: [n h/patch w/patch dim], "patch_embed".

    Raises ValueError for images that no whole number of patches makes.
    """
    height, width = x.shape[1:3]
    if height % patch or width % patch:
        raise ValueError(
            f"images are {height}×{width}; expected multiples of the patch size {patch}"
        )
    return nn.Conv(
        dim,
        (patch, patch),
        (patch, patch),
        "VALID",
        use_bias=bias,
        kernel_init=truncated_normal,
        dtype=dtype,
        name="patch_embed",
    )(x)


class Qkv(nn.Module):
    """Queries, keys and values of x [b l d], each [b l heads d/heads]; one kernel [d 3d].

    The kernel is reshaped, not the product: split over devices by heads, neither it nor its
    gradient is then laid out anew.
    """

    num_heads: int
    kernel_init: Callable
    dtype: Any

    @nn.compact
    def __call__(self, x):
        d = x.shape[-1]
        kernel = self.param("kernel", self.kernel_init, (d, 3 * d)).reshape(
            d, 3, self.num_heads, -1
        )
        bias = self.param("bias", nn.initializers.zeros, (3 * d,)).reshape(3, self.num_heads, -1)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return jnp.moveaxis(jnp.einsum("bld,dthk->blthk", x, kernel) + bias, 2, 0)


class Attention(nn.Module):
    """softmax(q kᵀ / √(d/heads)) v over x [b l d]; the softmax in float32.

    causal: no position sees a later one.
    """

    num_heads: int
    causal: bool = False
    kernel_init: Init = Init()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        qkv = Qkv(self.num_heads, self.kernel_init.qkv, self.dtype, name="qkv")(x)
        heads = jax.nn.dot_product_attention(*qkv, is_causal=self.causal)
        return dense(x.shape[-1], self.dtype, "proj", init=self.kernel_init.proj)(
            heads.reshape(x.shape)
        )


class Mlp(nn.Module):
    hidden: int
    activation: str
    kernel_init: Init
    dtype: Any

    @nn.compact
    def __call__(self, x):
        y = dense(self.hidden, self.dtype, "fc1", init=self.kernel_init.fc1)(x)
        y = ACTIVATIONS[self.activation](y)
        return dense(x.shape[-1], self.dtype, "fc2", init=self.kernel_init.fc2)(y)


class LayerScale(nn.Module):
    """Scales each channel of a branch by γ, which starts small (Touvron et al., ICCV 2021)."""

    initial: float
    dtype: Any

    @nn.compact
    def __call__(self, x):
        gamma = self.param("gamma", nn.initializers.constant(self.initial), x.shape[-1:])
        return x * gamma.astype(self.dtype)


class Block(nn.Module):
    """Pre-norm attention and MLP on x [b l d]; alike at every depth but for `rate`."""

    num_heads: int
    mlp_ratio: float = 4.0
    layer_scale: float = 0.0
    causal: bool = False
    activation: str = "gelu"
    epsilon: float = 1e-6
    kernel_init: Init = Init()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, rate, *, train):
        hidden = int(x.shape[-1] * self.mlp_ratio)
        branches = (
            Attention(self.num_heads, self.causal, self.kernel_init, self.dtype, name="attn"),
            Mlp(hidden, self.activation, self.kernel_init, self.dtype, name="mlp"),
        )
        for i, branch in enumerate(branches, 1):
            y = branch(layer_norm(self.dtype, f"norm{i}", epsilon=self.epsilon)(x))
            if self.layer_scale:
                y = LayerScale(self.layer_scale, self.dtype, name=f"ls{i}")(y)
            x = x + DropPath(name=f"drop_path{i}")(y, rate, train=train)
        return x


def stack(
    module: nn.Module,
    block: Callable[..., Block],
    x: jax.Array,
    *,
    depth: int,
    train: bool,
    drop_path: float = 0.0,
    drop_rule: str = "linear",
    scan: bool = False,
    remat: str = "none",
) -> list[jax.Array]:
    """The outputs of `depth` blocks "block0", … of `module`, each on the one before it.

    To be called from the module's compact `__call__`; `block(**flax_fields)` makes one of them.

    scan: one block is compiled, and looped over. The parameters are stacked for the loop inside the
    step and nowhere else: each block's keep their names, "block0/attn/qkv/kernel", so that what is
    per layer (LAMB's ratio, freezing, sharding rules, checkpoints) is the same with and without.
    remat: "none" keeps a block's intermediate results for its gradient; "full" computes them again
    from the block's input, "dots" does so with all but matrix products (see `layers.REMAT`).
    """
    draws = train and drop_path > 0
    names = [f"block{i}" for i in range(depth)]
    if module.is_initializing():
        return [x := block(name=name)(x, 0.0, train=False) for name in names]

    def run(x, layer):
        params, drop = layer
        rate, rngs = drop if draws else (0.0, {})
        y = block(parent=None).apply({"params": params}, x, rate, train=train, rngs=rngs)
        return y, y

    if remat != "none":
        # A loop's body is compiled apart, so nothing can undo its checkpointing.
        run = jax.checkpoint(run, policy=REMAT[remat], prevent_cse=not scan)
    drops: list[tuple] = [()] * depth
    if draws:
        rates = drop_rates(drop_path, depth, rule=drop_rule)
        keys = jax.random.split(module.make_rng("dropout"), depth)
        drops = [(jnp.float32(rates[i]), {"dropout": keys[i]}) for i in range(depth)]
    params = [module.variables["params"][name] for name in names]
    layers = list(zip(params, drops, strict=True))
    if scan:
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
        return list(jax.lax.scan(run, x, stacked)[1])
    return [x := run(x, layer)[0] for layer in layers]
