"""Who trains on what, in which order: subsets, labels, batches, and heads packed into lanes."""

import dataclasses
import functools

import numpy as np

from noisy_fm import noise
from noisy_fm.models.heads import NORM_MOMENTUM
from noisy_fm.probe.head import TRAINED, Head

WINDOW = 16  # blocks among which streamed rows are shuffled
OVERHEAD = 2.0  # what a step costs beside its lanes, in units of one lane


def subset(labels, fraction: float, *, seed: int = 0, ids=None) -> np.ndarray:
    """Positions of a share of each class's examples, at least one of each class.

    A class with n examples gives max(1, ⌊fraction·n⌉) of them: those whose hash of (seed, id) is
    smallest, so the subsets of one seed are nested, and independent of the order of the rows.
    Positions come in the order of the hash. labels [n]; ids [n] are unique, 0..n−1 by default.
    """
    labels = np.asarray(labels)
    ids = np.arange(len(labels)) if ids is None else np.asarray(ids)
    order = np.argsort(_hash(seed, ids), kind="stable")
    by_class = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels)
    counts = counts[counts > 0]
    kept = np.maximum(1, np.floor(fraction * counts + 0.5)).astype(np.int64)
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = np.zeros(len(labels), bool)
    chosen[by_class[rank < np.repeat(kept, counts)]] = True
    return order[chosen[order]]


def _hash(seed: int, ids: np.ndarray) -> np.ndarray:
    """uint64 [n], a bijection of the ids for each seed (SplitMix64's finaliser, twice)."""
    bits = ids.astype(np.uint64)
    for key in (np.array([seed], np.uint64), np.array([0x5B5E7], np.uint64)):
        bits = (bits ^ key * np.uint64(0xD1342543DE82EF95)) + np.uint64(0x9E3779B97F4A7C15)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        bits ^= bits >> np.uint64(31)
    return bits


