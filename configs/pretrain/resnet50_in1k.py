"""ResNet-50 on ImageNet-1K under label noise, as the paper pre-trains it (timm's recipe A1).

    python -m noisy_fm.train --config=configs/pretrain/resnet50_in1k.py:noise_rate=0.1 \
        --config.data.path=/data/imagenet --workdir=gs://bucket/resnet50_noise10

The same line on every host; relaunched, it resumes. The data lie in folders train/ and val/ with
one folder a class; for what tools/prepare.py made of them add --config.data.name=array_record, for
TFDS --config.data.name=tfds:imagenet2012 --config.eval_split=validation.

Arguments: noise_rate (the paper: 0, 0.05, 0.1, 0.2, 0.3), noise_kind ("symmetric", or "subset":
only among ImageNet's synonyms of CIFAR-100's classes, at 0.025, 0.05 or 0.1 of their images),
synonyms ("lemma": 25 classes, "word": 166), seed, debug (the same recipe, shrunken, on the emoji).
Others override, e.g. --config.microbatches=4 --config.model.remat=full for a smaller machine.

Hardware: batch 2,048 in bfloat16; 375,000 steps, for example on 32 TPU v5e chips or 8 H200 GPUs.
Expect validation accuracies of 80.0, 79.2, 78.6, 76.3 and 73.1 % at the paper's five rates (its
table 1); this project has not run it. :debug takes about two minutes on two CPU cores and ends at
about 40 % for 55 classes at 10 % noise.
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

    config.model = {"name": "resnet50", "drop_path": 0.05, "remat": "none"}
    config.precision = "bfloat16"
    config.loss.name, config.loss.label_smoothing = "bce", 0.1

    config.normalize = {"mean": augment.IMAGENET_MEAN, "std": augment.IMAGENET_STD}
    config.augment = {"name": "imagenet", "policy": "rand-m7-mstd0.5-inc1"}
    config.mix.mixup, config.mix.cutmix = 0.2, 1.0
    config.mix.groups = 64  # so that up to 64 chips mix what they hold
    config.repeats = 3

    config.batch_size, config.epochs = 2048, 600.0
    config.optimizer = {"name": "lamb", "learning_rate": 5e-3, "weight_decay": 0.01}
    config.clip = 1.0  # not in the paper's table: the default of timm's LAMB
    # The rates at both ends, and steps of an epoch, are timm's; the paper says cosine.
    config.schedule = {
        "name": "cosine",
        "warmup_epochs": 5.0,
        "warmup_rate": 1e-4,
        "min_rate": 1e-6,
        "warmup_prefix": False,
        "per_epoch": True,
    }
    config.eval_every = 6250  # ten epochs
    config.checkpoint_every, config.checkpoint_minutes = 6250, 15.0
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
        "width": 16,
        "stage_sizes": (1, 1, 1, 1),
        "stem": "imagenet" if size == 64 else "half",
    }
    config.precision = "float32"
    config.mix.groups = 1
    config.batch_size, config.epochs, config.schedule.warmup_epochs = 64, 10.0, 1.0
    config.eval_every = 0
    return config
