"""Meshes, rules by path, and which rows a host feeds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from noisy_fm import models, sharding

FSDP = ((".*", "fsdp"),)
BOTH = ("fsdp", "tensor")


def shapes(**leaves):
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in leaves.items()}


def spec(shape, rule, **axes):
    mesh = sharding.make_mesh(**{"data": -1, **axes})
    return sharding.infer(shapes(w=shape), mesh, (("w", rule),))["w"].spec


@pytest.mark.parametrize(
    ("shape", "rule", "axes", "expected"),
    [
        ((512, 128), "fsdp", {"fsdp": 4}, ("fsdp", None)),
        ((128, 512), "fsdp", {"fsdp": 4}, (None, "fsdp")),
        ((3, 3, 64, 129), "fsdp", {"fsdp": 4}, (None, None, "fsdp", None)),
        ((64, 64), "fsdp", {"fsdp": 4}, (None, None)),  # small
        ((511, 511), "fsdp", {"fsdp": 4}, (None, None)),  # nothing divides
        ((512, 128), "replicate", {"fsdp": 4}, (None, None)),
        ((512, 128), "column", {"fsdp": 2, "tensor": 2}, ("fsdp", "tensor")),
        ((512, 128), "row", {"fsdp": 2, "tensor": 2}, ("tensor", "fsdp")),
        ((512,), "column", {"tensor": 2}, ("tensor",)),
        ((512, 128), (None, "tensor"), {"fsdp": 2, "tensor": 2}, (None, "tensor")),
        ((512, 128), (BOTH, None), {"fsdp": 2, "tensor": 2}, (BOTH, None)),
    ],
    ids=str,
)  # fmt: skip
def test_a_rule_says_which_dimension_is_split(shape, rule, axes, expected):
    assert spec(shape, rule, **axes) == PartitionSpec(*expected)


def test_the_first_rule_that_matches_counts_and_scalars_are_whole():
    mesh = sharding.make_mesh(data=2, fsdp=4)
    rules = (("head/", "replicate"), *FSDP)
    tree = shapes(**{"head/kernel": (512, 512), "body/kernel": (512, 512), "count": ()})
    found = {name: s.spec for name, s in sharding.infer(tree, mesh, rules).items()}
    assert found["head/kernel"] == PartitionSpec(None, None)
    assert found["body/kernel"] == PartitionSpec("fsdp", None)
    assert found["count"] == PartitionSpec()


@pytest.mark.parametrize(
    ("shape", "rules", "axes", "message"),
    [
        ((512, 130), (("w", "column"),), {"tensor": 4}, "splits 130 of w .512, 130. into 4"),
        ((512,), (("w", "row"),), {"tensor": 4}, "'row' is for matrices; w has shape"),
        ((512, 512), (("w", (None,)),), {}, "is for 1 dimensions; w has shape"),
        ((512, 512), (("w", "colum"),), {}, "sharding rule .colum"),
        ((512, 512), (("v", "fsdp"),), {}, "no rule of config.sharding matches w"),
        ((512, 512), (("v", "fsdp"), ("w", "fsdp")), {}, "rule 'v' of config.sharding matches no"),
        ((512, 512), FSDP, {"tensor": 2}, "config.mesh.tensor is 2, but config.sharding splits no"),
        ((512, 512), (("w", ("depth", None)),), {}, "mesh axis .* depth|'depth'"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_rules_is_one_line(shape, rules, axes, message):
    mesh = sharding.make_mesh(**{"data": -1, **axes})
    with pytest.raises(ValueError, match=message) as caught:
        sharding.infer(shapes(w=shape), mesh, rules)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"data": 3}, "needs 3 devices; there are 8"),
        ({"data": -1, "fsdp": -1}, "one −1"),
        ({"data": -1, "fsdp": 3}, "needs 6 devices; there are 8"),
        ({"data": 0}, "expected sizes"),
    ],
)
def test_a_mesh_that_does_not_fit_is_one_line(axes, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(**axes)


def test_a_batch_has_to_divide():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    sharding.check_batch(12, mesh)
    with pytest.raises(ValueError, match="batch_size is 10; expected a multiple of 4"):
        sharding.check_batch(10, mesh)


def test_the_default_rules_split_every_wide_matrix_of_a_transformer():
    mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2)
    model = models.create("vit_s16", 16, depth=1)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    found = {
        sharding.path_of(path): s.spec
        for path, s in jax.tree_util.tree_leaves_with_path(
            sharding.infer(params, mesh, sharding.RULES)
        )
    }
    assert found["block0/mlp/fc1/kernel"] == PartitionSpec("fsdp", "tensor")
    assert found["block0/mlp/fc1/bias"] == PartitionSpec("tensor")
    assert found["block0/mlp/fc2/kernel"] == PartitionSpec("tensor", "fsdp")
    assert found["block0/attn/proj/kernel"] == PartitionSpec("tensor", "fsdp")
    assert found["block0/attn/qkv/kernel"] == PartitionSpec(None, "fsdp")
    assert found["block0/mlp/fc2/bias"] == PartitionSpec(None)


def test_gather_makes_parameters_whole_and_their_gradient_a_part():
    mesh = sharding.make_mesh(data=2, fsdp=4)
    w = jax.random.normal(jax.random.key(0), (256, 128))
    held = {"w": jax.device_put(w, sharding.infer({"w": w}, mesh, FSDP)["w"])}
    seen = []

    def loss(params, x):
        whole = sharding.gather(params, held)["w"]
        jax.debug.inspect_array_sharding(whole, callback=seen.append)
        return jnp.sum((x @ whole) ** 2)

    x = jax.random.normal(jax.random.key(1), (8, 256))
    batch = jax.device_put(x, jax.sharding.NamedSharding(mesh, sharding.BATCH))
    gradient = jax.jit(jax.grad(loss), out_shardings={"w": held["w"].sharding})(held, batch)["w"]
    assert seen[0].is_fully_replicated
    assert {s.data.shape for s in gradient.addressable_shards} == {(64, 128)}
    np.testing.assert_allclose(gradient, 2 * x.T @ (x @ w), rtol=1e-5, atol=1e-4)


def test_one_process_feeds_every_row():
    for axes in ({}, {"fsdp": 8}, {"tensor": 8, "data": 1}):
        mesh = sharding.make_mesh(**axes)
        np.testing.assert_array_equal(sharding.host_rows(mesh, 16), np.arange(16))


def test_a_batch_lies_in_order_over_the_devices():
    mesh = sharding.make_mesh(data=4, fsdp=2)
    batch = sharding.to_global({"x": np.arange(16)}, mesh)["x"]
    np.testing.assert_array_equal(batch, np.arange(16))
    rows = {s.device: s.data.tolist() for s in batch.addressable_shards}
    flat = mesh.devices.reshape(-1)
    assert [rows[device] for device in flat] == [[2 * i, 2 * i + 1] for i in range(8)]
