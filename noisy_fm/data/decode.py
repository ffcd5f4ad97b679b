"""An image file's bytes to pixels on the host: random crops for training, the evaluation view.

JPEG is decoded by libjpeg-turbo (simplejpeg) and only as far down as the crop reaches; everything
else, and every JPEG that it or its colour space makes unusual (CMYK, bytes after the end), by PIL.
What PIL reads is readable, so a file counts as damaged here exactly if it would stop PIL. Pixels
are those of `PIL.Image.open(file).convert("RGB")`: alpha is dropped, the first frame of several
counts and the EXIF orientation is not applied, as torchvision and timm do; 16-bit grey keeps its
high byte, which they clip. Floats and 32-bit integers, whose range nothing says, are unreadable,
and so are more pixels than PIL takes for an attack (179 million), JPEG or not.
"""

import io
import math
import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from noisy_fm.messages import require_known

TRIES = 10
STREAM = 0x63726F70  # keeps these numbers apart from others of the same seed
END_OF_JPEG = b"\xff\xd9"
# The sequential Huffman frames, whose rows come in order; a progressive one has them all in scans.
SEQUENTIAL = (0xC0, 0xC1)
FRAMES = (*SEQUENTIAL, 0xC2)
DEEP = ("PNG", "PPM")  # formats whose mode "I" is of 16 bits, as PIL reads them
LONGEST = 16  # longer sides, in shorter ones, that evaluation resizes whole
LARGEST_KEPT = 2**26  # bytes of a thread's decoding buffer; bigger ones are given back

_thread = threading.local()


class UnreadableError(ValueError):
    """Bytes that are no image, or a damaged or truncated one."""


class Box(NamedTuple):
    """A crop in pixels."""

    top: int
    left: int
    height: int
    width: int


class Frame(NamedTuple):
    """What a JPEG's frame header says, and where: `at` is the height's two bytes."""

    at: int
    height: int
    width: int
    sequential: bool
    rows: int  # of a block row: 8 × the largest vertical sampling factor


def uniforms(seed: int, first: int, count: int) -> np.ndarray:
    """Numbers in [0, 1) [count 10 4] for the positions from `first` on.

    A position's are the same whatever it is drawn together with (Philox: the counter says where).
    """
    bits = np.random.Philox(key=[seed % 2**64, STREAM], counter=first * TRIES)  # 4 a step
    return np.random.Generator(bits).random((count, TRIES, 4))


def random_box(
    height: int,
    width: int,
    draws: np.ndarray,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """The random-resized-crop box of an image, from uniform `draws` [10 4]: a
    row a try, of area, ratio, top, left.

    Area = `scale` × the image's, uniform; width/height log-uniform in `ratio`; place uniform. The
    first try that fits counts; after ten, the largest centred box within `ratio`. As Inception's
    (Szegedy et al. 2015) in the form that torchvision and timm use.
    """
    for area, aspect, top, left in draws.tolist():
        pixels = height * width * (scale[0] + (scale[1] - scale[0]) * area)
        low, high = math.log(ratio[0]), math.log(ratio[1])
        aspect = math.exp(low + (high - low) * aspect)
        w, h = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(top * (height - h + 1)), int(left * (width - w + 1)), h, w)
    w = min(width, max(1, round(height * ratio[1])))
    h = min(height, max(1, round(width / ratio[0])))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def decode(data: bytes) -> np.ndarray:
    """The whole image, uint8 [h w 3]; raises UnreadableError."""
    frame = frame_of(data)
    pixels = decode_jpeg(data, frame, frame.height, 1) if frame else None
    return np.asarray(_open_other(data)) if pixels is None else pixels.copy()


def random_crop(
    data: bytes,
    draws: np.ndarray,
    out: np.ndarray,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int]:
    """Writes the random box of an image into the top left corner of `out` [s s 3], which is zero.

    Returns its extent (h, w). A box larger than `out` is decoded at 1/2, 1/4 or 1/8 of its size
    (the DCT scalings with fast code); one that still is, or is of no JPEG, is resized by PIL.
    """
    canvas = len(out)
    frame = frame_of(data)
    crop = None
    if frame:
        box = random_box(frame.height, frame.width, draws, scale=scale, ratio=ratio)
        factor = 1
        while factor < 8 and max(box.height, box.width) > canvas * factor:
            factor *= 2
        pixels = decode_jpeg(data, frame, box.top + box.height, factor)
        box = _scaled(box, frame, factor)
        if pixels is not None:
            crop = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
    if crop is None:
        image = _open_other(data)
        box = random_box(image.height, image.width, draws, scale=scale, ratio=ratio)
        right, bottom = box.left + box.width, box.top + box.height
        crop = np.asarray(image.crop((box.left, box.top, right, bottom)))
    pixels = _shrunk(crop, canvas)
    height, width = pixels.shape[:2]
    out[:height, :width] = pixels
    return height, width


