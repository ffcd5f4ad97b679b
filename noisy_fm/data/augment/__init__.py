"""Image augmentation on the device: pure functions of a key and a batch.

Each image has its own key, so the draw does not depend on how a batch is laid out over devices.
"""

from noisy_fm.data.augment.flip_crop import MEAN, STD, flip_crop, normalize

# name → factory of a function of (key, batch) that gives the images to train on
AUGMENTATIONS = {
    "none": lambda: lambda key, batch: batch["image"],
    "flip_crop": lambda pad=4: lambda key, batch: flip_crop(batch["image"], key, pad=pad),
}

__all__ = ["AUGMENTATIONS", "MEAN", "STD", "flip_crop", "normalize"]
