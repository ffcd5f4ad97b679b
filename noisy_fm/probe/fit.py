"""Fits any number of heads on one feature matrix: one compiled program a group of equal shape.

Heads are packed one after another into lanes; a step moves all lanes at once (`vmap`), the steps
run in one compiled loop, and the features are gathered from one resident copy.
"""

import dataclasses
import functools
import warnings
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from noisy_fm import statistics
from noisy_fm.models.heads import logits, transform
from noisy_fm.probe import check, forks, plan, reference
from noisy_fm.probe.fast import CPU_LANES
from noisy_fm.probe.head import TRAINED, Head
from noisy_fm.probe.lanes import CHUNK, Lanes, advance, replace
from noisy_fm.probe.step import start_state
from noisy_fm.progress import Progress
from noisy_fm.scalars import as_whole

BLOCK = 4096  # rows of a block of streamed features
MEMORY_BUDGET = 2**31  # bytes
ROWS = 512  # arrays are padded to a multiple, so that data sets of like size share programs


@dataclasses.dataclass
class Result:
    """A fitted head.

    metrics: {test set: {"accuracy", "low", "high", "balanced_accuracy", "macro_f1", "n"}};
    predictions: {test set: int32 [n]}; losses: mean training cross-entropy of each epoch;
    parameters and statistics: NumPy trees (None if they were not kept); examples: the number
    trained on; steps: the optimiser steps taken.
    """

    head: Head
    parameters: dict
    statistics: dict
    metrics: dict[str, dict[str, float]]
    predictions: dict[str, np.ndarray]
    losses: np.ndarray
    examples: int
    steps: int

    @property
    def diverged(self) -> bool:
        """Whether the training loss was not finite, so that the predictions mean nothing."""
        return not np.isfinite(self.losses).all()

    def transform(self, features) -> np.ndarray:
        """Z [n d] of features [n d] (the first view of [n v d]); F itself for a linear head."""
        f = self._first_view(features)
        if self.head.layout == "linear":
            return np.asarray(f, np.float32)
        run = functools.partial(_transform, self.parameters, self.statistics)
        return _in_blocks(run, f)

    def decision_function(self, features) -> np.ndarray:
        """Class scores [n c]: logits, ridge's outputs, or kNN's vote shares."""
        f = self._first_view(features)
        if self.head.method == "knn":
            return reference.knn_scores(self.parameters, self.head.neighbors, np.asarray(f))
        run = functools.partial(_logits, self.parameters, self.statistics)
        return _in_blocks(run, f)

    def predict(self, features) -> np.ndarray:
        """int32 [n]: the class of the largest score."""
        return self.decision_function(features).argmax(axis=1).astype(np.int32)

    def _first_view(self, features):
        if self.parameters is None:
            raise ValueError("this head's parameters were not kept: fit with keep_parameters=True")
        name = "kernel" if "kernel" in self.parameters else "examples"
        width = self.parameters[name].shape[0 if name == "kernel" else 1]
        return _first_view(check.checked_features(features, "features", width=width, least=1))


