"""CLIP on emoji: two small towers, from drawings and their names, in minutes on a CPU.

    python -m noisy_fm.train --config=configs/pretrain/clip_emoji.py --workdir=runs/clip_emoji

Validated on concepts that are not trained on: retrieval in both directions by name alone, zero-shot
classification, and both in a style that was never seen (fluent3d).

    --config=configs/pretrain/clip_emoji.py:noise_rate=0.3   30 % of the captions on other drawings
"""

from noisy_fm import config as config_lib


def retrieval(**data) -> dict:
    """By name alone, among drawings without a skin tone."""
    return {"kind": "retrieval", "data": {"captions": "{name}", "labels": "category", **data}}


def zero_shot(labels: str) -> dict:
    """In a style that was never seen, by the names of the classes."""
    data = {"captions": "", "labels": labels, "domain": ("fluent3d",)}
    return {"kind": "zero_shot", "data": data, "prompts": "name"}


def get_config(arg: str = ""):
    args = config_lib.parse_arg(arg, noise_rate=0.0, seed=0)
    config = config_lib.train("contrast")
    config.model = {
        "name": "resnet10_half",
        "embed_dim": 128,
        "text": {"dim": 128, "depth": 2, "num_heads": 4, "context": 20},
    }
    config.data.domain = ("noto", "twemoji", "openmoji")
    config.data.labels = "category"  # one drawing a concept, without skin tones; no flags
    config.data.captions = "{name}, {subcategory}, {category}"
    config.noise = {"kind": "captions", "rate": args.noise_rate}
    config.seeds = dict.fromkeys(config.seeds, args.seed)
    config.task.hide = 0.5
    config.ema = 0.98
    config.batch_size = 256
    config.epochs = 45.0
    config.optimizer.learning_rate = 3e-3
    config.optimizer.weight_decay = 0.1
    config.decay = ".*(kernel|embed)"
    config.schedule.warmup_epochs = 1.0
    config.evaluators = {
        "validation": {"kind": "validation"},
        "memorised": {"kind": "memorised", "examples": 1000},
        "spectrum": {"kind": "spectrum", "names": ("pre_logits",), "examples": 1024},
        "seen": retrieval(domain=("noto",)),
        "unseen": retrieval(domain=("fluent3d",)),
        "within": {**retrieval(domain=("fluent3d",)), "within": "category"},
        "known": {**retrieval(domain=("fluent3d",)), "seen_words": True},
        "category": zero_shot("category"),
        "subcategory": zero_shot("subcategory"),
    }
    return config
