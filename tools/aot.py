"""Compiles the actual training step for TPU slices that are not here, and says what it would cost.

    python tools/aot.py --config=configs/pretrain/vit_b16_in1k.py --topology=v5e:16x16 --out=a.json

Needs the `tpu` extra (its compiler runs on any Linux machine) in an environment of its own. Keys
are overridden with --config.KEY=VALUE, such as --config.mesh.fsdp=16. Nothing of this is measured:
memory, operations and collectives are the compiler's; the step time is projected from them.
"""

import os
import time
from collections import Counter
from typing import NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"
# This machine is no TPU host, and the compiler need not look for one.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from etils import epath
from jax.experimental import topologies
from jax.sharding import NamedSharding
from ml_collections import ConfigDict, config_flags

from noisy_fm import checkpoint, collectives, files, optim, sharding, tasks, train
from noisy_fm import config as config_lib
from noisy_fm.app import fail
from noisy_fm.data.source import numbered
from noisy_fm.train import flops

GIB = 2**30


class Chip(NamedTuple):
    """A TPU chip: memory in bytes, bf16 FLOP/s, clock in Hz, interconnect in bytes a second.

    `link` is one way over one link; there are two links an axis of the torus.
    """

    memory: int
    peak: float
    clock: float
    link: float


# Vendor's data sheets; clocks and links: Austin et al., "How to scale your model" (2025).
CHIPS = {
    "v5e": Chip(16 * GIB, 197e12, 1.5e9, 45e9),
    "v5p": Chip(95 * GIB, 459e12, 1.75e9, 90e9),
    "v6e": Chip(32 * GIB, 918e12, 1.75e9, 90e9),
}


def report(
    config: ConfigDict,
    devices,
    chip: Chip,
    *,
    num_classes: int,
    num_examples: int,
    utilization: float,
) -> dict:
    """Compiles `config`'s training step for `devices`; plain numbers, bytes and seconds a chip."""
    mesh = sharding.make_mesh(**config.mesh, devices=devices)
    sharding.check_batch(config.batch_size // config.microbatches, mesh)
    task = train.make_task(config, numbered(num_classes))
    example = example_batch(config, task)
    plan = train.plan_training(config, task, example, mesh=mesh, num_examples=num_examples)
    batch = {
        name: jax.ShapeDtypeStruct(
            (config.batch_size, *value.shape[1:]),
            value.dtype,
            sharding=NamedSharding(mesh, sharding.BATCH),
        )
        for name, value in example.items()
    }
    step = train.make_step(
        task, plan.tx, plan.shapes, microbatches=config.microbatches, ema=config.ema
    )
    began = time.perf_counter()
    with jax.set_mesh(mesh):
        compiled = step.lower(plan.shapes, batch).compile()
    seconds = time.perf_counter() - began
    text = compiled.as_text()
    out = {
        "chips": len(devices),
        "kind": devices[0].device_kind,
        "mesh": dict(mesh.shape),
        "batch_size": config.batch_size,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(plan.shapes.params)),
        "compile_seconds": round(seconds, 1),
        "memory": memory(compiled, chip),
        "model_flops": model_flops(task, plan.shapes, batch) / len(devices),
        "compiler_cycles": collectives.cycles(text),
        "collectives": summary(collectives.read(text, devices=len(devices))),
    }
    return {**out, "projection": projection(out, chip, utilization=utilization)}


def example_batch(config: ConfigDict, task: tasks.Task) -> dict[str, np.ndarray]:
    """A batch of one as the loader gives it: canvases with the extent of their crop, or images."""
    size = config.data.size
    batch = {
        "image": np.zeros((1, size, size, 3), np.uint8),
        "label": np.zeros(1, np.int32),
        "caption": np.array(["a caption"]),
        "id": np.zeros(1, np.int32),
    }
    known = {"image", "id", *task.columns}
    batch = task.collate({name: value for name, value in batch.items() if name in known})
    if config.task.augment.name == "imagenet":
        batch["extent"] = np.zeros((1, 2), np.int32)
    return batch


def memory(compiled, chip: Chip) -> dict[str, float]:
    """Bytes a chip: what goes in, is worked with, comes out in new memory, and the program."""
    stats = compiled.memory_analysis()
    parts = {
        "arguments": stats.argument_size_in_bytes,
        "temporary": stats.temp_size_in_bytes,
        "outputs": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "program": stats.generated_code_size_in_bytes,
    }
    total = sum(parts.values())
    return {**parts, "total": total, "limit": chip.memory, "share": total / chip.memory}


def model_flops(task, state, batch) -> int:
    """FLOPs of one step over the whole batch: three times the forward pass's."""

    def forward(params, frozen, model_state, images):
        whole = optim.join(params, frozen)
        out = task.predict_fn(whole, model_state, {**batch_like, "image": images})
        return out["logits"] if "logits" in out else out["loss"]

    batch_like = {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in batch.items()}
    return 3 * flops.count(forward, state.params, state.frozen, state.model_state, batch["image"])


def summary(moved: list[collectives.Collective]) -> dict[str, dict[str, float]]:
    """By kind: how many run a step, the bytes of their arrays, the bytes a chip sends."""
    count, size, sent = Counter(), Counter(), Counter()
    for one in moved:
        count[one.kind] += one.times
        size[one.kind] += one.bytes
        sent[one.kind] += one.sent
    return {k: {"count": count[k], "bytes": size[k], "sent": sent[k]} for k in sorted(count)}


