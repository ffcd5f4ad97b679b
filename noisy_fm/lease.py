"""Whose folder it is: one process at a time writes to a run's folder, on one machine or several.

    with lease.held("runs/a") as mine:
        …
        mine.check()  # before writing: raises if the folder has been taken over

The lease is a file: host, process, a heartbeat, and a token that grows by one with each holder. A
holder whose process has ended is replaced at once, one on another machine once its heartbeat has
stopped.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from noisy_fm import files, hosts
from noisy_fm.messages import say

NAME = "lease.json"
BEAT = 15.0  # seconds between heartbeats
STALE = 90.0  # seconds without one after which a holder elsewhere is taken for dead


class TakenOverError(OSError):
    """Another process holds the lease by now."""


class Lease:
    """A lease that this process holds; `held` gives one."""

    def __init__(self, folder, *, beat: float = BEAT, stale: float = STALE):
        self.path = folder / NAME
        self._stale, self._beat = stale, beat
        self._content: dict = {}
        self._over = threading.Event()

    def acquire(self) -> None:
        """Takes the lease, from one that is dead if need be; ValueError, one line, if it is held.

        It waits only for a heartbeat on another machine, to see whether it goes on.
        """
        with _alone(self.path):
            found = self._read()
            if _is_held(found) and self._is_alive(found):
                raise ValueError(
                    f"{self.path.parent} is in use by process {found['pid']} on {found['host']} "
                    f"(last seen {_seconds_since(found):.0f} s ago); wait until it has ended, or "
                    "choose another --workdir"
                )
            self._content = {
                "token": found["token"] + 1 if isinstance(found.get("token"), int) else 1,
                "holder": uuid.uuid4().hex,
                "host": _machine(),
                "pid": os.getpid(),
                "started": _start_of(os.getpid()),
            }
            self._write()
        if self._read().get("holder") != self._content["holder"]:  # where nothing can be locked
            raise ValueError(f"{self.path.parent} was taken by another process at the same moment")
        threading.Thread(target=self._keep, name="lease", daemon=True).start()

    def check(self) -> None:
        """Raises TakenOverError, one line, if another process has taken the folder over.

        A lease that is gone, damaged or out of reach is nobody else's.
        """
        found: dict = {}
        with contextlib.suppress(OSError):
            found = self._read()
        if self._is_anothers(found):
            by = f"process {found['pid']} on {found['host']}"
            raise TakenOverError(f"{self.path.parent} was taken over by {by}; no more is saved")

    def release(self) -> None:
        """Gives the folder free; its token stays, so that the next holder's is larger."""
        self._over.set()
        with contextlib.suppress(OSError), _alone(self.path):
            if self._read().get("holder") == self._content["holder"]:
                self._content = {"token": self._content["token"], "holder": None}
                self._write()

    def _is_alive(self, found: dict) -> bool:
        """Whether the holder lives: its process, on this machine; else its heartbeat goes on."""
        if found["host"] == _machine():
            return _start_of(found["pid"]) == found.get("started") is not None
        # Clocks differ, so a change is believed and an age is not; one beat is always waited for.
        wait = max(1.5 * self._beat, self._stale - _seconds_since(found))
        until = time.monotonic() + min(wait, self._stale)
        where = f"process {found['pid']} on {found['host']}"
        say(f"{self.path.parent} was in use by {where}: waiting for a sign of life")
        while time.monotonic() < until:
            time.sleep(self._beat / 10)
            if self._read() != found:
                return True
        return False

    def _is_anothers(self, found: dict) -> bool:
        return _is_held(found) and found["holder"] != self._content["holder"]

    def _keep(self) -> None:
        """Beats until the lease is given back or lost; a full disk or network is tried again."""
        while not self._over.wait(self._beat):
            with contextlib.suppress(Exception), _alone(self.path):  # a bucket raises anything
                if self._over.is_set() or self._is_anothers(self._read()):
                    return
                self._write()

    def _read(self) -> dict:
        """What the file says; nothing where there is none, or no whole one."""
        try:
            found = json.loads(self.path.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self) -> None:
        files.write_json(self.path, {**self._content, "seen": time.time()})


@contextlib.contextmanager
def held(
    folder, *, beat: float = BEAT, stale: float = STALE, patience: float = 0.0
) -> Iterator[Lease]:
    """Holds the lease on `folder` (local or in a bucket) inside the `with`.

    Of several processes of one run the first holds it, and all fail alike. Raises ValueError, in
    one line that names the holder, if another process lives in it for `patience` seconds more.
    """
    path, refusal = files.absolute(folder), ""
    mine = Lease(path, beat=beat, stale=stale)
    if path.exists() and not path.is_dir():
        refusal = f"--workdir {folder} is a file; expected a folder, or nothing yet"
    elif hosts.first():
        try:
            _acquired(mine, patience)
        except OSError as error:
            refusal = f"--workdir {folder} cannot be written to: {error.strerror or error}"
        except ValueError as error:
            refusal = str(error)
        except Exception as error:  # of a bucket; the other hosts wait to hear of it
            refusal = f"--workdir {folder} cannot be written to: {files.reason(error)}"
    if refusal := hosts.gather(refusal)[0]:
        raise ValueError(refusal)
    try:
        yield mine
    finally:
        if hosts.first():
            mine.release()


def _acquired(mine: Lease, patience: float) -> None:
    until = time.monotonic() + patience
    while True:
        try:
            return mine.acquire()
        except ValueError:
            if time.monotonic() >= until:
                raise
            time.sleep(1)


def _is_held(found: dict) -> bool:
    kinds = {"holder": str, "host": str, "pid": int, "seen": int | float}
    return all(isinstance(found.get(name), kind) for name, kind in kinds.items())


def _seconds_since(found: dict) -> float:
    return max(0.0, time.time() - found["seen"])


def _machine() -> str:
    """The host's name and, on Linux, which boot and process namespace: a pid means one in there."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8])
        parts.append(os.readlink("/proc/self/ns/pid").strip("pid:[]"))
    return "-".join(parts)


def _start_of(pid: int) -> str | None:
    """When process `pid` of this machine began, in its own unit; None if there is none."""
    try:
        if os.path.isdir("/proc/self"):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return None if fields[0] in "ZX" else fields[19]
        os.kill(pid, 0)
    except (OSError, IndexError):
        return None
    return "unknown"


@contextlib.contextmanager
def _alone(path) -> Iterator[None]:
    """Nobody else on this file system reads and writes the lease meanwhile, where it can lock."""
    try:
        import fcntl

        path.parent.mkdir(parents=True, exist_ok=True)
        name = os.fspath(path.with_name(f".{path.name}.lock"))
        file = os.open(name, os.O_CREAT | os.O_RDWR, 0o666)
    except (ImportError, FileNotFoundError):  # a bucket
        yield
        return
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)
