"""Writes tests/references/zoo_transformers.json: what timm, transformers and open_clip compute.

In the environment of `make test-parity`:

    python tools/reference_zoo_transformers.py

Of the small networks in tests/zoo_transformers.py, whose arrays are drawn by their names.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from zoo_transformers import CASES, FROZEN


def main() -> None:
    lines = []
    for name, (small, _, reference) in CASES.items():
        arrays = reference(small).items()
        found = {key: value.astype(float).round(5).tolist() for key, value in arrays}
        lines.append(f"{json.dumps(name)}: {json.dumps(found, separators=(',', ':'))}")
    FROZEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
