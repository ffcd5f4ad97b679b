"""Checkpoints of a training state (orbax), what made them, and whose folder it is."""

import contextlib
import importlib.metadata
import math
import subprocess
from pathlib import Path

import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from orbax.checkpoint import checkpoint_managers

from noisy_fm import files, hosts

VERSIONED = ("noisy-fm", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
TEMPORARY = ".orbax-checkpoint-tmp"  # how orbax ends the name of one being written
SCHEMA = 1  # of the checkpoint's meta; raised when old checkpoints stop being readable


class Checkpointer:
    """Checkpoints of a training state in a folder, newest last.

    Each holds the state (arrays, with their shardings) and `meta` (JSON: config, versions, commit,
    noise manifest hash). A checkpoint that was being written when the process died is not listed.
    The newest `keep` stay, and the one whose metric `best` was best (the smallest, of a loss).
    """

    def __init__(self, folder, *, keep: int = 2, best: str = ""):
        self.folder = files.absolute(folder)
        kept: list = [checkpoint_managers.LatestN(keep)]
        self._sign = -1.0 if best.endswith("loss") else 1.0
        if best:
            kept.append(
                checkpoint_managers.BestN(
                    get_metric_fn=self._score, n=1, keep_checkpoints_without_metrics=False
                )
            )
        self._best = best
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(kept),
            best_fn=self._score if best else None,
            enable_async_checkpointing=True,
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)
        self._damaged: set[int] = set()

    @property
    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    @property
    def best_step(self) -> int | None:
        """The step of the best checkpoint by its metric, if one has it."""
        return self._manager.best_step() if self._best else None

    def _score(self, metrics: dict) -> float:
        found = metrics.get(self._best)  # older checkpoints may have been kept for another
        return -math.inf if found is None else self._sign * found

    def save(self, step: int, state, meta: dict, metrics: dict | None = None) -> None:
        """Starts writing in the background; `wait` or `close` waits until it is on disk."""
        for number in sorted(n for n in self._damaged if n >= step):  # in the way of newer ones
            self._manager.delete(number)
            self._damaged.remove(number)
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                meta=ocp.args.JsonSave({"schema": SCHEMA, **meta}),
            ),
            metrics=metrics if self._best and metrics and self._best in metrics else None,
        )

    def restore(self, target, *, step: int | None = None):
        """(state, meta) like `target` (arrays or ShapeDtypeStructs with shardings), or None.

        Without `step` the newest readable checkpoint is taken; one that cannot be read is
        reported and passed over. Raises ValueError if there are some and none can be read.
        """
        steps = self.steps if step is None else [step]
        for number in reversed(steps):
            found, reason = None, "another host cannot"
            try:
                found = self._manager.restore(
                    number,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardRestore(target), meta=ocp.args.JsonRestore()
                    ),
                )
            except Exception as error:
                reason = " ".join(str(error).split())[:200]
            readable = hosts.all_agree(found is not None)
            if found is not None and readable:
                return found["state"], found["meta"]
            self._damaged.add(number)
            logging.warning("checkpoint %s cannot be read: %s", self.folder / str(number), reason)
        if not steps:
            return None
        raise ValueError(
            f"no checkpoint in {self.folder} can be read (steps {steps}): damaged, or of another "
            "model; move the folder away to start afresh"
        )

    def drop_unfinished(self) -> int | None:
        """Removes what a failed save left, which may be what fills the disk; the newest step."""
        self._manager.reload()  # or the failed one is still listed
        if hosts.first():
            for part in self.folder.glob(f"*{TEMPORARY}"):
                with contextlib.suppress(OSError):
                    part.rmtree()
        return max(self.steps, default=None)

    def wait(self) -> None:
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def claim(workdir, name: str, value: dict, *, differences) -> None:
    """Marks `workdir` as belonging to the config `value`, or raises if it is another's.

    `differences(old, new)` gives a line for each key that must not differ.
    """
    path = epath.Path(workdir) / name
    if path.parent.exists() and not path.parent.is_dir():
        raise ValueError(f"--workdir {workdir} is a file; expected a folder, or nothing yet")
    old = files.read_json(path) if path.exists() else None
    if old is not None and (lines := differences(old, value)):
        raise ValueError(
            f"{workdir} was begun with another config ({'; '.join(lines[:4])}); choose another "
            "--workdir"
        )
    if old is None and hosts.first():
        try:
            files.write_json(path, value)
        except OSError as error:
            reason = error.strerror or error
            raise ValueError(f"--workdir {workdir} cannot be written to: {reason}") from None


def provenance() -> dict:
    """Package versions and the commit, as every record and checkpoint carries them."""
    versions = {}
    for name in VERSIONED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {"versions": versions, "commit": _commit()}


def _commit() -> str | None:
    """The commit of the checkout this package runs from, `+` if files differ; None outside one."""
    folder = Path(__file__).resolve().parent

    def git(*arguments):
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10
        )

    try:
        head = git("rev-parse", "--short=12", "HEAD")
        if head.returncode or git("ls-files", "--error-unmatch", "checkpoint.py").returncode:
            return None
        dirty = git("status", "--porcelain", "--untracked-files=no").stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() + ("+" if dirty else "")
