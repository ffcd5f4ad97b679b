"""Vision transformers (Dosovitskiy et al., ICLR 2021)."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from noisy_fm.models import fast
from noisy_fm.models.layers import (
    REMAT,
    DropPath,
    check_images,
    check_rate,
    check_remat,
    drop_rates,
)

POOLS = ("token", "gap")
POSITIONS = ("learned", "sincos2d")
DROP_RULES = ("linear", "uniform")

_init = nn.initializers.truncated_normal(0.02)


def _norm(dtype, name: str) -> nn.LayerNorm:
    # Flax's fast variance loses digits where the mean is large; eps is that of the paper's code.
    return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, dtype=dtype, name=name)


def _dense(features: int, dtype, name: str) -> nn.Dense:
    return nn.Dense(
        features, kernel_init=_init, dtype=dtype, dot_general=fast.dot_general, name=name
    )


def sincos2d(h: int, w: int, dim: int, temperature: float = 10_000.0) -> np.ndarray:
    """Fixed position embedding [h·w, dim]: a quarter each of sin x, cos x, sin y, cos y.

    Frequencies fall geometrically from 1 to 1/temperature (Chen et al., ICCV 2021, MoCo v3).
    """
    if dim % 4 or dim < 8:
        raise ValueError(f"dim is {dim}; sincos2d positions need a multiple of four, at least 8")
    y, x = np.mgrid[:h, :w].reshape(2, -1, 1)
    omega = temperature ** -(np.arange(dim // 4) / (dim // 4 - 1))
    parts = [f(a * omega) for a in (x, y) for f in (np.sin, np.cos)]
    return np.concatenate(parts, axis=1).astype(np.float32)


class Qkv(nn.Module):
    """Queries, keys and values of x [b l d], each [b l heads d/heads]; one kernel [d 3d].

    The kernel is reshaped, not the product: split over devices by heads, neither it nor its
    gradient is then laid out anew.
    """

    num_heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        d = x.shape[-1]
        kernel = self.param("kernel", _init, (d, 3 * d)).reshape(d, 3, self.num_heads, -1)
        bias = self.param("bias", nn.initializers.zeros, (3 * d,)).reshape(3, self.num_heads, -1)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return jnp.moveaxis(jnp.einsum("bld,dthk->blthk", x, kernel) + bias, 2, 0)


class Attention(nn.Module):
    """softmax(q kᵀ / √(d/heads)) v over x [b l d]; the softmax in float32."""

    num_heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        heads = jax.nn.dot_product_attention(*Qkv(self.num_heads, self.dtype, name="qkv")(x))
        return _dense(x.shape[-1], self.dtype, "proj")(heads.reshape(x.shape))


class Mlp(nn.Module):
    hidden: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        y = _dense(self.hidden, self.dtype, "fc1")(x)
        return _dense(x.shape[-1], self.dtype, "fc2")(jax.nn.gelu(y, approximate=False))


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
    mlp_ratio: float
    layer_scale: float
    dtype: Any

    @nn.compact
    def __call__(self, x, rate, *, train):
        branches = (
            Attention(self.num_heads, self.dtype, name="attn"),
            Mlp(int(x.shape[-1] * self.mlp_ratio), self.dtype, name="mlp"),
        )
        for i, branch in enumerate(branches, 1):
            y = branch(_norm(self.dtype, f"norm{i}")(x))
            if self.layer_scale:
                y = LayerScale(self.layer_scale, self.dtype, name=f"ls{i}")(y)
            x = x + DropPath(name=f"drop_path{i}")(y, rate, train=train)
        return x


class ViT(nn.Module):
    """images [n h w c], normalised floats → (logits [n num_classes], features).

    features: "embed" (patches with positions), "blockI", each [n l dim], and "pre_logits" [n dim]
    float32. pool "token": of the LayerNormed class token, which comes first of the l; "gap": the
    LayerNorm of the tokens' mean, without a class token. Parameters are float32, compute is in
    `dtype`, LayerNorm's statistics, softmax, pooling and head in float32. `num_classes=0` has no
    head and returns the pooled features as logits.

    position: "learned" (with a row for the class token; as long as the images it is initialised
    with need) or "sincos2d" (fixed). drop_path: stochastic depth's rate, by drop_rule that of the
    last block, to which it rises from 0 ("linear"), or of all ("uniform"; Huang et al., ECCV 2016,
    compare both). layer_scale: γ's initial value, 0 for no LayerScale.

    scan: one block is compiled, and looped over. The parameters are stacked for the loop inside the
    step and nowhere else: each block's keep their names, "block0/attn/qkv/kernel", so that what is
    per layer (LAMB's ratio, freezing, sharding rules, checkpoints) is the same with and without.
    remat: "none" keeps a block's intermediate results for its gradient; "full" computes them again
    from the block's input, "dots" does so with all but matrix products (see `layers.REMAT`).
    """

    num_classes: int
    patch: int
    dim: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    pool: str = "token"
    position: str = "learned"
    layer_scale: float = 0.0
    drop_path: float = 0.0
    drop_rule: str = "linear"
    scan: bool = False
    remat: str = "none"
    dtype: Any = jnp.float32

    def __post_init__(self):
        super().__post_init__()
        for field, known in (("pool", POOLS), ("position", POSITIONS), ("drop_rule", DROP_RULES)):
            if getattr(self, field) not in known:
                raise ValueError(
                    f"{field} is {getattr(self, field)!r}; expected one of {', '.join(known)}"
                )
        check_rate("drop_path", self.drop_path)
        check_remat(self.remat)
        if self.dim % self.num_heads:
            raise ValueError(f"dim {self.dim} is not a multiple of num_heads {self.num_heads}")

    @nn.compact
    def __call__(self, images, *, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        check_images(images)
        x = self._embed(images.astype(self.dtype))
        features = {"embed": x}
        outputs = self._blocks(x, train)
        features |= {f"block{i}": y for i, y in enumerate(outputs)}
        x = outputs[-1].astype(jnp.float32)
        if self.pool == "token":
            x = _norm(jnp.float32, "norm")(x[:, 0])
        else:
            x = _norm(jnp.float32, "fc_norm")(x.mean(1))
        features["pre_logits"] = x
        if self.num_classes:
            x = _dense(self.num_classes, jnp.float32, "head")(x)
        return x, features

    def _blocks(self, x, train: bool) -> list[jax.Array]:
        """The output of each block."""
        block = partial(Block, self.num_heads, self.mlp_ratio, self.layer_scale, self.dtype)
        draws = train and self.drop_path > 0
        names = [f"block{i}" for i in range(self.depth)]
        if self.is_initializing():
            return [x := block(name=name)(x, 0.0, train=False) for name in names]

        def run(x, layer):
            params, drop = layer
            rate, rngs = drop if draws else (0.0, {})
            y = block(parent=None).apply({"params": params}, x, rate, train=train, rngs=rngs)
            return y, y

        if self.remat != "none":
            # A loop's body is compiled apart, so nothing can undo its checkpointing.
            run = jax.checkpoint(run, policy=REMAT[self.remat], prevent_cse=not self.scan)
        drops: list[tuple] = [()] * self.depth
        if draws:
            rates = drop_rates(self.drop_path, self.depth, rule=self.drop_rule)
            keys = jax.random.split(self.make_rng("dropout"), self.depth)
            drops = [(jnp.float32(rates[i]), {"dropout": keys[i]}) for i in range(self.depth)]
        params = [self.variables["params"][name] for name in names]
        layers = list(zip(params, drops, strict=True))
        if self.scan:
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
            return list(jax.lax.scan(run, x, stacked)[1])
        return [x := run(x, layer)[0] for layer in layers]

    def _embed(self, x):
        """Patches, the class token and their positions: [n l dim]."""
        n, height, width, _ = x.shape
        if height % self.patch or width % self.patch:
            raise ValueError(
                f"images are {height}×{width}; expected multiples of the patch size {self.patch}"
            )
        patch = (self.patch, self.patch)
        x = nn.Conv(
            self.dim, patch, patch, "VALID", kernel_init=_init, dtype=self.dtype, name="patch_embed"
        )(x)
        h, w = x.shape[1:3]
        x = x.reshape(n, h * w, self.dim)
        tokens = int(self.pool == "token")
        if tokens:
            token = self.param("cls_token", nn.initializers.normal(1e-6), (1, 1, self.dim))
            x = jnp.concatenate([jnp.tile(token.astype(self.dtype), (n, 1, 1)), x], axis=1)
        if self.position == "learned":
            position = self._learned_positions(h * w + tokens)
        else:
            position = np.pad(sincos2d(h, w, self.dim), ((tokens, 0), (0, 0)))[None]
        return x + jnp.asarray(position, self.dtype)

    def _learned_positions(self, length: int):
        if self.has_variable("params", "pos_embed"):
            known: int = self.get_variable("params", "pos_embed").shape[1]
            if known != length:
                raise ValueError(
                    f"images make {length} tokens, the position embedding has {known}; expected "
                    "images of the size the model was initialised with"
                )
        return self.param("pos_embed", nn.initializers.normal(0.02), (1, length, self.dim))
