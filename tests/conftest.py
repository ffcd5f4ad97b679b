"""Every test runs in float32 with full matmul precision on eight virtual CPU devices."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Eight devices share two cores: one that waits for the others is slow, not stuck. LLVM's costliest
# passes and the fusion emitters take longer than the tests run what they make; the slow suite has
# the latter (`make test-slow`).
os.environ["XLA_FLAGS"] = (
    "--xla_cpu_collective_call_terminate_timeout_seconds=600 --xla_backend_optimization_level=1 "
    "--xla_cpu_use_fusion_emitters=false "
    + os.environ.get("XLA_FLAGS", "")  # what is given here wins
)
# Runs, resumed runs and both workers of the suite compile the same programs: each is compiled once.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".pytest_cache" / "xla")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import pytest

from noisy_fm import messages

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(autouse=True)
def every_warning_is_new():
    """What one test was told is told to the next one too."""
    messages.warn.cache_clear()
