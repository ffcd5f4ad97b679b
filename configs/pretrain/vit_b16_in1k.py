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
table 1); this project has not run it. :debug takes two to three minutes on two CPU cores and ends
at 16 % for 55 classes at 10 % noise (17 % with images of 64×64): eight epochs are few for a ViT.
"""

from noisy_fm import recipes


def get_config(arg: str = ""):
    config, args = recipes.imagenet(arg)
    config.model = {
        "name": "vit_b16",
        "drop_path": 0.2,
        "drop_rule": "uniform",
        "layer_scale": 1e-4,
        "scan": False,
        "remat": "none",
    }
    # Not in the paper's table, which says "mainly DeiT III": the same stochastic depth in every
    # block, 3-augment, its jitter, Mixup, CutMix and LayerScale's start are that recipe's, the
    # rates at both ends of the schedule DeiT's.
    config.task.augment = {"name": "imagenet", "policy": "3a", "color_jitter": 0.3}
    config.task.mix.mixup, config.task.mix.cutmix = 0.8, 1.0
    config.batch_size, config.epochs = 4096, 300.0
    config.optimizer.weight_decay = 0.02
    config.clip = 1.0
    config.schedule.warmup_rate, config.schedule.min_rate = 1e-6, 1e-5
    config.eval_every = config.checkpoint_every = 3120  # ten epochs
    return shrunken(config) if args.debug else config


def shrunken(config):
    patch = recipes.emoji_size() // 8
    small = {"dim": 96, "depth": 4, "num_heads": 3, "drop_path": 0.05}
    return recipes.on_emoji(config, epochs=8.0, patch=patch, **small)
