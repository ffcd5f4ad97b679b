"""Label noise in pre-training, on emoji drawn by different artists: the whole study in minutes.

    python -m noisy_fm.study --config=configs/study/emoji.py --workdir=runs/emoji

Six small ResNets, three without noise and three with 30 % wrong labels. They train without
augmentation until they have learned most of the wrong labels by heart, as large models trained
long do: without that the spectrum moves less, and out-of-domain accuracy hardly.

    --config=configs/study/emoji.py:full           six γ and ten seeds, the study of
                                                   experiments/emoji_full/
    --config=configs/study/emoji.py:full,augmented the same with augmentation, which keeps the
                                                   models from memorising
    --config=configs/study/emoji.py:full,persons   labels of persons wrong among one another
    --config=configs/study/emoji.py:vit            small vision transformers: half an hour a model
                                                   on a CPU core, not run here
    --config=configs/study/emoji.py:release        heads of the authors' code, which are tuned on
                                                   two views of each image
"""

from noisy_fm import config as config_lib
from noisy_fm import study

SOURCES = ("noto", "twemoji", "openmoji")  # drawn by artists seen in pre-training …
UNSEEN = ("lineart", "fluent3d", "fluentflat")  # … and in styles never seen
COLOURED = ("fluent3d", "fluentflat")  # line art has no skin tones and too few persons
LABELS = {
    "category": UNSEEN,  # three that follow from the labels of pre-training …
    "subject": UNSEEN,
    "person_kind": COLOURED,
    "skin_tone": COLOURED,  # … and two that do not
    "gender": COLOURED,
}
PERSONS = (36, 37, 38, 39, 40)  # labels of pre-training: activity, fantasy, gesture, role, sport


def transfers() -> dict:
    """Every labelling tuned on every artist and tested on the unseen ones; who drew it; digits."""
    drawings = {
        f"{labels}_{source}": study.transfer(
            {"name": "emoji_domains", "labels": labels, "domain": source},
            unseen={target: {"domain": target} for target in unseen},
        )
        for labels, unseen in LABELS.items()
        for source in SOURCES
    }
    return {
        **drawings,
        "artist": study.transfer({"name": "emoji_domains", "labels": "artist"}),
        "digits": study.transfer({"name": "digits"}),
    }


def get_config(arg: str = ""):
    args = config_lib.parse_arg(
        arg, full=False, augmented=False, persons=False, release=False, vit=False
    )
    config = study.defaults()
    config.transfers = transfers()
    config.noise_rates = (0.0, 0.3)
    config.seeds = 3
    config.probe_seeds = 1
    config.pretrain.data.domain = SOURCES
    config.pretrain.epochs = 15.0
    config.pretrain.optimizer.learning_rate = 5e-3
    config.pretrain.schedule.warmup_epochs = 0.5
    if args.full:
        config.noise_rates = (0.0, 0.025, 0.05, 0.1, 0.2, 0.3)
        config.seeds = 10
        config.pretrain.epochs = 25.0
    if args.vit:
        config.pretrain.model = {"name": "vit_tiny", "patch": 8}
        config.pretrain.epochs = 40.0
        config.pretrain.optimizer.learning_rate = 1e-3
        config.pretrain.schedule.warmup_epochs = 2.0
    if not args.augmented:
        config.pretrain.task.augment = {"name": "none"}
    if args.persons:
        config.pretrain.noise = {"kind": "subset", "rate": 0.0, "classes": PERSONS}
    if args.release:
        config.preset = "release"
        config.second_view = {"name": "flip_crop"}
    return config
