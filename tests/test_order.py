"""The order of training is grain's shuffle, whatever the number of examples, the seed and epoch."""

import grain
import numpy as np
import pytest

from noisy_fm.data import order

# Around the sizes at which the cipher's block grows; at 65,537 and 262,145 grain repeats an index.
LENGTHS = (1, 2, 3, 20, 1536, 65_535, 65_536, 65_538, 262_144, 262_146, 300_001)


@pytest.mark.parametrize("seed", [0, 5, 2**32 - 1])
@pytest.mark.parametrize("length", LENGTHS)
def test_it_is_grains(length, seed):
    dataset = grain.MapDataset.range(length).shuffle(seed=seed)
    head, tail = np.arange(min(length, 100)), np.arange(max(length - 50, 0), length + 50)
    places = np.concatenate([head, tail, [7 * length + length // 2]])
    found = order.shuffled(places, length, seed)
    assert found.dtype == np.int64
    assert found.tolist() == [dataset[int(place)] for place in places]


@pytest.mark.parametrize("length", [1000, 65_537])
def test_more_examples_than_fit_a_table_are_in_the_same_order(monkeypatch, length):
    places = np.arange(3 * length - 2000, 3 * length + 50)
    expected = order.shuffled(places, length, 4)
    monkeypatch.setattr(order, "LARGEST_TABLE", 999)
    assert np.array_equal(order.shuffled(places, length, 4), expected)


@pytest.mark.parametrize("length", [5, 1000, 65_537, 100_000, 262_145])
def test_every_epoch_is_another_permutation(length):
    epochs = order.shuffled(np.arange(3 * length), length, 1).reshape(3, length)
    assert (np.sort(epochs) == np.arange(length)).all()
    assert len(np.unique(epochs, axis=0)) == 3


def test_an_impossible_seed_is_told():
    with pytest.raises(ValueError, match="the seed of the order is -1"):
        order.shuffled(np.arange(3), 10, -1)
