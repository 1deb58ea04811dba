"""A generator that runs in a process of its own: what kills that process is an error here, and ends nothing else.

For code of users' own. The generator is named by module and function, and what it yields is pickled.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

LIMIT_S = 600.0
"""For each value. Checks of a policy take seconds: only one that hangs needs so long."""

# Not multiprocessing's own way to start a process: that runs the main script again, which may lack its guard. The path comes
# first, as the child has to find the same modules; -P keeps the current folder from standing in front of it, and -u saves
# what was printed before a death. Ctrl-C reaches the child too, and its parent decides what becomes of it.
_PROGRAM = """\
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.path[:] = {path!r}
from jobs.console.child_process import answer
answer({handle})
"""


class ChildDiedError(Exception):
    """The process ended, or had to be ended, in the middle of its work; the message says how."""


def yielded(
    function: Callable[..., Iterator[Any]], *arguments: Any, limit_s: float = LIMIT_S
) -> Generator[Any]:
    """What `function(*arguments)` yields in a process of its own, each value as soon as it is there.

    Raises:
        ChildDiedError: the process died, or took longer than `limit_s` for a value.
        Exception: what the function raised: errors of our packages as they are, any other as a RuntimeError
            whose note is its trace.
    """
    ours, its = multiprocessing.Pipe()
    program = _PROGRAM.format(path=sys.path, handle=its.fileno())
    with ours:
        with its:
            child = subprocess.Popen(
                [sys.executable, "-P", "-u", "-c", program], pass_fds=[its.fileno()], stdin=subprocess.DEVNULL
            )
        # The child's end is closed here, or its death would not be seen.
        try:
            yield from _received(ours, child, (function, arguments), limit_s)
        finally:
            child.kill()
            child.wait()


def _received(
    ours: Connection, child: subprocess.Popen[bytes], call: tuple[Any, ...], limit_s: float
) -> Iterator[Any]:
    try:
        ours.send(call)
        while True:
            if not ours.poll(limit_s):
                raise ChildDiedError(f"it gave no answer within the limit of {limit_s:g} s")
            kind, value = ours.recv()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    # Both are a pipe whose other end is closed.
    except (EOFError, ConnectionError) as error:
        raise ChildDiedError(_death(child.wait())) from error


def answer(handle: int) -> None:
    """The child's part: take a call from the pipe and send what it yields."""
    # A process that the code starts would keep the pipe open, and the child's death unseen.
    os.set_inheritable(handle, False)
    with Connection(handle) as pipe:
        function, arguments = pipe.recv()
        try:
            for value in function(*arguments):
                pipe.send(("value", value))
        except Exception as error:  # noqa: BLE001 - edge of the process: the parent raises it
            pipe.send(("error", _portable(error)))
        else:
            pipe.send(("end", None))


def _portable(error: Exception) -> Exception:
    """The error, or a stand-in for one whose class may lie in a module that the parent must not import."""
    if type(error).__module__.partition(".")[0] in ("jobs", "kvmerger", "evaluators"):
        return error
    instead = RuntimeError(f"{type(error).__name__}: {error}")
    # As a note, which a stack shows and a message does not.
    instead.add_note("".join(traceback.format_exception(error)))
    return instead


def _death(code: int) -> str:
    if code >= 0:
        return f"its process ended itself with exit code {code}"
    name = f"signal {-code}"
    with suppress(ValueError):  # real-time signals have numbers and no names
        name = signal.Signals(-code).name
    why = ", which the system sends when memory runs out" if code == -signal.SIGKILL else ""
    return f"its process died of {name}{why}"
