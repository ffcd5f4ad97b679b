"""What images and texts in one space can do untrained: classify by class names, find one another.

Pure functions of NumPy arrays. Embeddings are float32 rows of length 1, similarities their cosines.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from noisy_fm.messages import require_known

# The 80 prompts of CLIP's authors (Radford et al., ICML 2021), and the one of its section 3.1.4.
FOLDER = Path(__file__).parent / "texts"
PROMPTS: dict[str, Callable[[], tuple[str, ...]]] = {
    "name": lambda: ("{}",),
    "simple": lambda: ("a photo of a {}.",),
    "imagenet": lambda: _lines("imagenet_prompts.txt"),
}
BINS = 15  # of the calibration error


def _lines(name: str) -> tuple[str, ...]:
    return tuple((FOLDER / name).read_text().splitlines())


def imagenet_names() -> tuple[str, ...]:
    """The 1,000 classes of ImageNet-1K in the wording of CLIP's authors, by label."""
    return _lines("imagenet_names.txt")


def prompts(chosen: str | Sequence[str]) -> tuple[str, ...]:
    """A name of `PROMPTS`, or prompts of one's own, each with {} where the class's name goes."""
    if isinstance(chosen, str) and "{}" not in chosen:
        return PROMPTS[require_known("prompts", chosen, PROMPTS)]()
    own = (chosen,) if isinstance(chosen, str) else tuple(chosen)
    for one in own:
        if one.count("{}") != 1:
            raise ValueError(f"the prompt is {one!r}; expected one {{}} in it, for the name")
    if not own:
        raise ValueError("prompts is empty; expected at least one")
    return own


def classifier(encode: Callable, names: Sequence[str], chosen: Sequence[str]) -> np.ndarray:
    """The weights [C e] of classes: the mean of a name's prompts' embeddings, to length 1.

    encode: texts → embeddings [n e]. Raises ValueError for a name that is no text.
    """
    if isinstance(names, str) or not len(names):
        raise ValueError(f"names are {names!r}; expected a list of texts, one a class")
    for i, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"class {i} is called {name!r}; expected a text for every class")
    texts = [prompt.replace("{}", name) for name in names for prompt in chosen]
    found = np.asarray(encode(texts), np.float64).reshape(len(names), len(chosen), -1).mean(1)
    return normalized(found).astype(np.float32)


def normalized(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.maximum(norms, 1e-12)


def logits(
    images: np.ndarray,
    weights: np.ndarray,
    *,
    scale: float = 1.0,
    classes: Sequence[int] | None = None,
    groups: Sequence[int] | None = None,
) -> np.ndarray:
    """scale · cosines [n C] of images [n e] and class weights [C e].

    classes: only these of the C, in this order (ImageNet-A and -R have 200). groups: for each of
    the C the class it belongs to, or −1; the largest of a group counts (ImageNet-Vid has 30).
    Raises ValueError for both at once, and for a number that is no class.
    """
    if classes is not None and groups is not None:
        raise ValueError("classes and groups are both given; expected one of them")
    found = scale * np.asarray(images, np.float32) @ np.asarray(weights, np.float32).T
    count = found.shape[1]
    if classes is not None:
        chosen = np.asarray(classes)
        if not len(chosen) or chosen.min() < 0 or chosen.max() >= count:
            raise ValueError(f"classes are {list(chosen)[:5]} …; expected numbers below {count}")
        return found[:, chosen]
    if groups is not None:
        member = np.asarray(groups)
        if member.shape != (count,) or member.max(initial=-1) < 0:
            raise ValueError(f"groups have shape {member.shape}; expected one a class, ({count},)")
        empty = set(range(member.max() + 1)) - set(member.tolist())
        if empty:
            raise ValueError(f"groups have no class for {min(empty)}; expected one for each number")
        return np.stack([found[:, member == k].max(1) for k in range(member.max() + 1)], axis=1)
    return found


def outcomes(scores: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """{"accuracy", and of more than five classes "top5"}: [n] 1 where the label was hit.

    Of classes that tie the first counts, as `argmax` has it; NaN hits nothing. scores [n C], labels
    [n].
    """
    own = scores[np.arange(len(labels)), labels][:, None]
    before = (scores == own) & (np.arange(scores.shape[1]) < np.asarray(labels)[:, None])
    above = (~(scores <= own) | before).sum(1)
    found = {"accuracy": above < 1}
    if scores.shape[1] > 5:
        found["top5"] = above < 5
    return {name: hit.astype(np.float64) for name, hit in found.items()}


def per_class(correct: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """The accuracy of each class [C]; NaN for one without an image."""
    total = np.bincount(labels, minlength=num_classes)
    hits = np.bincount(labels, weights=correct, minlength=num_classes)
    return np.where(total, hits / np.maximum(total, 1), np.nan)


def calibration_error(scores: np.ndarray, labels: np.ndarray) -> float:
    """ECE (Guo et al., ICML 2017, eq. 3) of softmax(scores [n C]), in 15 bins of confidence."""
    shifted = np.exp(scores.astype(np.float64) - scores.max(1, keepdims=True))
    confidence = shifted.max(1) / shifted.sum(1)
    correct = scores.argmax(1) == labels
    bins = np.clip(np.ceil(confidence * BINS) - 1, 0, BINS - 1).astype(int)
    error = 0.0
    for k in range(BINS):
        if (inside := bins == k).any():
            error += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return float(error)


def ranks(
    queries: np.ndarray,
    gallery: np.ndarray,
    positive: Callable[[int, int], np.ndarray],
    *,
    allowed: Callable[[int, int], np.ndarray] | None = None,
    rows: int = 1024,
) -> np.ndarray:
    """[n]: how many of the `gallery` [m e] are before the first right one of each query [n e].

    positive(a, b) → bool [b − a, m]: what is right for the queries a … b − 1; all of a query's are
    left out but its best. allowed, likewise: what is searched at all. What is exactly as near as a
    right one is before it, so a constant embedding, or NaN, finds nothing. −1 where nothing right
    is allowed. `rows` queries are compared at a time.
    """
    found = np.empty(len(queries), np.int64)
    for first in range(0, len(queries), rows):
        last = min(first + rows, len(queries))
        near = queries[first:last] @ gallery.T
        right = positive(first, last)
        wrong = ~right
        if allowed is not None:
            searched = allowed(first, last)
            right, wrong = right & searched, wrong & searched
        best = np.where(right, near, -np.inf).max(1, keepdims=True)
        found[first:last] = np.where(right.any(1), (wrong & ~(near < best)).sum(1), -1)
    return found


def recall(found: np.ndarray, ks: Sequence[int]) -> dict[int, np.ndarray]:
    """{k: [n], 1 where one of the first k was right}; NaN where nothing could be."""
    return {k: np.where(found < 0, np.nan, (found < k).astype(float)) for k in ks}


def by_group(ours: np.ndarray, theirs: np.ndarray) -> Callable[[int, int], np.ndarray]:
    """Right is what is of the same group: ours [n] of the queries, theirs [m] of the gallery."""
    return lambda first, last: ours[first:last, None] == theirs[None]
