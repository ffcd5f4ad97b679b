"""The augmentation that a group of config keys picks: its `name`, and the arguments of that one."""

from collections.abc import Callable, Mapping

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
