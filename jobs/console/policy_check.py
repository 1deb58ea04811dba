"""`--check-policy`: the contract tests on one policy. One bug often breaks many: only the first traceback is shown.

They run in a process of their own: a policy that kills it is told of.
"""

from __future__ import annotations

import faulthandler
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from jobs.console.child_process import ChildDiedError, yielded
from jobs.console.command_line import EXIT_OK, EXIT_SOME_FAILED

_TRACE = "Traceback (most recent call last):"


class PolicyCheckError(ValueError):
    """A policy whose checks could not be brought to an end."""


class Outcome(NamedTuple):
    """What one check found."""

    name: str
    is_ok: bool
    message: str


def summary_lines(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Failures first, those that say the same as one; then how many checks pass.

    Of tracebacks only the first is whole: one bug breaks many checks, each in its own words.
    """
    names_of: dict[str, list[str]] = {}
    for it in outcomes:
        if not it.is_ok:
            names_of.setdefault(_said(it.message), []).append(it.name)
    whole = {_said(it.message): it.message for it in reversed(outcomes) if not it.is_ok}
    for message, said in zip(first_trace_only(whole[said] for said in names_of), names_of, strict=True):
        yield f"FAIL  {'; '.join(names_of[said])}{f': {message}' if message else ''}"
    num_ok = sum(it.is_ok for it in outcomes)
    if names_of and num_ok:
        yield f"ok    {num_ok} others"


def _said(message: str) -> str:
    """The message without its traceback but for the last line, which names the error: the rest differs between checks."""
    words, is_traced, trace = message.partition(_TRACE)
    return words + trace.splitlines()[-1] if is_traced else message


def first_trace_only(messages: Iterable[str]) -> Iterator[str]:
    """The messages in their order; from the second traceback on, only its last line, which names the error."""
    is_shown = False
    for message in messages:
        is_traced = _TRACE in message
        yield _said(message) if is_shown else message
        is_shown = is_shown or is_traced


def check_policy(name: str) -> int:
    """Run the contract tests on one policy and print what fails; the exit code.

    Raises:
        PolicyCheckError: the policy has killed the process, or hangs.
        VariantError: there is no such policy.
    """
    outcomes: list[Outcome] = []
    try:
        for found in yielded(_results, name):
            outcomes.append(Outcome(*found))  # noqa: PERF401 - those before a death are told
    except ChildDiedError as error:
        where = f"in the check after {outcomes[-1].name!r}" if outcomes else "in the first check"
        raise PolicyCheckError(
            f"policy {name!r} cannot be checked to the end: {error}, {where}; mend what it does there"
        ) from error
    finally:
        for line in summary_lines(outcomes):
            print(line, flush=True)
    num_failed = sum(not it.is_ok for it in outcomes)
    print(f"{name}: {len(outcomes) - num_failed} of {len(outcomes)} checks passed")
    return EXIT_SOME_FAILED if num_failed else EXIT_OK


def _results(name: str) -> Iterator[tuple[str, bool, str]]:
    """Of each check its name, whether it passed, and what it says; for the child."""
    # What a segfault or an abort leaves else is the signal's name.
    faulthandler.enable()
    from kvmerger.contract.checks import check_results

    for it in check_results(name):
        # Not the result itself: its class lies beside torch, which the parent does without.
        yield it.name, it.is_ok, it.message
