"""Writes tests/references/zoo.json: outputs of timm's small networks, with drawn weights.

    make test-parity  # makes the environment
    .venv-parity/bin/python -W ignore tools/reference_zoo.py

The networks, their weights and images are those of the tests (`tests/zoo.py`).
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import zoo
import zoo_conv

SMALLS = zoo_conv.SMALLS


def main() -> None:
    import torch

    torch.set_num_threads(1)
    lines = []
    for name, small in SMALLS.items():
        found = {
            key: [[round(float(one), 6) for one in row] for row in rows]
            for key, rows in zoo.reference_outputs(small).items()
        }
        lines.append(f"{json.dumps(name)}: {json.dumps(found)}")
    zoo.FROZEN.write_text("{" + ",\n".join(lines) + "}\n")


if __name__ == "__main__":
    main()
