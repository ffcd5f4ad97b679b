"""Supervised pre-training on emoji by subcategory, under label noise.

    python -m noisy_fm.train --config=configs/pretrain/emoji.py:noise_rate=0.1 --workdir=runs/a

Hardware: two CPU cores, about a minute.
"""

from noisy_fm import config as config_lib


def get_config(arg: str = ""):
    args = config_lib.parse_arg(arg, noise_rate=0.0, seed=0)
    config = config_lib.train()
    config.data.domain = ("noto", "twemoji", "openmoji")
    config.noise.rate = args.noise_rate
    for name in config.seeds:
        config.seeds[name] = args.seed
    config.epochs = 10.0
    config.optimizer.learning_rate = 5e-3
    config.schedule.warmup_epochs = 0.5
    return config
