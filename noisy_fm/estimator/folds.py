"""Heads on cross-validation folds: every head of every fold in one call of the probe engine."""

from collections.abc import Sequence

import numpy as np

from noisy_fm.estimator import rows, training, weighting
from noisy_fm.models.heads import numpy_logits
from noisy_fm.probe.fit import fit_plans
from noisy_fm.probe.head import Head
from noisy_fm.probe.plan import Plan


def accuracies(X, labels, weights, folds, heads: Sequence[Head], **settings) -> np.ndarray:
    """Weighted validation accuracy [heads, folds] of `predictions`; NaN where training diverges."""
    scores = np.empty((len(heads), len(folds)))
    for which, fits in enumerate(predictions(X, labels, weights, folds, heads, **settings)):
        for fold, ((_, test), found) in enumerate(zip(folds, fits, strict=True)):
            accuracy = np.average(found == labels[test], weights=weights[test])
            scores[which, fold] = np.nan if found.min() < 0 else accuracy
    return scores


def predictions(
    X, labels, weights, folds, heads: Sequence[Head], *, classes, class_weight=None, standardize,
    min_steps=0, progress=False,
) -> list[list[np.ndarray]]:  # fmt: skip
    """[heads][folds]: int [k], the classes of a fold's validation rows, by a head fitted on it.

    −1 where training diverges, or the scores of a row do.

    X [n d] as given, labels 0…C−1 [n], weights [n]; folds: (training rows, validation rows) pairs.
    `class_weight` of `classes` [c] is found on each fold's training rows, and weighs them alone.
    Raises ValueError for a fold without two classes to train on, or nothing to test on.
    """
    training.keep_programs()
    heads = [training.clipped(head, len(X)) for head in heads]
    everything = np.arange(len(X))
    copies, plans = [], []
    for number, (train, test) in enumerate(folds):
        kept, strength = rows.merge(X, labels, weights, train)
        if len(np.unique(labels[kept])) < 2 or not weights[test].any():
            raise ValueError(
                f"fold {number} has fewer than two classes to train on, or no weight to test on: "
                f"use fewer folds or stratified ones"
            )
        offset = 0
        if standardize:  # each fold has a scale, and so a copy of the features, of its own
            offset = number * len(X)
            copies.append(rows.gathered(X, everything, rows.scaling(X, strength, kept)))
        at = (kept + offset).astype(np.int32)
        fold_labels = labels[kept].astype(np.int32)
        emphasis = weighting.of_classes(class_weight, classes, fold_labels, strength)
        strength = strength * emphasis[fold_labels]
        used = strength > 0
        for head in heads:
            plan = Plan(head, at[used], fold_labels[used], weights=strength[used])
            plans.append(training.stretched(plan, min_steps))
    features = np.concatenate(copies) if standardize else X
    resident = training.resident(features, np.arange(len(features)))
    fitted = fit_plans(resident, plans, num_classes=len(classes), progress=progress)
    made: list[list[np.ndarray]] = [[] for _ in heads]
    for i, result in enumerate(fitted):
        fold, which = divmod(i, len(heads))
        f = (copies[fold] if standardize else X)[folds[fold][1]]
        with np.errstate(over="ignore", invalid="ignore"):
            logits = numpy_logits(result.parameters, result.statistics, f)
        sound = np.isfinite(logits).all(axis=1) & (
            not result.diverged
        )  # the last step may overshoot
        made[which].append(np.where(sound, logits.argmax(axis=1), -1))
    return made
