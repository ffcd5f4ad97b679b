"""Cells placed on other processes and machines by Dask distributed.

Dask says where a cell runs, and nothing else: each is a fresh process of the ordinary command line,
what it has done is in the study's folder, and running the same line again goes on from there.
"""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from noisy_fm import children
from noisy_fm.messages import say
from noisy_fm.study import stages
from noisy_fm.study.cells import Cell

LOCAL = "local:"
PREEMPTED = 143  # a cell that was told to leave and saved: run again as often as that happens
TRIES = 3  # of a cell that fails


def check(scheduler: str) -> None:
    """Raises ValueError, one line, for what names no scheduler, or without Dask."""
    count = scheduler.removeprefix(LOCAL)
    local = scheduler.startswith(LOCAL) and count.isdecimal() and int(count) > 0
    if not local and "://" not in scheduler:
        raise ValueError(
            f"--scheduler is {scheduler!r}; expected local:N for N processes on this machine, or a "
            "Dask scheduler's address, as tcp://host:8786"
        )
    try:
        import distributed  # noqa: F401
    except ImportError:
        raise ValueError(
            "--scheduler needs Dask distributed: pip install 'noisy-fm[cluster]'"
        ) from None


@contextlib.contextmanager
def connected(scheduler: str) -> Iterator[tuple[Any, int]]:
    """(A Dask client, how many workers of this machine alone it has: 0 for a cluster's)."""
    from distributed import Client, LocalCluster

    logging.getLogger("distributed").setLevel(logging.ERROR)  # what matters is said here
    if not scheduler.startswith(LOCAL):
        try:
            client = Client(scheduler, timeout=60)
        except OSError as error:
            raise ValueError(f"--scheduler {scheduler} does not answer: {error}") from None
        with client:
            yield client, 0
        return
    count = int(scheduler.removeprefix(LOCAL))
    with (
        LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            memory_limit=0,  # a worker's own is small, and its child's is not counted
            dashboard_address=None,
            silence_logs=logging.ERROR,
        ) as local,
        Client(local) as client,
    ):
        client.register_worker_callbacks(children.ignore_interrupts)
        yield client, count


def place(
    grid: Sequence[Cell],
    config: ConfigDict,
    *,
    scheduler: str,
    line: Callable[[str], Sequence[str]],
) -> None:
    """Has the cells run by the workers of `scheduler`, `line(name)` each, until all are done.

    A cell that is preempted, or whose worker dies, goes elsewhere; one that fails has `TRIES`. The
    others go on, and at the end ValueError names those that failed; the ends of their logs are
    shown as they fail.
    """
    missing = [cell for cell in grid if None in stages.outputs(cell, config).values()]
    if not missing:
        return
    failures = dict.fromkeys((cell.name for cell in missing), 0)
    with connected(scheduler) as (client, workers):
        from distributed import as_completed

        def submit(cell: Cell):
            return client.submit(
                children.on_worker,
                list(line(cell.name)),
                folder=os.getcwd(),
                asked=children.carried(os.environ),
                log=str(cell.folder / "log.txt"),
                beside=workers,
                pure=False,
            )

        running = {submit(cell): cell for cell in missing}
        say(f"{len(missing)} of {len(grid)} cells to run by {client.scheduler.address}")
        finished = as_completed(list(running))
        try:
            for future in finished:
                cell = running.pop(future)
                if not ended(future, cell, failures, scheduler):
                    again = submit(cell)
                    running[again] = cell
                    finished.add(again)
        except BaseException:
            client.cancel(list(running))  # their workers then let them save and leave …
            if workers:  # … and are ended with this process
                wait_for_children(client)
            raise
    if lost := [name for name, count in failures.items() if count >= TRIES]:
        raise ValueError(
            f"{len(lost)} of {len(grid)} cells failed {TRIES} times: {', '.join(lost)}; the last "
            f"lines of their logs are above, the rest is in {missing[0].folder.parent}/NAME/log.txt"
        )


def wait_for_children(client) -> None:
    """Waits until no worker has a child, or cannot say, or for as long as a child may take."""
    until = time.monotonic() + children.PATIENCE + 5
    with contextlib.suppress(Exception):
        while time.monotonic() < until and any(client.run(children.running).values()):
            time.sleep(0.2)


def ended(future, cell: Cell, failures: dict[str, int], scheduler: str) -> bool:
    """Whether the cell is not to be run again; says what became of it, and counts failures."""
    if future.cancelled():
        raise OSError(f"the scheduler {scheduler} is gone; run the same line again to go on")
    if future.status == "error":
        why, log = f"{future.exception()}", children.tail(cell.folder / "log.txt")
    else:
        code, seconds, log = future.result()
        if code == 0:
            say(f"{cell.title}: done in {seconds:.0f} s")
            return True
        if code == PREEMPTED:
            say(f"{cell.title}: preempted, runs again")
            return False
        why = f"exit code {code}"
    failures[cell.name] += 1
    tries = f"try {failures[cell.name]} of {TRIES}"
    say(f"{cell.title}: failed ({tries}: {why}); the end of {cell.folder / 'log.txt'}:\n{log}")
    return failures[cell.name] >= TRIES
