"""RandAugment and 3-augment: what is drawn for an image, and Pillow's operations that it names.

An operation is a number in `OPS` with one argument, so an image's draw is a few scalars. To be
vectorised over images every stage runs for each of them: one lookup table, one blend, one blur and
one affine transform, all but one of which leave the image as it is.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from noisy_fm.data.augment import geometry, pixels
from noisy_fm.messages import unknown

TABLES: dict[str, Callable] = {  # of the image, its histogram and the argument
    "AutoContrast": lambda image, counts, _: pixels.autocontrast_table(counts),
    "Equalize": lambda image, counts, _: pixels.equalize_table(counts),
    "Invert": lambda image, counts, _: pixels.invert_table(),
    "Posterize": lambda image, counts, bits: pixels.posterize_table(bits.astype(jnp.int32)),
    "Solarize": lambda image, counts, threshold: pixels.solarize_table(threshold),
    "SolarizeAdd": lambda image, counts, n: pixels.solarize_add_table(n.astype(jnp.int32)),
    "Contrast": lambda image, counts, factor: pixels.blend(
        pixels.mean_grey(image), pixels.VALUES, factor
    ),
    "Brightness": lambda image, counts, factor: pixels.blend(jnp.int32(0), pixels.VALUES, factor),
}
BLENDS: dict[str, Callable] = {
    "Color": lambda image: pixels.grey(image)[..., None],
    "Sharpness": pixels.smooth,
}
SHIFTS: dict[str, Callable] = {
    "Rotate": lambda degrees, h, w: _rotation(degrees, h, w),
    "ShearX": lambda factor, h, w: (0, factor, 0, 0, 0, 0),
    "ShearY": lambda factor, h, w: (0, 0, 0, factor, 0, 0),
    "TranslateX": lambda part, h, w: (0, 0, part * w, 0, 0, 0),
    "TranslateY": lambda part, h, w: (0, 0, 0, 0, 0, part * h),
}
OPS = ("Identity", *TABLES, *BLENDS, "GaussianBlur", *SHIFTS)
RANDOM_OPS = tuple(name for name in OPS if name not in ("Identity", "GaussianBlur"))


class Layers(NamedTuple):
    """The operations drawn for one image, in order: arrays [layers]."""

    op: jax.Array  # int32, a position in OPS
    argument: jax.Array  # float32: degrees, a factor, a fraction of the side, bits, …
    bicubic: jax.Array  # bool: the interpolation of rotations, shears and translations


def apply_layers(layers: Layers, image, *, ops: tuple[str, ...], fill):
    """`image` uint8 [h w 3] after the layers, each of which is one of `ops` or Identity."""

    def step(image, layer):
        return apply_op(*layer, image, ops=ops, fill=fill), None

    # A loop keeps XLA from working a layer's output out anew at each of the next one's reads.
    return jax.lax.scan(step, image, layers)[0]


def apply_op(op, argument, bicubic, image, *, ops=OPS, fill=(128, 128, 128)):
    """`image` uint8 [h w 3] after operation `op`, a position in `OPS`, rounded as Pillow rounds.

    argument: degrees for Rotate, a factor for Shear, Color, Contrast, Brightness and Sharpness, a
    fraction of the side for Translate, the bits that Posterize keeps, the threshold of Solarize,
    what SolarizeAdd adds, the radius of GaussianBlur. `ops` names what can occur: the others cost
    nothing.
    """
    h, w, _ = image.shape

    def chosen(candidates, default, value):
        for name, function in candidates.items():
            if name in ops:
                default = jnp.where(op == OPS.index(name), value(function), default)
        return default

    def possible(candidates):
        return any(name in ops for name in candidates)

    if possible(TABLES):
        start, counts = jnp.broadcast_to(pixels.VALUES, (3, 256)), pixels.histogram(image)
        table = chosen(TABLES, start, lambda f: f(image, counts, argument))
        image = pixels.look_up(image, table)
    if possible(BLENDS):
        base = chosen(BLENDS, image.astype(jnp.int32), lambda f: f(image))
        image = pixels.blend(base, image, argument).astype(jnp.uint8)
    if "GaussianBlur" in ops:
        blurred = pixels.gaussian_blur(image, jnp.clip(argument, 0.0, pixels.MAX_BLUR))
        image = jnp.where(op == OPS.index("GaussianBlur"), blurred, image)
    if possible(SHIFTS):
        shift = chosen(
            SHIFTS,
            jnp.zeros(6),
            lambda f: jnp.stack(jnp.broadcast_arrays(*(jnp.float32(v) for v in f(argument, h, w)))),
        )
        image = geometry.affine(image, shift, bicubic=bicubic, fill=fill)
    return image


def _rotation(degrees, h, w):
    """Counter-clockwise about the middle, as the displacement of each output pixel's source."""
    angle = degrees * (math.pi / 180)
    shrink, turn = -2 * jnp.sin(angle / 2) ** 2, jnp.sin(angle)  # cos − 1 without cancellation
    x, y = w / 2, h / 2
    return shrink, -turn, -shrink * x + turn * y, turn, shrink, -turn * x - shrink * y


