"""What desktops, file servers and notebooks leave between images, and is none of them."""

import re
from collections.abc import Sequence
from pathlib import PurePath

# In lower case. So is all that is hidden: .DS_Store, .ipynb_checkpoints, AppleDouble's ._x.jpg, …
LITTER = frozenset(
    (
        "__macosx",
        "@eadir",
        "@recycle",
        "@recently-snapshot",
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "__pycache__",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
    )
)


def is_litter(path: str | PurePath) -> bool:
    """Whether a part of this relative path is hidden, or a name that no user gave."""
    parts = re.split(r"[/\\]", str(path))
    return any(
        part.lower() in LITTER or (part[:1] == "." and part not in (".", "..")) for part in parts
    )


def left_out(litter: Sequence[str]) -> str:
    """How it is said that these are ignored."""
    return (
        f"{len(litter)} files or folders are hidden, or left by a desktop or notebook, and "
        f"ignored, as {litter[0]}"
    )
