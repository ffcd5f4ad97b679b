"""Vision transformers (Dosovitskiy et al., ICLR 2021)."""

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
    layer_norm,
    stack,
    truncated_normal,
)

POOLS = ("token", "gap")
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
        x = outputs[-1].astype(jnp.float32)
        if self.pool == "token":
            x = layer_norm(jnp.float32, "norm", epsilon=self.epsilon)(x[:, 0])
        else:
            x = layer_norm(jnp.float32, "fc_norm", epsilon=self.epsilon)(x.mean(1))
        features["pre_logits"] = x
        if self.num_classes:
            x = dense(self.num_classes, jnp.float32, "head")(x)
        return x, features

    def _embed(self, x):
        """Patches, the class token and their positions: [n l dim]."""
        n, height, width, _ = x.shape
        if height % self.patch or width % self.patch:
            raise ValueError(
                f"images are {height}×{width}; expected multiples of the patch size {self.patch}"
            )
        patch = (self.patch, self.patch)
        x = nn.Conv(
            self.dim,
            patch,
            patch,
            "VALID",
            use_bias=not self.pre_norm,
            kernel_init=truncated_normal,
            dtype=self.dtype,
            name="patch_embed",
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
        x = x + jnp.asarray(position, self.dtype)
        if self.pre_norm:
            x = layer_norm(self.dtype, "norm_pre", epsilon=self.epsilon)(x)
        return x

    def _learned_positions(self, length: int):
        if self.has_variable("params", "pos_embed"):
            known: int = self.get_variable("params", "pos_embed").shape[1]
            if known != length:
                raise ValueError(
                    f"images make {length} tokens, the position embedding has {known}; expected "
                    "images of the size the model was initialised with"
                )
        return self.param("pos_embed", nn.initializers.normal(0.02), (1, length, self.dim))
