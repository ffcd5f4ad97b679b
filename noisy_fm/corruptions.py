"""What is made wrong in a data set's supervision: (source, rate, seed) → (source, manifest)."""

from collections.abc import Callable

import numpy as np

from noisy_fm import noise
from noisy_fm.data import Source
from noisy_fm.data.source import compact, taken
from noisy_fm.messages import warn
from noisy_fm.noise import Manifest

MOST_COMPARED = 100_000  # displaced captions that are read, to see whether they differ


def symmetric(source: Source, rate: float, *, seed: int = 0) -> tuple[Source, Manifest]:
    """Exactly ⌊γN⌉ of the labels wrong, uniformly: `noise.flip_labels` of the column "label"."""
    return _flipped(source, rate, kind="symmetric", seed=seed)


def subset(
    source: Source,
    rate: float,
    *,
    seed: int = 0,
    classes=None,
    within: bool = True,
    of: str = "subset",
) -> tuple[Source, Manifest]:
    """Labels of some classes wrong; raises ValueError for classes that no example is of."""
    highest = max((k for k in _integers(classes)), default=0)
    if highest >= (count := len(source.info["label_names"])):
        raise ValueError(
            f"classes go up to {highest}, and the data have {count} classes; expected some of "
            "theirs (those of noise_kind=subset are ImageNet-1K's)"
        )
    options = {"classes": classes, "within": within, "of": of}
    found, manifest = _flipped(source, rate, kind="subset", seed=seed, **options)
    if rate and not manifest.base:
        raise ValueError(f"rate {rate} flips no label: no example is of these classes")
    return found, manifest


def transition(
    source: Source, rate: float, *, seed: int = 0, matrix=None
) -> tuple[Source, Manifest]:
    """Labels wrong as `matrix` [C, C] says; row i is P(given | true = i)."""
    return _flipped(source, rate, kind="transition", seed=seed, matrix=matrix)


def captions(
    source: Source, rate: float, *, seed: int = 0, pair_swaps: bool = False
) -> tuple[Source, Manifest]:
    """Exactly ⌊γN⌉ of the captions on other images: `noise.swap_captions` of "caption"."""
    if "caption" not in source.columns:
        raise ValueError("the data have no captions to swap")
    permutation, manifest = noise.swap_captions(source.ids, rate, seed=seed, pair_swaps=pair_swaps)
    permutation = compact(permutation)
    noisy = source.replace(caption=taken(source.columns["caption"], permutation))
    _say_alike(source.columns["caption"], permutation, manifest)
    return noisy, manifest


# kind → f(source, rate, *, seed, **options); what config.noise holds besides is its options.
CORRUPTIONS: dict[str, Callable[..., tuple[Source, Manifest]]] = {
    "symmetric": symmetric,
    "subset": subset,
    "transition": transition,
    "captions": captions,
}


def _flipped(source: Source, rate: float, **arguments) -> tuple[Source, Manifest]:
    if "label" not in source.columns:
        raise ValueError("the data have no labels to make wrong")
    num_classes = len(source.info["label_names"])
    labels, manifest = noise.flip_labels(
        source.columns["label"], num_classes, rate, ids=source.ids, **arguments
    )
    return source.replace(label=labels), manifest


def _say_alike(column, permutation: np.ndarray, manifest: Manifest) -> None:
    """Warns of displaced captions that read as the image's own does: those are not wrong."""
    moved = np.flatnonzero(permutation != np.arange(len(permutation)))
    if len(moved) > MOST_COMPARED:
        moved = moved[np.linspace(0, len(moved) - 1, MOST_COMPARED).astype(int)]
    alike = int(np.sum(column[moved] == column[permutation[moved]]))
    if alike:
        share = alike / len(moved)
        warn(
            f"{share:.2%} of the displaced captions read as the image's own ({alike:,} of "
            f"{len(moved):,} compared): {manifest.realised * (1 - share):.2%} of all are wrong"
        )


def _integers(classes) -> list[int]:
    chosen = classes if isinstance(classes, list | tuple) else [classes]
    return [one for one in chosen if isinstance(one, int)]
