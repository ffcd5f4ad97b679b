"""What one spectrum says: from singular values to SVE, LSVR and their siblings."""

import numpy as np

METRICS = {
    "sve": "singular value entropy (eq. 2), −Σ p log p with p = σ/Σσ: how evenly energy spreads",
    "lsvr": "largest singular value ratio (eq. 3), −log(σ₁/Σσ): low when one direction dominates",
    "effective_rank": "exp(SVE): the number of equal directions with the same entropy",
    "rankme": "effective rank with 1e-7 added to every p (RankMe), deaf to directions below it",
    "stable_rank": "Σσ²/σ₁²: energy in units of the strongest direction",
    "participation_ratio": "(Σσ²)²/Σσ⁴: the number of equal directions with the same variance",
    "alpha": "decay exponent of the eigenvalues, σᵢ² ∝ i^−α, fitted on i = 5…50 (α-ReQ)",
    "numerical_rank": "how many singular values stand above the rounding",
    "class_alignment": "share of the leading left singular vectors' variance that lies between "
    "classes, adjusted for chance: 0 none, 1 all (only with labels)",
}
ALPHA_RANGE = (5, 50)
RANKME_EPSILON = 1e-7


def from_singular_values(
    values, *, n: int | None = None, d: int | None = None, noise: float | None = None
) -> dict:
    """All label-free `METRICS` of descending singular values σ [min(n, d)], natural logarithms.

    SVE = −Σ pᵢ log pᵢ, p = σ/Σσ (eq. 2); LSVR = −log(σ₁/Σσ) (eq. 3); effective rank: Roy &
    Vetterli 2007; RankMe: Garrido et al. 2023; α: weighted least squares (weights 1/i, so that
    every octave counts alike) of log σᵢ² on log i, as in Agrawal et al. 2022; NaN under 3 points;
    numerical rank: values above `noise` σ₁, by default max(n, d) roundings of float64.

    Raises:
      ValueError: no value, a negative or non-finite one, or all zero (p is undefined).
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all() or values.min() < 0:
        raise ValueError("singular values must be a non-empty vector of finite numbers ≥ 0")
    if values.max() == 0:
        raise ValueError(
            "all singular values are 0 (features all zero, or constant and centred): "
            "SVE and LSVR are undefined"
        )
    values = np.sort(values / values.max())[::-1]  # scale free, and squares cannot overflow
    p = values / values.sum()
    positive = p[p > 0]
    sve = max(0.0, float(-(positive * np.log(positive)).sum()))
    smoothed = p + RANKME_EPSILON
    energy = values**2
    if noise is None:
        noise = max(n or 0, d or 0, len(values)) * np.finfo(np.float64).eps
    return {
        "sve": sve,
        "lsvr": max(0.0, float(-np.log(p[0]))),
        "effective_rank": float(np.exp(sve)),
        "rankme": float(np.exp(-(smoothed * np.log(smoothed)).sum())),
        "stable_rank": float(energy.sum()),
        "participation_ratio": float(energy.sum() ** 2 / (energy**2).sum()),
        "alpha": power_law_exponent(values),
        "numerical_rank": int((values > noise).sum()),
    }


def power_law_exponent(values) -> float:
    """α of σᵢ² ∝ i^−α over 1-based indices ALPHA_RANGE (both included); NaN if under 3 points."""
    first, last = ALPHA_RANGE
    energy = (np.asarray(values, np.float64) / np.max(values)) ** 2
    energy = energy[first - 1 : last]
    energy = energy[energy > np.finfo(np.float64).eps ** 2]
    if len(energy) < 3:
        return float("nan")
    index = np.arange(first, first + len(energy))
    x, y, weight = np.log(index), np.log(energy), 1.0 / index
    x = x - np.average(x, weights=weight)
    return float(-(weight * x * y).sum() / (weight * x * x).sum())


def class_alignment(left, labels) -> np.ndarray:
    """Adjusted R² of the class means in each column of `left` [n k]: left singular vectors.

    R²_k = Σ_c n_c (ū_ck − ū_k)² / Σ_r (u_rk − ū_k)² is the share of a direction's variance that
    lies between the C classes (η² of a one-way analysis of variance). Random labels give
    (C−1)/(n−1) on average, so what is returned is 1 − (1−R²)(n−1)/(n−C): 0 by chance, 1 where
    every class is one point. A direction that does not vary counts 0.

    Raises:
      ValueError: labels of another length, missing ones, fewer than two classes, or a class for
        every row.
    """
    left = np.asarray(left, np.float64)
    labels = as_labels(labels)
    if labels.shape != left.shape[:1]:
        raise ValueError(
            f"labels must be [{len(left)}], one a row of the features, got {labels.shape}"
        )
    _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if not 2 <= len(counts) < len(labels):
        raise ValueError(
            "alignment needs at least 2 classes, and rows that share one; got "
            f"{len(counts)} class{'es' * (len(counts) != 1)} in {len(labels)} rows"
        )
    centred = left - left.mean(0)
    sums = np.zeros((len(counts), left.shape[1]))
    np.add.at(sums, index, centred)
    total = (centred**2).sum(0)
    between = (sums**2 / counts[:, None]).sum(0)
    varies = total > 1e-20
    explained = np.where(varies, between / np.where(varies, total, 1), 0)
    adjusted = 1 - (1 - explained) * (len(labels) - 1) / (len(labels) - len(counts))
    return np.where(varies, adjusted, 0)


def as_labels(labels, *, where: str = "labels") -> np.ndarray:
    """`labels` as an array; ValueError for missing ones and for types without an order.

    Missing is NaN, NaT, None, pandas' NA and what a masked array masks. A list is read entry by
    entry: NumPy would make the text "nan" of a NaN among texts.
    """
    array = np.asarray(labels)
    if not hasattr(labels, "dtype") and array.dtype.kind in "US":
        array = np.asarray(labels, object)
    if array.dtype != object:
        bad = (array != array).ravel()  # NaN, NaT
    else:
        bad = np.array([_missing(entry) for entry in array.ravel()], bool)
    bad |= np.ma.getmaskarray(labels).ravel() if isinstance(labels, np.ma.MaskedArray) else False
    if bad.any():
        raise ValueError(
            f"{where} are missing (NaN, None or masked) in {bad.sum()} of {len(array)} rows, "
            f"the first at row {bad.argmax()}: leave those rows out"
        )
    if array.dtype == object:
        try:
            np.unique(array)
        except TypeError:
            kinds = sorted({type(entry).__name__ for entry in array.ravel()})
            raise ValueError(f"{where} must be of one type, got {', '.join(kinds)}") from None
    return array


def _missing(entry) -> bool:
    # pandas' NA has no truth value when compared.
    absent = entry is None or entry is np.ma.masked or type(entry).__name__ == "NAType"
    return absent or bool(np.any(entry != entry))
