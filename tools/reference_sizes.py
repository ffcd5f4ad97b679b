"""Counts arrays and their elements, but for the head's, of every network of `weights.zoo.ROWS`.

    python tools/reference_sizes.py

`pretrained` says by them which network a file is of.
"""

import json
import math
from pathlib import Path

from noisy_fm import models, pretrained
from noisy_fm.weights import zoo

OUT = Path(pretrained.__file__).parent / "weights" / "sizes.json"


def main() -> None:
    found: dict[str, list[int]] = {}
    for library in ("timm", "torchvision"):
        for name, row in zoo.ROWS[library].items():
            module = models.create(row.model, 1, **row.fields)
            table = zoo.table(library, module)
            shapes = zoo.names_and_shapes(module, row.size, table)
            shapes = {n: s for n, s in shapes.items() if n not in pretrained.head_names(table)}
            found[f"{library}/{name}"] = [len(shapes), sum(map(math.prod, shapes.values()))]
    lines = [f" {json.dumps(name)}: {json.dumps(found[name])}" for name in sorted(found)]
    OUT.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
