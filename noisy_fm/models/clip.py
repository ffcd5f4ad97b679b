"""Image and text towers that meet in one space (CLIP; Radford et al., ICML 2021)."""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from noisy_fm.messages import unknown
from noisy_fm.models.layers import check_remat
from noisy_fm.models.transformer import ACTIVATIONS, Block, layer_norm, scaled_init, stack

VOCABULARY = 49408  # of CLIP's byte-pair encoding; the last token ends a text
CONTEXT = 77  # tokens of a text, its two ends included
HIGHEST_SCALE = 100.0


class TextTransformer(nn.Module):
    """tokens [n l] → (pooled [n dim] float32, features): causal, read at the end-of-text token.

    That is the first with the highest number; what follows it has no effect. l ≤ `context`.
    features: "blockI" [n l dim]. scan, remat: as in `transformer.stack`.
    """

    dim: int = 512
    depth: int = 12
    num_heads: int = 8
    context: int = CONTEXT
    vocabulary: int = VOCABULARY
    activation: str = "gelu"
    scan: bool = False
    remat: str = "none"
    dtype: Any = jnp.float32

    def __post_init__(self):
        super().__post_init__()
        check_remat(self.remat)
        if self.activation not in ACTIVATIONS:
            raise ValueError(unknown("activation", self.activation, ACTIVATIONS))
        if self.dim % self.num_heads:
            raise ValueError(f"dim {self.dim} is not a multiple of num_heads {self.num_heads}")

    @nn.compact
    def __call__(self, tokens, *, train: bool = False):
        length = tokens.shape[1]
        if length > self.context:
            raise ValueError(f"texts have {length} tokens; expected at most {self.context}")
        normal = nn.initializers.normal
        table = self.param("token_embed", normal(0.02), (self.vocabulary, self.dim))
        position = self.param("pos_embed", normal(0.01), (self.context, self.dim))
        x = (table[tokens] + position[:length]).astype(self.dtype)
        block = partial(
            Block,
            self.num_heads,
            causal=True,
            activation=self.activation,
            epsilon=1e-5,
            kernel_init=scaled_init(self.dim, self.depth),
            dtype=self.dtype,
        )
        outputs = stack(
            self, block, x, depth=self.depth, train=train, scan=self.scan, remat=self.remat
        )
        ends = outputs[-1][jnp.arange(len(tokens)), jnp.argmax(tokens, axis=1)]
        pooled = layer_norm(jnp.float32, "norm", epsilon=1e-5)(ends.astype(jnp.float32))
        return pooled, {f"block{i}": y for i, y in enumerate(outputs)}


class Clip(nn.Module):
    """(images [n h w c], tokens [n l]) → (image embedding [n e], features), all float32.

    features: the image tower's own, its "pre_logits" among them; "projected" [n e], and
    "normalized", of length 1. Of tokens, if there are some, "text/pre_logits", "text/projected" and
    "text/normalized". `scale` gives the factor of cosines in a loss, and what is added to them.

    Parameters "logit_scale", the factor's logarithm, and, with `logit_bias`, "logit_bias".
    """

    image: nn.Module
    text: TextTransformer
    embed_dim: int
    projection_bias: bool = False  # of the image tower
    logit_bias: bool = False

    def setup(self):
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        projection = partial(nn.Dense, self.embed_dim, kernel_init=init)
        self.image_projection = projection(use_bias=self.projection_bias)
        self.text_projection = projection(use_bias=False)
        first, bias = (10.0, -10.0) if self.logit_bias else (1 / 0.07, 0.0)
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(math.log(first)), ())
        self.bias = (
            self.param("logit_bias", nn.initializers.constant(bias), ()) if self.logit_bias else 0.0
        )

    def __call__(self, images, tokens=None, *, train: bool = False):
        _, features = self.image(images, train=train)
        features = features | _embedded(self.image_projection, features["pre_logits"])
        if tokens is not None:
            texts = self.encode_text(tokens, train=train)
            features |= {f"text/{name}": value for name, value in texts.items()}
        return features["projected"], features

    def encode_text(self, tokens, *, train: bool = False) -> dict[str, jax.Array]:
        pooled, _ = self.text(tokens, train=train)
        return {"pre_logits": pooled, **_embedded(self.text_projection, pooled)}

    def scale(self) -> tuple[jax.Array, Any]:
        return jnp.exp(self.logit_scale), self.bias


def _embedded(projection, pooled) -> dict[str, jax.Array]:
    projected = projection(pooled)
    # As in PyTorch's normalize: an all-zero row stays 0, and has a gradient.
    norm = jnp.sqrt(jnp.maximum(jnp.sum(projected**2, -1, keepdims=True), 1e-24))
    return {"projected": projected, "normalized": projected / norm}
