"""What is measured on a model while it trains: evaluators, (step, state) → {name: value}."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from noisy_fm import features, spectrum

Evaluator = Callable[[int, Any], dict[str, float]]


def sample(indices: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of `indices`, the same ones every time, in order."""
    if len(indices) <= most:
        return indices
    return np.sort(np.random.default_rng(0).choice(indices, most, replace=False))


def readable(found: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(bool [n], the outputs where it holds); elsewhere another image stood in."""
    read = found["mask"] != 0
    return read, {name: value[read] for name, value in found.items()}


def validation(task, source, **layout) -> Evaluator:
    """Mean loss and accuracy over the whole of `source`.

    Unreadable images are left out, here and below. `layout`: what `features.predictor` takes to lay
    out and read batches, `mesh`, `batch_size`, `threads`, `buffer`, `max_bad`, `damage`.
    """
    predict = features.predictor(task, keep=("loss", "correct", "mask"), **layout)

    def evaluate(step, state):
        _, out = readable(predict(state.variables, source))
        return {"loss": float(out["loss"].mean()), "accuracy": float(out["correct"].mean())}

    return evaluate


def memorised(task, source, given: np.ndarray, *, most: int, **layout) -> Evaluator:
    """How many of the wrong labels were learned, and how many resisted.

    `given` [n] are the labels trained on, `source.labels` the true ones. Of (a sample of) the
    examples where they differ, `memorised` is the share predicted as given, `resisted` as true.
    """
    rows = sample(np.flatnonzero(given != source.labels), most)
    chosen = source.select(rows)
    predict = features.predictor(task, keep=("prediction", "mask"), **layout)

    def evaluate(step, state):
        if not len(rows):
            return {}
        read, found = readable(predict(state.variables, chosen))
        return {
            "memorised": float(np.mean(found["prediction"] == given[rows][read])),
            "resisted": float(np.mean(found["prediction"] == chosen.labels[read])),
        }

    return evaluate


def spectra(
    task,
    source,
    names: Sequence[str],
    *,
    variables: tuple[Any, Any],
    most: int = 1024,
    center=False,
    normalize=False,
    **layout,
) -> Evaluator:
    """Spectra of named features as {"spectrum/NAME/sve": …, "spectrum/NAME/lsvr": …, …}.

    Of the same examples of `source` at every step, at most `most`: a spectrum depends on how many
    rows it is of. Maps and tokens [n … d] are averaged over positions. `center` and `normalize` as
    in `spectrum.Spectrum`; `spectrum.plot_track` draws the result, with prefix="spectrum/".
    `variables` (or their shapes) only tell which features there are.

    Raises:
      ValueError: an unknown or no name, `most` or a source of fewer than two.
    """
    if not names:
        raise ValueError("no features to track; expected at least one name")
    if min(most, len(source)) < 2:
        raise ValueError(
            f"a spectrum needs at least 2 rows; got {most} (config.evaluators.examples) of the "
            f"{len(source)} there are"
        )
    features.check_names(task, variables, source, names, where="config.evaluators.spectrum")
    keep = ["mask", *(f"features/{name}" for name in names)]
    predict = features.predictor(task, keep=keep, pooled=True, **layout)
    chosen = source.select(sample(np.arange(len(source)), most))

    def evaluate(step, state):
        _, found = readable(predict(state.variables, chosen))
        named = {name: found[f"features/{name}"] for name in names}
        found = spectrum.track(named, center=center, normalize=normalize)
        return {f"spectrum/{name}": value for name, value in found.items()}

    return evaluate


def probe(
    task, train, test, *, feature: str, variables: tuple[Any, Any], most: int, **layout
) -> Evaluator:
    """Accuracy on `test` of a ridge classifier fitted to true labels of `train`: a quick probe.

    Both are samples of at most `most` examples; the ridge is chosen by leave-one-out on the first
    (scikit-learn's RidgeClassifierCV). Features of more than one axis are averaged over positions.
    Raises ValueError for an unknown feature; `variables` as in `spectra`.
    """
    features.check_names(task, variables, test, [feature], where="config.evaluators.probe")
    name = f"features/{feature}"
    predict = features.predictor(task, keep=(name, "mask"), pooled=True, **layout)
    fitted, tested = (s.select(sample(np.arange(len(s)), most)) for s in (train, test))

    def read(variables, part):
        rows, found = readable(predict(variables, part))
        return found[name].astype(np.float64), part.labels[rows]

    def evaluate(step, state):
        from sklearn.linear_model import RidgeClassifierCV

        (x, x_labels), (y, y_labels) = (read(state.variables, part) for part in (fitted, tested))
        size = np.sqrt(np.mean(x**2)) or 1.0  # the ridges tried are for features of this size
        ridge = RidgeClassifierCV(alphas=np.logspace(-2, 4, 7)).fit(x / size, x_labels)
        return {"probe": float(ridge.score(y / size, y_labels))}

    return evaluate
