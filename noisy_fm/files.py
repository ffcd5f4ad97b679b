"""Small artifacts on disk or in a bucket: whole or absent, and one line where one is damaged."""

import contextlib
import errno
import io
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from etils import epath


def absolute(path) -> epath.Path:
    """`path` as it stays when the working directory changes, `~` the home; a bucket's URL as is."""
    path = epath.Path(path)
    return path if "://" in str(path) else path.expanduser().absolute()


@contextlib.contextmanager
def written_whole(path) -> Iterator[Path]:
    """Gives a temporary sibling of `path` to write to, and moves it there when all went well.

    Works for files and folders. If the body raises, or the process is killed in it, what stood at
    `path` is untouched; a folder is never seen half written. Killed in the moment in which one
    folder takes another's place, the older one stands beside it, as .NAME.….old.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield temporary
        if path.is_dir():  # a folder cannot be replaced in one move
            aside = temporary.with_suffix(".old")
            path.rename(aside)
            os.replace(temporary, path)
            shutil.rmtree(aside)
        else:
            os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def write_json(path, value) -> None:
    """Writes `value` as JSON, whole or not at all."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes(path, text.encode())


def write_arrays(path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a .npz file of named arrays, whole or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, **dict(arrays))  # type: ignore[arg-type]
    write_bytes(path, buffer.getvalue())


def reason(error: BaseException) -> str:
    """Why something could not be written, in the system's words where an error has them inside."""
    text = " ".join(str(error).split())
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO):
        if getattr(error, "errno", None) == code or os.strerror(code) in text:
            return os.strerror(code)
    return text[:200]


def write_bytes(path, content: bytes) -> None:
    """Writes a file, in a folder made for it if there is none, whole or not at all."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path):
    """Reads what `write_json` wrote; one line that names the file if it is damaged."""
    path = epath.Path(path)
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it to have it made again") from None
