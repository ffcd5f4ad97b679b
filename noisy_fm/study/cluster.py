"""Cells on other processes: a few side by side on this machine, or on the workers of Dask.

Either says where a cell runs, and nothing else: each is a fresh process of the ordinary command
line, what it has done is in the study's folder, and running the same line again goes on from there.
"""

import contextlib
import logging
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any

from ml_collections import ConfigDict

from noisy_fm import children
from noisy_fm.messages import say
from noisy_fm.study import stages
from noisy_fm.study.cells import Cell

LOCAL = "local:"
PREEMPTED = 143  # a cell that was told to leave and saved: run again as often as that happens
TRIES = 3  # of a cell that fails
NEWS = 20.0  # seconds between words about the cells that run here

Line = Callable[[str], Sequence[str]]
# (puts a cell to work and returns its future, waits for the first future that is done)
Workers = tuple[Callable[[Cell], Any], Callable[[dict], Any]]


def check(scheduler: str) -> None:
    """Raises ValueError, one line, for what names no scheduler, or for Dask's without Dask."""
    count = scheduler.removeprefix(LOCAL)
    if scheduler.startswith(LOCAL) and count.isdecimal() and int(count) > 0:
        return
    if "://" not in scheduler:
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
def here(count: int, cells: int, line: Line) -> Iterator[Workers]:
    """`count` processes of this machine, each with its share of the cores, and of the GPUs.

    Fewer `cells` have no larger shares: a core more would be another draw of the rounding.
    """
    shares: queue.SimpleQueue = queue.SimpleQueue()
    for share in children.shares(count):
        shares.put(share)
    own, leaving = threading.local(), threading.Event()

    def settle() -> None:
        own.share = shares.get()
        children.keep_to(own.share.cores)  # this thread, and what it starts

    def work(cell: Cell) -> tuple[int, float, str]:
        return children.timed(
            line(cell.name),
            folder=os.getcwd(),
            variables=children.environment(
                os.environ, os.environ, device=own.share.device, children=own.share.sharing
            ),
            log=cell.folder / "log.txt",
            wanted=lambda: not leaving.is_set(),
        )

    said: dict[Cell, str] = {}

    def first_done(running: dict) -> futures.Future:
        while not (done := futures.wait(running, NEWS, futures.FIRST_COMPLETED).done):
            for future, cell in running.items():
                news = children.tail(cell.folder / "log.txt", 1)
                if future.running() and news and news != said.get(cell):
                    said[cell] = news
                    say(news)
        return next(iter(done))

    with futures.ThreadPoolExecutor(min(count, cells), initializer=settle) as pool:
        try:
            yield lambda cell: pool.submit(work, cell), first_done
        except BaseException:
            leaving.set()  # the cells save, which a second signal must not cut short
            with undisturbed():
                pool.shutdown(cancel_futures=True)
            raise


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Ignores what asks this process to stop."""
    main = threading.current_thread() is threading.main_thread()
    asking = (signal.SIGINT, signal.SIGTERM) if main else ()
    before = [signal.signal(one, signal.SIG_IGN) for one in asking]
    try:
        yield
    finally:
        for one, handler in zip(asking, before, strict=True):
            signal.signal(one, handler)


@contextlib.contextmanager
def by_dask(address: str, line: Line) -> Iterator[Workers]:
    """The workers of the Dask scheduler at `address`."""
    from distributed import Client, as_completed

    logging.getLogger("distributed").setLevel(logging.ERROR)  # what matters is said here
    try:
        client = Client(address, timeout=60)
    except OSError as error:
        raise ValueError(f"--scheduler {address} does not answer: {error}") from None
    with client:
        finished = as_completed()
        pending = []

        def submit(cell: Cell):
            future = client.submit(
                children.on_worker,
                list(line(cell.name)),
                folder=os.getcwd(),
                asked=children.carried(os.environ),
                log=str(cell.folder / "log.txt"),
                pure=False,
            )
            finished.add(future)
            pending.append(future)
            return future

        def first_done(running: dict):
            future = next(finished)
            if future.cancelled():
                raise OSError(f"the scheduler {address} is gone; run the same line again to go on")
            return future

        try:
            yield submit, first_done
        except BaseException:
            client.cancel(pending)  # their workers then let them save and leave
            raise


def place(grid: Sequence[Cell], config: ConfigDict, *, scheduler: str, line: Line) -> None:
    """Has the cells run by the workers of `scheduler`, `line(name)` each, until all are done.

    A cell that is preempted, or whose worker dies, runs again; one that fails has `TRIES`. The
    others go on, and at the end ValueError names those that failed; the ends of their logs are
    shown as they fail.
    """
    missing = [cell for cell in grid if None in stages.outputs(cell, config).values()]
    if not missing:
        return
    failures = dict.fromkeys((cell.name for cell in missing), 0)
    if scheduler.startswith(LOCAL):
        count = int(scheduler.removeprefix(LOCAL))
        workers, where = here(count, len(missing), line), f"{count} at a time"
    else:
        workers, where = by_dask(scheduler, line), f"by {scheduler}"
    say(f"{len(missing)} of {len(grid)} cells to run, {where}")
    with workers as (submit, first_done):
        running = {submit(cell): cell for cell in missing}
        while running:
            future = first_done(running)
            cell = running.pop(future)
            if not ended(future, cell, failures):
                running[submit(cell)] = cell
    if lost := [name for name, count in failures.items() if count >= TRIES]:
        raise ValueError(
            f"{len(lost)} of {len(grid)} cells failed {TRIES} times: {', '.join(lost)}; the last "
            f"lines of their logs are above, the rest is in {missing[0].folder.parent}/NAME/log.txt"
        )


def ended(future, cell: Cell, failures: dict[str, int]) -> bool:
    """Whether the cell is not to be run again; says what became of it, and counts failures."""
    if error := future.exception():
        why, log = f"{error}", children.tail(cell.folder / "log.txt")
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
