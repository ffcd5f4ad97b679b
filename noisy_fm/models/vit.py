"""Vision transformers (Dosovitskiy et al., ICLR 2021) and their variants: DeiT, DINOv2, CLIP's."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from noisy_fm.models.layers import check_images, check_rate, check_remat
from noisy_fm.models.transformer import (
    ACTIVATIONS,
    Block,
    Init,
    dense,
    embed_patches,
    layer_norm,
    stack,
)

POOLS = ("token", "gap", "norm_gap", "token_mean")
OF_THE_TOKEN = ("token", "token_mean")  # pools that need a class token
POSITIONS = ("learned", "sincos2d")
DROP_RULES = ("linear", "uniform")


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


def resize_positions(
    table, old: tuple[int, int], new: tuple[int, int], *, prefix: int = 1, antialias: bool = True
) -> np.ndarray:
    """Learned positions [1 prefix+h·w d] of the grid `old` for patches in the grid `new`.

    prefix: rows before the patches', which stay: 1 with a position of the class token. Bicubic as
    in timm (Keys, 1981, a = −1/2, as wide as the coarser grid's spacing); antialias=False is what
    DINOv2 without registers had (a = −3/4, as wide as the old spacing, borders repeated).
    """
    table = np.asarray(table, np.float32)
    if table.shape[1] != prefix + old[0] * old[1]:
        raise ValueError(
            f"the position embedding has {table.shape[1]} rows; expected {prefix} and "
            f"{old[0]}×{old[1]}"
        )
    grid = table[0, prefix:].reshape(*old, -1)
    rows, columns = (_cubic_weights(o, n, antialias) for o, n in zip(old, new, strict=True))
    grid = np.einsum("yh,xw,hwd->yxd", rows, columns, grid, optimize=True)
    resized = grid.reshape(1, new[0] * new[1], -1).astype(np.float32)
    return np.concatenate([table[:, :prefix], resized], axis=1)


def _cubic_weights(old: int, new: int, antialias: bool) -> np.ndarray:
    """What each of `new` samples takes of `old` ones, [new old]; its rows sum to 1."""
    scale = old / new
    a, width = (-0.5, max(scale, 1.0)) if antialias else (-0.75, 1.0)
    margin = 0 if antialias else 2  # samples repeated past a border, or none of them
    source = np.arange(-margin, old + margin)
    t = np.abs((np.arange(new)[:, None] + 0.5) * scale - 0.5 - source) / width
    near = (a + 2) * t**3 - (a + 3) * t**2 + 1
    far = a * (t**3 - 5 * t**2 + 8 * t - 4)
    weights = np.where(t <= 1, near, np.where(t < 2, far, 0.0))
    inside = np.clip(source, 0, old - 1)[:, None] == np.arange(old)
    return weights @ inside / weights.sum(1, keepdims=True)


class ViT(nn.Module):
    """images [n h w c], normalised floats → (logits [n num_classes], features).

    features: "embed" (patches with positions), "blockI", each [n l dim], and "pre_logits" [n dim]
    float32. pool "token": of the LayerNormed class token, which comes first of the l; "gap": the
    LayerNorm of the patches' mean, "norm_gap": the mean of the LayerNormed patches, both without a
    class token; "token_mean": class token and patches' mean, LayerNormed, side by side [n 2·dim]
    (DINOv2's linear head). Parameters are float32, compute is in `dtype`, LayerNorm's statistics,
    softmax, pooling and head in float32. `num_classes=0` has no head and returns the pooled
    features as logits.

    position: "learned" (as long as the images it is initialised with need, see `resize_positions`)
    or "sincos2d" (fixed). class_position: learned ones have a row for the class token (not in
    DeiT III; Touvron et al., ECCV 2022). registers: learned tokens between the class token and the
    patches, without positions (Darcet et al., ICLR 2024). drop_path: stochastic depth's rate, by
    drop_rule that of the last block, to which it rises from 0 ("linear"), or of all ("uniform";
    Huang et al., ECCV 2016, compare both). layer_scale: γ's initial value, 0 for no LayerScale.

    pre_norm: CLIP's; a LayerNorm before the first block, and patches embedded without a bias.
    activation: "gelu" or "quick_gelu", x σ(1.702 x). scan, remat: as in `transformer.stack`.
    """

    num_classes: int
    patch: int
    dim: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    pool: str = "token"
    position: str = "learned"
    class_position: bool = True
    registers: int = 0
    layer_scale: float = 0.0
    drop_path: float = 0.0
    drop_rule: str = "linear"
    pre_norm: bool = False
    activation: str = "gelu"
    epsilon: float = 1e-6
    kernel_init: Init = Init()
    scan: bool = False
    remat: str = "none"
    dtype: Any = jnp.float32

    def __post_init__(self):
        super().__post_init__()
        for field, known in (
            ("pool", POOLS),
            ("position", POSITIONS),
            ("drop_rule", DROP_RULES),
            ("activation", ACTIVATIONS),
        ):
            if getattr(self, field) not in known:
                raise ValueError(
                    f"{field} is {getattr(self, field)!r}; expected one of {', '.join(known)}"
                )
        check_rate("drop_path", self.drop_path)
        check_remat(self.remat)
        if self.registers < 0:
            raise ValueError(f"registers is {self.registers}; expected a number of tokens")
        if self.dim % self.num_heads:
            raise ValueError(f"dim {self.dim} is not a multiple of num_heads {self.num_heads}")

    @nn.compact
    def __call__(self, images, *, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        check_images(images)
        x = self._embed(images.astype(self.dtype))
        features = {"embed": x}
        block = partial(
            Block,
            self.num_heads,
            self.mlp_ratio,
            self.layer_scale,
            activation=self.activation,
            epsilon=self.epsilon,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
        )
        outputs = stack(
            self,
            block,
            x,
            depth=self.depth,
            train=train,
            drop_path=self.drop_path,
            drop_rule=self.drop_rule,
            scan=self.scan,
            remat=self.remat,
        )
        features |= {f"block{i}": y for i, y in enumerate(outputs)}
        x = self._pooled(outputs[-1].astype(jnp.float32))
        features["pre_logits"] = x
        if self.num_classes:
            x = dense(self.num_classes, jnp.float32, "head")(x)
        return x, features

    def _embed(self, x):
        """Patches, the class token and their positions: [n l dim]."""
        x = embed_patches(x, self.patch, self.dim, dtype=self.dtype, bias=not self.pre_norm)
        n, h, w, _ = x.shape
        x = x.reshape(n, h * w, self.dim)
        tokens = int(self.pool in OF_THE_TOKEN)
        placed = tokens and self.class_position and self.position == "learned"
        if tokens:
            token = self._tokens("cls_token", 1, n)
        if placed:
            x = jnp.concatenate([token, x], axis=1)
        if self.position == "learned":
            position = self._learned_positions(x.shape[1])
        else:
            position = sincos2d(h, w, self.dim)[None]
        x = x + jnp.asarray(position, self.dtype)
        if tokens and not placed:
            x = jnp.concatenate([token, x], axis=1)
        if self.registers:
            registers = self._tokens("reg_token", self.registers, n)
            x = jnp.concatenate([x[:, :tokens], registers, x[:, tokens:]], axis=1)
        if self.pre_norm:
            x = layer_norm(self.dtype, "norm_pre", epsilon=self.epsilon)(x)
        return x

    def _pooled(self, x):
        """Of the last block's tokens [n l dim], what the head reads."""
        norm = partial(layer_norm, jnp.float32, epsilon=self.epsilon)
        prefix = int(self.pool in OF_THE_TOKEN) + self.registers
        if self.pool == "token":
            return norm("norm")(x[:, 0])
        if self.pool == "gap":
            return norm("fc_norm")(x[:, prefix:].mean(1))
        x = norm("norm")(x)
        mean = x[:, prefix:].mean(1)
        return mean if self.pool == "norm_gap" else jnp.concatenate([x[:, 0], mean], axis=-1)

    def _tokens(self, name: str, count: int, n: int):
        tokens = self.param(name, nn.initializers.normal(1e-6), (1, count, self.dim))
        return jnp.tile(tokens.astype(self.dtype), (n, 1, 1))

    def _learned_positions(self, length: int):
        if self.has_variable("params", "pos_embed"):
            known: int = self.get_variable("params", "pos_embed").shape[1]
            if known != length:
                raise ValueError(
                    f"images make {length} tokens, the position embedding has {known}; expected "
                    "images of the size the model was initialised with, or `vit.resize_positions`"
                )
        return self.param("pos_embed", nn.initializers.normal(0.02), (1, length, self.dim))
