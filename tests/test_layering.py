"""Imports point one way, and the array layer imports cold."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "noisy_fm"
# Each layer may import from the ones before it, and from itself.
LAYERS = (
    {
        *("noise", "manifest", "spectrum", "polar", "nmtune", "losses", "statistics"),
        "zeroshot",
        *("progress", "messages", "files", "scalars", "figures"),
    },
    {"data", "models", "texts"},
    {
        "config",
        "app",
        "hosts",
        "children",
        "lease",
        "signals",
        "sharding",
        "collectives",
        "optim",
        "checkpoint",
        "corruptions",
        "model",
        "tasks",
        "pretrained",
        "recipes",
        "weights",
    },
    {"train", "evaluators", "features"},
    {"probe", "estimator", "evaluate"},
    {"export"},
    {"study", "record", "report", "__main__"},
)
HELPERS = ("progress", "messages", "files", "scalars", "figures")
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def module_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(file: Path):
    """Names of our top-level modules that `file` imports anywhere, functions included."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "noisy_fm" and len(parts) > 1 and parts[1] in LEVEL:
                yield parts[1]


def test_the_layers_are_the_modules():
    modules = {module_of(file) for file in PACKAGE.rglob("*.py")} - {"__init__"}
    named = [name for names in LAYERS for name in names]
    assert sorted(named) == sorted(modules)


@pytest.mark.parametrize(
    "file",
    [f for f in sorted(PACKAGE.rglob("*.py")) if module_of(f) != "__init__"],
    ids=lambda f: str(f.relative_to(PACKAGE)),
)
def test_imports_point_down(file):
    own = module_of(file)
    above = {name for name in imported(file) if LEVEL[name] > LEVEL[own]}
    assert not above, f"{own} must not import {sorted(above)}"
    if LEVEL[own] == 0:
        peers = {
            name
            for name in imported(file)
            if name not in (own, "spectrum", "polar", "manifest", *HELPERS)
        }
        assert not peers, f"{own} is an array module and must not import {sorted(peers)}"


@pytest.mark.parametrize("module", ["noisy_fm", "noisy_fm.spectrum", "noisy_fm.noise"])
def test_imports_cold(module):
    """No TensorFlow, no flags, no data and no JAX are loaded by these imports."""
    heavy = ["tensorflow", "torch", "absl.flags", "jax", "noisy_fm.data", "matplotlib", "sklearn"]
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_nmtune_imports_without_data_or_flags():
    heavy = ["tensorflow", "torch", "noisy_fm.data", "noisy_fm.train", "grain"]
    code = f"import sys, noisy_fm.nmtune; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
