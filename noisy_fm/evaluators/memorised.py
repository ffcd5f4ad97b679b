"""Which of the wrong labels were learned."""

import numpy as np

from noisy_fm import features
from noisy_fm.evaluators.evaluator import Evaluator, Given, readable, sample


def memorised(given: Given, *, examples: int = 0) -> Evaluator | None:
    """How many of the wrong labels were learned, and how many resisted.

    Of (a sample of at most `examples` of) the examples whose given label is not the true one,
    `memorised` is the share predicted as given, `resisted` as true. 0 examples: not measured.
    """
    if not examples:
        return None
    if given.source is given.clean:
        raise ValueError(
            "config.evaluators: memorised has data of its own, which have no wrong labels; "
            "expected the run's"
        )
    said, true = (one.columns["label"] for one in (given.source, given.clean))
    rows = sample(np.flatnonzero(said != true), examples)
    chosen = given.clean.select(rows)
    predict = features.predictor(given.task, keep=("prediction", "mask"), **given.layout)

    def measure(variables):
        if not len(rows):
            return {}
        read, found = readable(predict(variables, chosen))
        return {
            "memorised": float(np.mean(found["prediction"] == said[rows][read])),
            "resisted": float(np.mean(found["prediction"] == true[rows][read])),
        }

    return Evaluator(("memorised", "resisted"), measure)
