"""ImageNet-1K's classes as data, and the subset that the paper's asymmetric noise is confined to.

No pictures: those come from `data.load` (an image folder, tar shards, TFDS, …).
"""

import functools
import importlib.resources
import re
from collections.abc import Sequence
from typing import NamedTuple

from noisy_fm.messages import unknown

RULES = ("lemma", "word")


class Synset(NamedTuple):
    """A class: its WordNet 3.0 id ("n01440764") and names ("tench", "Tinca tinca").

    cifar100: the strictest rule by which it is a synonym of a class of CIFAR-100, if any.
    """

    wnid: str
    lemmas: tuple[str, ...]
    cifar100: str = ""


@functools.cache
def synsets() -> tuple[Synset, ...]:
    """The 1,000 classes in the order of their labels (that of the sorted ids)."""
    file = importlib.resources.files("noisy_fm.data") / "imagenet.tsv"
    lines = file.read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    return tuple(Synset(wnid, tuple(lemmas.split(", ")), rule) for wnid, lemmas, rule in rows)


def names() -> tuple[str, ...]:
    """One name a class: its first lemma, with the id behind it where another class has the same."""
    first = [synset.lemmas[0] for synset in synsets()]
    return tuple(
        name if first.count(name) == 1 else f"{name} ({synset.wnid})"
        for name, synset in zip(first, synsets(), strict=True)
    )


def synonyms(words: Sequence[str], *, rule: str = "lemma") -> tuple[int, ...]:
    """Labels of the classes that one of `words` names, in ascending order.

    rule "lemma": a word equals one of the class's lemmas; "word": it occurs in one as whole words
    ("bottle" in "water bottle"). Case does not count. Raises ValueError for another rule.
    """
    if rule not in RULES:
        raise ValueError(unknown("rule", rule, RULES))
    whole = "|".join(re.escape(word) for word in words)
    pattern = re.compile(whole if rule == "lemma" else rf".*\b({whole})\b.*", re.IGNORECASE)
    return tuple(
        label
        for label, synset in enumerate(synsets())
        if any(pattern.fullmatch(lemma) for lemma in synset.lemmas)
    )


def cifar100_synonyms(rule: str = "lemma") -> tuple[int, ...]:
    """The subset for asymmetric noise: `synonyms(CIFAR100_CLASSES, rule=rule)`, frozen in the data.

    The paper (section 7.3) flips labels among the classes that are WordNet synonyms of CIFAR-100's,
    at 2.5, 5 and 10 %, and lists none. "lemma": 25 classes; "word": 166, with kinds ("tiger shark")
    and false friends ("cathode-ray oscilloscope").
    """
    if rule not in RULES:
        raise ValueError(unknown("rule", rule, RULES))
    wanted = RULES[: RULES.index(rule) + 1]
    return tuple(label for label, synset in enumerate(synsets()) if synset.cifar100 in wanted)


# The 100 fine classes of CIFAR-100 (Krizhevsky, 2009).
CIFAR100_CLASSES = tuple(
    " ".join(name.split())
    for name in [
        "\n    apple",
        " aquarium fish",
        " baby",
        " bear",
        " beaver",
        " bed",
        " bee",
        " beetle",
        " bicycle",
        " bottle",
        " bowl",
        " boy",
        " bridge",
        "\n    bus",
        " butterfly",
        " camel",
        " can",
        " castle",
        " caterpillar",
        " cattle",
        " chair",
        " chimpanzee",
        " clock",
        " cloud",
        "\n    cockroach",
        " couch",
        " crab",
        " crocodile",
        " cup",
        " dinosaur",
        " dolphin",
        " elephant",
        " flatfish",
        " forest",
        " fox",
        "\n    girl",
        " hamster",
        " house",
        " kangaroo",
        " keyboard",
        " lamp",
        " lawn mower",
        " leopard",
        " lion",
        " lizard",
        " lobster",
        "\n    man",
        " maple tree",
        " motorcycle",
        " mountain",
        " mouse",
        " mushroom",
        " oak tree",
        " orange",
        " orchid",
        " otter",
        " palm\n    tree",
        " pear",
        " pickup truck",
        " pine tree",
        " plain",
        " plate",
        " poppy",
        " porcupine",
        " possum",
        " rabbit",
        " raccoon",
        "\n    ray",
        " road",
        " rocket",
        " rose",
        " sea",
        " seal",
        " shark",
        " shrew",
        " skunk",
        " skyscraper",
        " snail",
        " snake",
        " spider",
        "\n    squirrel",
        " streetcar",
        " sunflower",
        " sweet pepper",
        " table",
        " tank",
        " telephone",
        " television",
        " tiger",
        "\n    tractor",
        " train",
        " trout",
        " tulip",
        " turtle",
        " wardrobe",
        " whale",
        " willow tree",
        " wolf",
        " woman",
        " worm\n    ",
    ]
)