class Fit(NamedTuple):
    """How an image is fitted to a square of `size` pixels a side, for evaluation.

    shorter: what its shorter side is resized to before the centre is cropped. whole: both sides
    are, whatever its shape. filter: of `FILTERS`. middle: how the crop's first pixel is rounded,
    "round" as PyTorch's libraries do it, or "floor" as Hugging Face's.
    """

    size: int
    shorter: int
    whole: bool = False
    filter: str = "bicubic"
    middle: str = "round"


MIDDLES: dict[str, Callable[[float], int]] = {"round": round, "floor": math.floor}
FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
ROUNDINGS = {"floor": math.floor, "ceil": math.ceil}


def fitted(
    size: int,
    crop_fraction: float = 0.95,
    *,
    rounding: str = "floor",
    whole: bool = False,
    filter: str = "bicubic",
) -> Fit:
    """A fit to the share `crop_fraction` of the resized image's shorter side, as timm says it.

    rounding: of size / crop_fraction; timm rounds down since 0.9, and rounded up before.
    Raises ValueError for a share outside (0, 1] and names that are not known.
    """
    if not isinstance(crop_fraction, int | float) or not 0 < crop_fraction <= 1:
        raise ValueError(f"crop_fraction is {crop_fraction!r}; expected (0, 1]")
    rounded = ROUNDINGS[require_known("rounding", rounding, ROUNDINGS)]
    return Fit(size, rounded(size / crop_fraction), whole, require_known("filter", filter, FILTERS))


def evaluation_view(data: bytes, fit: Fit | int) -> np.ndarray:
    """The `view` of an encoded image for evaluation, uint8 [size size 3]."""
    frame = frame_of(data)
    pixels = decode_jpeg(data, frame, frame.height, 1) if frame else None
    return view(_open_other(data) if pixels is None else pixels, fit)


def view(pixels: np.ndarray | Image.Image, fit: Fit | int) -> np.ndarray:
    """An image's centre, uint8 [size size 3], as timm's evaluation transform.

    The shorter side is resized to `fit.shorter` (by PIL, antialiased), the longer in proportion and
    rounded down, and the centre of that cropped; a size alone is `fitted(size)`. Of an image more
    than 16 times as long as wide only what the crop needs is resized, so that memory does not grow
    with the length; its pixels are then those but for what PIL rounds and clips between its two
    passes, whose order it chooses by the shape: one level in smooth images.
    """
    size, shorter, whole, name, middle = fit if isinstance(fit, Fit) else fitted(fit)
    image = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
    width, height = image.size
    if whole:
        width = height = shorter
    elif width <= height:
        width, height = shorter, int(shorter * height / width)
    else:
        width, height = int(shorter * width / height), shorter
    top, left = (MIDDLES[middle]((side - size) / 2) for side in (height, width))
    box = Box(top, left, size, size)
    if max(width, height) > LONGEST * shorter:
        return np.asarray(_resized_part(image, (width, height), box, FILTERS[name]))
    if (width, height) != image.size:
        image = image.resize((width, height), FILTERS[name])
    return np.asarray(image.crop((left, top, left + size, top + size)))


def _resized_part(image: Image.Image, size: tuple[int, int], box: Box, filter) -> Image.Image:
    """The `box` of `image` as resized to `size` (width, height), without the rest of that."""
    starts = box.left, box.top
    part, inner = [], []  # the pixels that it takes, (first, end) a side; its place among those
    for side, resized, start, length in zip(
        image.size, size, starts, (box.width, box.height), strict=True
    ):
        scale = side / resized
        reach = 3 * max(scale, 1) + 2  # of the widest filter, and to spare
        first = max(0, math.floor(start * scale - reach))
        part.append((first, min(side, math.ceil((start + length) * scale + reach))))
        inner.append((start * scale - first, (start + length) * scale - first))
    (left, right), (top, bottom) = part
    (x, x_end), (y, y_end) = inner
    return image.crop((left, top, right, bottom)).resize(
        (box.width, box.height), filter, box=(x, y, x_end, y_end)
    )


