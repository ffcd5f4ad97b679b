"""CLIP on emoji: two small towers, from drawings and their names, in minutes on a CPU.

    python -m noisy_fm.train --config=configs/pretrain/clip_emoji.py --workdir=runs/clip_emoji

Validated on concepts that are not trained on: retrieval in both directions by name alone, zero-shot
classification, and both in a style that was never seen (fluent3d).

    --config=configs/pretrain/clip_emoji.py:noise_rate=0.3   30 % of the captions on other drawings
"""

from noisy_fm import config as config_lib


def get_config(arg: str = ""):
    args = config_lib.parse_arg(arg, noise_rate=0.0, seed=0)
    config = config_lib.train("contrast")
    config.model = {
        "name": "resnet10_half",
        "embed_dim": 128,
        "text": {"dim": 128, "depth": 2, "num_heads": 4, "context": 32},
    }
    config.data.domain = ("noto", "twemoji", "openmoji")
    config.data.labels = ""
    config.data.captions = "{name}, {subcategory}, {category}"
    config.noise = {"kind": "captions", "rate": args.noise_rate}
    config.seeds = {key: args.seed for key in config.seeds}
    config.task.hide = 0.4
    config.batch_size = 256
    config.epochs = 26.0
    config.optimizer.learning_rate = 2e-3
    config.optimizer.weight_decay = 0.1
    config.decay = ".*(kernel|embed)"
    config.schedule.warmup_epochs = 1.0
    return config
