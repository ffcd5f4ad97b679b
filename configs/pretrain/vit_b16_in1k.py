"""ViT-B/16 on ImageNet-1K under label noise, as the paper pre-trains it (mainly DeiT III).

    python -m noisy_fm.train --config=configs/pretrain/vit_b16_in1k.py:noise_rate=0.1 \
        --config.data.path=/data/imagenet --workdir=gs://bucket/vit_b16_noise10

The same line on every host; relaunched, it resumes. The data lie in folders train/ and val/ with
one folder a class; for what tools/prepare.py made of them add --config.data.name=array_record, for
TFDS --config.data.name=tfds:imagenet2012 --config.eval_split=validation.

Arguments: noise_rate (the paper: 0, 0.05, 0.1, 0.2, 0.3), noise_kind ("symmetric", or "subset":
only among ImageNet's synonyms of CIFAR-100's classes, at 0.025, 0.05 or 0.1 of their images),
synonyms ("lemma": 25 classes, "word": 166), seed, debug (the same recipe, shrunken, on the emoji).
Others override, e.g. --config.microbatches=4 --config.model.remat=full for a smaller machine.

Hardware: batch 4,096 in bfloat16; 93,600 steps, for example on 64 TPU v5e chips or 8 H200 GPUs.
Expect validation accuracies of 78.7, 78.1, 77.2, 74.7 and 68.1 % at the paper's five rates (its
table 1); this project has not run it. :debug takes about two minutes on two CPU cores.
"""

import os

from noisy_fm import config as config_lib
from noisy_fm.data import augment, imagenet


def get_config(arg: str = ""):
    args = config_lib.parse_arg(
        arg, noise_rate=0.0, noise_kind="symmetric", synonyms="lemma", seed=0, debug=False
    )
    config = config_lib.train()
    config.data = {**config.data, "name": "folder", "task": "", "size": 224}
    config.split, config.eval_split = "train", "val"
    config.noise.rate, config.noise.kind = args.noise_rate, args.noise_kind
    if args.noise_kind == "subset":
        config.noise = {**config.noise, "classes": imagenet.cifar100_synonyms(args.synonyms)}
    for name in config.seeds:
        config.seeds[name] = args.seed

    # LayerScale's start is DeiT III's.
    config.model = {
        "name": "vit_b16",
        "drop_path": 0.2,
        "layer_scale": 1e-4,
        "scan": False,
        "remat": "none",
    }
    config.precision = "bfloat16"
    config.loss.name = "bce"

    config.normalize = {"mean": augment.IMAGENET_MEAN, "std": augment.IMAGENET_STD}
    # The paper's table names neither: 3-augment, its jitter, Mixup and CutMix are DeiT III's.
    config.augment = {"name": "imagenet", "policy": "3a", "color_jitter": 0.3}
    config.mix.mixup, config.mix.cutmix = 0.8, 1.0
    config.mix.groups = 64  # so that up to 64 chips mix what they hold
    config.repeats = 3

    config.batch_size, config.epochs = 4096, 300.0
    config.optimizer = {"name": "lamb", "learning_rate": 5e-3, "weight_decay": 0.02}
    config.clip = 1.0
    # The rates at both ends, and steps of an epoch, are timm's; the paper says cosine.
    config.schedule = {
        "name": "cosine",
        "warmup_epochs": 5.0,
        "warmup_rate": 1e-6,
        "min_rate": 1e-5,
        "warmup_prefix": False,
        "per_epoch": True,
    }
    config.eval_every = 3120  # ten epochs
    config.checkpoint_every, config.checkpoint_minutes = 3120, 15.0
    config.evaluators.memorised = True
    return shrunken(config) if args.debug else config


def shrunken(config):
    """The recipe on the emoji: 64×64 where NOISY_FM_EMOJI says where they are, else 32×32."""
    size = 64 if os.environ.get("NOISY_FM_EMOJI") else 32
    domains = ("noto", "twemoji", "openmoji")
    config.data = {**config_lib.train().data, "domain": domains, "size": size}
    config.split, config.eval_split = "pretrain", "test"
    if config.noise.kind == "subset":
        config.noise.classes = tuple(range(10))
    config.model = {
        **config.model,
        "patch": size // 8,
        "dim": 96,
        "depth": 4,
        "num_heads": 3,
        "drop_path": 0.05,
    }
    config.precision = "float32"
    config.mix.groups = 1
    config.batch_size, config.epochs, config.schedule.warmup_epochs = 64, 8.0, 1.0
    config.eval_every = 0
    return config
