"""The same number of rows of every set of features: SVE and LSVR grow with it."""

from collections.abc import Mapping

import numpy as np

from noisy_fm.messages import unknown
from noisy_fm.spectrum.metrics import as_labels

SEED = 0


def equal_rows(
    lengths: Mapping[str, int], groups: Mapping[str, np.ndarray | None], *, seed: int = SEED
) -> dict[str, np.ndarray]:
    """Ascending rows of those sets that have more than the smallest, drawn without replacement.

    Sets of one length (and of the same groups) get the same rows, so that they stay paired. Whole
    groups are drawn in random order while they fit, which may leave a few rows short.

    Raises ValueError where not one group fits.
    """
    most = min(lengths.values())
    return {
        name: _drawn(n, most, groups.get(name), seed, name)
        for name, n in lengths.items()
        if n > most
    }


def _drawn(n: int, most: int, groups, seed: int, name: str) -> np.ndarray:
    random = np.random.default_rng([seed, n])
    if groups is None:
        # Without shuffling it takes memory of what is drawn, not of what it is drawn from.
        return np.sort(random.choice(n, most, replace=False, shuffle=False))
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    chosen, left = np.zeros(len(sizes), bool), most
    for one in random.permutation(len(sizes)):
        if sizes[one] <= left:
            chosen[one], left = True, left - sizes[one]
    if not chosen.any():
        raise ValueError(
            f"{name}: no whole group fits into {most} rows, the number of the smallest set"
        )
    return np.flatnonzero(chosen[group])


def groups_by_name(groups, lengths: Mapping[str, int]) -> dict[str, np.ndarray | None]:
    """Groups [n] of every set: one array for all of them, or a mapping of names to arrays.

    Raises ValueError for missing entries, another length and an unknown name.
    """
    require_names("groups", groups if isinstance(groups, Mapping) else {}, lengths)
    found = {}
    for name, n in lengths.items():
        own = groups.get(name) if isinstance(groups, Mapping) else groups
        if own is not None:
            own = as_labels(own, where="groups")
            if own.shape != (n,):
                raise ValueError(
                    f"{name}: groups must be [{n}], one a row of the features, got {own.shape}"
                )
        found[name] = own
    return found


def require_names(what: str, given: Mapping, known: Mapping) -> None:
    """ValueError for a name in `given` that no set of features has."""
    for name in given.keys() - known.keys():
        raise ValueError(unknown(f"name in {what}", name, known))
