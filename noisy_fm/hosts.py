"""The processes of a run, one a host: joining them, and what they tell one another."""

import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

# What says where process 0 listens, how many processes there are, and which one this is, where no
# cluster manager says so. The first is JAX's own name.
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def connect(*, seconds: int = 300) -> None:
    """Joins the processes of this run, or does nothing if it is one process.

    JAX itself detects TPU pods, GKE, SLURM and Open MPI; elsewhere the three `VARIABLES` say it.
    To be called once, before JAX is asked for devices, and after any handler of SIGTERM is set:
    with several processes, JAX's preemption service takes the signal. Raises ValueError for
    variables that are missing or wrong. If the others do not come in `seconds`, JAX itself ends
    this process and says DEADLINE_EXCEEDED.
    """
    if jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(**_given(os.environ), initialization_timeout=seconds)
    except ValueError as error:
        if "coordinator_address should be defined" in str(error):
            return  # no cluster, and nothing given: one process
        missing = [name for name in VARIABLES if not os.environ.get(name)]
        raise ValueError(
            f"{error} No cluster manager was found that says it; expected all of "
            f"{', '.join(VARIABLES)} or none (missing: {', '.join(missing) or 'none'})"
        ) from None


def check_devices() -> None:
    """Starts JAX on its devices; ValueError, one line, where JAX_PLATFORMS asks for none it has."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX's assertion has no words
        wanted = os.environ.get("JAX_PLATFORMS")
        reason = " ".join(str(error).split()).partition(" (set JAX_PLATFORMS")[0].rstrip(".")
        raise ValueError(
            (f"JAX_PLATFORMS is {wanted!r}: " if wanted else "")
            + f"{reason or 'there is no such device, or JAX is installed without it'}; expected "
            "cpu, or cuda or tpu where there is one and JAX is installed for it (unset: any)"
        ) from error


def _given(variables: Mapping[str, str]) -> dict:
    """The arguments of `jax.distributed.initialize` that are set as variables."""
    address, count, index = (variables.get(name, "") for name in VARIABLES)
    for name, text in zip(VARIABLES[1:], (count, index), strict=True):
        if text and not text.isdecimal():
            raise ValueError(f"{name} is {text!r}; expected a whole number")
    if count and index and int(index) >= int(count):
        raise ValueError(
            f"JAX_PROCESS_ID is {index} and JAX_NUM_PROCESSES {count}; expected ids from 0"
        )
    return {
        "coordinator_address": address or None,
        "num_processes": int(count) if count else None,
        "process_id": int(index) if index else None,
    }


def all_agree(value: bool) -> bool:
    """Whether `value` holds on every host; each of them has to ask."""
    return bool(multihost_utils.process_allgather(np.asarray(value)).all())


def gather(value: Any) -> list:
    """What each host holds, by their number: any JSON; each of them has to ask."""
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    longest = int(np.max(multihost_utils.process_allgather(np.asarray(len(text)))))
    padded = np.pad(text, (0, longest - len(text)), constant_values=ord(" "))
    rows = np.reshape(multihost_utils.process_allgather(padded), (jax.process_count(), -1))
    return [json.loads(row.tobytes()) for row in rows]


def first() -> bool:
    """Whether this is the process that prints and writes."""
    return jax.process_index() == 0
