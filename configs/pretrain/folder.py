"""Your own images under label noise: a ResNet-18 on the folders train/CLASS/ and val/CLASS/.

    python -m noisy_fm.train --config=configs/pretrain/folder.py:noise_rate=0.1 \
        --config.data.path=/data/flowers --workdir=runs/flowers

Arguments: noise_rate, seed, size (pixels a side). Others override, for example
--config.model.name=vit_s16 --config.epochs=100 --config.batch_size=32 --config.data.name=tar.

Hardware: a GPU; on two CPU cores a step of 64 images of 96×96 takes about two seconds.
"""

from noisy_fm import config as config_lib
from noisy_fm.data import augment


def get_config(arg: str = ""):
    args = config_lib.parse_arg(arg, noise_rate=0.0, seed=0, size=96)
    config = config_lib.train()
    config.data = {**config.data, "name": "folder", "labels": "", "size": args.size}
    config.split, config.eval_split = "train", "val"
    config.noise.rate = args.noise_rate
    for name in config.seeds:
        config.seeds[name] = args.seed
    config.model.name = "resnet18"
    config.task.normalize = {"mean": augment.IMAGENET_MEAN, "std": augment.IMAGENET_STD}
    config.task.augment = {"name": "imagenet", "policy": "3a", "color_jitter": 0.3}
    config.epochs, config.schedule.warmup_epochs = 30.0, 2.0
    config.optimizer.weight_decay = 0.05
    config.evaluators.memorised.examples = 2048
    return config
