"""How mistakes are worded, and how anything is said: what is shown never ends what is shown."""

import contextlib
import difflib
import os
import sys
from collections.abc import Iterable
from typing import TextIO


def say(text: str, *, file: TextIO | None = None) -> None:
    """Prints a line to `file` (standard output) at once; a reader that is gone changes nothing.

    A closed pipe or a full disk under the log swallows the line; a character that the terminal
    lacks becomes a question mark.
    """
    out = sys.stdout if file is None else file
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or there is none
        try:
            print(text, file=out, flush=True)
        except UnicodeEncodeError:
            print(text.encode(out.encoding, "replace").decode(out.encoding), file=out, flush=True)


def settle() -> None:
    """Before a process ends: what could not be said is dropped, so that it does not fail by it."""
    for out in (sys.stdout, sys.stderr):
        try:
            out.flush()
        except (OSError, ValueError, AttributeError):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())


def unknown(what: str, name: object, known: Iterable) -> str:
    """One line for a name that does not exist: the closest one, and all there are."""
    names = [str(one) for one in known]
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown {what} {name!r}; {hint}known: {', '.join(names)}"
