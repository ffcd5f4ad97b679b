"""The augmentation that a group of config keys picks: its `name`, and the arguments of that one."""

from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from noisy_fm import config as config_lib
from noisy_fm.data import augment
from noisy_fm.messages import require_known


def check(settings: Mapping, *, where: str) -> None:
    """Raises one clear line for a name or an argument that is not there; `where` the group is."""
    require_known(f"{where}.name", settings["name"], augment.AUGMENTATIONS)
    jitter = settings.get("color_jitter", 1.0)
    config_lib.check_numbers(f"{where.removeprefix('config.')}.color_jitter", jitter)
    factory = augment.AUGMENTATIONS[settings["name"]]
    config_lib.check_arguments(factory, arguments(settings), where=where, given=("size",))


def make(settings: Mapping, *, size: int) -> Callable:
    """(key, batch) → batch, of images that become `size` pixels a side where it resizes them."""
    resized = {"size": size} if settings["name"] == "imagenet" else {}
    return augment.AUGMENTATIONS[settings["name"]](**arguments(settings), **resized)


def arguments(settings: Mapping) -> dict:
    return {key: value for key, value in settings.items() if key != "name"}


def check_images(config: ConfigDict) -> None:
    """Raises one clear line for a task's normalisation or augmentation that cannot be."""
    check(config.task.augment, where="config.task.augment")
    for key in ("mean", "std"):
        config_lib.check_numbers(f"task.normalize.{key}", config.task.normalize[key])


def of(config: ConfigDict, info: Mapping) -> Callable:
    """What `config.task.augment` says, for images of which `info` is known."""
    if info["encoded"] and config.task.augment.name != "imagenet":
        raise ValueError(
            f"config.task.augment.name is {config.task.augment.name!r}; images on disk come as "
            "crops to be resized, so expected 'imagenet' (start from configs/pretrain/folder.py, "
            "with captions clip_folder.py)"
        )
    return make(config.task.augment, size=config.data.size)
