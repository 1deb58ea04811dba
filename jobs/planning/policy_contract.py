"""The contract of users' own policies (`module:Class`), tried once on random layers before a sweep loads any weights.

They are tried in a process of its own, one for all of them: a policy that kills it does not end the sweep without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from typing import Any

from jobs.console.child_process import ChildDiedError, yielded
from jobs.console.paths import command_line
from kvmerger.nested import top_module
from kvmerger.variants import VariantSpec


class PolicyContractError(ValueError):
    """A policy of the user's own that breaks the contract of policies."""


def require_contracts(specs: Iterable[VariantSpec], say: Callable[[str], None]) -> None:
    """Try every policy that has a part ``module:Class``, once each however many budgets and parameters it has.

    kvpress's own presses are left out, unless one of the user's is nested in them.

    ``say`` is told which one is tried. Without such a policy no process is started.

    Raises:
        PolicyContractError: a check fails, with the check, what it found, and the remedy; or a policy kills the process.
    """
    own = {
        spec.policy: dict(spec.params)
        for spec in specs
        if any(":" in path and top_module(path) != "kvpress" for path in spec.paths)
    }
    if not own:
        return
    with closing(first_failures(own)) as failures:
        for policy, params in own.items():
            say(f"trying {policy} on random layers …")
            problem, does = _problem(failures)
            if problem:
                with_params, with_defaults = (
                    (f" with {params}", ", with its defaults") if params else ("", "")
                )
                raise PolicyContractError(
                    f"policy {policy!r}{with_params} {problem}; mend it (`{command_line('--check-policy', policy)}` "
                    f"{does}{with_defaults}), or set check_policies: false if it works on nothing but a GPU or this model's "
                    f"own shape"
                )


def first_failures(own: Mapping[str, Mapping[str, Any]]) -> Generator[tuple[str, str] | None]:
    """For each policy with its parameters the check that it fails first and what that says, or None; from a new process.

    Raises:
        ChildDiedError: the process died of the policy whose turn it was.
    """
    return yielded(_tried, list(own.items()))


def _problem(failures: Iterator[tuple[str, str] | None]) -> tuple[str, str]:
    """What the next policy does wrong, or "", and what `--check-policy` does about it."""
    try:
        failure = next(failures)
    except ChildDiedError as error:
        return f"cannot be tried: {error}", "shows where"
    if failure is None:
        return "", ""
    check, message = failure
    return f"breaks the contract, first in {check!r}: {_sentence(message)}", "runs all checks"


def _tried(own: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[tuple[str, str] | None]:
    from kvmerger.contract.checks import first_failure

    for policy, params in own:
        failure = first_failure(policy, params)
        yield None if failure is None else (failure.name, failure.message)


def _sentence(message: str) -> str:
    """A check's message in one line; of a traceback, the last one, which names the error."""
    words, is_traced, trace = message.partition("Traceback (most recent call last):")
    if not is_traced:
        return message
    last = trace.strip().splitlines()[-1]
    return f"{words.strip()} {last}".strip()
