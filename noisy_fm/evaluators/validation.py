"""How well the task is done on examples that are not trained on."""

from noisy_fm import features
from noisy_fm.evaluators.evaluator import Evaluator, Given, readable


def validation(given: Given) -> Evaluator:
    """The means of the task's scores (of a classifier: loss, accuracy) over `eval_source`.

    Unreadable images are left out, here and in all evaluators.
    """
    if given.eval_source.info["label_names"] != given.info["label_names"]:
        raise ValueError(
            "config.evaluators: validation is on data with other classes than the run's; expected "
            "the same, in the same order (or kind='probe', which fits its own)"
        )
    scores = given.task.scores
    predict = features.predictor(given.task, keep=(*scores.values(), "mask"), **given.layout)

    def measure(variables):
        _, found = readable(predict(variables, given.eval_source))
        return {name: float(found[output].mean()) for name, output in scores.items()}

    return Evaluator(tuple(scores), measure)
