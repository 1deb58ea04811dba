"""What people read on a terminal or in a log: text is only ever text, and passwords in addresses stay out of it.

A model's name, a path or an answer may hold square brackets, `:words:`, letters that the terminal has not, or an address.
"""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from jobs.console.addresses import without_passwords

if TYPE_CHECKING:
    from rich.console import Console


def text_console(width: int | None = None, *, stderr: bool = False) -> Console:
    """A rich console that reads no markup, no emoji names and no numbers out of what it is given."""
    from rich.console import Console

    return Console(width=width, stderr=stderr, markup=False, emoji=False, highlight=False)


def text_of(renderable: Any, width: int) -> str:
    """As `text_console` would print it, `width` columns wide and without colours."""
    from rich.console import Console

    console = Console(
        file=io.StringIO(), width=width, color_system=None, markup=False, emoji=False, highlight=False
    )
    with console.capture() as captured:
        console.print(renderable)
    return captured.get()


def tell(text: str) -> None:
    """One message on standard error."""
    print(without_passwords(text), file=sys.stderr)


@contextmanager
def printable() -> Iterator[None]:
    """Inside, letters that the terminal has not are printed as escapes, and logs of any library have no passwords."""
    for stream in (sys.stdout, sys.stderr):
        _escape_what_it_lacks(stream)
    before = logging.getLogRecordFactory()

    def without(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = before(*args, **kwargs)
        # Put together here, where every handler of every library takes it from: MLflow has handlers of its own.
        record.msg, record.args = without_passwords(record.getMessage()), None
        if record.exc_info:
            record.exc_text = without_passwords(logging.Formatter().formatException(record.exc_info))
        return record

    logging.setLogRecordFactory(without)
    try:
        yield
    finally:
        logging.setLogRecordFactory(before)


def _escape_what_it_lacks(stream: IO[str]) -> None:
    # Not those that stand in for a terminal, as in a notebook or a test.
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
