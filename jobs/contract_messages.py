"""What checks of a policy say: an error that breaks many of them is shown with its traceback once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

_TRACE = "Traceback (most recent call last):"
_FRAME = '  File "'


def traces_once(messages: Sequence[str]) -> Iterator[str]:
    """The messages in their order; where an error was shown already, its own words and "as above" take the trace's place.

    Errors are the same if they were raised at the same place with the same words, whatever called it.
    """
    seen: set[str] = set()
    for message in messages:
        words, is_traced, trace = message.partition(_TRACE)
        where_raised = trace.rpartition(_FRAME)[2]
        if is_traced and where_raised in seen:
            error = trace.rstrip().rpartition("\n")[2]
            yield f"{words.strip()}{': ' if words.strip() else ''}{error} (as above)"
        else:
            seen |= {where_raised} if is_traced else set()
            yield message
