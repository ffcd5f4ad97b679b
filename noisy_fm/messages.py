"""How mistakes are worded, and how anything is said: what is shown never ends what is shown."""

import codecs
import contextlib
import difflib
import functools
import os
import sys
import unicodedata
from collections.abc import Iterable
from typing import TextIO

# What our own texts hold beyond ASCII, for terminals and log files without it.
ASCII = {
    "α": "alpha", "γ": "gamma", "λ": "lambda", "μ": "mu", "σ": "sigma", "Σ": "sum ", "η": "eta",
    "−": "-", "–": "-", "—": "-", "·": "*", "×": "x", "±": "+-", "≤": "<=", "≥": ">=", "→": "->",
    "∝": "~", "∞": "inf", "…": "...", "‖": "|", "√": "sqrt ", "π": "pi", "²": "^2",
    "“": '"', "”": '"', "‘": "'", "’": "'",
}  # fmt: skip


def say(text: str, *, file: TextIO | None = None) -> None:
    """Prints a line to `file` (standard output) at once; a reader that is gone changes nothing.

    A closed pipe or a full disk under the log swallows the line; what the terminal's encoding
    lacks is spelled in ASCII.
    """
    out = sys.stdout if file is None else file
    with contextlib.suppress(OSError, ValueError):
        print(spelled(text, getattr(out, "encoding", None)), file=out, flush=True)


@functools.cache
def warn(text: str) -> None:
    """Logs a warning; the same one, of data that are opened several times, once a process."""
    from absl import logging  # not for arrays alone, which import this too

    logging.warning("%s", text)


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
    group = str(name)[: str(name).rfind(".") + 1]  # "config.optimizer." makes all look alike
    group = group if all(n.startswith(group) for n in names) else ""
    close = difflib.get_close_matches(
        str(name).removeprefix(group), [n.removeprefix(group) for n in names], n=1, cutoff=0.4
    )
    hint = f"did you mean {group + close[0]!r}? " if close else ""
    return f"unknown {what} {name!r}; {hint}known: {', '.join(names)}"


def require_known(what: str, name: str, known: Iterable[str]) -> str:
    """`name`, which is one of `known`; else a ValueError that lists them."""
    if name not in (names := list(known)):
        raise ValueError(unknown(what, name, names))
    return name


def _spelled(error: UnicodeError) -> tuple[str, int]:
    """A codec's error handler: ASCII in place of what the encoding lacks, "?" for what has none."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    plain = (
        ASCII.get(c) or unicodedata.normalize("NFKD", c).encode("ascii", "ignore").decode() or "?"
        for c in text
    )
    return "".join(plain), error.end


codecs.register_error("spelled", _spelled)


def spelled(text: str, encoding: str | None) -> str:
    """`text` as a terminal of that encoding can show it; unchanged in UTF-8."""
    encoding = encoding or "utf-8"
    return text.encode(encoding, "spelled").decode(encoding)


def print_anywhere() -> None:
    """From now on what stdout's and stderr's encodings lack is spelled in ASCII, not an error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not so where a test or a notebook has put its own
            stream.reconfigure(errors="spelled")
