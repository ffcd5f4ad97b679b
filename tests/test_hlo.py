"""What the devices send one another in a training step: parameters and sums, never activations."""

import functools
from collections import Counter

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy
from jax.sharding import NamedSharding, PartitionSpec

from noisy_fm import collectives, models, sharding
from noisy_fm.tasks.classify import classify
from noisy_fm.train import state as state_lib

pytestmark = pytest.mark.slow  # of the compiler, or of other libraries

BATCH = 32
SIZE = 32
HEADS = 4  # of vit_tiny


@functools.cache
def compiled(name, **axes):
    """(the collectives of a step of a model on a mesh of `axes`, the state's shapes)."""
    mesh = sharding.make_mesh(**axes)
    task = classify(MODELS[name](), 16)
    example = {
        "image": np.zeros((1, SIZE, SIZE, 3), np.uint8),
        "label": np.zeros(1, np.int32),
    }
    plan = state_lib.plan_state(
        task,
        lambda multipliers: optax.adamw(1e-3),
        example,
        mesh=mesh,
        trainable=toy.EVERYTHING,
        rules=sharding.RULES,
        seeds=toy.Seeds,
    )
    batch = {
        name: jax.ShapeDtypeStruct(
            (BATCH, *value.shape[1:]),
            value.dtype,
            sharding=NamedSharding(mesh, sharding.BATCH),
        )
        for name, value in example.items()
    }
    step = state_lib.make_step(task, plan.tx, plan.shapes)
    with jax.set_mesh(mesh):
        text = step.lower(plan.shapes, batch).compile().as_text()
    return collectives.read(text, devices=mesh.size), plan.shapes


def vit(**overrides):
    return models.create("vit_tiny", 16, depth=2, drop_path=0.1, **overrides)


class Relaid(nn.Module):
    """A transformer that is given its images split along their height."""

    @nn.compact
    def __call__(self, images, *, train):
        if train:
            images = jax.lax.with_sharding_constraint(images, PartitionSpec(None, "data"))
        return vit(scan=False)(images, train=train)


MODELS = {
    "vit": vit,
    "unrolled": lambda: vit(scan=False),
    "relaid": Relaid,
    "resnet": lambda: models.create(
        "resnet10_half", 16, width=64, stage_sizes=(1, 1), drop_path=0.1
    ),
}


