"""Choice among heads on a validation part of the training set; test sets are never looked at."""

import dataclasses

import numpy as np

from noisy_fm.probe import check
from noisy_fm.probe.fit import MEMORY_BUDGET, Result, fit_heads, streams
from noisy_fm.probe.head import Head
from noisy_fm.probe.plan import subset


@dataclasses.dataclass
class Selection:
    """best: the chosen head, fitted on all training examples; scores [heads]: each head's score
    on the validation part, positions `validation` of the training set."""

    best: Result
    scores: np.ndarray
    validation: np.ndarray


def select(
    features,
    labels,
    heads,
    *,
    num_classes: int,
    validation: float = 0.2,
    metric: str = "accuracy",
    seed: int = 0,
    ids=None,
    groups=None,
    test_sets=None,
    test_groups=None,
    keep_parameters: bool = True,
    **settings,
) -> Selection:
    """Fits all heads without a validation part, and the best there once more on everything.

    The part is a share of each class (at least one example, and never the last one: a class of one
    is trained on only), or of the `groups` [n] where related examples must stay together; a class
    whose groups are all drawn is then left without a training row. `metric` is one of
    `statistics.classification_metrics`; ties go to the earlier head. Label noise of a head falls on
    the part it trains on, never on the validation labels. `test_groups` are the `groups` of
    `fit_heads`, `keep_parameters` is of the best head, and other settings are those of
    `fit_heads`. Raises ValueError for features that would stream: their two parts are read into
    memory.
    """
    heads = check.checked_heads(heads)
    if not 0 < validation < 1:
        raise ValueError(f"validation must lie in (0, 1), got {validation!r}")
    if metric not in ("accuracy", "balanced_accuracy", "macro_f1"):
        raise ValueError(f"metric must be accuracy, balanced_accuracy or macro_f1, got {metric!r}")
    features = check.checked_features(features, "features")
    budget = settings.get("memory_budget", MEMORY_BUDGET)
    if streams(features, budget):
        raise ValueError(
            f"select reads the features into memory, and these {features.nbytes:,} bytes are more"
            f" than half of memory_budget={budget:,}: raise it, or choose on a part of the rows"
        )
    labels = check.checked_labels(labels, len(features), num_classes, "labels", train=True)
    ids = check.checked_ids(ids, len(features))
    held = _held_out(labels, validation, seed, ids, groups)
    rest = np.delete(np.arange(len(labels)), held)
    tried = fit_heads(
        features[rest],
        labels[rest],
        heads,
        num_classes=num_classes,
        test_sets={"validation": (features[held], labels[held])},
        ids=ids[rest],
        keep_parameters=False,
        **settings,
    )
    scores = np.array([-np.inf if r.diverged else r.metrics["validation"][metric] for r in tried])
    best: Head = heads[int(scores.argmax())]
    (final,) = fit_heads(
        features,
        labels,
        [best],
        num_classes=num_classes,
        test_sets=test_sets,
        groups=test_groups,
        ids=ids,
        keep_parameters=keep_parameters,
        **settings,
    )
    return Selection(final, scores, held)


def _held_out(labels, share: float, seed: int, ids, groups) -> np.ndarray:
    if groups is None:
        held = subset(labels, share, seed=seed, ids=ids)
        # A class must keep a row to train on: one that is held out whole gives back one of its.
        left = np.bincount(labels) - np.bincount(labels[held], minlength=labels.max() + 1)
        give_back = {label: place for place, label in enumerate(labels[held]) if not left[label]}
        held = np.sort(np.delete(held, list(give_back.values())))
        if not len(held):
            raise ValueError("no class has two examples: there is nothing left to validate on")
        return held
    if np.shape(groups) != labels.shape:
        raise ValueError(
            f"groups must be [{len(labels)}], got shape {np.shape(groups)}; those of test sets are "
            f"test_groups"
        )
    _, group = np.unique(groups, return_inverse=True)
    if not group.any():
        raise ValueError("groups name one group only: there is nothing left to validate on")
    drawn = subset(np.zeros(group.max() + 1, int), share, seed=seed)
    drawn = drawn[: group.max()]  # one group at least trains
    return np.flatnonzero(np.isin(group, drawn))
