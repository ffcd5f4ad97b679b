"""ImageNet-1K's classes, and the classes that asymmetric noise is confined to."""

import re

import numpy as np
import pytest

from noisy_fm import noise
from noisy_fm.data import imagenet


def test_the_classes_are_those_of_imagenet_in_their_order():
    wnids = [synset.wnid for synset in imagenet.synsets()]
    assert len(wnids) == 1000
    assert wnids == sorted(set(wnids))  # labels are by sorted id
    assert all(re.fullmatch(r"n\d{8}", wnid) for wnid in wnids)
    # Labels that everybody's tables agree on.
    known = {
        0: ("n01440764", "tench"),
        1: ("n01443537", "goldfish"),
        207: ("n02099601", "golden retriever"),
        281: ("n02123045", "tabby"),
        388: ("n02510455", "giant panda"),
        817: ("n04285008", "sports car"),
        985: ("n11939491", "daisy"),
        999: ("n15075141", "toilet tissue"),
    }
    for label, (wnid, name) in known.items():
        assert imagenet.synsets()[label].wnid == wnid
        assert imagenet.names()[label] == name


def test_names_tell_classes_apart():
    names = imagenet.names()
    assert len(set(names)) == len(names) == 1000
    assert [name for name in names if name.startswith("crane")] == [
        "crane (n02012849)",  # the bird
        "crane (n03126707)",  # the machine
    ]


@pytest.mark.parametrize(("rule", "count"), [("lemma", 25), ("word", 166)])
def test_the_frozen_synonyms_follow_their_rule(rule, count):
    frozen = imagenet.cifar100_synonyms(rule)
    assert len(set(imagenet.CIFAR100_CLASSES)) == 100
    assert len(frozen) == count
    assert frozen == imagenet.synonyms(imagenet.CIFAR100_CLASSES, rule=rule)
    assert set(imagenet.cifar100_synonyms("lemma")) <= set(frozen)


def test_rules_match_lemmas_whole_words_and_any_case():
    bottles = {imagenet.names()[i] for i in imagenet.synonyms(["Bottle"], rule="word")}
    assert {"water bottle", "beer bottle"} <= bottles
    assert not {"bottlecap", "bottle"} & bottles
    assert imagenet.synonyms(["bottle"]) == ()
    assert imagenet.synonyms(["TINCA tinca", "daisy"]) == (0, 985)
    for call in (lambda: imagenet.synonyms(["x"], rule="lema"), imagenet_subset_typo):
        with pytest.raises(ValueError, match=r"unknown rule 'lema'; did you mean 'lemma'\?"):
            call()


def imagenet_subset_typo():
    return imagenet.cifar100_synonyms("lema")


@pytest.mark.parametrize("rate", [0.025, 0.05, 0.10])
def test_asymmetric_noise_flips_that_share_of_the_subset_and_nothing_else(rate):
    labels = np.tile(np.arange(1000), 40)
    subset = imagenet.cifar100_synonyms()
    flipped, manifest = noise.flip_labels(
        labels, 1000, rate, ids=np.arange(len(labels)), kind="subset", classes=subset
    )
    changed = flipped != labels
    assert changed.sum() == round(rate * 25 * 40)
    assert manifest.realised == rate
    assert set(labels[changed]) | set(flipped[changed]) <= set(subset)
