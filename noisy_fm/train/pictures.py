"""Pictures of what a model is trained on, for a person to look at."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

CELL = 128  # pixels a side of one example
LINE = 14  # pixels of a line of text


def contact_sheet(
    images: np.ndarray, captions: Sequence[Sequence[str]], *, columns: int = 8
) -> np.ndarray:
    """uint8 [h w 3]: images [n h w 3] (0 … 255) in rows of `columns`, their lines of text below."""
    lines = max(len(caption) for caption in captions)
    height = CELL + LINE * lines + 6
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (CELL + 6), rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = i % columns * (CELL + 6), i // columns * height
        pixels = Image.fromarray(np.clip(np.rint(image), 0, 255).astype(np.uint8))
        sheet.paste(pixels.resize((CELL, CELL), Image.Resampling.NEAREST), (x, y))
        for line, text in enumerate(caption):
            colour = "black" if line == 0 else "firebrick"
            draw.text((x + 2, y + CELL + LINE * line), text[:22], fill=colour)
    return np.asarray(sheet)
