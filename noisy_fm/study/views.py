"""The second, augmented view of the images that heads are tuned on: `config.second_view`.

The authors' code tunes its heads on two views of each image (preset "release"); stored features
hold them as [n 2 d]. The first view is the image as it is tested.
"""

from collections.abc import Callable

import jax
from ml_collections import ConfigDict

from noisy_fm import config as config_lib
from noisy_fm.probe.head import TRAINED
from noisy_fm.study import protocols, transfers
from noisy_fm.study.transfers import Images
from noisy_fm.tasks import Task, augmentation

NONE = "none"


def check(config: ConfigDict) -> None:
    """Raises one clear line for a second view that cannot be made, or that no head would read."""
    augmentation.check(config.second_view, where="config.second_view")
    if config.second_view.name == NONE:
        return
    augmentation.make(config.second_view, size=config.pretrain.data.size)
    heads = protocols.heads(config)
    if not any(head.preset == "release" and head.method in TRAINED for head in heads):
        raise ValueError(
            f"config.second_view.name is {config.second_view.name!r}, which heads of preset "
            f"'release' read ({', '.join(TRAINED)}); config.preset is {config.preset!r}, "
            f"config.methods are {config.methods}"
        )


def key(config: ConfigDict, images: Images) -> dict:
    """What a store of `images` holds beside their first view; nothing where it holds that alone."""
    if config.second_view.name == NONE:
        return {}
    tuned_on = {one.train.mark for one in transfers.collect(config)}
    return {"second_view": config_lib.plain(config.second_view)} if images.mark in tuned_on else {}


def augmented(task: Task, settings: ConfigDict, *, size: int, seed: int) -> Task:
    """`task`, which predicts from images [n h w c] that are augmented first.

    The draw of an image follows from `seed` and its id, so neither batches nor devices change it.
    """
    augment = augmentation.make(settings, size=size)

    def predict_fn(params, model_state, batch):
        images = drawn(augment, batch["image"], batch["id"], seed)
        return task.predict_fn(params, model_state, {**batch, "image": images})

    return task._replace(predict_fn=predict_fn)


def drawn(augment: Callable, images, ids, seed: int):
    """Images [n h w c] of ids [n], each augmented under a key of its own."""

    def one(image, id_):
        key = jax.random.fold_in(jax.random.key(seed), id_)
        return augment(key, {"image": image[None]})["image"][0]

    return jax.vmap(one)(images, ids)
