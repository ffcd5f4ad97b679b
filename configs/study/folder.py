"""Label noise on your own images: a study on folders train/CLASS/ and val/CLASS/, to its report.

    python -m noisy_fm.study --config=configs/study/folder.py:path=/data/flowers,quick \
        --workdir=runs/flowers

Arguments: `path` (the images), `size` (pixels a side), `unseen` (a folder like `path`, whose val/
has the same classes in another style: the test out of domain), `downstream` (a folder like `path`
of any classes, to tune heads on; without it, `path` itself), and `quick`: a narrow ResNet on 32×32
images at γ = 0 and 30 %, a few minutes on two CPU cores for some thousand images, to see that all
is in place. Other storages: --config.pretrain.data.name=parquet and the same in
--config.transfers.own.data.name (tar, array_record, tfds:NAME).

Hardware: a GPU for the whole study, fifteen training runs of configs/pretrain/folder.py;
--scheduler=local:N takes as many at a time.
"""

from noisy_fm import config as config_lib
from noisy_fm import study
from noisy_fm.data import augment


def get_config(arg: str = ""):
    args = config_lib.parse_arg(arg, path="", unseen="", downstream="", size=96, quick=False)
    config = study.defaults()
    train = config.pretrain
    train.data = {**train.data, "name": "folder", "labels": "", "size": args.size}
    train.data.path = args.path
    train.split, train.eval_split = "train", "val"
    train.model.name = "resnet18"
    train.task.normalize = {"mean": augment.IMAGENET_MEAN, "std": augment.IMAGENET_STD}
    train.task.augment = {"name": "imagenet", "policy": "3a", "color_jitter": 0.3}
    train.epochs, train.schedule.warmup_epochs = 30.0, 2.0
    train.optimizer.weight_decay = 0.05
    config.seeds = 3
    config.transfers = {
        "own": study.transfer(
            {"name": "folder", "path": args.downstream or args.path},
            eval_split="val",
            unseen={"unseen": {"path": args.unseen}} if args.unseen else {},
        )
    }
    if args.quick:
        train.data.size = 32
        train.model = {"name": "resnet10_half"}
        train.epochs, train.schedule.warmup_epochs, train.batch_size = 5.0, 0.5, 32
        train.optimizer.learning_rate = 5e-3
        config.noise_rates, config.seeds, config.probe_seeds = (0.0, 0.3), 1, 2
    return config
