"""CLIP on your own images and captions, some of the captions swapped.

    python -m noisy_fm.train --workdir=runs/clip \
        --config=configs/pretrain/clip_folder.py:path=/data/pairs,captions=captions.csv:title

Images in folders train/ and val/ below `path`, and a table of captions (.csv, .tsv, .jsonl) beside
them or in each. Tar shards as img2dataset writes them: name=tar,captions=txt, the shards in folders
train/ and val/; parquet: name=parquet,captions=COLUMN.

Arguments: path, name, captions, size (pixels a side), noise_rate (the share of captions on other
images), seed. Validated by retrieval in both directions on val/.

Hardware: a GPU for tens of thousands of pairs; a ResNet-18 and a small text transformer.
"""

from noisy_fm import config as config_lib
from noisy_fm.data import augment


def get_config(arg: str = ""):
    args = config_lib.parse_arg(
        arg, path="", name="folder", captions="", size=96, noise_rate=0.0, seed=0
    )
    config = config_lib.train("contrast")
    config.data = {**config.data, "name": args.name, "labels": "", "size": args.size}
    config.data.path, config.data.captions, config.data.crop = args.path, args.captions, 0.5
    config.split, config.eval_split = "train", "val"
    config.noise = {"kind": "captions", "rate": args.noise_rate}
    config.seeds = dict.fromkeys(config.seeds, args.seed)
    config.model = {
        "name": "resnet18",
        "embed_dim": 256,
        "text": {"dim": 256, "depth": 4, "num_heads": 4},
    }
    config.task.augment = {"name": "imagenet"}
    config.task.normalize = {"mean": augment.CLIP_MEAN, "std": augment.CLIP_STD}
    config.batch_size, config.epochs = 256, 30.0
    config.optimizer = {"name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.1}
    config.optimizer.update(b2=0.98, eps=1e-6)
    config.decay = ".*(kernel|embed)$"
    config.schedule.warmup_epochs = 1.0
    config.evaluators.memorised.examples = 2048
    config.evaluators.retrieval = {"kind": "retrieval"}
    return config
