"""Vision transformers, Swin and CLIP against timm, transformers and open_clip.

What the parity suite compares with the libraries themselves, the default suite compares with their
outputs in `references/zoo_transformers.json`, which `tools/reference_zoo_transformers.py` writes.
"""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import zoo
from zoo import Small

from noisy_fm.models.swin import Swin
from noisy_fm.models.vit import ViT
from noisy_fm.weights.maps import swin, vit

FROZEN = Path(__file__).parent / "references" / "zoo_transformers.json"

our_vit = partial(ViT, 10, patch=8, dim=32, depth=2, num_heads=4)
our_swin = partial(Swin, 10, dim=16, depths=(2, 2, 1), num_heads=(2, 4, 8))


def timm_vit(size: int = 32, **fields):
    from timm.models.vision_transformer import VisionTransformer

    shape = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
    return VisionTransformer(size, num_classes=10, **{**shape, **fields})


def timm_swin(size: int, window: int):
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(
        size, num_classes=10, embed_dim=16, depths=(2, 2, 1), num_heads=(2, 4, 8),
        window_size=window,
    )  # fmt: skip


def timm_clip_tower():
    import torch

    norm = partial(torch.nn.LayerNorm, eps=1e-5)
    return timm_vit(pre_norm=True, norm_layer=norm, act_layer="quick_gelu")


TIMM = {
    "vit": Small(our_vit, timm_vit, vit.timm, 32),
    "vit_gap": Small(
        partial(our_vit, pool="gap"),
        partial(timm_vit, class_token=False, global_pool="avg"),
        vit.timm,
        32,
    ),
    "vit_norm_gap": Small(
        partial(our_vit, pool="norm_gap"),
        partial(timm_vit, class_token=False, global_pool="avg", fc_norm=False),
        vit.timm,
        32,
    ),
    "deit3": Small(
        partial(our_vit, class_position=False, layer_scale=1e-6),
        partial(timm_vit, no_embed_class=True, init_values=1e-6),
        vit.timm,
        32,
    ),
    "dinov2_reg": Small(
        partial(our_vit, patch=14, class_position=False, layer_scale=1e-5, registers=4),
        partial(
            timm_vit, 56, patch_size=14, no_embed_class=True, init_values=1e-5, reg_tokens=4
        ),
        vit.timm,
        56,
    ),
    "clip_tower": Small(
        partial(our_vit, pre_norm=True, epsilon=1e-5, activation="quick_gelu"),
        timm_clip_tower,
        vit.timm,
        32,
    ),
    # Maps of 16, 8 and 4 places a side in windows of 4: two stages shift, the last is one window.
    "swin": Small(partial(our_swin, window=4), partial(timm_swin, 64, 4), swin.timm, 64),
    # Maps of 14, 7 and 4 in windows of 3: every map is padded, and one is merged of odd size.
    "swin_padded": Small(partial(our_swin, window=3), partial(timm_swin, 56, 3), swin.timm, 56),
}


@pytest.mark.parity
@pytest.mark.parametrize("name", TIMM)
def test_outputs_are_timms(name):
    ours, theirs = zoo.outputs(TIMM[name]), zoo.reference_outputs(TIMM[name])
    print(name, {k: float(np.abs(ours[k] - theirs[k]).max()) for k in theirs})
    zoo.assert_equal(ours, theirs)
