"""One canonical form of weighted examples, so that a weight of 2 *is* a row given twice.

Equal rows of one class become one row with the sum of their weights, rows of weight 0 go, and the
rest is ordered by a hash of their content. Fits are then bit for bit the same for repeated and for
weighted rows, and for any order of the rows, although they use shuffled mini-batches.
"""

import numpy as np

BLOCK = 4096
SMALLEST_BUCKET = 512
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def merge(features: np.ndarray, labels: np.ndarray, weights: np.ndarray):
    """Positions [m] of distinct rows of positive weight in canonical order, and their weights [m].

    features float32 [n d], labels integers [n], weights [n] ≥ 0.
    """
    kept = np.flatnonzero(weights > 0)
    labels = labels[kept]
    codes = np.concatenate([_hashes(features[rows]) for rows in _blocks(kept)])
    order = np.lexsort((labels, codes))
    kept, labels, codes = kept[order], labels[order], codes[order]
    alike = (codes[1:] == codes[:-1]) & (labels[1:] == labels[:-1])
    for i in np.flatnonzero(alike):  # a hash may collide, so rows are compared too
        alike[i] = np.array_equal(features[kept[i]], features[kept[i + 1]])
    first = np.flatnonzero(np.concatenate([[True], ~alike]))
    return kept[first], np.add.reduceat(weights[kept].astype(np.float64), first)


def scaling(features: np.ndarray, weights: np.ndarray):
    """Weighted mean [d] and standard deviation [d] (1 for a constant column), in float64."""
    mean = np.average(features.astype(np.float64), axis=0, weights=weights)
    variance = np.average((features - mean) ** 2, axis=0, weights=weights)
    flat = variance <= (1e-6 * mean) ** 2  # what float32 rounding leaves of a constant
    return mean, np.where(flat, 1.0, np.sqrt(variance))


def scaled(features: np.ndarray, mean, scale) -> np.ndarray:
    """(features − mean) / scale in the precision of the features."""
    return ((features - mean) / scale).astype(features.dtype)


def bucket(rows: int) -> int:
    """A number of rows at least as large, of few: programs are compiled once a bucket.

    Steps of an eighth of an octave waste at most 12.5 % of memory, and no time.
    """
    step = max(SMALLEST_BUCKET, 2 ** max(0, (rows - 1).bit_length() - 4))
    return -(-rows // step) * step


def _blocks(positions):
    return [positions[i : i + BLOCK] for i in range(0, len(positions), BLOCK)]


def _hashes(features) -> np.ndarray:
    """uint64 [n]: the bits of each value, scrambled, times its column's constant, added up."""
    bits = (np.ascontiguousarray(features, np.float32) + np.float32(0)).view(np.uint32)
    columns = np.random.default_rng(0).integers(2**63, size=bits.shape[1], dtype=np.uint64)
    codes = (bits.astype(np.uint64) + np.uint64(1)) * _MULTIPLIER
    codes ^= codes >> np.uint64(29)
    codes *= 2 * columns + np.uint64(1)
    return codes.sum(axis=1, dtype=np.uint64)
