"""How much of the wrong supervision was learned."""

import numpy as np

from noisy_fm import features
from noisy_fm.evaluators.evaluator import Evaluator, Given, Outcome, sample


def memorised(given: Given, *, examples: int = 0) -> Evaluator | None:
    """How much of the wrong supervision was learned, and how much resisted.

    Of (a sample of at most `examples` of) the examples whose given supervision is not the true
    one, `memorised` is the share that agrees with the given more than with the true, `resisted` of
    those with the true more than with the given. For a classifier, those predicted as given and as
    true; for captions, whose cosine is larger. 0 examples: not measured.
    """
    if not examples:
        return None
    if given.source is given.clean:
        raise ValueError(
            "config.evaluators: memorised has data of its own, which have no wrong labels; "
            "expected the run's"
        )
    rows = sample(changed(given.clean, given.source, given.task.columns), examples)
    agreement = given.task.agreement
    predict = features.predictor(given.task, keep=(agreement, "mask"), **given.layout)
    chosen = given.source.select(rows), given.clean.select(rows)

    def outcomes(variables):
        if not len(rows):
            return {}
        told, true = (predict(variables, one) for one in chosen)
        read = (told["mask"] != 0) & (true["mask"] != 0)
        about = chosen[0].ids[read], chosen[0].groups[read]
        more, less = told[agreement] > true[agreement], told[agreement] < true[agreement]
        return {
            "memorised": Outcome(more[read].astype(float), *about),
            "resisted": Outcome(less[read].astype(float), *about),
        }

    return Evaluator(("memorised", "resisted"), outcomes)


AT_ONCE = 1 << 18  # rows of texts in memory


def changed(clean, source, columns) -> np.ndarray:
    """The rows [m] whose supervision is not the true one."""
    found = np.zeros(len(clean), bool)
    for name in columns:
        ours, theirs = (one.columns[name] for one in (source, clean))
        for first in range(0, len(clean) if ours is not theirs else 0, AT_ONCE):
            rows = slice(first, first + AT_ONCE)
            found[rows] |= np.asarray(ours[rows]) != np.asarray(theirs[rows])
    return np.flatnonzero(found)
