"""`--check-policy`: the contract tests on one policy. One bug often breaks many: only the first traceback is shown.

They run in a process of their own: a policy that kills it is told of.
"""

from __future__ import annotations

import faulthandler
from collections.abc import Iterable, Iterator

from jobs.console.child_process import ChildDiedError, yielded
from jobs.console.command_line import EXIT_OK, EXIT_SOME_FAILED

_TRACE = "Traceback (most recent call last):"


class PolicyCheckError(ValueError):
    """A policy whose checks could not be brought to an end."""


def first_trace_only(messages: Iterable[str]) -> Iterator[str]:
    """The messages in their order; from the second traceback on, only its last line, which names the error."""
    is_shown = False
    for message in messages:
        words, is_traced, trace = message.partition(_TRACE)
        yield words + trace.splitlines()[-1] if is_traced and is_shown else message
        is_shown = is_shown or bool(is_traced)


def check_policy(name: str) -> int:
    """Run the contract tests on one policy and print what each says; the exit code.

    Raises:
        PolicyCheckError: the policy has killed the process, or hangs.
        VariantError: there is no such policy.
    """
    results: list[tuple[str, bool]] = []

    def messages() -> Iterator[str]:
        for its_name, is_ok, message in yielded(_results, name):
            results.append((its_name, is_ok))
            yield message

    try:
        for message in first_trace_only(messages()):
            its_name, is_ok = results[-1]
            print(f"{'ok  ' if is_ok else 'FAIL'}  {its_name}{f': {message}' if message else ''}", flush=True)
    except ChildDiedError as error:
        where = f"in the check after {results[-1][0]!r}" if results else "in the first check"
        raise PolicyCheckError(
            f"policy {name!r} cannot be checked to the end: {error}, {where}; mend what it does there"
        ) from error
    num_failed = sum(not is_ok for _, is_ok in results)
    print(f"{name}: {len(results) - num_failed} of {len(results)} checks passed")
    return EXIT_SOME_FAILED if num_failed else EXIT_OK


def _results(name: str) -> Iterator[tuple[str, bool, str]]:
    """Of each check its name, whether it passed, and what it says; for the child."""
    # What a segfault or an abort leaves else is the signal's name.
    faulthandler.enable()
    from kvmerger.contract.checks import check_results

    for it in check_results(name):
        # Not the result itself: its class lies beside torch, which the parent does without.
        yield it.name, it.is_ok, it.message
