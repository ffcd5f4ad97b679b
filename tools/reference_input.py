"""Records what timm's input transforms do, for tests/test_sources.py (needs timm, torchvision).

    python tools/reference_input.py

Writes tests/references/input.npz: JPEG files; timm's evaluation view of each at 64 pixels, crop
0.95; and the boxes that its random-resized crop draws, its random numbers replaced by those in
the file.
"""

import contextlib
import io
import random
from pathlib import Path

import numpy as np

with contextlib.suppress(ImportError):
    import tv_cpu_stubs  # noqa: F401  (what torchvision needs where there is no CUDA)
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data import create_transform
from timm.data.transforms import RandomResizedCropAndInterpolation

OUT = Path(__file__).parents[1] / "tests" / "references" / "input.npz"
SIZES = ((150, 113), (90, 141), (68, 300), (70, 70), (67, 67), (64, 64), (40, 52))


class Scripted:
    """Python's random numbers, from rows of uniforms: a row for each try."""

    def __init__(self, draws):
        self.rows, self.row = iter(draws), None

    def uniform(self, low, high):
        if self.row is None or len(self.row) == 2:  # the last try did not fit
            self.row = list(next(self.rows))
        return low + (high - low) * self.row.pop(0)

    def randint(self, low, high):
        return low + int(self.row.pop(0) * (high - low + 1))


def main():
    photos = [Image.fromarray(image) for image in load_sample_images().images]
    evaluate = create_transform(
        64, is_training=False, interpolation="bicubic", crop_pct=0.95, normalize=False
    )
    arrays = {}
    for i, size in enumerate(SIZES):
        file = io.BytesIO()
        photos[i % 2].resize(size, Image.Resampling.LANCZOS).save(file, "JPEG", quality=90)
        arrays[f"file{i}"] = np.frombuffer(file.getvalue(), np.uint8)
        view = evaluate(Image.open(file).convert("RGB"))
        arrays[f"view{i}"] = np.asarray(view).transpose(1, 2, 0)
    rng = np.random.default_rng(0)
    shapes, draws, boxes = [], rng.random((400, 10, 4)), []
    for i, draw in enumerate(draws):
        extreme = i % 4 == 3  # so narrow that tries fail, some of them all ten
        height, width = rng.integers(8, 40 if extreme else 600), rng.integers(8, 600)
        shapes.append((height, width))
        scripted = Scripted(draw)
        random.uniform, random.randint = scripted.uniform, scripted.randint
        image = Image.new("RGB", (int(width), int(height)))
        boxes.append(
            RandomResizedCropAndInterpolation.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3))
        )
    np.savez_compressed(OUT, shapes=shapes, draws=draws, boxes=np.array(boxes), **arrays)
    print(OUT, OUT.stat().st_size)


if __name__ == "__main__":
    main()
