"""Progress of long work: a bar with an ETA on a terminal, plain lines elsewhere, host 0 only."""

import contextlib
import sys
import time

from tqdm import tqdm

from noisy_fm.messages import say

PLAIN_INTERVAL = 15.0  # seconds between lines when nobody watches a terminal


class Screen:
    """Standard error as a terminal that may go away: nothing is then drawn, and nothing raised."""

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()

    def __getattr__(self, name: str):
        return getattr(sys.stderr, name)


class Progress:
    """Counts `total` units of something named; use as a context manager.

    On a terminal a bar is redrawn in place. Elsewhere one line is printed every 15 s, and one at
    the end, so that logs stay readable.
    """

    def __init__(self, name: str, total: int, *, start: int = 0, unit: str = "step", show=True):
        self.name, self.total, self.unit, self.done, self.start = name, total, unit, start, start
        self.show, self.note = show, ""
        self.began = self.last = time.monotonic()
        self.steady: tuple[float, int] | None = None  # since when, and from where, it is counted
        terminal = show and sys.stderr.isatty()
        options = {"unit": unit, "leave": False, "dynamic_ncols": True, "file": Screen()}
        self.bar = tqdm(total=total, initial=start, desc=name, **options) if terminal else None

    def __enter__(self):
        return self

    def __exit__(self, kind, value, traceback):
        if self.bar is not None:
            self.bar.close()
        if self.show and kind is None:
            self._print(f"{time.monotonic() - self.began:.1f} s")

    def update(self, count: int = 1, note: str = "") -> None:
        self.done += count
        self.note = note or self.note
        # What comes first is compiled first, which says nothing of what is left.
        if self.steady is None:
            self.steady = (time.monotonic(), self.done)
            if self.bar is not None:
                self.bar.start_t, self.bar.initial = time.time(), self.done
        if self.bar is not None:
            self.bar.set_postfix_str(self.note, refresh=False)
            self.bar.update(count)
        elif self.show and self._is_due():
            since, first = self.steady
            rate = (self.done - first) / max(time.monotonic() - since, 1e-9)
            left = f"{(self.total - self.done) / rate:.0f} s left" if rate else ""
            self._print(left)
            self.last = time.monotonic()

    def _is_due(self) -> bool:
        return self.done < self.total and time.monotonic() - self.last > PLAIN_INTERVAL

    def _print(self, tail: str) -> None:
        note = f"  {self.note}" if self.note else ""
        say(f"{self.name}: {self.done}/{self.total} {self.unit}s{note}  {tail}")
