"""What a caption is, and the account of what is left out because it is none."""

import math
from collections.abc import Iterable

from noisy_fm.data.storage.labels import MISSING_WORDS

NO_CAPTION = "images without a caption"
NO_IMAGE = "captions without an image"
EMPTY = "captions that are blank"
MISSING = "captions that are missing (null, NaN, or the word for it)"
NO_TEXT = "captions that are no text"
NO_UTF8 = "captions that are no UTF-8"
NO_JSON = "captions in damaged JSON"
NO_KEY = "captions in JSON without that key"
TWICE = "pairs whose name another has"
SECOND = "captions or images after the first of their name (an image has one caption)"
CUT = "files cut short or damaged, from there on"
NO_TAR = "files that cannot be read as uncompressed tar"
NO_PARQUET = "files that are no whole parquet"
NO_MEMBER = "shards with nothing in them"


def raise_passing(error: Exception) -> None:
    """Raises what the system could not do now; damage to a file, which stays, has no errno."""
    if getattr(error, "errno", None) is not None:
        raise error


class LeftOut:
    """What of some data is no pair of image and caption: {kind: [how many, the first of them]}."""

    def __init__(self, kinds: dict[str, list] | None = None):
        self.kinds: dict[str, list] = kinds or {}

    def __bool__(self) -> bool:
        return bool(self.kinds)

    def __str__(self) -> str:
        said = (f"{count:,} {kind}, as {first}" for kind, (count, first) in self.kinds.items())
        return "; ".join(said)

    def add(self, kind: str, example: str, count: int = 1) -> None:
        self.kinds.setdefault(kind, [0, example])[0] += count

    def merge(self, other: "LeftOut") -> None:
        for kind, (count, first) in other.kinds.items():
            self.add(kind, first, count)


def cleaned(value) -> tuple[str, str]:
    """(the caption without blanks around it, ""), or ("", why it is none): a kind of `LeftOut`."""
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8-sig")
        except UnicodeDecodeError:
            return "", NO_UTF8
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "", MISSING
    if not isinstance(value, str):
        return "", NO_TEXT
    text = value.strip()
    if not text:
        return "", EMPTY
    if text.lower() in MISSING_WORDS:
        return "", MISSING
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        return "", NO_UTF8
    return text, ""


def few(names: Iterable[str], most: int = 8) -> str:
    """Some of what there is, in words."""
    names = list(names)
    return ", ".join(names[:most] + ["…"] * (len(names) > most)) or "nothing"
