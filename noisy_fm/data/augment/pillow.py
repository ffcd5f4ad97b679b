"""The same augmentations by Pillow and NumPy on the host, of what the device's path has drawn.

For comparison: an image at a time, and slow beside a batch on an accelerator. `apply(augment, draw,
image)` gives what `augment.apply(draw, image)` gives, but for the roundings named in `geometry`.
"""

import jax
import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from noisy_fm.data.augment.erase import Erase, erase_noise
from noisy_fm.data.augment.imagenet import Draw, ImageNet
from noisy_fm.data.augment.policies import OPS

ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def apply(augment: ImageNet, draw: Draw, image, extent=None) -> np.ndarray:
    """One image uint8 [s s 3], or its top-left `extent` (h, w), augmented: float32 in 0..255."""
    draw = jax.device_get(draw)
    h, w = image.shape[:2] if extent is None else (int(side) for side in extent)
    picture = Image.fromarray(np.asarray(image)[:h, :w])
    picture = picture.resize((augment.size, augment.size), Image.Resampling.BICUBIC)
    if draw.flipped:
        picture = ImageOps.mirror(picture)
    if draw.layers is not None:
        for op, argument, bicubic in zip(*draw.layers, strict=True):
            picture = apply_op(OPS[op], argument, bicubic, picture, fill=augment.fill)
    if draw.jitter is not None:
        for kind in draw.jitter.order:
            factor = float(draw.jitter.factors[kind])
            picture = ENHANCERS[kind](picture).enhance(factor)
    pixels = np.array(picture, np.float32)
    if draw.erase is not None:
        _erase(augment, draw.erase, pixels)
    return pixels


def _erase(augment: ImageNet, drawn: Erase, pixels: np.ndarray) -> None:
    for index, (top, left, height, width) in enumerate(drawn.boxes):
        noise = erase_noise(drawn.key, index, mode=augment.erase_mode, shape=pixels.shape)
        filling = 255 * (np.array(augment.mean) + np.array(augment.std) * np.asarray(noise))
        box = np.s_[top : top + height, left : left + width]
        pixels[box] = np.broadcast_to(filling, pixels.shape)[box]


def apply_op(name: str, argument, bicubic, picture: Image.Image, *, fill) -> Image.Image:
    """Operation `name` of `OPS` with its argument, as `policies.apply_op`."""
    argument = float(argument)
    enhancers = {
        "Brightness": ImageEnhance.Brightness,
        "Contrast": ImageEnhance.Contrast,
        "Color": ImageEnhance.Color,
        "Sharpness": ImageEnhance.Sharpness,
    }
    matrices = {
        "ShearX": (1, argument, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, argument, 1, 0),
        "TranslateX": (1, 0, argument * picture.width, 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, argument * picture.height),
    }
    resample = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
    if name in enhancers:
        return enhancers[name](picture).enhance(argument)
    if name in matrices:
        return picture.transform(
            picture.size, Image.Transform.AFFINE, matrices[name], resample, fillcolor=fill
        )
    match name:
        case "Rotate":
            return picture.rotate(argument, resample, fillcolor=fill)
        case "AutoContrast":
            return ImageOps.autocontrast(picture)
        case "Equalize":
            return ImageOps.equalize(picture)
        case "Invert":
            return ImageOps.invert(picture)
        case "Posterize":
            if int(argument) == 0:  # Pillow 13 refuses, where earlier ones give black
                return Image.new("RGB", picture.size)
            return ImageOps.posterize(picture, int(argument))
        case "Solarize":
            return ImageOps.solarize(picture, int(argument))
        case "SolarizeAdd":
            table = [min(v + int(argument), 255) if v < 128 else v for v in range(256)]
            return picture.point(table * 3)
        case "GaussianBlur":
            return picture.filter(ImageFilter.GaussianBlur(argument))
    return picture
