"""What the paper's ImageNet recipes have in common, and the same recipes shrunken for two cores."""

import os
from typing import Any

from ml_collections import ConfigDict

from noisy_fm import config as config_lib
from noisy_fm.data import augment
from noisy_fm.data import imagenet as classes


def imagenet(arg: str = "") -> tuple[ConfigDict, ConfigDict]:
    """The shared part of a recipe on ImageNet-1K, and the arguments read from `arg`.

    LAMB at 5e-3 on a cosine, binary cross-entropy, three repeats of an example, mixed examples, and
    what else the paper's table of settings has for both models. A recipe adds model, batch, epochs.
    """
    args = config_lib.parse_arg(
        arg, noise_rate=0.0, noise_kind="symmetric", synonyms="lemma", seed=0, debug=False
    )
    config = config_lib.train()
    config.data = {**config.data, "name": "folder", "labels": "", "size": 224}
    config.split, config.eval_split = "train", "val"
    config.noise.rate, config.noise.kind = args.noise_rate, args.noise_kind
    if args.noise_kind == "subset":
        config.noise = {**config.noise, "classes": classes.cifar100_synonyms(args.synonyms)}
    for name in config.seeds:
        config.seeds[name] = args.seed

    config.precision = "bfloat16"
    config.task.loss = "bce"
    config.task.normalize = {"mean": augment.IMAGENET_MEAN, "std": augment.IMAGENET_STD}
    config.task.mix.groups = 64  # so that up to 64 chips mix what they hold
    config.repeats = 3
    config.optimizer = {"name": "lamb", "learning_rate": 5e-3, "weight_decay": 0.0}
    # Stepping once an epoch, in place of once a step, is timm's way; the paper says cosine.
    config.schedule.update(warmup_epochs=5.0, warmup_prefix=False, per_epoch=True)
    config.checkpoint_minutes = 15.0
    config.evaluators.memorised.examples = 2048
    return config, args


def clip(arg: str = "") -> tuple[ConfigDict, ConfigDict]:
    """The shared part of the paper's image–text recipes, and the arguments read from `arg`.

    A recipe adds model, batch and learning rate.

    AdamW with weight decay 0.1 and 32 epochs are the paper's. What it leaves out is open_clip's
    default: betas and ε, the warm-up (2,000 steps of some 3,700 an epoch), crops of 90 % or more.
    """
    args = config_lib.parse_arg(arg, noise_rate=0.0, pair_swaps=False, seed=0, debug=False)
    config = config_lib.train("contrast")
    config.data = {**config.data, "name": "tar", "labels": "", "size": 224}
    config.data.captions, config.data.crop = "txt", 0.9
    config.split, config.eval_split = "train", "val"
    config.noise = {"kind": "captions", "rate": args.noise_rate, "pair_swaps": args.pair_swaps}
    for name in config.seeds:
        config.seeds[name] = args.seed
    config.precision = "bfloat16"
    config.task.augment = {"name": "imagenet", "flip": 0.0}
    config.task.normalize = {"mean": augment.CLIP_MEAN, "std": augment.CLIP_STD}
    config.epochs = 32.0
    config.optimizer = {"name": "adamw", "weight_decay": 0.1, "learning_rate": 5e-4}
    config.optimizer.update(b1=0.9, b2=0.98, eps=1e-6)
    # As there: every parameter of two axes or more, so neither norms, biases nor the scale.
    config.decay = ".*(kernel|embed)$"
    config.schedule.warmup_epochs = 0.55
    config.eval_every = -1
    config.checkpoint_minutes = 15.0
    return config, args


def clip_on_emoji(config: ConfigDict, *, epochs: float, **model: Any) -> ConfigDict:
    """The same recipe shrunken: on drawings and their names, `model` over the config's own."""
    domains = ("noto", "twemoji", "openmoji")
    config.data = {**config_lib.train().data, "domain": domains, "labels": "category"}
    config.data.captions = "{name}, {subcategory}, {category}"
    config.split, config.eval_split = "pretrain", "test"
    text = {**config.model.get("text", {}), "dim": 64, "depth": 2, "num_heads": 4, "context": 20}
    config.model = {**config.model, **model, "embed_dim": 64, "text": text}
    config.precision, config.batch_size = "float32", 128
    config.epochs, config.schedule.warmup_epochs = epochs, 1.0
    return config


def on_emoji(config: ConfigDict, *, epochs: float, **model: Any) -> ConfigDict:
    """The same recipe shrunken: on the emoji, batch 64, float32, `model` over the config's own.

    Images are 64×64 where NOISY_FM_EMOJI says where such are, else 32×32.
    """
    domains = ("noto", "twemoji", "openmoji")
    config.data = {**config_lib.train().data, "domain": domains, "size": emoji_size()}
    config.split, config.eval_split = "pretrain", "test"
    if config.noise.kind == "subset":
        config.noise.classes = tuple(range(10))
    config.model = {**config.model, **model}
    config.precision = "float32"
    config.task.mix.groups = 1
    config.batch_size, config.epochs, config.schedule.warmup_epochs = 64, epochs, 1.0
    config.eval_every = -1
    return config


def emoji_size() -> int:
    """Pixels a side of the emoji: 64 where those have been built (NOISY_FM_EMOJI), else 32."""
    return 64 if os.environ.get("NOISY_FM_EMOJI") else 32
