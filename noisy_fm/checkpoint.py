"""Checkpoints of a training state (orbax), what made them, and whose folder it is."""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import math
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from orbax.checkpoint import checkpoint_managers

from noisy_fm import files, hosts, sharding

VERSIONED = ("noisy-fm", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
TEMPORARY = ".orbax-checkpoint-tmp"  # how orbax ends the name of one being written
SCHEMA = 1  # of the checkpoint's meta; raised when old checkpoints stop being readable


class Checkpointer:
    """Checkpoints of a training state in a folder, newest last.

    Each holds the state (arrays, with their shardings) and `meta` (JSON: config, versions, commit,
    noise manifest hash). A checkpoint that was being written when the process died is not listed,
    one whose bits are not those that were saved is not restored. The newest `keep` stay, and the
    one whose metric `best` was best (the smallest, of a loss).
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
        self._failed = False
        self._top = self._kept_top()

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

    def _kept_top(self) -> float:
        """The score of the best checkpoint on disk."""
        best = self.best_step
        return -math.inf if best is None else self._score(self._manager.metrics(best) or {})

    def would_be_best(self, metrics: dict) -> bool:
        """Whether a checkpoint with these metrics would be the best one, those on their way too."""
        return self._score(metrics) > self._top

    def save(self, step: int, state, meta: dict, metrics: dict | None = None) -> None:
        """Starts writing in the background; `wait` or `close` waits until it is on disk."""
        for number in sorted(n for n in self._damaged if n >= step):  # in the way of newer ones
            with self._worded():
                self._manager.delete(number)
            self._damaged.remove(number)
            self._top = self._kept_top()
        if step in self._manager.all_steps():
            return
        meta = {"schema": SCHEMA, **meta, "digests": digests(state)}
        with self._worded():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    meta=ocp.args.JsonSave({**meta, "digest": _digest_of(meta)}),
                ),
                metrics=metrics if self._best and metrics and self._best in metrics else None,
            )
        self._top = max(self._top, self._score(metrics or {}))

    def restore(self, target, *, step: int | None = None):
        """(state, meta) like `target` (arrays or ShapeDtypeStructs with shardings), or None.

        Without `step` the newest readable checkpoint is taken; one that cannot be read is
        reported and passed over. Raises ValueError if there are some and none can be read.
        """

        def read(number: int) -> tuple[Any, dict]:
            found = self._manager.restore(
                number,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(target), meta=ocp.args.JsonRestore()
                ),
            )
            return found["state"], found["meta"]

        found = self._newest_readable(read, step, "move the folder away to start afresh")
        return found and found[:2]

    def restore_parts(self, choose: Callable[[Mapping], Any], *, step: int | None = None):
        """(parts, meta, step): some of a state, whole on this process' first device; or None.

        `choose` gets the stored tree, descriptions in place of arrays, and returns a tree of those
        that are wanted at the paths they have there; nothing else is read. Otherwise as `restore`.
        """
        handler = ocp.PyTreeCheckpointHandler()
        where = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

        def read(number: int) -> tuple[Any, dict]:
            path = self.folder / str(number) / "state"
            wanted = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
                choose(handler.metadata(path).tree),
            )
            arguments = ocp.checkpoint_utils.construct_restore_args(wanted)
            parts = handler.restore(
                path, args=ocp.args.PyTreeRestore(wanted, arguments, partial_restore=True)
            )
            meta = self._manager.restore(
                number, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
            )
            return parts, meta["meta"]

        return self._newest_readable(read, step, "there is nothing to load")

    def _newest_readable(
        self, read: Callable[[int], tuple[Any, dict]], step: int | None, advice: str
    ) -> tuple[Any, dict, int] | None:
        """What `read` gives of the newest whole checkpoint (or of `step`), and its number."""
        steps = self.steps if step is None else [step]
        for number in reversed(steps):
            found: tuple[Any, dict] | None = None
            reason = ""
            try:
                found = read(number)
            except Exception as error:
                reason = " ".join(str(error).split())[:200]
            # Digests are computed by all hosts together, so all must have something to compute on.
            if hosts.all_agree(found is not None):
                state, meta = cast(tuple[Any, dict], found)
                reason = _damage(digests(state), meta)
                if hosts.all_agree(not reason):
                    return state, meta, number
            self._damaged.add(number)
            reason = reason or "another host cannot"
            logging.warning("checkpoint %s cannot be read: %s", self.folder / str(number), reason)
        if not steps:
            return None
        raise ValueError(
            f"no checkpoint in {self.folder} can be read (steps {steps}): damaged, or of another "
            f"model; {advice}"
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
        with self._worded():
            self._manager.wait_until_finished()

    def close(self) -> None:
        with self._worded():
            self._manager.close()

    @contextlib.contextmanager
    def _worded(self) -> Iterator[None]:
        """One OSError for what went wrong in writing, now or before in the background."""
        try:
            yield
        except Exception as error:
            if self._failed:  # orbax says it again, whatever is asked of it
                return
            self._failed = True
            last = self.drop_unfinished()
            good = "there is no good one yet" if last is None else f"the last good one is {last}"
            raise OSError(
                f"a checkpoint could not be written to {self.folder}: {files.reason(error)}; "
                f"{good}; run the same line again to go on from there"
            ) from error


def digests(tree) -> dict[str, str]:
    """{path: 16 hex digits} of the bits of every array of a tree.

    Sums over elements, so that it does not matter which device or host holds which part of an
    array. One changed bit changes the digest.
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    # One after another: several programs on the devices of one CPU may wait for each other.
    found = [jax.device_get(_digest(leaf)) for _, leaf in leaves]
    return {
        sharding.path_of(path): f"{int(one[0]):08x}{int(one[1]):08x}"
        for (path, _), one in zip(leaves, found, strict=True)
    }


def _digest(leaf) -> jax.Array:
    where = getattr(leaf, "sharding", None)
    return _digester(where.mesh if isinstance(where, jax.sharding.NamedSharding) else None)(leaf)


@functools.cache
def _digester(mesh):
    """`_hash_sums` compiled; over the devices of a mesh, each host gets the result."""
    everywhere = mesh and jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.jit(_hash_sums, out_shardings=everywhere)


def _hash_sums(leaf) -> jax.Array:
    """uint32 [2]: two sums of a hash of (element, place), modulo 2³²."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    words = _words(jnp.asarray(leaf))
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        index = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        place = place * jnp.uint32(size % 2**32) + index
    sums = []
    for odd in (0x9E3779B1, 0x85EBCA77):
        # MurmurHash3's finaliser (Appleby), a bijection of the word at each place.
        x = words ^ (place * jnp.uint32(odd) + jnp.uint32(odd >> 3))
        x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
        x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
        sums.append(jnp.sum(x ^ (x >> 16), dtype=jnp.uint32))
    return jnp.stack(sums)


def _words(x: jax.Array) -> jax.Array:
    """The bits of x as uint32, [*x.shape], or [*x.shape, 2] of numbers of 64 bits."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    bits = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, bits).astype(jnp.uint32)


def _digest_of(meta: Mapping) -> str:
    """Sixteen hex digits of a JSON value."""
    text = json.dumps(meta, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _damage(found: dict[str, str], meta: dict) -> str:
    """What is not as it was saved; nothing if all is, or nothing says what was (older versions)."""
    if not {"digest", "digests"} & set(meta):
        return ""
    if meta.pop("digest", None) != _digest_of(meta) or "digests" not in meta:
        return "its meta is not what was saved"
    saved = meta.pop("digests")
    changed = [name for name, one in found.items() if saved.get(name) != one]
    if not changed:
        return ""
    return f"{len(changed)} of {len(saved)} arrays are not what was saved, as {changed[0]}"


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
