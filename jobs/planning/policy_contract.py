"""The contract of users' own policies (`module:Class`), tried once on random layers before a sweep loads any weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from jobs.console.paths import python
from kvmerger.variants import VariantSpec


class PolicyContractError(ValueError):
    """A policy of the user's own that breaks the contract of policies."""


def require_contracts(specs: Iterable[VariantSpec], say: Callable[[str], None]) -> None:
    """Try every policy that has a part ``module:Class``, once each however many budgets and parameters it has.

    ``say`` is told which one is tried. Imports torch.

    Raises:
        PolicyContractError: a check fails, with the check, what it found, and the remedy.
    """
    own = {spec.policy: dict(spec.params) for spec in specs if ":" in spec.policy}
    if not own:
        return
    from kvmerger.contract.checks import first_failure

    for policy, params in own.items():
        say(f"trying {policy} on random layers …")
        failure = first_failure(policy, params)
        if failure is not None:
            with_params, with_defaults = (f" with {params}", ", with its defaults") if params else ("", "")
            raise PolicyContractError(
                f"policy {policy!r}{with_params} breaks the contract, first in {failure.name!r}: "
                f"{_sentence(failure.message)}; mend it (`{python()} jobs/sweep.py --check-policy {policy}` runs all "
                f"checks{with_defaults}), or set check_policies: false if it works on nothing but a GPU or this model's own "
                f"shape"
            )


def _sentence(message: str) -> str:
    """A check's message in one line; of a traceback, the last one, which names the error."""
    words, is_traced, trace = message.partition("Traceback (most recent call last):")
    if not is_traced:
        return message
    last = trace.strip().splitlines()[-1]
    return f"{words.strip()} {last}".strip()
