"""CLIP with a ResNet-50 on YFCC15M under swapped captions, as the paper pre-trains it.

    python -m noisy_fm.train --config=configs/pretrain/clip_resnet50_yfcc15m.py:noise_rate=0.1 \
        --config.data.path=/data/yfcc15m --workdir=gs://bucket/clip_noise10

The same line on every host; relaunched, it resumes. The data are tar shards as img2dataset writes
them (--config.data.captions=txt; json:KEY for a key of their JSON), in folders train/ and val/: a
few shards moved to the latter are held out.

Arguments: noise_rate (the paper: 0, 0.05, 0.1, 0.2, 0.3: the share of captions on other images),
pair_swaps (swap ⌊γN⌋ random pairs instead, as the authors' script does), seed, debug (the same
recipe, shrunken, on the emoji).

Hardware: batch 4,096 in bfloat16, 32 epochs, about 117,000 steps. Expect zero-shot accuracies on
ImageNet near the paper's Table 1; this project has not run it.
"""

from noisy_fm import recipes


def get_config(arg: str = ""):
    config, args = recipes.clip(arg)
    config.model = {"name": "clip_resnet50", "remat": "none", "text": {"remat": "none"}}
    config.batch_size, config.optimizer.learning_rate = 4096, 1e-3
    if args.debug:
        return recipes.clip_on_emoji(
            config, epochs=8.0, stage_sizes=(1, 1, 1, 1), width=16, num_heads=8
        )
    return config