@dataclass(frozen=True)
class RandAugment:
    """timm's RandAugment: `layers` operations of `RANDOM_OPS`, each applied with `probability`.

    Magnitudes are normal about `magnitude` with deviation `std`, uniform on 0 … magnitude if `std`
    is infinite, and kept in 0 … 10. `increasing`: Posterize, Solarize and the four enhancements
    grow with the magnitude, else a low magnitude is the strong end of Posterize and Solarize.
    Cubuk et al., arXiv 1909.13719.
    """

    magnitude: float = 10
    std: float = 0.0
    increasing: bool = False
    layers: int = 2
    probability: float = 0.5
    ops = RANDOM_OPS

    def draw(self, key) -> Layers:
        """The operations for one image."""
        op_key, magnitude_key, applied_key, sign_key, bicubic_key = jax.random.split(key, 5)
        shape = (self.layers,)
        kind = jax.random.randint(op_key, shape, 0, len(self.ops))
        if math.isinf(self.std):
            magnitude = jax.random.uniform(magnitude_key, shape, maxval=self.magnitude)
        else:
            magnitude = self.magnitude + self.std * jax.random.normal(magnitude_key, shape)
        arguments = level_arguments(
            jnp.clip(magnitude, 0.0, 10.0),
            jax.random.bernoulli(sign_key, shape=shape),
            increasing=self.increasing,
        )
        table = jnp.stack([jnp.broadcast_to(arguments[name], shape) for name in self.ops])
        applied = jax.random.bernoulli(applied_key, self.probability, shape)
        positions = jnp.array([OPS.index(name) for name in self.ops], jnp.int32)
        return Layers(
            jnp.where(applied, positions[kind], 0),
            jnp.where(applied, table[kind, jnp.arange(self.layers)], 0.0),
            jax.random.bernoulli(bicubic_key, shape=shape),
        )


def level_arguments(level, negative, *, increasing: bool) -> dict:
    """Each operation's argument at magnitude `level` in 0 … 10, as timm maps them.

    `negative` turns a rotation, shear or translation the other way and, if `increasing`, an
    enhancement's factor below 1.
    """
    level = level / 10.0
    sign = jnp.where(negative, -1.0, 1.0)
    posterize, solarize = jnp.floor(level * 4), jnp.minimum(jnp.floor(level * 256), 256)
    if increasing:
        posterize, solarize = 4 - posterize, 256 - solarize
        factor = jnp.maximum(0.1, 1.0 + sign * (level * 0.9))
    else:
        factor = level * 1.8 + 0.1
    nothing = jnp.zeros_like(level)
    return {
        **dict.fromkeys(("AutoContrast", "Equalize", "Invert"), nothing),
        **dict.fromkeys(("Color", "Contrast", "Brightness", "Sharpness"), factor),
        **dict.fromkeys(("ShearX", "ShearY"), sign * (level * 0.3)),
        **dict.fromkeys(("TranslateX", "TranslateY"), sign * (level * 0.45)),
        "Rotate": sign * (level * 30.0),
        "Posterize": posterize,
        "Solarize": solarize,
        "SolarizeAdd": jnp.minimum(jnp.floor(level * 110), 128),
    }


@dataclass(frozen=True)
class ThreeAugment:
    """One of solarising at 128, greyscale and a Gaussian blur of radius 0.1 … 2, for every image.

    The colour jitter that goes with it is its own argument. DeiT III, arXiv 2204.07118.
    """

    ops = ("Solarize", "Color", "GaussianBlur")
    layers: int = 1

    def draw(self, key) -> Layers:
        """The operation for one image."""
        kind_key, radius_key = jax.random.split(key)
        kind = jax.random.randint(kind_key, (1,), 0, 3)
        radius = jax.random.uniform(radius_key, minval=0.1, maxval=2.0)
        positions = jnp.array([OPS.index(name) for name in self.ops], jnp.int32)
        arguments = jnp.stack([jnp.float32(128), jnp.float32(0), radius])
        return Layers(positions[kind], arguments[kind], jnp.zeros(1, bool))


def parse_policy(policy: str) -> RandAugment | ThreeAugment | None:
    """The policy that a string names: "" for none, "3a", or timm's "rand-m7-mstd0.5-inc1-n2-p0.5".

    m magnitude 0 … 10, mstd its deviation (above 100: uniform on 0 … m), inc 0 or 1, n operations,
    p the probability of each. Raises ValueError for anything else.
    """
    if policy == "":
        return None
    if policy == "3a":
        return ThreeAugment()
    kind, *sections = policy.split("-")
    if kind != "rand":
        known = ("", "3a", "rand-m7-mstd0.5-inc1")
        raise ValueError(unknown("augmentation policy", policy, [repr(name) for name in known]))
    values: dict[str, float] = {}
    for section in sections:
        match = re.fullmatch(r"(mstd|inc|m|n|p)(\d+(?:\.\d+)?|inf)", section)
        if match is None:
            raise ValueError(
                f"augmentation policy {policy!r}: cannot read {section!r}; expected m7, mstd0.5, "
                "inc1, n2 or p0.5 between the dashes"
            )
        values[match[1]] = float(match[2])
    std = values.get("mstd", 0.0)
    choice = RandAugment(
        magnitude=values.get("m", 10.0),
        std=math.inf if std > 100 else std,
        increasing=bool(values.get("inc", 0)),
        layers=int(values.get("n", 2)),
        probability=values.get("p", 0.5),
    )
    if not (choice.magnitude <= 10 and choice.layers >= 1 and choice.probability <= 1):
        raise ValueError(
            f"augmentation policy {policy!r}: expected m in 0 … 10, n at least 1 and p in 0 … 1"
        )
    return choice
