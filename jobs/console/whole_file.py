"""A file is written beside its place and renamed: no reader sees a part of it, and what a link leads to stays as it is."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_MODE = 0o666  # less the umask, as `open` makes files


def write_whole(path: Path, content: bytes) -> None:
    """Put `content` at `path`, with the folders above it; a link that stands there is replaced, not followed.

    Raises:
        OSError: it cannot be written, or something other than a file or a link stands there. Nothing has changed then.
    """
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path} is no file; remove it")
    # In the same folder, since a rename is atomic on one file system only; hidden, and without the file's own suffix last, so
    # that no reader takes it. With the process id, as two may write at once.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        # O_EXCL: the name can be guessed, and a link put there would be followed.
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), _MODE)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # or the name could survive a power failure without the content
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
