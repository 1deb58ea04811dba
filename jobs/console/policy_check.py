"""`--check-policy`: the contract tests on one policy. One bug often breaks many: only the first traceback is shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jobs.console.command_line import EXIT_OK, EXIT_SOME_FAILED

_TRACE = "Traceback (most recent call last):"


def first_trace_only(messages: Sequence[str]) -> Iterator[str]:
    """The messages in their order; from the second traceback on, only its last line, which names the error."""
    is_shown = False
    for message in messages:
        words, is_traced, trace = message.partition(_TRACE)
        yield words + trace.splitlines()[-1] if is_traced and is_shown else message
        is_shown = is_shown or bool(is_traced)


def check_policy(name: str) -> int:
    """Run the contract tests on one policy and print what each says; the exit code."""
    from kvmerger import check_policy as check

    results = check(name)
    for it, message in zip(results, first_trace_only([it.message for it in results]), strict=True):
        print(f"{'ok  ' if it.is_ok else 'FAIL'}  {it.name}{f': {message}' if message else ''}")
    num_failed = sum(not it.is_ok for it in results)
    print(f"{name}: {len(results) - num_failed} of {len(results)} checks passed")
    return EXIT_SOME_FAILED if num_failed else EXIT_OK
