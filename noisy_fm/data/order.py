"""The order of training: a new permutation of the examples every epoch, a function of the seed.

It is that of `grain.MapDataset.range(n).shuffle(seed)`, an epoch at a time: grain enciphers every
index by itself in Python, which costs up to 30 µs of the interpreter's time an image. Only where n
is 4ᵏ + 1, k ≥ 8, it differs: there grain gives one index twice and another not at all.
"""

import functools

import grain
import numpy as np

ROUNDS = 4
LARGEST_TABLE = 2**24  # indices that are enciphered at once, in half a gigabyte


def shuffled(places: np.ndarray, length: int, seed: int) -> np.ndarray:
    """The indices int64 [b] of the examples at `places` [b] in the endless order of `length`."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"the seed of the order is {seed}; expected 0 … 2³² − 1")
    epochs, places = np.divmod(np.asarray(places, np.int64), length)
    indices = np.empty(len(places), np.int64)
    for epoch in np.unique(epochs):
        rows, key = epochs == epoch, (seed + int(epoch)) % 2**32
        if length <= LARGEST_TABLE:
            indices[rows] = permutation(length, key)[places[rows]]
        else:
            indices[rows] = [_grains(int(place), length, key) for place in places[rows]]
    return indices


def _grains(place: int, length: int, seed: int) -> int:
    """An entry of `permutation`, by itself."""
    last = length - 1
    is_power_of_4 = last.bit_count() == 1 and last.bit_length() % 2 == 1
    top = length if is_power_of_4 else last  # grain's block is too small there
    while True:
        place = grain.experimental.index_shuffle(place, max_index=top, seed=seed, rounds=ROUNDS)
        if place < length:
            return place


@functools.lru_cache(maxsize=4)
def permutation(length: int, seed: int) -> np.ndarray:
    """uint32 [length]: place → index, of one epoch.

    A four-round Feistel network (Simon's round function, Beaulieu et al. 2013) permutes the numbers
    of an even number of bits; who lands at `length` or above goes on until it is below (Black &
    Rogaway 2002).
    """
    if length == 1:
        return np.zeros(1, np.uint32)
    half = (max(16, (length - 1).bit_length()) + 1) // 2
    numbers = np.arange(1 << 2 * half, dtype=np.uint32)
    after = _enciphered(numbers, half, _round_keys(seed))
    ends = np.where(numbers < length, numbers, after)
    for _ in range((len(numbers) // length).bit_length() - 1):
        ends = ends.take(ends)  # twice as many steps at once
    found = ends.take(after[np.arange(length) % len(numbers)])
    while len(late := np.flatnonzero(found >= length)):
        found[late] = ends.take(found[late])
    found.flags.writeable = False  # others are given it too
    return found


def _enciphered(numbers: np.ndarray, half: int, keys: list[int]) -> np.ndarray:
    mask = np.uint32((1 << half) - 1)

    def rolled(x, by):
        return (x << np.uint32(by) | x >> np.uint32(half - by)) & mask

    left, right = numbers >> np.uint32(half), numbers & mask
    for key in keys:
        mixed = rolled(right, 1) & rolled(right, 8) ^ rolled(right, 2)
        left, right = right, left ^ mixed ^ (np.uint32(key) & mask)
    return left << np.uint32(half) | right


def _round_keys(seed: int) -> list[int]:
    """What C++'s `std::seed_seq{seed}` generates for four numbers."""
    b, ones = [0x8B8B8B8B] * 4, 2**32 - 1

    def spread(x):
        return x ^ x >> 27

    for k in range(4):
        r = 1664525 * spread(b[k] ^ b[(k + 1) % 4] ^ b[k - 1]) & ones
        s = r + (1, 1 + seed, 2, 3)[k] & ones
        b[(k + 1) % 4] = b[(k + 1) % 4] + r & ones
        b[(k + 2) % 4] = b[(k + 2) % 4] + s & ones
        b[k] = s
    for k in range(4):
        r = 1566083941 * spread(b[k] + b[(k + 1) % 4] + b[k - 1] & ones) & ones
        s = r - k & ones
        b[(k + 1) % 4] ^= r
        b[(k + 2) % 4] ^= s
        b[k] = s
    return b