def fit_heads(
    features,
    labels,
    heads: Sequence[Head],
    *,
    num_classes: int,
    test_sets: Mapping[str, tuple] | None = None,
    ids=None,
    groups: Mapping[str, np.ndarray] | None = None,
    memory_budget: int = MEMORY_BUDGET,
    keep_parameters: bool = True,
    devices: Sequence | None = None,
    progress: bool = False,
) -> list[Result]:
    """Trains every head on its own subset and labels, and tests each; results in the same order.

    features   [n d], or [n v d] with v stored views; float16/32/64; computed in float32
    labels     integers [n]; ids [n] are unique, stable integers (0..n−1 by default)
    test_sets  {name: (features, labels)}, read once for all heads; of stored views, the first
    groups     {name: [n]} clusters of a test set's examples for its accuracy's interval
    memory_budget  bytes for the training features and the heads in training or under test
    devices    lanes are spread over these; by default all accelerators, or one CPU device

    Features of more than half the budget stay where they are (a memory-mapped file) and stream:
    examples are then shuffled by blocks of the file, see `Plan.order`, in place of freely.
    A head's result is that of training it alone, to float32 rounding. Subset, noise, initial
    parameters and order follow from the head's seed and the ids. An incomplete last batch counts
    its real rows only. Raises ValueError or TypeError, in one line, for features, labels, test
    sets or heads that cannot be used.
    """
    heads, num_classes = check.checked_heads(heads), as_whole("num_classes", num_classes, 2)
    features = check.checked_features(features, "features")
    labels = check.checked_labels(labels, len(features), num_classes, "labels", train=True)
    ids = check.checked_ids(ids, len(features))
    tests = _checked_tests(test_sets or {}, groups or {}, features.shape[-1], num_classes)
    views = features.shape[1] if features.ndim == 3 else 1
    _check_views(heads, views)
    check.check_finite(features, "features")
    check.warn_constant(features, "features")

    block = BLOCK if streams(features, memory_budget) else 0
    plans = [plan.make_plan(head, labels, num_classes, ids, block=block) for head in heads]
    options = {"memory_budget": memory_budget, "devices": devices, "progress": progress}
    results = fit_plans(features, plans, num_classes=num_classes, **options)
    diverged = [r.head for r in results if r.diverged]
    if diverged:
        warnings.warn(
            f"{len(diverged)} of {len(plans)} heads diverged: their loss is not finite. The first: "
            f"{diverged[0]}. A lower learning_rate or standardised features usually help",
            RuntimeWarning,
            stacklevel=2,
        )
    _test(results, tests, num_classes, memory_budget)
    if not keep_parameters:
        for result in results:
            result.parameters = result.statistics = None  # type: ignore[assignment]
    return results


def fit_plans(
    features, plans, *, num_classes, memory_budget=MEMORY_BUDGET, devices=None, progress=False
) -> list[Result]:
    """Trains a head for each `plan.Plan`, which names its rows, labels and their weights.

    The work of `fit_heads`, without its checks and tests, and without a word on heads that
    diverge; for folds and weighted examples.
    Raises ValueError for weights with a reference method, which takes none, RuntimeError in a
    process forked after JAX had started.
    """
    forks.refuse_orphan()
    views = features.shape[1] if features.ndim == 3 else 1
    groups: dict[tuple, list[int]] = {}
    for i, p in enumerate(plans):
        groups.setdefault(plan.group_key(p.head, views), []).append(i)
    results: list[Result | None] = [None] * len(plans)
    total = sum(p.steps for p in plans)
    with Progress("probe", total, unit="head-step", show=progress) as bar:
        for key, members in groups.items():
            chosen = [plans[i] for i in members]
            fit = _fit_group if key[0] not in reference.FITS else _fit_reference
            options = {"memory_budget": memory_budget, "devices": devices, "bar": bar}
            for i, result in zip(
                members, fit(features, chosen, key, num_classes, **options), strict=True
            ):
                results[i] = result
    return results  # type: ignore[return-value]  # every place is filled


def _checked_tests(test_sets, groups, width: int, num_classes: int) -> dict[str, tuple]:
    if unknown := set(groups) - set(test_sets):
        raise ValueError(f"groups name {sorted(unknown)}, which are not among the test sets")
    tests = {}
    for name, pair in test_sets.items():
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(f"test set {name!r} must be a pair (features, labels)")
        f = check.checked_features(pair[0], f"test set {name!r} features", width=width, least=1)
        check.check_finite(f, f"test set {name!r} features")
        y = check.checked_labels(
            pair[1], len(f), num_classes, f"test set {name!r} labels", train=False
        )
        if name in groups and np.shape(groups[name]) != (len(f),):
            raise ValueError(f"groups of {name!r} must be [{len(f)}], got {np.shape(groups[name])}")
        tests[name] = (_first_view(f), y, groups.get(name))
    return tests


