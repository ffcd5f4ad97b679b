"""One canonical form of weighted examples, so that a weight of 2 *is* a row given twice.

Equal rows of one class become one row with the sum of their weights, rows of weight 0 go, and the
rest is ordered by a hash of their content. Fits are then bit for bit the same for repeated and for
weighted rows, and for any order of the rows, although they use shuffled mini-batches.
"""

import numpy as np

BLOCK_BYTES = 2**23
SMALLEST_BUCKET = 512
ALIGNMENT = 64  # bytes, as XLA asks of an array that it takes over
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def merge(features: np.ndarray, labels: np.ndarray, weights: np.ndarray, rows=None):
    """Positions [m] of distinct rows of positive weight in canonical order, and their weights [m].

    features [n d], labels integers [n], weights [n] ≥ 0; of positions `rows` [k]
    alone where they are given.
    """
    rows = np.arange(len(features)) if rows is None else np.asarray(rows)
    kept = rows[weights[rows] > 0]
    labels = labels[kept]
    codes = np.concatenate(
        [_hashes(features[kept[block]]) for block in _blocks(kept, features.shape[1])]
    )
    order = np.lexsort((labels, codes))
    kept, labels, codes = kept[order], labels[order], codes[order]
    alike = (codes[1:] == codes[:-1]) & (labels[1:] == labels[:-1])
    for i in np.flatnonzero(alike):  # a hash may collide, so rows are compared too
        alike[i] = np.array_equal(features[kept[i]], features[kept[i + 1]])
    first = np.flatnonzero(np.concatenate([[True], ~alike]))
    return kept[first], np.add.reduceat(weights[kept].astype(np.float64), first)


def scaling(features, weights: np.ndarray, rows: np.ndarray):
    """Weighted mean [d] and standard deviation [d] (1 for a constant column), in float64.

    features [n d] in their own precision; of positions `rows` [m] with weights [m].
    """
    total = weights.sum()
    mean = _summed(features, rows, weights, lambda f: f) / total
    variance = _summed(features, rows, weights, lambda f: np.square(f - mean)) / total
    rounding = 8 * np.finfo(features.dtype).eps  # what a constant has left of it
    flat = variance <= (rounding * mean) ** 2
    return mean, np.where(flat, 1.0, np.sqrt(variance))


def _summed(features, rows, weights, of) -> np.ndarray:
    """Σ w of(f) [d] over rows, one after another in float64."""
    total = np.zeros((1, features.shape[1]))
    for block in _blocks(rows, features.shape[1]):
        terms = of(features[rows[block]].astype(np.float64)) * weights[block, None]
        total = np.concatenate([total, terms]).sum(axis=0, keepdims=True)
    return total[0]


def scaled(features: np.ndarray, mean, scale) -> np.ndarray:
    """(features − mean) / scale, found in float64, in the precision of the features."""
    result = np.empty_like(features, order="C")
    for block in _blocks(features, features.shape[1]):
        result[block] = (features[block] - mean) / scale
    return result


def gathered(features, rows, scale=None, *, padded: int | None = None) -> np.ndarray:
    """float32 [m d]: rows [m] of features [n d], less the mean and over the deviation in `scale`.

    The only copy that is made; with zeros below, up to `padded` rows.
    """
    result = _aligned(padded or len(rows), features.shape[1])
    for block in _blocks(rows, features.shape[1]):
        chosen = features[rows[block]]
        with np.errstate(over="ignore"):
            result[block] = chosen if scale is None else (chosen - scale[0]) / scale[1]
    result[len(rows) :] = 0
    return result


def _aligned(rows: int, columns: int) -> np.ndarray:
    """float32 [rows columns] at an address that a CPU device takes over without a copy."""
    size = 4 * rows * columns
    raw = np.empty(size + ALIGNMENT, np.uint8)
    first = -raw.ctypes.data % ALIGNMENT
    return raw[first : first + size].view(np.float32).reshape(rows, columns)


def bucket(rows: int) -> int:
    """A number of rows at least as large, of few: programs are compiled once a bucket.

    Steps of an eighth of an octave waste at most 12.5 % of memory, and no time.
    """
    step = max(SMALLEST_BUCKET, 2 ** max(0, (rows - 1).bit_length() - 4))
    return -(-rows // step) * step


def _blocks(rows, width: int) -> list[slice]:
    """Slices of `rows`, of a few MB of features each."""
    step = max(1, BLOCK_BYTES // (8 * width))
    return [slice(i, min(i + step, len(rows))) for i in range(0, len(rows), step)]


def _hashes(features) -> np.ndarray:
    """uint64 [n]: a hash of rows [n d]; what float32 holds has the same in float64."""
    near = np.ascontiguousarray(features, np.float32)
    codes = _scrambled(near, 0)
    if features.dtype == np.float64 and (rest := features - near).any():
        codes += _scrambled(rest.astype(np.float32), 1) * rest.any(axis=1)
    return codes


def _scrambled(features, seed: int) -> np.ndarray:
    """uint64 [n]: the bits of each value, scrambled, times its column's constant, added up."""
    bits = (features + np.float32(0)).view(np.uint32)
    columns = np.random.default_rng(seed).integers(2**63, size=bits.shape[1], dtype=np.uint64)
    codes = (bits.astype(np.uint64) + np.uint64(1)) * _MULTIPLIER
    codes ^= codes >> np.uint64(29)
    codes *= 2 * columns + np.uint64(1)
    return codes.sum(axis=1, dtype=np.uint64)
