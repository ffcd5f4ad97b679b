"""Models of other libraries: features a second beside timm's, and the time that reading takes.

    python tools/bench.py zoo [--models resnet50 swin_tiny_patch4_window7_224 --batch 8]

Features (`pre_logits`) of one resident batch: our jitted network, and timm's under torch.compile,
channels last, without gradients, in turn, with drawn weights. Reading is `load_model` of a
safetensors file of ViT-L/16's 304 million parameters in a process of its own, with its peak of
memory; timm and torch are imported only here.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from bench import Case

from noisy_fm import models
from noisy_fm.weights import files, rules
from noisy_fm.weights import zoo as names

MODELS = (
    *("resnet50", "tf_efficientnet_b0", "convnext_tiny", "resnetv2_50x1_bit"),
    *("swin_tiny_patch4_window7_224", "vit_small_patch16_224"),
)
READ = """
import re, sys, time
from noisy_fm.model import load_model
import jax

def peak():  # in MiB; ru_maxrss would count the process that forked this one
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024

jax.devices()
before = peak()
began = time.perf_counter()
model = load_model(sys.argv[1])
seconds = time.perf_counter() - began
print(seconds, peak() - before)
"""


def run(measure, argv) -> list[Case]:
    parser = argparse.ArgumentParser(prog="bench.py zoo")
    parser.add_argument("--models", nargs="*", choices=names.TIMM, default=MODELS)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--only", choices=("features", "files"))
    args = parser.parse_args(argv)
    cases = []
    if args.only != "files":
        cases += [features_case(measure, name, args) for name in args.models]
    if args.only != "features":
        cases += file_cases()
    return cases


def features_case(measure, name: str, args) -> Case:
    import timm
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    row = names.TIMM[name]
    theirs = timm.create_model(name, num_classes=0).eval().to(memory_format=torch.channels_last)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[args.precision]
    module = models.create(row.model, 0, **row.fields, dtype=jnp.dtype(args.precision))
    state = {k: v.numpy() for k, v in theirs.state_dict().items()}
    shapes = names.shapes_of(module, row.size)
    variables = jax.device_put(rules.to_ours(state, shapes, names.table("timm", module)))
    theirs = theirs.to(device)
    drawn = np.random.default_rng(0).normal(size=(args.batch, row.size, row.size, 3))
    images = jax.device_put(drawn.astype(np.float32))
    given = torch.from_numpy(drawn.astype(np.float32)).permute(0, 3, 1, 2).to(device)
    given = given.contiguous(memory_format=torch.channels_last)
    forward = jax.jit(lambda v, x: module.apply(v, x)[0])
    compiled = torch.compile(theirs)

    def peer():
        with torch.no_grad(), torch.autocast(device, dtype, enabled=dtype != torch.float32):
            found = compiled(given)
        return found.float().cpu().numpy()

    def ours():
        return np.asarray(forward(variables, images))

    if args.precision == "float32":
        np.testing.assert_allclose(ours(), peer(), atol=2e-3 * np.abs(peer()).max())
    case = measure(name, ours, {"timm": peer})
    return Case(
        f"{name}, batch {args.batch}, {args.precision}",
        ours=args.batch / case.ours,
        unit="images/s",
        peers={"timm": args.batch / case.peers["timm"]},
        ratios=case.ratios,
        target={"timm": 1.0},
    )


def file_cases() -> list[Case]:
    row = names.TIMM["vit_large_patch16_224"]
    module = models.create(row.model, 1000, **row.fields)
    table = names.table("timm", module)
    shapes = names.names_and_shapes(module, row.size, table)
    state = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    size = sum(value.nbytes for value in state.values()) / 2**20
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        began = time.perf_counter()
        files.write(path, state)
        written = time.perf_counter() - began
        seen = {"input_size": [3, 224, 224], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.9}
        config = {"architecture": "vit_large_patch16_224", "pretrained_cfg": seen}
        (path.parent / "config.json").write_text(json.dumps(config))
        del state
        out = subprocess.run([sys.executable, "-c", READ, folder], check=True, capture_output=True)
        seconds, memory = map(float, out.stdout.split()[-2:])
    return [
        Case("load_model of 304 M parameters", seconds,
             note=f"{memory / size:.2f} times the file's {size:,.0f} MiB; aim 5 s, 2 times"),
        Case("writing and reading them back", written, note="aim 5 s"),
    ]  # fmt: skip
