"""The signals that ask a run to stop, and when it is asked."""

import os
import signal
import threading

import jax
from jax.experimental import multihost_utils

# A machine taken away, a terminal that is gone, and what SLURM (--signal) and submitit send ahead.
STOP = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Terminated(BaseException):
    """One of the `STOP` signals: the machine is being taken away."""


def terminate(signum, frame):
    """The handler outside the loop: what runs ends at once, and saves nothing."""
    raise Terminated


def listen(handler, numbers=STOP) -> dict:
    """Makes `handler` that of the signals `numbers`; returns the former ones.

    Beside SIGTERM, one that is ignored (nohup ignores SIGHUP) or that other code handles stays so.
    """
    free = (signal.SIG_DFL, terminate)
    chosen = [n for n in numbers if n == signal.SIGTERM or signal.getsignal(n) in free]
    return {n: signal.signal(n, handler) for n in chosen}


class StopSignals:
    """Holds back Ctrl-C and the `STOP` signals until the loop asks, so that no step is torn apart.

    A second signal is not held back. Outside the main thread it does nothing. Several hosts agree
    on the step to stop after: there JAX's own service listens for SIGTERM, and is sent one for the
    others.
    """

    def __enter__(self):
        self.caught = None
        self.old = {}
        self.several = jax.process_count() > 1
        if threading.current_thread() is threading.main_thread():
            self.old = listen(self._forward, STOP[1:]) if self.several else listen(self._catch)
            self.old[signal.SIGINT] = signal.signal(signal.SIGINT, self._catch)
        return self

    def __exit__(self, *_):
        for number, handler in self.old.items():
            signal.signal(number, handler)

    def _forward(self, number, frame):
        os.kill(os.getpid(), signal.SIGTERM)

    def _catch(self, number, frame):
        if self.caught is not None or self.several:
            self.caught = number
            raise self.error()
        self.caught = number

    def asked(self, step: int) -> bool:
        """Whether to save after `step` and stop; the same answer on every host."""
        if self.several and multihost_utils.reached_preemption_sync_point(step):
            self.caught = signal.SIGTERM
        return self.caught is not None

    def error(self) -> BaseException:
        return KeyboardInterrupt() if self.caught == signal.SIGINT else Terminated()
