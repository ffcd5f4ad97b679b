"""A command line as a child process: an environment of its own, and an end with its parent's.

This imports nothing heavy, so that a machine that only places work needs no JAX.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

PARENT = "NOISY_FM_PARENT"  # the process that a child must not outlive
# What tells JAX and MPI of a job of many processes, of which a child is none.
OF_A_JOB = (
    *("SLURM_", "SLURMD_", "OMPI_", "PMI_", "PMIX_", "MPI_LOCALNRANKS"),
    *("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"),
)
# What a child has from who asked for it, where the machine that it runs on says nothing else …
CARRIED = ("NOISY_FM_", "PYTHON", "HF_", "WANDB_", "MLFLOW_", "XDG_CACHE_HOME")
# … and what Dask sets for its workers, which would change a child's rounding and speed.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MALLOC_TRIM_THRESHOLD_")
PATIENCE = 30.0  # seconds that a child has to save once it is asked to leave
MEMORY = 0.9  # share of a device's memory that all children on it take together


def environment(
    machine: Mapping[str, str],
    asked: Mapping[str, str],
    *,
    device: str | None = None,
    children: int = 1,
) -> dict[str, str]:
    """The environment of a child process that is a whole run of its own.

    machine   the environment where it will run
    asked     that of who asked for it
    device    the one CUDA device it sees; None: those that the machine's environment says
    children  how many share that device, and its memory
    """
    own = {k: v for k, v in machine.items() if not k.startswith((*OF_A_JOB, *THREADS))}
    made = carried(asked) | own
    if device is not None:
        made["CUDA_VISIBLE_DEVICES"] = device
        made["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{MEMORY / children:.3f}"
    return made


def carried(variables: Mapping[str, str]) -> dict[str, str]:
    """Those of the variables that a child on another machine has too."""
    return {k: v for k, v in variables.items() if k.startswith((*CARRIED, *THREADS))}


def devices(variables: Mapping[str, str]) -> list[str]:
    """The CUDA devices that a process with these variables sees."""
    named = variables.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [one.strip() for one in named.split(",") if one.strip()]
    found = Path("/dev").glob("nvidia[0-9]*")
    return sorted((path.name.removeprefix("nvidia") for path in found), key=int)


def run(
    line: Sequence[str],
    *,
    folder: str,
    variables: Mapping[str, str],
    log: Path,
    wanted: Callable[[], bool] = lambda: True,
) -> int:
    """Runs `line` in `folder` to its end, its output added to `log`; returns its exit code.

    The child dies with this process, however that ends; it is stopped, and given time to save, once
    it is no longer `wanted` or if this is interrupted.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        child = subprocess.Popen(
            list(line),
            cwd=folder,
            env={**variables, PARENT: str(os.getpid())},
            stdin=subprocess.PIPE,  # nothing is written; it closes when this process ends
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # out of reach of Ctrl-C: a second signal would end a save
        )
        try:
            while child.poll() is None and wanted():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(1)
        finally:
            if child.poll() is None:
                stop(child)
            if child.stdin:
                child.stdin.close()
    return child.returncode


def stop(child: subprocess.Popen, *, seconds: float = PATIENCE) -> None:
    """Asks the child to save and leave, and ends it if it does not."""
    child.terminate()
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def die_with_parent() -> None:
    """To be called by a child: ends this process at once when its parent is gone.

    Linux sees to that itself; elsewhere, and where the parent was gone before, a thread watches the
    pipe that the parent holds open. Without a `PARENT` in the environment nothing happens.
    """
    parent = os.environ.pop(PARENT, None)
    if parent is None:
        return
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            set_death_signal, number = ctypes.CDLL(None).prctl, 1  # PR_SET_PDEATHSIG
            set_death_signal(number, signal.SIGKILL)
    if os.getppid() != int(parent):
        os._exit(143)
    threading.Thread(target=_watch, args=(os.dup(0),), name="parent", daemon=True).start()


def _watch(pipe: int) -> None:
    while os.read(pipe, 1):
        time.sleep(0)
    os._exit(143)


def on_worker(
    line: Sequence[str], *, folder: str, asked: Mapping[str, str], log: str
) -> tuple[int, float, str]:
    """`timed` in a Dask worker; the child sees the first CUDA device that the worker does.

    It is stopped when who asked for it is gone.
    """
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()

    def wanted() -> bool:
        task = worker.state.tasks.get(key)
        return task is not None and task.state in ("executing", "long-running")

    device = next(iter(devices(os.environ)), None)
    variables = environment(os.environ, asked, device=device, children=worker.state.nthreads)
    return timed(line, folder=folder, variables=variables, log=Path(log), wanted=wanted)


def timed(line: Sequence[str], *, log: Path, **about) -> tuple[int, float, str]:
    """`run`, and how it went: (exit code, seconds, the end of the log)."""
    began = time.monotonic()
    code = run(line, log=log, **about)
    return code, time.monotonic() - began, tail(log)


class Share(NamedTuple):
    """What one of several children on this machine has of it."""

    cores: tuple[int, ...]
    device: str | None  # the one CUDA device it sees, None where there is none
    sharing: int  # how many children see that device


def shares(count: int) -> list[Share]:
    """The shares of `count` children: as many cores each, at least one, and the devices in turn."""
    cores, seen = available_cores(), devices(os.environ)
    own = max(1, len(cores) // count)
    return [
        Share(
            tuple(cores[(i * own + j) % len(cores)] for j in range(own)),
            seen[i % len(seen)] if seen else None,
            -(-count // len(seen)) if seen else 1,
        )
        for i in range(count)
    ]


def available_cores() -> list[int]:
    """The CPU cores that this thread may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def keep_to(cores: Iterable[int]) -> None:
    """Keeps this thread, and the processes that it starts, to some cores, where a system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 20_000))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    return ""
