"""`digits`: scikit-learn's 1,797 handwritten digits, dark on white."""

import numpy as np

from noisy_fm.data.source import ArraySource
from noisy_fm.messages import require_known


def load(*, split, domain, labels, size, captions) -> ArraySource:
    """See `sources.load`; `size` pixels a side."""
    from PIL import Image
    from sklearn.datasets import load_digits

    if domain is not None:
        raise ValueError(f"digits: there are no domains, so domain must be None, not {domain!r}")
    if captions is not None:
        raise ValueError(f"digits: there are no captions, so captions are None, not {captions!r}")
    if labels is not None:
        require_known("digits labels", labels, ("digit",))
    if split is not None:
        require_known("digits split", split, ("train", "test"))
    digits = load_digits()
    digit = digits.target.astype(np.int32)
    # Every second example of each digit is for test: half, stratified, and over all the writers.
    rank = np.empty(len(digit), np.int64)
    for label in range(10):
        rank[digit == label] = np.arange(np.sum(digit == label))
    splits = np.where(rank % 2, "test", "train")
    ids = np.flatnonzero(splits == split if split else np.ones(len(digit), bool))
    ink = np.round(255 - digits.images[ids] * (255 / 16)).astype(np.uint8)
    grey = [
        np.asarray(Image.fromarray(i).resize((size, size), Image.Resampling.BICUBIC)) for i in ink
    ]
    images = np.repeat(np.stack(grey)[..., None], 3, axis=-1)
    columns = {"label": digit[ids], "split": splits[ids]}
    return ArraySource(images, ids, ids.copy(), columns, tuple(str(label) for label in range(10)))
