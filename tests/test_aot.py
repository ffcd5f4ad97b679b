"""The ahead-of-time report, with virtual CPU devices in the place of a TPU slice."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from noisy_fm import config as config_lib
from noisy_fm import sharding, train
from noisy_fm.data.source import numbered

pytestmark = pytest.mark.slow  # of the compiler, or of other libraries


def load():
    file = Path(__file__).parent.parent / "tools" / "aot.py"
    spec = importlib.util.spec_from_file_location("aot", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def aot():
    patch = pytest.MonkeyPatch()
    patch.setenv("JAX_PLATFORMS", "cpu")
    for name in (
        "TPU_SKIP_MDS_QUERY",
        "TPU_ACCELERATOR_TYPE",
        "TPU_WORKER_HOSTNAMES",
        "ALLOW_MULTIPLE_LIBTPU_LOAD",
    ):
        patch.setenv(name, "1")  # so that the tool's own are taken back
    yield load()
    patch.undo()


def small():
    config = config_lib.train()
    config.model = {"name": "resnet10_narrow"}
    config.mesh.fsdp, config.mesh.data = 4, 2
    config.batch_size = 32
    return config


@pytest.fixture(scope="module")
def report(aot):
    chip = aot.Chip(memory=2**30, peak=1e12, clock=1e9, link=1e9)
    out = aot.report(
        small(), jax.devices(), chip, num_classes=10, num_examples=1000, utilization=0.5
    )
    return {"model": "resnet10_narrow", **out}


def bytes_of(tree) -> int:
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )


def test_memory_is_the_state_and_the_batch_of_one_device(aot, report):
    config = small()
    mesh = sharding.make_mesh(**config.mesh)
    plan = train.plan_training(
        config,
        train.make_task(config, numbered(10)),
        aot.example_batch(config, train.make_task(config, numbered(10))),
        mesh=mesh,
        num_examples=1000,
    )
    batch = 32 // 8 * (32 * 32 * 3 + 4)  # uint8 images and int32 labels
    memory = report["memory"]
    # And a key of eight bytes, and what the step does not read is not passed.
    assert memory["arguments"] == pytest.approx(bytes_of(plan.shapes) + batch, abs=64)
    # The state is given back in its own memory, but for scalars and the loss.
    assert memory["outputs"] < memory["arguments"] / 100
    parts = ("arguments", "temporary", "outputs", "program")
    assert memory["total"] == sum(memory[part] for part in parts)
    assert memory["share"] == memory["total"] / 2**30
    whole = sum(leaf.size for leaf in jax.tree.leaves(plan.shapes.params))
    assert report["parameters"] == whole
    # Adam's two moments and the parameters, mostly split four ways.
    assert memory["arguments"] < 3 * 4 * whole / 2


def test_flops_are_three_times_the_forward_passs(report):
    def conv(size, channels, features, kernel):
        return 2 * size**2 * channels * features * kernel**2

    sizes, widths = (32, 16, 8, 4), (16, 32, 64, 128)
    forward = conv(32, 3, 16, 3) + 2 * 128 * 10
    before = 16
    for size, width in zip(sizes, widths, strict=True):
        forward += conv(size, before, width, 3) + conv(size, width, width, 3)
        forward += conv(size, before, width, 1) if before != width else 0
        before = width
    assert report["model_flops"] == 3 * 32 * forward / 8


def test_collectives_and_the_step_time_follow_from_their_parts(report):
    moved, times = report["collectives"], report["projection"]
    assert moved["all-gather"]["sent"] == pytest.approx(moved["all-gather"]["bytes"] * 3 / 4)
    assert times["collectives"] == sum(kind["sent"] for kind in moved.values()) / 2e9
    assert times["arithmetic"] == report["model_flops"] / 0.5e12
    assert times["compiler"] == 0  # the CPU's compiler does not say
    assert times["step"] == times["arithmetic"] + times["collectives"]
    assert times["mfu"] < 0.5
    assert times["images_per_second"] == 32 / times["step"]


def test_the_compilers_estimate_counts_where_it_is_more(aot, report):
    chip = aot.Chip(memory=2**30, peak=1e12, clock=1e9, link=1e9)
    slow = aot.projection({**report, "compiler_cycles": 3_000_000_000}, chip, utilization=0.5)
    assert slow["step"] == 3 + slow["collectives"]


def test_the_table_has_every_part(aot, report):
    text = aot.table(report)
    for part in ("8 cpu, data 2 × fsdp 4 × tensor 1", "memory: total", "all-gather", "time: step"):
        assert part in text


def test_a_batch_that_does_not_divide_is_one_line(aot):
    config = small()
    config.batch_size = 20
    with pytest.raises(ValueError, match="expected a multiple of 8"):
        aot.report(
            config, jax.devices(), aot.CHIPS["v5e"], num_classes=10, num_examples=1000,
            utilization=0.5,
        )  # fmt: skip
