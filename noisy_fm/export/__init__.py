"""A model to other frameworks, in folders that say what they are and were checked.

    from noisy_fm.export import export, export_head
    export("runs/a", "onnx", "exported")

Each folder holds the model as its target takes it, noisy_fm.json (preprocessing, classes, noise),
README.md and parity.json. What the target computes of the same images was compared with the model
before the folder had its name.
"""

from noisy_fm.export.heads import export_head
from noisy_fm.export.parity import ParityError
from noisy_fm.export.writing import TARGETS, export

__all__ = ["TARGETS", "ParityError", "export", "export_head"]
