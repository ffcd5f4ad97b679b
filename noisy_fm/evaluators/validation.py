"""How well the task is done on examples that are not trained on."""

from noisy_fm import features
from noisy_fm.evaluators.evaluator import Evaluator, Given, Outcome, readable


def validation(given: Given) -> Evaluator:
    """The means of the task's scores (of a classifier: loss, accuracy) over `eval_source`.

    Unreadable images are left out, here and in all evaluators.
    """
    source, scores = given.eval_source, given.task.scores
    learned = "label" in given.task.columns
    if learned and source.info["label_names"] != given.info["label_names"]:
        raise ValueError(
            "config.evaluators: validation is on data with other classes than the run's; expected "
            "the same, in the same order (or kind='probe', which fits its own)"
        )
    predict = features.predictor(given.task, keep=(*scores.values(), "mask"), **given.layout)

    def outcomes(variables):
        read, found = readable(predict(variables, source))
        ids, groups = source.ids[read], source.groups[read]
        return {name: Outcome(found[output], ids, groups) for name, output in scores.items()}

    return Evaluator(tuple(scores), outcomes)
