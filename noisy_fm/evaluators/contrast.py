"""What images and texts in one space can do: zero-shot classification, and retrieval."""

import re
from collections.abc import Sequence

import numpy as np

from noisy_fm import features, zeroshot
from noisy_fm.evaluators.evaluator import Evaluator, Given, Outcome, readable

IMAGE = "features/normalized"


def zero_shot(
    given: Given, *, prompts: str | Sequence[str] = "simple", names: str = "labels"
) -> Evaluator:
    """Classification of `eval_source` by the names of its classes, with nothing fitted.

    prompts: as `zeroshot.prompts`. names: "labels", the data's own, or "imagenet", the 1,000 in
    CLIP's wording. "accuracy", with more than five classes "top5", and "calibration", the ECE.
    """
    source, chosen = given.eval_source, zeroshot.prompts(prompts)
    classes = class_names(source.info["label_names"], names)
    encode = texts(given, "zero_shot")
    predict = features.predictor(given.task, keep=(IMAGE, "mask"), columns=(), **given.layout)
    labels = source.columns["label"]

    def scored(variables):
        read, found = readable(predict(variables, source))
        weights = zeroshot.classifier(lambda some: encode(variables, some), classes, chosen)
        scale = float(np.exp(variables[0]["logit_scale"]))
        return read, zeroshot.logits(found[IMAGE], weights, scale=scale)

    def outcomes(variables, known=None):
        read, scores = known or scored(variables)
        about = source.ids[read], source.groups[read]
        hits = zeroshot.outcomes(scores, labels[read])
        return {name: Outcome(values, *about) for name, values in hits.items()}

    def measure(variables):
        read, scores = scored(variables)
        found = outcomes(variables, (read, scores))
        means = {name: float(one.values.mean()) for name, one in found.items()}
        return {**means, "calibration": zeroshot.calibration_error(scores, labels[read])}

    more = ("top5",) if len(classes) > 5 else ()
    return Evaluator(("accuracy", *more, "calibration"), measure, outcomes)


def retrieval(
    given: Given,
    *,
    ks: Sequence[int] = (1, 5, 10),
    within: str = "",
    seen_words: bool = False,
) -> Evaluator:
    """How often the right caption is among the k nearest of an image, and the other way round.

    The captions of `eval_source`, each once; all images of a caption are right for it.
    within: a column, as "category": only what has the query's value of it is searched. seen_words:
    of the captions only those of whose words all are in captions that the run is trained on.
    """
    source = given.eval_source
    if "caption" not in source.columns:
        raise ValueError("config.evaluators: retrieval is on data without captions")
    if within and within not in source.columns:
        raise ValueError(
            f"config.evaluators: retrieval within {within!r}; the data have "
            f"{', '.join(source.columns)}"
        )
    if seen_words:
        known = words(given.trained.columns["caption"][:])
        rows = [i for i, text in enumerate(source.columns["caption"][:]) if words([text]) <= known]
        if not rows:
            raise ValueError("config.evaluators: no caption has only words that are trained on")
        source = source.select(np.array(rows))
    encode = texts(given, "retrieval")
    predict = features.predictor(given.task, keep=(IMAGE, "mask"), columns=(), **given.layout)
    names = [f"{way}/R@{k}" for way in ("to_text", "to_image") for k in ks]

    def outcomes(variables):
        read, found = readable(predict(variables, source))
        rows = np.flatnonzero(read)
        captions, first, which = np.unique(
            source.columns["caption"][rows].astype(str), return_index=True, return_inverse=True
        )
        text = encode(variables, captions.tolist())
        own, each = np.arange(len(captions)), which
        searched = {}
        if within:
            values = np.asarray(source.columns[within][rows]).astype(str)
            ours, theirs = values, values[first]
            searched = {
                "to_text": zeroshot.by_group(ours, theirs),
                "to_image": zeroshot.by_group(theirs, ours),
            }
        image = found[IMAGE]
        ways = {
            "to_text": (image, text, zeroshot.by_group(each, own), rows),
            "to_image": (text, image, zeroshot.by_group(own, each), rows[first]),
        }
        result = {}
        for way, (queries, gallery, right, asked) in ways.items():
            ranks = zeroshot.ranks(queries, gallery, right, allowed=searched.get(way))
            for k, hits in zeroshot.recall(ranks, ks).items():
                about = source.ids[asked], source.groups[asked]
                result[f"{way}/R@{k}"] = Outcome(hits, *about)
        return result

    return Evaluator.of_means(tuple(names), outcomes)


def words(captions) -> set[str]:
    return {word for text in captions for word in re.findall(r"\w+", str(text).lower())}


def class_names(own: Sequence[str], names: str) -> Sequence[str]:
    """The wording of the classes that the data call `own`."""
    if names == "labels":
        return own
    if names != "imagenet":
        raise ValueError(f"names is {names!r}; expected 'labels' or 'imagenet'")
    known = zeroshot.imagenet_names()
    if len(own) != len(known):
        raise ValueError(f"names is 'imagenet', of {len(known)} classes; the data have {len(own)}")
    return known


def texts(given: Given, kind: str):
    """(variables, texts) → embeddings [n e] of the task's text tower."""
    if given.task.texts is None:
        raise ValueError(
            f"config.evaluators: {kind} needs a task with texts, as config.task.name 'contrast'"
        )
    return given.task.texts
