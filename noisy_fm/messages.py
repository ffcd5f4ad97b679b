"""How mistakes are worded, so that every module says the same thing the same way."""

import difflib
from collections.abc import Iterable


def unknown(what: str, name: object, known: Iterable) -> str:
    """One line for a name that does not exist: the closest one, and all there are."""
    names = [str(one) for one in known]
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown {what} {name!r}; {hint}known: {', '.join(names)}"
