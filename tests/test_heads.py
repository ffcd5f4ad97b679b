"""Heads on features: in JAX and in NumPy they are the same function."""

import jax
import numpy as np
import pytest

from noisy_fm.models import heads


@pytest.mark.parametrize("layout", ["linear", "plain", "residual"])
def test_heads_in_numpy_are_those_in_jax(layout):
    random = np.random.default_rng(0)
    f = random.normal(size=(heads.BLOCK + 5, 6)).astype(np.float32)
    params, statistics = jax.tree.map(
        lambda a: (a + random.uniform(0.1, 1, a.shape)).astype(np.float32),
        jax.device_get(heads.initialize(layout, 3, 6, 4)),
    )
    z, same = heads.transform(params, statistics, f)
    assert same == statistics
    np.testing.assert_allclose(heads.numpy_transform(params, statistics, f), z, atol=1e-4)
    found = heads.numpy_logits(params, statistics, f)
    np.testing.assert_allclose(found, heads.logits(params, statistics, f), rtol=1e-4, atol=1e-4)
    double = heads.numpy_logits(params, statistics, f.astype(np.float64))
    assert (found.dtype, double.dtype) == (np.float32, np.float64)
    np.testing.assert_allclose(double, found, rtol=1e-4, atol=1e-4)
    assert (layout == "linear") == np.array_equal(z, f)
