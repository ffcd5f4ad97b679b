"""Swapped captions in image–text pre-training, on emoji: the whole study.

    python -m noisy_fm.study --config=configs/study/emoji_clip.py --workdir=runs/emoji_clip \
        --scheduler=local:2

Pairs of small towers (configs/pretrain/clip_emoji.py), without noise and with 30 % of the captions
on other drawings, three seeds each: zero-shot accuracy and retrieval on concepts and a style that
were never seen, then spectrum and heads as for any other study. About five minutes a model on two
CPU cores.

    --config=configs/study/emoji_clip.py:full   γ = 0, 5, 10, 20, 30 % and five seeds
"""

import runpy
from pathlib import Path

from noisy_fm import config as config_lib
from noisy_fm import study

CONFIGS = Path(__file__).parent.parent


def get_config(arg: str = ""):
    args = config_lib.parse_arg(arg, full=False)
    config = study.defaults()
    config.pretrain = runpy.run_path(str(CONFIGS / "pretrain" / "clip_emoji.py"))["get_config"]()
    config.pretrain.eval_every = -1
    config.transfers = runpy.run_path(str(CONFIGS / "study" / "emoji.py"))["transfers"]()
    config.noise_rates = (0.0, 0.05, 0.1, 0.2, 0.3) if args.full else (0.0, 0.3)
    config.seeds = 5 if args.full else 3
    config.probe_seeds = 1
    return config
