"""Networks that compute what ours does, in a form that other libraries have."""

import jax.numpy as jnp
import numpy as np

from noisy_fm.models.vit import OF_THE_TOKEN, ViT, sincos2d


def learned_positions(module: ViT, variables: dict, size: int) -> tuple[ViT, dict]:
    """Fixed positions as an array of parameters, which other libraries read from a file."""
    if module.position == "learned":
        return module, variables
    side = size // module.patch
    table = sincos2d(side, side, module.dim)[None]
    params = {**variables["params"], "pos_embed": table}
    return module.clone(position="learned", class_position=False), {**variables, "params": params}


def placed_token(module: ViT, variables: dict) -> tuple[ViT, dict]:
    """A class token without a position as one at position 0: the row of zeros adds nothing."""
    if module.class_position or module.pool not in OF_THE_TOKEN:
        return module, variables
    table = variables["params"]["pos_embed"]
    table = np.concatenate([np.zeros_like(table[:, :1]), table], axis=1)
    params = {**variables["params"], "pos_embed": table}
    return module.clone(class_position=True), {**variables, "params": params}


def with_mean(module: ViT, variables: dict) -> tuple[ViT, dict]:
    """A head of the class token as one of token and patches' mean that gives the mean no weight."""
    if module.pool != "token" or not module.num_classes:
        return module, variables
    head = variables["params"]["head"]
    kernel = np.concatenate([head["kernel"], np.zeros_like(head["kernel"])])
    params = {**variables["params"], "head": {**head, "kernel": kernel}}
    return module.clone(pool="token_mean"), {**variables, "params": params}


def image_tower(clip, variables: dict):
    """CLIP's image tower alone, the projection into the common space as its head."""
    params = variables["params"]
    head = params["image_projection"]
    bias = head.get("bias", np.zeros(clip.embed_dim, np.float32))
    alone = {**params["image"], "head": {"kernel": head["kernel"], "bias": bias}}
    module = clip.image.clone(num_classes=clip.embed_dim, dtype=jnp.float32)
    statistics = variables.get("batch_stats", {}).get("image")
    return module, {"params": alone, **({"batch_stats": statistics} if statistics else {})}


def small_windows(module, variables: dict, size: int) -> dict:
    """Swin's tables of positions of only the window that maps smaller than a window have."""
    params, side = dict(variables["params"]), size // module.patch
    for i, depth in enumerate(module.depths, 1):
        window = min(module.window, side)
        lost, rows = module.window - window, 2 * module.window - 1
        for j in range(depth):
            name = f"stage{i}_block{j}"
            table = params[name]["attn"]["position_bias"]
            grid = table.reshape(rows, rows, -1)[lost : rows - lost, lost : rows - lost]
            attention = {**params[name]["attn"], "position_bias": grid.reshape(-1, table.shape[-1])}
            params[name] = {**params[name], "attn": attention}
        side = -(-side // 2)
    return {**variables, "params": params}
