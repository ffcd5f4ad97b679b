"""A process forked after JAX has started would wait for threads that it does not have."""

import os
import sys

_orphaned = False


def _notice() -> None:
    """Run in every forked child: remembers whether JAX's threads stayed behind in the parent."""
    global _orphaned
    bridge = sys.modules.get("jax._src.xla_bridge")
    _orphaned = bridge is not None and bridge.backends_are_initialized()


def refuse_orphan() -> None:
    """RuntimeError in a process that was forked from one where JAX had started."""
    if _orphaned:
        raise RuntimeError(
            "this process was forked after JAX had started, and fitting would hang: start workers "
            'with multiprocessing.get_context("spawn"), or use joblib\'s default (loky) or threads'
        )


os.register_at_fork(after_in_child=_notice)
