"""What images and texts in one space can do: zero-shot classification, and retrieval."""

import re
from collections.abc import Sequence

import numpy as np

from noisy_fm import features, zeroshot
from noisy_fm.data import imagenet
from noisy_fm.evaluators.evaluator import Evaluator, Given, Outcome, readable
from noisy_fm.evaluators.memorised import AT_ONCE
from noisy_fm.messages import require_known

IMAGE = "features/normalized"


def zero_shot(
    given: Given,
    *,
    prompts: str | Sequence[str] = "simple",
    names: str | Sequence[str] = "labels",
    only: Sequence[int] | None = None,
    groups: Sequence[int] | None = None,
) -> Evaluator:
    """Classification of `eval_source` by the names of its classes, with nothing fitted.

    prompts: as `zeroshot.prompts`. names: "labels", the data's own; "imagenet", CLIP's wording of
    the 1,000, or of those that folders called n01440764, … are of (ImageNet-A, -R: 200); or one's
    own. only, groups: which of the names the data's classes are, as `zeroshot.logits` has them
    (ImageNet-Vid: 30 groups of the 1,000).
    Gives "zero_shot", the accuracy, with more than five classes "top5", and "calibration", the ECE.
    """
    source, chosen = given.eval_source, zeroshot.prompts(prompts)
    if "label" not in source.columns:
        raise ValueError("zero_shot is on data without labels")
    own = source.info["label_names"]
    classes = class_names(own, names, whole=only is None and groups is None)
    count = len(classes if only is None else only) if groups is None else max(groups) + 1
    if count != len(own):
        raise ValueError(f"zero_shot tells {count} classes apart, the data have {len(own)}")
    encode = texts(given, "zero_shot")
    predict = features.predictor(given.task, keep=(IMAGE, "mask"), columns=(), **given.layout)
    labels = source.columns["label"]

    def outcomes(variables):
        read, found = readable(predict(variables, source))
        weights = zeroshot.classifier(lambda some: encode(variables, some), classes, chosen)
        scale = float(np.exp(variables[0]["logit_scale"]))
        scores = zeroshot.logits(found[IMAGE], weights, scale=scale, classes=only, groups=groups)
        about = source.ids[read], source.groups[read]
        hits = zeroshot.outcomes(scores, labels[read])
        made = {NAMES[name]: Outcome(values, *about) for name, values in hits.items()}
        return {**made, "calibration": zeroshot.calibration_error(scores, labels[read])}

    return Evaluator(("zero_shot", *(("top5",) if count > 5 else ()), "calibration"), outcomes)


NAMES = {"accuracy": "zero_shot", "top5": "top5"}


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
        raise ValueError("retrieval is on data without captions (data.captions says which text)")
    if within:
        require_known("column to retrieve within", within, source.columns)
    if seen_words:
        if given.trained is None:
            raise ValueError("retrieval: seen_words needs the captions that the run is trained on")
        known = words(given.trained.columns["caption"])
        rows = [i for i, text in enumerate(source.columns["caption"][:]) if words([text]) <= known]
        if not rows:
            raise ValueError("no caption has only words that are trained on")
        source = source.select(np.array(rows))
    encode = texts(given, "retrieval")
    predict = features.predictor(given.task, keep=(IMAGE, "mask"), columns=(), **given.layout)
    names = [f"{way}/R@{k}" for way in ("to_text", "to_image") for k in ks]

    def outcomes(variables):
        read, found = readable(predict(variables, source))
        rows = np.flatnonzero(read)
        said = np.asarray(source.columns["caption"][rows]).astype(str)
        values = np.asarray(source.columns[within][rows] if within else np.zeros(len(rows)))
        # A caption counts once for each value that it is searched within.
        both = np.stack([values.astype(str), said])
        kinds, first, which = np.unique(both, axis=1, return_index=True, return_inverse=True)
        if len(first) < 2:
            raise ValueError(f"all {len(said)} images have one caption, {said[0]!r}")
        text = encode(variables, kinds[1].tolist())
        own, each = np.arange(len(first)), which.reshape(-1)
        searched = {}
        if within:
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

    return Evaluator(tuple(names), outcomes)


def words(captions) -> set[str]:
    found: set[str] = set()
    for first in range(0, len(captions), AT_ONCE):
        for text in captions[first : first + AT_ONCE]:
            found.update(re.findall(r"\w+", str(text).lower()))
    return found


def class_names(
    own: Sequence[str], names: str | Sequence[str], *, whole: bool = True
) -> Sequence[str]:
    """The wording of the classes that the data call `own`; `whole`: of all, in their order."""
    if not isinstance(names, str):
        return tuple(names)
    if names == "labels":
        if all(re.fullmatch(r"n\d{8}", name) for name in own):
            raise ValueError(f"the classes are called {own[0]} …; expected names='imagenet'")
        return own
    if names != "imagenet":
        raise ValueError(f"names is {names!r}; expected 'labels', 'imagenet', or names")
    known = zeroshot.imagenet_names()
    places = {one.wnid: place for place, one in enumerate(imagenet.synsets())}
    if whole and all(name in places for name in own):  # ImageNet-A, -R: folders of some of them
        return tuple(known[places[name]] for name in own)
    orders = (list(places), list(imagenet.names()), list(known))
    if whole and list(own) not in orders:
        raise ValueError(
            f"names is 'imagenet', and the data's {len(own)} classes ({own[0]}, …) are not "
            "ImageNet-1K's in its order"
        )
    return known


def texts(given: Given, kind: str):
    """(variables, texts) → embeddings [n e] of the task's text tower."""
    if given.task.texts is None:
        raise ValueError(f"{kind} needs a task with texts, as config.task.name 'contrast'")
    return given.task.texts