def _check_views(heads, views: int) -> None:
    if views > 2 and any(head.preset == "release" for head in heads):
        raise ValueError(f"preset 'release' trains on one or two views, the features hold {views}")


def _first_view(f):
    return f[:, 0] if f.ndim == 3 else f


def _padded(f: np.ndarray) -> np.ndarray:
    """f with rows of zeros added up to a multiple of `ROWS`."""
    return np.pad(f, ((0, -len(f) % ROWS), *[(0, 0)] * (f.ndim - 1)))


def _in_blocks(run, f, axis: int = 0) -> np.ndarray:
    """`run` over blocks of `ROWS` rows of f, put together along `axis` of what it returns."""
    blocks = [run(_padded(f[first : first + ROWS])) for first in range(0, len(f), ROWS)]
    return np.take(np.concatenate(blocks, axis=axis), np.arange(len(f)), axis=axis)


_logits = jax.jit(logits)
_start = jax.jit(start_state, static_argnames=("layout", "width", "num_classes"))


@jax.jit
def _transform(params, statistics, f):
    return transform(params, statistics, f.astype(jnp.float32))[0]


@jax.jit
def predictions_of(params, statistics, f):
    """int32 [heads n]: the class that each of some stacked heads gives the rows of f [n d]."""
    return jax.vmap(lambda p, s: logits(p, s, f).argmax(axis=1))(params, statistics)


def _fit_reference(features, plans, key, num_classes, *, bar, **_):
    for p in plans:
        if p.weights is not None:
            raise ValueError(f"method {p.head.method!r} takes no weights of examples")
        f = np.asarray(_first_view(features)[p.rows], np.float32)
        parameters = reference.FITS[key[0]](p.head, f, p.labels, num_classes)
        yield Result(p.head, parameters, {}, {}, {}, np.empty(0), len(p.rows), 0)


