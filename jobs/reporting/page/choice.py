"""What is certified, and what fits: the answers of `choose` under its default contract, for the page."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.analysis.choosing.certificates import CertificateGroup, Certificates, Chain
from jobs.reporting.choice_words import (
    certificate_answer,
    certificate_notes,
    how_tested,
    no_promise,
    shown_contract,
)
from jobs.reporting.notation import shown_name
from jobs.results.grouping import Setting

GIB = 2**30


@dataclass(frozen=True, slots=True)
class ChoiceLine:
    """One policy: its smallest certified variant, or its mildest where none is.

    `verdict`: "yes", "no", or "open" where nothing can be certified. `stopped` is the next stricter variant, at which the
    tests ended. `bytes_per_token` and `tokens_per_gib` are of context, at the lengths that were measured.
    """

    label: str
    name: str
    verdict: str
    held_share: float | None
    bytes_per_token: float | None
    num_lost: int
    num_contexts: int
    stopped: str

    @property
    def tokens_per_gib(self) -> int | None:
        """How many tokens of context a GiB holds."""
        return None if not self.bytes_per_token else int(GIB / self.bytes_per_token)


@dataclass(frozen=True, slots=True)
class Choice:
    """One setting's answer. `lines` are empty where there is none at all; `contract`, `answer` and `notes` are sentences."""

    contract: str
    answer: str
    lines: tuple[ChoiceLine, ...]
    notes: tuple[str, ...]


def choices(found: Certificates | None) -> dict[Setting, Choice]:
    """The answer of every setting; empty where `choose` has none, as of rows without the full cache's."""
    if found is None:
        return {}
    return {group.setting: _choice(found, group) for group in found.groups}


def _choice(found: Certificates, group: CertificateGroup) -> Choice:
    no = "open" if group.is_too_few or group.is_blind else "no"
    lines = [_line(chain, no) for chain in group.chains if chain.levels]
    # The certified ones first, the fewest bytes first of these.
    ordered = sorted(lines, key=lambda it: (it.verdict != "yes", it.held_share or 0.0, it.label))
    answer = certificate_answer(found, group)
    return Choice(
        shown_contract(found.contract),
        f"{answer[:1].upper()}{answer[1:]}",
        tuple(ordered),
        (*certificate_notes(group), how_tested(found), no_promise()),
    )


def _line(chain: Chain, no: str) -> ChoiceLine:
    level = chain.smallest or chain.levels[0]
    refused = chain.refused if chain.smallest else None
    return ChoiceLine(
        label=level.label,
        name=shown_name(level),
        verdict="yes" if chain.smallest else no,
        held_share=level.storage.held_share,
        bytes_per_token=level.bytes_per_token,
        num_lost=level.num_lost,
        num_contexts=level.num_contexts,
        stopped=f"{shown_name(refused)}: {refused.num_lost}" if refused else "",
    )
