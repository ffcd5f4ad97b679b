"""CLIP with a ViT-B/16 on YFCC15M and CC12M under swapped captions, as the paper pre-trains it.

    python -m noisy_fm.train --config=configs/pretrain/clip_vit_b16_yfcc_cc12m.py:noise_rate=0.1 \
        --config.data.path=/data/yfcc_cc12m --workdir=gs://bucket/clip_vit_noise10

As clip_resnet50_yfcc15m.py, with the shards of both sets in one folder (in a subfolder each; keys
may repeat between them).

Hardware: batch 4,096 in bfloat16, 32 epochs, about 211,000 steps; the authors' release has
checkpoints of batch 8,192 (--config.batch_size=8192). --config.microbatches=8 gives the same
gradient in an eighth of the memory for activations, for two forward passes instead of one.
"""

from noisy_fm import recipes


def get_config(arg: str = ""):
    config, args = recipes.clip(arg)
    config.model = {
        "name": "clip_vit_b16",
        "scan": False,
        "remat": "none",
        "text": {"scan": False, "remat": "none"},
    }
    config.batch_size, config.optimizer.learning_rate = 4096, 5e-4
    if args.debug:
        return recipes.clip_on_emoji(config, epochs=8.0, patch=8, dim=96, depth=4, num_heads=3)
    return config
