"""Which process this is, so that another one can tell later whether it still runs."""

from __future__ import annotations

import socket
import subprocess
from contextlib import suppress
from pathlib import Path

_PS_LIMIT_S = 5.0
_STARTED_FIELD = 19  # of /proc/PID/stat, behind the name: 22 in proc(5), where fields count from 1
_STATE_FIELD = 0
_DEAD_STATES = ("Z", "X")


def machine() -> str:
    """What processes that see one another's ids share: the host, since when it is up, and the container."""
    parts = [socket.gethostname()]
    # Two containers, or two machines made of one image, may share a name.
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def started(pid: int) -> str | None:
    """When the process of this id was started, in words that only that process has; None where there is none."""
    if Path("/proc/self/stat").exists():
        try:
            # The name stands in brackets and may hold blanks and brackets of its own.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (OSError, ValueError):
            return None
        # A zombie does nothing any more, and waits for its parent.
        return None if fields[_STATE_FIELD] in _DEAD_STATES else fields[_STARTED_FIELD]
    return _started_by_ps(pid)


def _started_by_ps(pid: int) -> str | None:
    # As on macOS, which has no /proc.
    command = ["ps", "-o", "lstart=", "-p", str(pid)]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PS_LIMIT_S, check=False)
        return done.stdout.strip() or None
    return None
