"""A quick probe: what a linear classifier finds in the features."""

import numpy as np

from noisy_fm import features
from noisy_fm.evaluators.evaluator import Evaluator, Given, readable, sample


def ridge(given: Given, *, feature: str = "", examples: int = 2048) -> Evaluator | None:
    """Accuracy on `eval_source` of a ridge classifier fitted to true labels.

    Samples of at most `examples` are trained and tested on; the ridge is chosen by leave-one-out
    on the first (scikit-learn's RidgeClassifierCV). Features of more than one axis are averaged
    over positions. An empty `feature` is not measured, an unknown one raises ValueError.
    """
    if not feature:
        return None
    where = "config.evaluators.probe.feature"
    features.check_names(given.task, given.variables, given.eval_source, [feature], where=where)
    name = f"features/{feature}"
    predict = features.predictor(
        given.task, keep=(name, "mask"), columns=(), pooled=True, **given.layout
    )
    fitted, tested = (
        source.select(sample(np.arange(len(source)), examples))
        for source in (given.clean, given.eval_source)
    )

    def read(variables, part):
        rows, found = readable(predict(variables, part))
        return found[name].astype(np.float64), part.columns["label"][rows]

    def outcomes(variables):
        from sklearn.linear_model import RidgeClassifierCV

        (x, x_labels), (y, y_labels) = (read(variables, part) for part in (fitted, tested))
        size = np.sqrt(np.mean(x**2)) or 1.0  # the ridges tried are for features of this size
        found = RidgeClassifierCV(alphas=np.logspace(-2, 4, 7)).fit(x / size, x_labels)
        return {"": float(found.score(y / size, y_labels))}

    return Evaluator(("",), outcomes)