def check(moved, shapes) -> None:
    """Raises for a collective that carries anything but parameters, gradients and sums.

    Their shapes: a parameter's, in any order of its dimensions, that of queries, keys and values
    also by heads; one number a channel; a scalar.
    """
    params = [leaf.shape for leaf in shapes.params.values()]
    vectors = [(n,) for shape in params for n in shape]
    by_heads = [
        (*leaf.shape[:-1], 3, HEADS, leaf.shape[-1] // 3 // HEADS)
        for name, leaf in shapes.params.items()
        if "/qkv/" in name
    ]
    known = {squeezed(shape) for shape in [*params, *vectors, *by_heads, ()]}
    for one in moved:
        if one.kind not in ("all-gather", "all-reduce", "reduce-scatter"):
            raise AssertionError(f"a re-layout: {one}")
        if not all(squeezed(array.shape) in known for array in one.arrays):
            raise AssertionError(f"an activation: {one}")


def squeezed(shape) -> tuple[int, ...]:
    return tuple(sorted(n for n in shape if n > 1))


def gathered(moved) -> Counter:
    return Counter(
        array.shape
        for one in moved
        if one.kind == "all-gather"
        for array in one.arrays
        for _ in range(one.times)
    )


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_data_parallel_sums_gradients_and_gathers_nothing(name):
    moved, shapes = compiled(name, data=8)
    check(moved, shapes)
    assert {one.kind for one in moved} == {"all-reduce"}
    assert {one.group for one in moved} == {8}
    summed = sum(one.bytes for one in moved)
    weights = 4 * sum(leaf.size for leaf in shapes.params.values())
    assert weights <= summed < 1.2 * weights


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_fully_sharded_gathers_each_split_parameter_once(name):
    moved, shapes = compiled(name, data=2, fsdp=4)
    check(moved, shapes)
    split = Counter(
        leaf.shape for leaf in shapes.params.values() if "fsdp" in tuple(leaf.sharding.spec)
    )
    assert split
    assert gathered(moved) == split


def test_tensor_parallel_sums_activations_twice_a_block_and_gathers_none():
    moved, _ = compiled("unrolled", data=2, fsdp=2, tensor=2)
    # Forward: after proj and fc2; backward: before qkv and fc1 (Megatron-LM).
    tokens = (BATCH // 4, (SIZE // 4) ** 2, 128)
    sums = [one for one in moved if any(array.shape == tokens for array in one.arrays)]
    assert len(sums) == 4 * 2
    assert all(one.kind == "all-reduce" and one.group == 2 for one in sums)
    for one in moved:
        if one.kind != "all-reduce":
            assert one.kind == "all-gather"
            # Parameters alone: no array that is gathered has the batch's share in it.
            assert all(BATCH // 4 not in array.shape for array in one.arrays), one


def test_batch_statistics_are_sums_over_all_devices():
    moved, _ = compiled("resnet", data=2, fsdp=4)
    norms = [one for one in moved if "/jvp(ResNet)/stem/norm/" in one.name]
    assert norms
    assert all(one.kind == "all-reduce" and one.group == 8 for one in norms)


def test_parameters_that_are_not_gathered_are_found(monkeypatch):
    monkeypatch.setattr(sharding, "gather", lambda tree, like: tree)
    moved, shapes = compiled.__wrapped__("unrolled", data=2, fsdp=4)
    with pytest.raises(AssertionError, match=r"an activation|a re-layout"):
        check(moved, shapes)


def test_a_batch_that_is_laid_out_again_is_found():
    moved, shapes = compiled("relaid", data=2, fsdp=4)
    with pytest.raises(AssertionError, match=r"an activation|a re-layout"):
        check(moved, shapes)


def program(function, *arrays):
    text = jax.jit(function).lower(*arrays).compile().as_text()
    return collectives.read(text, devices=8)


def test_collectives_are_read_with_their_bytes():
    mesh = sharding.make_mesh(data=2, fsdp=4)
    whole = NamedSharding(mesh, PartitionSpec())
    x = jnp.zeros((64, 128), jnp.int16)
    x = jax.device_put(x, NamedSharding(mesh, PartitionSpec("fsdp")))
    (gather,) = program(lambda x: jax.lax.with_sharding_constraint(x, whole), x)
    assert (gather.kind, gather.group, gather.times) == ("all-gather", 4, 1)
    assert gather.arrays == (collectives.Array("s16", (64, 128)),)
    assert gather.bytes == 64 * 128 * 2
    assert gather.sent == gather.bytes * 3 / 4

    y = jax.device_put(jnp.zeros((64, 128)), NamedSharding(mesh, sharding.BATCH))
    (reduce,) = program(lambda y: y.sum(0), y)
    assert (reduce.kind, reduce.group, reduce.bytes) == ("all-reduce", 8, 128 * 4)
    assert reduce.sent == 2 * reduce.bytes * 7 / 8


def test_collectives_in_a_loop_count_as_often_as_it_runs():
    mesh = sharding.make_mesh(data=8)
    x = jax.device_put(jnp.ones((8, 128)), NamedSharding(mesh, sharding.BATCH))

    def looped(x):
        return jax.lax.scan(lambda c, _: (jnp.tanh(c + x.sum(0) * c.sum()), None), x, None, 5)[0]

    moved = program(looped, x)
    assert sum(one.times for one in moved if one.times > 1) >= 5
    assert {one.times for one in moved} <= {1, 5}


# As libtpu 0.0.42 writes them: layouts with brackets, no trip count, fused scatters, async pairs.
TPU = """HloModule jit_step

%all-reduce-scatter.1 (input: f32[256,128]) -> f32[32,128] {
  %input = f32[256,128]{1,0:T(8,128)S(1)} parameter(0)
  %all-reduce.7 = f32[256,128]{1,0:T(8,128)} all-reduce(%input), channel_id=3, replica_groups=[2,8]<=[16], to_apply=%add
  ROOT %slice = f32[32,128]{1,0:T(8,128)} dynamic-slice(%all-reduce.7), dynamic_slice_sizes={32,128}
}

%body (p: (s32[], bf16[64,64])) -> (s32[], bf16[64,64]) {
  %p = (s32[]{:T(128)}, bf16[64,64]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %x = bf16[64,64]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %permute = (bf16[64,64]{1,0:T(8,128)(2,1)}, bf16[64,64]{1,0}, u32[], u32[]) collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}, metadata={op_name="jit(f)/shift"}, backend_config={"estimated_cycles":"10"}
  %done = bf16[64,64]{1,0:T(8,128)(2,1)} collective-permute-done(%permute)
  ROOT %out = (s32[]{:T(128)}, bf16[64,64]{1,0:T(8,128)(2,1)S(1)}) tuple(%i, %done)
}

%condition (p.1: (s32[], bf16[64,64])) -> pred[] {
  %p.1 = (s32[]{:T(128)}, bf16[64,64]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %end = s32[]{:T(128)} constant(12)
  ROOT %less = pred[]{:T(512)} compare(%i.1, %end), direction=LT
}

ENTRY %main (a: f32[256,128], b: bf16[64,64]) -> f32[32,128] {
  %a = f32[256,128]{1,0:T(8,128)} parameter(0)
  %start = (s32[]{:T(128)}, bf16[64,64]{1,0:T(8,128)(2,1)S(1)}) tuple(%zero, %b)
  %loop = (s32[]{:T(128)}, bf16[64,64]{1,0:T(8,128)(2,1)S(1)}) while(%start), condition=%condition, body=%body
  %alone = f32[4]{0} all-reduce(%c), replica_groups={{0},{1}}, to_apply=%add, backend_config={"estimated_cycles":"9223372036854775807"}
  ROOT %scattered = f32[32,128]{1,0:T(8,128)} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1, backend_config={"estimated_cycles":"7"}
}
"""  # noqa: E501


def test_a_tpu_program_is_read():
    permute, scatter = collectives.read(TPU, devices=16)
    assert (permute.kind, permute.times, permute.name) == ("collective-permute", 12, "jit(f)/shift")
    assert permute.sent == 12 * 64 * 64 * 2
    assert (scatter.kind, scatter.group) == ("reduce-scatter", 8)
    assert scatter.arrays == (collectives.Array("f32", (256, 128)),)
    assert scatter.sent == 256 * 128 * 4 * 7 / 8
    assert collectives.cycles(TPU) == 12 * 10 + 7
    with pytest.raises(ValueError, match="no ENTRY"):
        collectives.read("HloModule x", devices=1)


@pytest.mark.parametrize(
    ("dtype", "size"), [("f32", 4), ("bf16", 2), ("pred", 1), ("u8", 1), ("s4", 0.5), ("c64", 8)]
)
def test_bytes_of_a_type(dtype, size):
    assert collectives.Array(dtype, (6, 4)).bytes == 24 * size
