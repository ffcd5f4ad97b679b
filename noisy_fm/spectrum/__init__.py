"""Feature spectra: exact singular values of [n d] features and what they say (SVE, LSVR, …).

    from noisy_fm import spectrum
    spectrum.summary(features)["sve"]            # one matrix
    s = spectrum.Spectrum()                      # or batch by batch, host by host
    for batch in batches: s.update(batch)
    s.merge(other).summary()
    spectrum.jackknife(features, groups=concept) # intervals; of a `difference` too
    spectrum.plot({"clean": a, "noisy": b})      # and `compare`; `device` in jit
    found = spectrum.measure({"a": a, "b": b})   # at equal n: differences; `report` makes a page
    print(spectrum.headline(found))              # what differs, in a sentence
    spectrum.track({"layer1": x, "layer2": y})   # for a log; `plot_track` draws it by step

From a shell: `python -m noisy_fm.spectrum FEATURES… --out report.html`.
"""

import numpy as np

from noisy_fm.scalars import as_whole
from noisy_fm.spectrum.arrays import as_array, as_features, as_mask
from noisy_fm.spectrum.compare import compare
from noisy_fm.spectrum.draw import plot, plot_track
from noisy_fm.spectrum.files import load_features
from noisy_fm.spectrum.intervals import Interval, band, bootstrap, difference, jackknife
from noisy_fm.spectrum.measure import Measured, measure
from noisy_fm.spectrum.metrics import METRICS, as_labels, class_alignment, from_singular_values
from noisy_fm.spectrum.moments import CONVENTIONS, Spectrum, resolve
from noisy_fm.spectrum.report import report
from noisy_fm.spectrum.words import cautions, headline

__all__ = [
    "CONVENTIONS",
    "METRICS",
    "Interval",
    "Measured",
    "Spectrum",
    "band",
    "bootstrap",
    "cautions",
    "class_alignment",
    "compare",
    "difference",
    "from_singular_values",
    "headline",
    "jackknife",
    "load_features",
    "measure",
    "plot",
    "plot_track",
    "report",
    "singular_values",
    "summary",
    "track",
]


def singular_values(x, *, center=False, normalize=False, convention=None, mask=None) -> np.ndarray:
    """All min(n, d) singular values of features x [n d], descending, float64-exact.

    Args:
      center, normalize, convention: as in `Spectrum`; by default neither (eq. 2–3 as they read).
      mask: [n]; rows where it is 0 do not count.

    Raises:
      ValueError: not 2-D, fewer than two rows, NaN or infinity (how many rows, and the first).
      TypeError: not real numbers.
    """
    state = Spectrum(center=center, normalize=normalize, convention=convention)
    return state.update(x, mask=mask).singular_values()


def summary(
    x, *, labels=None, center=False, normalize=False, convention=None, mask=None, top_k=None
) -> dict:
    """Every metric of `METRICS` for features x [n d], with n, d, center and normalize.

    With `labels` [n] also "class_alignment": the mean of `class_alignment` over the leading `top_k`
    left singular vectors (default: as many as there are classes).

    Raises:
      ValueError: as `singular_values`; all values zero; labels of another length, of one class,
        or missing (NaN, None, masked) in rows that count.
    """
    state = Spectrum(center=center, normalize=normalize, convention=convention)
    x = as_features(x)
    keep = slice(None) if mask is None else as_mask(mask, len(x))
    if labels is not None:
        if not isinstance(labels, np.ma.MaskedArray):
            labels = np.asarray(labels, None if hasattr(labels, "dtype") else object)
        if labels.shape != x.shape[:1]:
            raise ValueError(
                f"labels must be [{len(x)}], one a row of the features, got {labels.shape}"
            )
        labels = as_labels(labels[keep])
    elif top_k is not None:
        raise ValueError("top_k counts directions of the class alignment: give labels, or leave it")
    if top_k is not None:
        top_k = as_whole("top_k", top_k, 1)
    state.update(x, mask=mask)
    result = state.summary()
    if labels is not None:
        count = len(np.unique(labels)) if top_k is None else top_k
        left = state.left_vectors(x[keep], top_k=count)
        alignment = class_alignment(left, labels)
        result["class_alignment"] = float(alignment.mean())
    return result


def track(features, *, center=False, normalize=False, convention=None) -> dict[str, float]:
    """Metrics of several layers during training: {layer: x} → {"layer/sve": …, "layer/lsvr": …}.

    An array of more than two axes [n … d] (feature maps, tokens) is averaged over the middle ones.
    Meant for a log: features that have collapsed to zero or turned NaN give NaN, not an error.
    `evaluators.spectra` measures it while a model trains.
    """
    settings = resolve(center, normalize, convention)
    values: dict[str, float] = {}
    for layer, x in features.items():
        x = as_array(x)
        if x.ndim > 2:
            x = x.mean(axis=tuple(range(1, x.ndim - 1)), dtype=np.float64)
        try:
            result = summary(x, **settings)
        except ValueError:
            if x.ndim != 2 or len(x) < 2:
                raise
            result = dict.fromkeys(METRICS.keys() - {"class_alignment"}, float("nan"))
        values |= {f"{layer}/{name}": float(result[name]) for name in METRICS if name in result}
    return values