def _fit_group(features, plans, key, num_classes, *, memory_budget, devices, bar):
    """Trains heads of one shape in lanes; see the module's docstring."""
    layout, preset, batch, views = key
    f = features[:, :views] if features.ndim == 3 else features[:, None]
    width = f.shape[-1]
    start = functools.partial(_start, layout=layout, width=width, num_classes=num_classes)
    sharded, whole, count = _placement(devices)
    streamed = streams(features, memory_budget)
    free = memory_budget // 2 if streamed else memory_budget - f.nbytes
    unrolled = count == 1 and next(iter(whole.device_set)).platform == "cpu"
    most = min(
        _lanes_within(free, start, batch * views, layout, width),
        CPU_LANES[layout] if unrolled else len(plans) + count,
    )
    lanes = plan.choose_lanes([p.steps for p in plans], most, multiple=count)
    read = (windows_of if streamed else _resident)(f, whole)
    run = Lanes(plans, plan.pack([p.steps for p in plans], lanes), batch)
    if streamed:
        run.most = max(1, min(CHUNK, memory_budget // 8 // (lanes * batch * f[0].nbytes)))
    fresh = [start(seed=run.seed(lane)) for lane in range(lanes)]
    state = jax.device_put(jax.tree.map(lambda *a: np.stack(a), *fresh), sharded)
    results: list[Result | None] = [None] * len(plans)
    losses = None
    while run.active():
        steps = run.chunk()
        arrays = run.arrays(steps)
        block, arrays["rows"] = read(arrays["rows"])
        arrays = jax.device_put(arrays, sharded)
        if losses is not None:
            losses.block_until_ready()  # one chunk in flight while the host prepares the next
        state, losses = advance(state, block, arrays, steps, preset=preset, unrolled=unrolled)
        bar.update(steps * len(run.active()))
        for lane, job in run.move(steps, losses):
            held = {
                part: jax.tree.map(lambda a, lane=lane: np.asarray(a[lane]), state[part])
                for part in ("params", "statistics")
            }
            p, curve = plans[job], run.losses_by_epoch(job)
            results[job] = Result(
                p.head, held["params"], held["statistics"], {}, {}, curve, len(p.rows), p.steps
            )
            if lane in run.active():
                state = replace(state, start(seed=run.seed(lane)), lane)
    return results


def streams(features, memory_budget: int) -> bool:
    """Whether features stay where they are, in a mapped file, and stream."""
    return features.nbytes > memory_budget // 2


def _resident(f, sharding):
    """The whole features on the device; what is read of them is left to it."""
    kept = f.dtype if f.dtype.itemsize <= 4 and f.dtype.kind == "f" else np.float32
    f = jax.device_put(_padded(np.asarray(f, kept)), sharding)
    return lambda rows: (f, rows)


def windows_of(f, sharding):
    """The rows of a chunk alone, each read once for all lanes, in a buffer of constant size."""

    def read(rows):
        unique, where = np.unique(rows, return_inverse=True)
        buffer = np.zeros((rows.size, *f.shape[1:]), f.dtype if f.dtype.itemsize <= 4 else "f4")
        buffer[: len(unique)] = f[unique]
        return jax.device_put(buffer, sharding), where.reshape(rows.shape).astype(np.int32)

    return read


def _placement(devices):
    """Shardings of lanes and of whole arrays, and the number of devices."""
    if devices is None:
        local = jax.local_devices()
        devices = local[:1] if local[0].platform == "cpu" else local
    mesh = jax.sharding.Mesh(np.asarray(devices), ("lanes",))
    spec = jax.sharding.PartitionSpec
    sharding = functools.partial(jax.sharding.NamedSharding, mesh)
    return sharding(spec("lanes")), sharding(spec()), len(devices)


def _lanes_within(budget: int, start, rows: int, layout: str, width: int) -> int:
    """How many lanes fit: parameters, gradient and two moments, and the activations of a batch."""
    shapes = jax.tree.leaves(jax.eval_shape(start, seed=np.uint32(0))["params"])
    hidden = 0 if layout == "linear" else 8 * width
    each = 4 * (5 * sum(a.size for a in shapes) + rows * (4 * width + 2 * hidden))
    return max(1, int(budget // each))


def _test(results, tests, num_classes: int, memory_budget: int) -> None:
    """Fills metrics and predictions; heads of one shape see each block of a test set together."""
    for members in _groups_within_budget(results, memory_budget):
        if members[0].head.method != "knn":
            trees = [(r.parameters, r.statistics) for r in members]
            stacked = jax.tree.map(lambda *a: np.stack(a).astype(np.float32), *trees)
            run = functools.partial(predictions_of, *jax.device_put(stacked))
        for name, (f, labels, clusters) in tests.items():
            if members[0].head.method == "knn":
                found = np.stack([r.predict(f) for r in members])
            else:
                found = _in_blocks(run, f, axis=1).astype(np.int32)
            for result, predicted in zip(members, found, strict=True):
                result.predictions[name] = predicted
                result.metrics[name] = statistics.classification_metrics(
                    labels, predicted, num_classes, groups=clusters
                )


def _groups_within_budget(results, memory_budget: int):
    """Lists of results of one shape, as many as fit the budget with what a block makes of them."""
    shapes: dict[str, list[Result]] = {}
    for result in results:
        name = result.head.layout if result.head.method in TRAINED else result.head.method
        shapes.setdefault(name, []).append(result)
    for members in shapes.values():
        parameters = members[0].parameters
        held = sum(np.size(a) for a in jax.tree.leaves(parameters))
        of_a_row = 0
        if "kernel" in parameters:  # of kNN there is nothing to stack
            width, scores = parameters["kernel"].shape
            hidden = parameters["mlp"]["kernel_in"].shape[1] if "mlp" in parameters else 0
            of_a_row = width + hidden + width * bool(hidden) + scores  # f, hidden, z, scores
        each = 4 * (2 * held + ROWS * of_a_row)  # parameters twice: NumPy's stack, the device's
        most = max(1, memory_budget // each)
        for first in range(0, len(members), most):
            yield members[first : first + most]
