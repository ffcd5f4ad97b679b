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
table 1); this project has not run it. :debug takes two to three minutes on two CPU cores and ends
at 42 % for 55 classes at 10 % noise (43 % with images of 64×64).
"""

from noisy_fm import recipes


def get_config(arg: str = ""):
    config, args = recipes.imagenet(arg)
    config.model = {"name": "resnet50", "drop_path": 0.05, "remat": "none"}
    config.task.label_smoothing = 0.1
    config.task.augment = {"name": "imagenet", "policy": "rand-m7-mstd0.5-inc1"}
    config.task.mix.mixup, config.task.mix.cutmix = 0.2, 1.0
    config.batch_size, config.epochs = 2048, 600.0
    config.optimizer.weight_decay = 0.01
    # Not in the paper's table: the clip is the default of timm's LAMB, the rates are timm's A1's.
    config.clip = 1.0
    config.schedule.warmup_rate, config.schedule.min_rate = 1e-4, 1e-6
    config.eval_every = config.checkpoint_every = 6250  # ten epochs
    return shrunken(config) if args.debug else config


def shrunken(config):
    stem = "imagenet" if recipes.emoji_size() == 64 else "half"
    return recipes.on_emoji(config, epochs=10.0, width=16, stage_sizes=(1, 1, 1, 1), stem=stem)
