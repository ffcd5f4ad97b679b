"""A study of seconds a cell on the emoji, as a config file."""

from noisy_fm import config as config_lib
from noisy_fm import study


def get_config(arg: str = ""):
    args = config_lib.parse_arg(arg, seeds=1, tiny=False)
    config = study.defaults()
    config.pretrain.data.domain = ("noto",)
    config.pretrain.model = {"name": "resnet10_narrow", "width": 4}
    config.pretrain.batch_size = 64
    config.pretrain.epochs = 1.0
    config.pretrain.checkpoint_every = 10
    config.noise_rates = (0.0, 0.3)
    config.seeds = args.seeds
    config.transfers = {
        "category": {
            "data": {"name": "emoji_domains", "labels": "category", "domain": "noto"},
            "unseen": {"lineart": {"domain": "lineart"}},
        },
        "digits": {"data": {"name": "digits"}},
    }
    config.probe_seeds = 2
    config.probe_epochs = 2
    if args.tiny:
        config.transfers = {"digits": {"data": {"name": "digits"}}}
        config.methods, config.probe_seeds, config.probe_epochs = ("lp",), 1, 1
    return config
