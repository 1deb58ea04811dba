"""One process writes into a results folder; who it is stands in a file there, and a dead one's place is taken over.

On one machine a writer is dead when its process is gone, or another has its id. What happens on another machine is not seen
from here: there it is dead once it has not touched its file for LIMIT_S by the folder's own clock, which is waited for.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from jobs.console.addresses import hidden_in
from jobs.console.paths import file_in_the_way
from jobs.console.processes import machine, started
from jobs.console.turns import turn
from jobs.console.whole_file import write_whole
from jobs.results.schema import ResultError

logger = logging.getLogger(__name__)

LOCK_NAME = "writer.lock"
BEAT_S, LIMIT_S = 15.0, 180.0
"""How often a writer touches its file, and for how long it may not have. Disks over a network pause for a minute."""
_TURN_LIMIT_S = 30.0


class FolderInUseError(ResultError):
    """Another process writes into the folder; says which."""


@dataclass(frozen=True, slots=True)
class Writer:
    """Who writes. `token` is of this one lock: a process may have held the same before."""

    machine: str
    pid: int
    process_started: str | None
    since: str
    command: str
    token: str

    @classmethod
    def this(cls) -> Writer:
        """This process, from now on."""
        now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        command = shlex.join(map(str, hidden_in(sys.argv)))
        pid = os.getpid()
        return cls(machine(), pid, started(pid), now, command, uuid.uuid4().hex)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.machine.partition(' ')[0]}, since {self.since}: {self.command}"


class WriterLock:
    """Held by this process between `held`'s beginning and end."""

    def __init__(self, root: Path, beat_s: float = BEAT_S, limit_s: float = LIMIT_S) -> None:
        self._root = root
        self._path = root / LOCK_NAME
        self._beat_s = beat_s
        self._limit_s = limit_s
        self._poll_s = min(1.0, beat_s)
        self._writer = Writer.this()
        self._ended = threading.Event()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder, which is made if need be, and let it go however the block ends.

        Raises:
            FolderInUseError: another process has it.
            ResultError: the folder cannot be written.
        """
        made = _folders_to_make(self._root)
        try:
            self._take()
            beat = threading.Thread(target=self._touch_until_ended, name="writer lock", daemon=True)
            beat.start()
            yield
        finally:
            self._ended.set()
            self._give_back()
            for folder in made:
                # Only empty ones go: a start that was refused leaves no trace.
                with contextlib.suppress(OSError):
                    folder.rmdir()

    def check(self) -> None:
        """Raise FolderInUseError if another process has taken the folder over, as after hours without a network."""
        holder = self._holder()
        if holder is None:  # swept away with other files: nobody has it
            self._take()
        elif holder.token != self._writer.token:
            raise FolderInUseError(
                f"{self._root} was silent for long and has been taken over by {holder}. Nothing more is written from here"
            )

    def _take(self) -> None:
        if fault := file_in_the_way(self._root):
            raise ResultError(fault)
        first_touched_s: float | None = None
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            while (other := self._write_unless_other()) is not None:
                # A writer that is seen to touch its file lives. One that is not may be dead, which its limit will show.
                if other.is_seen_alive or first_touched_s not in (None, other.touched_s):
                    raise _in_use(self._root, other)
                if first_touched_s is None:
                    logger.warning("%s", _waiting(self._root, other, self._limit_s))
                first_touched_s = other.touched_s
                time.sleep(self._poll_s)
        except OSError as error:
            raise ResultError(f"cannot write {self._path}: {error}; choose another output_dir") from error

    def _write_unless_other(self) -> OtherWriter | None:
        # Two that find the same dead writer must not both take its place.
        with turn(self._root / f".{LOCK_NAME}.turn", _TURN_LIMIT_S):
            other = other_writer(self._root, self._limit_s)
            if other is None:
                write_whole(self._path, json.dumps(asdict(self._writer), indent=1).encode())
            return other

    def _give_back(self) -> None:
        holder = self._holder()
        if holder is not None and holder.token == self._writer.token:
            with contextlib.suppress(OSError):
                self._path.unlink()

    def _holder(self) -> Writer | None:
        with contextlib.suppress(OSError):
            return _writer_in(self._path)
        return None

    def _touch_until_ended(self) -> None:
        while not self._ended.wait(self._beat_s):
            holder = self._holder()
            if holder is None or holder.token != self._writer.token:
                return  # `check` says so before the next file is written
            # A disk that is full or read-only for a while costs a beat, not the sweep.
            with contextlib.suppress(OSError):
                os.utime(self._path)


def refuse_other_writer(root: Path, limit_s: float = LIMIT_S) -> None:
    """Raise FolderInUseError if a process that may live writes into the folder: for who does not write into it.

    Raises:
        ResultError: the file that says so cannot be read.
    """
    try:
        other = other_writer(root, limit_s)
    except OSError as error:
        raise ResultError(f"{root / LOCK_NAME} cannot be read ({error.strerror})") from error
    if other is not None:
        raise _in_use(root, other)


@dataclass(frozen=True, slots=True)
class OtherWriter:
    """A writer that is not known to be dead. `touched_s` is the time of its file, `idle_s` how long that is ago."""

    writer: Writer
    is_seen_alive: bool
    touched_s: float
    idle_s: float


def other_writer(root: Path, limit_s: float) -> OtherWriter | None:
    """Who writes into the folder; None where nobody does, or a dead one. Raises OSError where that cannot be read."""
    path = root / LOCK_NAME
    try:
        writer, (touched_s, idle_s) = _writer_in(path), _times(path)
    except FileNotFoundError:
        return None
    if writer is None:  # nobody can be asked whether it lives
        raise ResultError(f"{path} does not say who writes into the folder; delete it if nobody does")
    if writer.machine == machine() and writer.process_started is not None:
        is_alive = started(writer.pid) == writer.process_started
        return OtherWriter(writer, True, touched_s, idle_s) if is_alive else None
    return OtherWriter(writer, False, touched_s, idle_s) if idle_s < limit_s else None


def _in_use(root: Path, other: OtherWriter) -> FolderInUseError:
    seen = "" if other.is_seen_alive else f" (last seen {other.idle_s:.0f} s ago)"
    return FolderInUseError(
        f"{root} is being written by another process, {other.writer}{seen}. Wait until it ends, or choose another output_dir"
    )


def _waiting(root: Path, other: OtherWriter, limit_s: float) -> str:
    return (
        f"{root} was last written by {other.writer}, which cannot be seen from here: waiting until it stirs, or for "
        f"{limit_s - other.idle_s:.0f} s, after which it counts as dead"
    )


def _writer_in(path: Path) -> Writer | None:
    """What the file says; None where it is none of ours. Raises OSError."""
    try:
        return Writer(**json.loads(path.read_bytes()))
    except (ValueError, TypeError, RecursionError):
        return None


def _times(path: Path) -> tuple[float, float]:
    """When the file was touched, and how many seconds ago, both by the clock that says so. Raises OSError."""
    touched_s = path.stat().st_mtime
    # Clocks of two machines differ, and that of a file server from both: so it is asked for its own.
    probe = path.with_name(f".{path.name}.{os.getpid()}.clock")
    try:
        probe.touch()
        now_s = probe.stat().st_mtime
        probe.unlink()
    except OSError:
        now_s = time.time()  # a folder that may only be read
    return touched_s, max(now_s - touched_s, 0.0)


def _folders_to_make(folder: Path) -> list[Path]:
    """Which folders are missing, the innermost first."""
    return [place for place in (folder, *folder.parents) if not place.exists()]