def frame_of(data: bytes) -> Frame | None:
    """The frame header of an ordinary whole JPEG of one or three channels, else None."""
    if not (data.startswith(b"\xff\xd8") and data.endswith(END_OF_JPEG)):
        return None
    at, end = 2, len(data) - 20
    while at < end and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in FRAMES:
            height = int.from_bytes(data[at + 5 : at + 7], "big")
            width = int.from_bytes(data[at + 7 : at + 9], "big")
            channels = data[at + 9]
            if data[at + 4] != 8 or channels not in (1, 3) or not (height and width):
                return None
            if height * width > 2 * (Image.MAX_IMAGE_PIXELS or math.inf):
                return None  # PIL, which reads no more, says so
            tall = max(data[at + 11 + 3 * c] & 15 for c in range(channels))
            return Frame(at + 5, height, width, marker in SEQUENTIAL, 8 * max(1, tall))
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def decode_jpeg(
    data: bytes | bytearray, frame: Frame, bottom: int, factor: int
) -> np.ndarray | None:
    """At least `bottom` rows at 1/`factor` of the size [h w 3], or None if PIL must say why not.

    The view is of this thread's buffer, so it holds until the next call. The rows below are not
    decoded: the header is made to say that the image ends one block row further down, which the
    chroma's interpolation needs, and libjpeg skips what follows.
    """
    rows = bottom + frame.rows
    if not frame.sequential or rows >= frame.height:
        rows = frame.height
    else:
        data = bytearray(data)
        data[frame.at : frame.at + 2] = rows.to_bytes(2, "big")
    height, width = -(-rows // factor), -(-frame.width // factor)
    size = height * width * 3
    try:
        pixels = simplejpeg.decode_jpeg(
            data, min_height=height, min_width=width, buffer=_buffer(size), strict=False
        )
    except ValueError:
        return None
    return pixels if pixels.shape == (height, width, 3) else None


def _buffer(size: int) -> bytearray:
    """Memory that this thread uses again and again: fresh pages cost as much as decoding."""
    if size > LARGEST_KEPT:
        return bytearray(size)
    if len(getattr(_thread, "buffer", b"")) < size:
        _thread.buffer = bytearray(max(size, 2**20))
    return _thread.buffer


def _open_other(data: bytes) -> Image.Image:
    """The whole image, decoded by PIL, of mode RGB."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode == "F" or (image.mode == "I" and image.format not in DEEP):
                raise UnreadableError(
                    f"its pixels are {'floats' if image.mode == 'F' else '32-bit integers'}, whose "
                    "range nothing says; expected 8 or 16 bits a channel"
                )
            if image.mode == "I" or image.mode.startswith("I;16"):
                grey = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
                return Image.fromarray(grey).convert("RGB")
            if image.mode == "P" and "transparency" in image.info:
                return image.convert("RGBA").convert("RGB")  # the same, unwarned
            image.load()
            return image if image.mode == "RGB" else image.convert("RGB")
    except UnidentifiedImageError:
        raise UnreadableError(f"its {len(data)} bytes are no image that Pillow reads") from None
    except UnreadableError:
        raise
    except Exception as error:  # PIL's plugins raise anything on bytes that are not theirs
        raise UnreadableError(f"{type(error).__name__}: {error}") from None


def _scaled(box: Box, frame: Frame, factor: int) -> Box:
    """The box in the image at 1/`factor` of its size, within it and not empty."""
    if factor == 1:
        return box
    height, width = -(-frame.height // factor), -(-frame.width // factor)
    h, w = max(1, round(box.height / factor)), max(1, round(box.width / factor))
    top, left = round(box.top / factor), round(box.left / factor)
    return Box(min(top, height - h), min(left, width - w), h, w)


def _shrunk(pixels: np.ndarray, canvas: int) -> np.ndarray:
    """`pixels`, resized to fit if its longer side is over `canvas`."""
    height, width = pixels.shape[:2]
    if max(height, width) <= canvas:
        return pixels
    shrink = canvas / max(height, width)
    size = max(1, round(width * shrink)), max(1, round(height * shrink))
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC))
