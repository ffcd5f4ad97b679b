"""Records what timm's augmentations give, for tests/test_augment*.py: tests/references/augment.npz.

Needs timm, torchvision and torch: `python tools/reference_augment.py [--out FILE]`.
"""

import argparse
import contextlib
import random
from pathlib import Path
from unittest import mock

with contextlib.suppress(ImportError):
    import tv_cpu_stubs  # noqa: F401  torchvision on a machine without CUDA
import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment, random_erasing
from timm.data import mixup as timm_mixup

OUT = Path(__file__).parent.parent / "tests" / "references" / "augment.npz"
LEVELS = np.float32([0.0, 0.3, 1.7, 3.3, 5.0, 6.2, 7.0, 7.41, 8.8, 10.0])
FILL = (124, 116, 104)
MIXES = {
    "mixup_batch": {"mixup_alpha": 0.8, "mode": "batch"},
    "cutmix_batch": {"cutmix_alpha": 1.0, "mode": "batch"},
    "both_elem": {"mixup_alpha": 0.2, "cutmix_alpha": 1.0, "mode": "elem", "prob": 0.8},
}


def record_levels() -> dict:
    """Each operation's argument at each level, for either sign: [levels 2] (nothing: zeros)."""
    record = {"levels": LEVELS}
    for increasing in (False, True):
        names = auto_augment.rand_augment_choices("", increasing=increasing)
        for name in names:
            function = auto_augment.LEVEL_TO_ARG[name]
            values = np.zeros((len(LEVELS), 2))
            for i, level in enumerate(LEVELS) if function else ():
                for negative in (False, True):
                    draw = 1.0 if negative else 0.0
                    with mock.patch.object(random, "random", return_value=draw):
                        values[i, int(negative)] = function(float(level), {})[0]
            record[f"level/{int(increasing)}/{name}"] = values
    return record


def record_operations(rng) -> dict:
    """Each operation of the increasing list on a small image, at levels 4 and 8.5."""
    ramp = np.linspace(20, 230, 24)
    image = ramp[:, None, None] * 0.5 + ramp[None, :, None] * [0.5, 0.2, 0.4]
    image = np.clip(image + rng.normal(0, 12, (24, 24, 3)), 0, 255).astype(np.uint8)
    record = {"image": image}
    for name in auto_augment._RAND_INCREASING_TRANSFORMS:
        for level in (4.0, 8.5):
            for resample in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC):
                hparams = {"img_mean": FILL, "interpolation": resample}
                operation = auto_augment.AugmentOp(name, prob=1.0, magnitude=level, hparams=hparams)
                with mock.patch.object(random, "random", return_value=0.0):
                    out = np.asarray(operation(Image.fromarray(image)))
                record[f"operation/{name}/{level}/{resample.name}"] = out
    return record


def record_mixes(rng) -> dict:
    """timm's Mixup on a batch of 6, with what it drew: λ, the kind, the middles of the boxes."""
    images = rng.uniform(0, 255, (6, 3, 10, 14)).astype(np.float32)
    labels = np.array([0, 3, 1, 4, 2, 2])
    record = {"mix/images": images.transpose(0, 2, 3, 1), "mix/labels": labels}
    for number, (name, arguments) in enumerate(MIXES.items()):
        np.random.seed(number)
        mixer = timm_mixup.Mixup(**arguments, label_smoothing=0.1, num_classes=5)
        middles, drawn = [], []
        original = np.random.randint
        params = "_params_per_elem" if arguments["mode"] == "elem" else "_params_per_batch"
        draw = getattr(mixer, params)

        def log_params(*args, draw=draw, drawn=drawn):
            result = draw(*args)
            drawn.append(tuple(np.copy(value) for value in result))  # mixing overwrites λ
            return result

        def log_randint(*args, original=original, middles=middles, **kwargs):
            middles.append(original(*args, **kwargs))
            return middles[-1]

        setattr(mixer, params, log_params)
        with mock.patch.object(np.random, "randint", log_randint):
            mixed, targets = mixer(torch.tensor(images), torch.tensor(labels))
        ratio, cut = drawn[0]
        centre = np.zeros((*np.shape(ratio), 2), np.int32)
        if np.any(cut & (ratio < 1)):
            centre[cut & (ratio < 1)] = np.reshape(middles, (-1, 2)).astype(np.int32)
        record |= {
            f"mix/{name}/ratio": np.float32(ratio),
            f"mix/{name}/cut": cut,
            f"mix/{name}/centre": centre,
            f"mix/{name}/mixed": mixed.numpy().transpose(0, 2, 3, 1),
            f"mix/{name}/targets": targets.numpy(),
        }
    return record


def record_erasing() -> dict:
    """The heights and widths of the boxes that timm erases in 3,000 images of 64×64."""
    random.seed(0)
    sides = []

    def log_pixels(per_pixel, rand_color, patch_size, **_):
        sides.append(patch_size[1:])
        return torch.zeros((patch_size[0], 1, 1))

    eraser = random_erasing.RandomErasing(0.5, max_count=1, mode="pixel", device="cpu")
    with mock.patch.object(random_erasing, "_get_pixels", log_pixels):
        for _ in range(3000):
            eraser(torch.zeros(3, 64, 64))
    return {"erase/sides": np.array(sides, np.uint8), "erase/images": np.array(3000)}


def main():
    """Writes the references."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    out = parser.parse_args().out
    rng = np.random.default_rng(0)
    record = record_levels() | record_operations(rng) | record_mixes(rng) | record_erasing()
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out, **record)
    print(f"{out}: {len(record)} arrays, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