@dataclasses.dataclass
class Plan:
    """What one head trains on: positions [n] and labels [n] after subsetting and label noise.

    `weights` [n] > 0 of any scale, None for all rows alike. The loss of a batch is Σ wℓ over its
    number of real rows and `mean_weight`, which is that of these rows unless it is given.
    `block` is the number of rows in a block of streamed features; 0: they are resident.
    """

    head: Head
    rows: np.ndarray
    labels: np.ndarray
    weights: np.ndarray | None = None
    mean_weight: float | None = None
    block: int = 0
    _epoch: tuple[int, np.ndarray] = (-1, np.empty(0))

    @functools.cached_property
    def relative_weights(self) -> np.ndarray:
        """float64 [n], over `mean_weight`: of any scale, the sums of which need not be finite."""
        weights = np.asarray(self.weights, np.float64)
        if self.mean_weight is not None:
            return weights / self.mean_weight
        weights = np.ldexp(weights, -np.frexp(weights.max())[1])
        return weights / weights.mean()

    @functools.cached_property
    def counts(self) -> np.ndarray:
        """int32 [steps_per_epoch]: the real rows of each batch of an epoch."""
        size, steps = self.head.batch_size, self.steps_per_epoch
        return np.minimum(size, len(self.rows) - size * np.arange(steps)).astype(np.int32)

    def epoch_losses(self, losses) -> np.ndarray:
        """Means [e] over the examples of each epoch, of the losses [e · steps_per_epoch]."""
        losses = losses.reshape(-1, self.steps_per_epoch)
        return (losses * self.counts).sum(1) / self.counts.sum()

    @property
    def steps_per_epoch(self) -> int:
        """⌈n / batch⌉; a last batch of a single row is left out where BatchNorm needs two."""
        whole, rest = divmod(len(self.rows), self.head.batch_size)
        lonely = rest == 1 and whole > 0 and self.head.method in ("mlp", "nmtune")
        return whole + (rest > 0 and not lonely)

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.head.epochs

    def order(self, epoch: int) -> np.ndarray:
        """Permutation [n] of the epoch: a function of (seed, epoch, n).

        Streamed features are shuffled by blocks: the blocks in an order all heads share, then
        the rows among `WINDOW` successive blocks, so that reads stay within one window.
        """
        if self._epoch[0] != epoch:
            random = np.random.default_rng([self.head.seed, epoch])
            order = random.permutation(len(self.rows)).astype(np.int32)
            if self.block:
                keys = np.random.default_rng(epoch).random(self.rows.max() // self.block + 1)
                ranks = keys.argsort().argsort()
                windows = ranks[self.rows[order] // self.block] // WINDOW
                order = order[np.argsort(windows, kind="stable")]
            self._epoch = epoch, order
        return self._epoch[1]

    def batches(self, start: int, stop: int):
        """Rows [s b], labels [s b] and real rows [s] of steps start..stop−1; padding is row 0."""
        picks, counts = self._picks(start, stop)
        return self.rows[picks], self.labels[picks], counts

    def weighing(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """float32 "masks" [s b], "shares" [s], "momenta" [s] of steps start..stop−1.

        shares   a batch's mean weight over that of all rows; its loss times this has the weighted
                 mean over all rows for its expectation, however the weights fall into batches
        masks    the weights within a batch, 0 for padding; they sum to Kish's effective number of
                 rows, (Σw)²/Σw², and so tend to 1 for the rows left where others tend to 0
        momenta  of BatchNorm's running moments: in proportion to the shares, over as many
                 effective rows as without weights (over all so far, while these are fewer)

        Without weights: 1 for real rows, 1, and PyTorch's momentum.
        """
        picks, counts = self._picks(start, stop)
        real = np.arange(self.head.batch_size) < counts[:, None]
        if self.weights is None:
            ones = np.ones(stop - start, np.float32)
            return {"masks": real.astype("f4"), "shares": ones, "momenta": NORM_MOMENTUM * ones}
        weights = np.where(real, self.relative_weights[picks], 0)
        shares = weights.sum(axis=1) / counts
        weights /= weights.max(axis=1, keepdims=True)  # squares of tiny ones would be 0
        weights *= (weights.sum(axis=1) / np.square(weights).sum(axis=1))[:, None]
        masks = np.where(real, weights.clip(np.finfo(np.float32).tiny), 0)  # 0 is padding
        even = _evenness(self.relative_weights)
        least = np.maximum(NORM_MOMENTUM * even, 1 / np.arange(start + 1, stop + 1))
        momenta = np.minimum(shares * np.minimum(least, NORM_MOMENTUM), 1)
        named = {"masks": masks, "shares": shares, "momenta": momenta}
        return {name: value.astype(np.float32) for name, value in named.items()}

    def _picks(self, start: int, stop: int):
        """Places [s b] in `rows` and real rows [s] of steps start..stop−1; padding is place 0."""
        size, per_epoch = self.head.batch_size, self.steps_per_epoch
        picks = np.zeros((stop - start, size), np.int32)
        counts = np.full(stop - start, size, np.int32)
        for epoch in range(start // per_epoch, (stop - 1) // per_epoch + 1):
            first, last = max(start, epoch * per_epoch), min(stop, (epoch + 1) * per_epoch)
            left = (first - epoch * per_epoch) * size
            right = min((last - epoch * per_epoch) * size, len(self.rows))
            flat = picks[first - start : last - start].reshape(-1)
            flat[: right - left] = self.order(epoch)[left:right]
            counts[last - start - 1] = right - left - (last - first - 1) * size
        return picks, counts


def _evenness(weights) -> float:
    """(Σw)² / (n Σw²) of weights [n]: 1 for equal ones, 1/n where one has it all."""
    weights = weights / weights.max()
    return weights.mean() ** 2 / np.square(weights).mean()


def make_plan(head: Head, labels, num_classes: int, ids, *, block: int = 0) -> Plan:
    """Subset by class on the given labels, then flip η of what is left."""
    rows = subset(labels, head.fraction, seed=head.seed, ids=ids)
    kept = labels[rows]
    if head.label_noise:
        kept, _ = noise.flip_labels(
            kept, num_classes, head.label_noise, ids=ids[rows], seed=head.seed
        )
    return Plan(head, rows.astype(np.int32), kept.astype(np.int32), block=block)


def group_key(head: Head, views: int) -> tuple:
    """Heads of one key share one compiled program; "paper" reads the first view only."""
    if head.method not in TRAINED:
        return (head.method,)
    seen = views if head.preset == "release" else 1
    return head.layout, head.preset if head.regularized else None, head.batch_size, seen


def pack(lengths, lanes: int) -> list[list[int]]:
    """Jobs into `lanes` queues, longest first into the shortest queue (Graham's LPT rule)."""
    queues: list[list[int]] = [[] for _ in range(lanes)]
    loads = [0] * lanes
    for job in sorted(range(len(lengths)), key=lambda j: -lengths[j]):
        lane = loads.index(min(loads))
        queues[lane].append(job)
        loads[lane] += lengths[job]
    return queues


def choose_lanes(lengths, most: int, *, multiple: int = 1) -> int:
    """Number of lanes, at most `most`, for the least time makespan × (OVERHEAD + lanes)."""
    best, least = multiple, float("inf")
    ceiling = min(most, len(lengths) + multiple - 1)
    for lanes in range(multiple, max(multiple, ceiling) + 1, multiple):
        span = max(sum(lengths[j] for j in queue) for queue in pack(lengths, lanes))
        if span * (OVERHEAD + lanes) < least:
            best, least = lanes, span * (OVERHEAD + lanes)
    return best
