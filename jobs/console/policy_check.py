"""`--check-policy`: the contract tests on one policy; an error that breaks many is shown with its traceback once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jobs.console.command_line import EXIT_OK, EXIT_SOME_FAILED

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


def check_policy(name: str) -> int:
    """Run the contract tests on one policy and print what each says; the exit code."""
    from kvmerger.contract import checks

    results = checks.check_policy(name)
    for it, message in zip(results, traces_once([it.message for it in results]), strict=True):
        print(f"{'ok  ' if it.is_ok else 'FAIL'}  {it.name}{f': {message}' if message else ''}")
    num_failed = sum(not it.is_ok for it in results)
    print(f"{name}: {len(results) - num_failed} of {len(results)} checks passed")
    return EXIT_SOME_FAILED if num_failed else EXIT_OK
