"""Label noise in pre-training, on emoji drawn by different artists: the whole study in minutes.

    python -m noisy_fm.study --config=configs/study/emoji.py --workdir=runs/emoji

Hardware: two CPU cores, five to ten minutes with the installation. Three pre-training seeds
(--config.seeds=3) take three times as long, --config.model=vit_tiny some half an hour. The `full`
variant trains twenty times longer on three seeds, meant to memorise the wrong labels (a night on
two cores at most, estimated from the short run's speed; not run yet):

    python -m noisy_fm.study --config=configs/study/emoji.py:full --workdir=runs/emoji_full
"""

from noisy_fm import config as config_lib
from noisy_fm import study

SOURCES = ("noto", "twemoji", "openmoji")  # drawn by artists seen in pre-training …
UNSEEN = ("lineart", "fluent3d", "fluentflat")  # … and in styles never seen
COLOURED = ("fluent3d", "fluentflat")  # line art has no skin tones and too few persons
LABELS = {"category": UNSEEN, "subject": UNSEEN, "person_kind": COLOURED, "skin_tone": COLOURED}


def transfers() -> dict:
    """Every labelling tuned on every artist and tested on the unseen ones, and digits."""
    drawings = {
        f"{labels}_{source}": study.transfer(
            {"name": "emoji_domains", "labels": labels, "domain": source},
            unseen={target: {"domain": target} for target in unseen},
        )
        for labels, unseen in LABELS.items()
        for source in SOURCES
    }
    return {**drawings, "digits": study.transfer({"name": "digits"})}


def get_config(arg: str = ""):
    args = config_lib.parse_arg(arg, full=False)
    config = study.defaults()
    config.pretrain.data.domain = SOURCES
    config.transfers = transfers()
    config.pretrain.epochs = 10.0
    config.pretrain.optimizer.learning_rate = 5e-3
    config.pretrain.schedule.warmup_epochs = 0.5
    if args.full:
        config.pretrain.epochs = 200.0
        config.pretrain.schedule.warmup_epochs = 5.0
        config.seeds = 3
    return config