def projection(out: dict, chip: Chip, *, utilization: float) -> dict[str, float]:
    """Seconds of a step: one chip's work, then the collectives.

    The work is the model's arithmetic at `utilization` of the peak or, if that is more, the
    compiler's own estimate, which includes augmentation, optimiser and memory; collectives are
    over both links of one torus axis, and nothing of them is hidden behind the work.
    """
    arithmetic = out["model_flops"] / (chip.peak * utilization)
    compiler = out["compiler_cycles"] / chip.clock
    network = sum(kind["sent"] for kind in out["collectives"].values()) / (2 * chip.link)
    step = max(arithmetic, compiler) + network
    return {
        "arithmetic": arithmetic,
        "compiler": compiler,
        "collectives": network,
        "step": step,
        "images_per_second": out["batch_size"] / step,
        "mfu": out["model_flops"] / (chip.peak * step),
        "assumed_utilization": utilization,
    }


def table(out: dict) -> str:
    """The numbers of one report as lines of text."""
    memory, times = out["memory"], out["projection"]
    mesh = " × ".join(f"{name} {size}" for name, size in out["mesh"].items())
    rows = [
        ("chips", f"{out['chips']} {out['kind']}, {mesh}"),
        ("model", f"{out['model']}, {out['parameters']:,} parameters, batch {out['batch_size']}"),
        *((f"memory: {k}", f"{v / GIB:8.3f} GiB") for k, v in memory.items() if k != "share"),
        ("memory: share", f"{memory['share']:8.1%}"),
        ("model FLOPs", f"{out['model_flops'] / 1e12:8.3f} TFLOP a chip and step"),
    ]
    for kind, moved in out["collectives"].items():
        text = f"{moved['sent'] / 1e6:8.1f} MB sent a chip and step, in {moved['count']}"
        rows.append((kind, text))
    for name in ("arithmetic", "compiler", "collectives", "step"):
        rows.append((f"time: {name}", f"{times[name] * 1e3:8.2f} ms"))
    rows.append(("images a second", f"{times['images_per_second']:8.0f}"))
    rows.append(("MFU", f"{times['mfu']:8.1%} (arithmetic at {times['assumed_utilization']:.0%})"))
    rows.append(("compiled in", f"{out['compile_seconds']:8.1f} s"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {text}" for name, text in rows)


def markdown(reports: list[dict]) -> str:
    """The reports as one table, a row each."""
    head = (
        "model, batch", "slice, mesh (data × fsdp)", "memory a chip, of", "TFLOP a chip",
        "sent a chip", "arithmetic", "compiler", "collectives", "step", "images/s", "compiled in",
    )  # fmt: skip
    rows = [head, ("---",) * len(head)]
    for out in reports:
        used, times, mesh = out["memory"], out["projection"], out["mesh"]
        sent = sum(kind["sent"] for kind in out["collectives"].values())
        rows.append(
            (
                f"{out['model']}, {out['batch_size']}",
                f"{out['topology']}, {mesh['data']} × {mesh['fsdp']}",
                f"{used['total'] / GIB:.2f} of {used['limit'] / GIB:.0f} GiB",
                f"{out['model_flops'] / 1e12:.2f}",
                f"{sent / 1e6:.0f} MB",
                *(
                    f"{times[name] * 1e3:.1f} ms"
                    for name in ("arithmetic", "compiler", "collectives", "step")
                ),
                f"{times['images_per_second']:,.0f}",
                f"{out['compile_seconds']:.0f} s",
            )
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(argv) -> None:
    given = flags.FLAGS
    if given.table:
        tables = sorted(epath.Path(given.table).glob("*.json"))
        print(markdown([files.read_json(file) for file in tables]))
        return
    if given.config is None:
        fail("--config is missing; expected --config=FILE, or --table=FOLDER")
    generation = given.topology.partition(":")[0]
    if generation not in CHIPS:
        fail(f"--topology={given.topology}; expected v5e:16x16, v5p:4x4x8, v6e:16x16, …")
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=given.topology).devices
        config_lib.check_train(given.config)
        out = report(
            given.config,
            devices,
            CHIPS[generation],
            num_classes=given.num_classes,
            num_examples=given.num_examples,
            utilization=given.utilization,
        )
    except ValueError as error:
        fail(error)
    out = {
        "topology": given.topology,
        "model": given.config.model.name,
        **out,
        "config": config_lib.plain(given.config),
        **checkpoint.provenance(),
    }
    print(table(out))
    if given.out:
        files.write_json(given.out, out)


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "the training config to compile")
    flags.DEFINE_string("topology", "v5e:16x16", "TPU generation and shape of the slice")
    flags.DEFINE_string("out", "", "JSON file to write")
    flags.DEFINE_integer("num_classes", 1000, "classes of the data, which is not read")
    flags.DEFINE_integer("num_examples", 1_281_167, "examples of the data, which is not read")
    flags.DEFINE_float("utilization", 0.5, "share of the peak FLOP/s assumed for the arithmetic")
    flags.DEFINE_string("table", "", "folder whose reports to print as a table; compiles nothing")
    app.run(main)
