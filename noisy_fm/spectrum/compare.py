"""Two spectra of the same feature dimension side by side: what grew, what turned."""

import numpy as np

from noisy_fm.scalars import as_whole
from noisy_fm.spectrum.moments import Spectrum


def compare(before, after, *, top_k: int | None = None) -> dict:
    """How the right singular directions and energies of two spectra [d] differ.

    Either may be features [n d] instead of a `Spectrum`: one is made of them, with the other's
    settings if that is one.

    Energies are shares: σᵢ²/Σσ², so that neither scale nor the number of rows matters. `top_k` is
    10 by default, or the rank of the lesser where that is lower.

    Returns a dict of
      energy_before, energy_after [d]: share by index, each in its own directions;
      energy_in_before [d]: share of `after`'s energy along the directions of `before`;
      growth [d]: log(energy_in_before / energy_before): above 0 the direction grew (NaN where
        both are zero);
      angles [top_k]: principal angles, radians, between the leading `top_k`-dimensional subspaces,
        ascending (0 shared, π/2 foreign);
      overlap: mean squared cosine of them, 0 to 1; top_k/d by chance;
      sve_change, lsvr_change: after − before.

    Raises:
      ValueError: different d or settings (center, normalize), or a top_k out of 1 … the rank
        of the two (beyond it a subspace is any at all).
    """
    given = next((s for s in (before, after) if isinstance(s, Spectrum)), Spectrum())
    before, after = (
        s if isinstance(s, Spectrum) else Spectrum(**given.settings).update(s)
        for s in (before, after)
    )
    if before.d != after.d:
        raise ValueError(f"cannot compare spectra of {before.d} and {after.d} features")
    if before.settings != after.settings:
        raise ValueError(f"cannot compare {before.settings} with {after.settings}")
    first, second = before.summary(), after.summary()
    rank = min(first["numerical_rank"], second["numerical_rank"])
    if top_k is None:
        top_k = min(10, rank)
    top_k = as_whole("top_k", top_k, 1)
    if top_k > rank:
        raise ValueError(f"top_k must be 1 to {rank}, the numerical rank of both, got {top_k}")
    (old, old_vectors), (new, new_vectors) = _full(before), _full(after)
    energy_before, energy_after = (values**2 / (values**2).sum() for values in (old, new))
    across = new_vectors.T @ old_vectors  # [d d]: each direction of `after` in those of `before`
    energy_in_before = energy_after @ across**2
    with np.errstate(divide="ignore", invalid="ignore"):
        growth = np.log(energy_in_before / energy_before)
    cosines = np.linalg.svd(across[:top_k, :top_k], compute_uv=False)
    return {
        "energy_before": energy_before,
        "energy_after": energy_after,
        "energy_in_before": energy_in_before,
        "growth": growth,
        "angles": np.arccos(np.clip(cosines, 0, 1)),
        "overlap": float((cosines**2).mean()),
        "sve_change": second["sve"] - first["sve"],
        "lsvr_change": second["lsvr"] - first["lsvr"],
    }


def _full(spectrum: Spectrum) -> tuple[np.ndarray, np.ndarray]:
    """σ [d] scaled to σ₁ = 1 and V [d d], completed by zeros where n < d."""
    values, vectors = spectrum.directions()
    missing = spectrum.d - len(values)
    rest = np.linalg.qr(vectors, mode="complete")[0][:, len(values) :]
    return np.pad(values / values[0], (0, missing)), np.concatenate([vectors, rest], axis=1)
