"""What each policy would need of an inference engine, derived from what it says of itself, and where it runs today.

Needs are a part's own: those of ``snapkv+adakv`` are `snapkv`'s and `adakv`'s together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from kvmerger.building import build
from kvmerger.decoding.decode_rule import AnswerRule, DecodeRule
from kvmerger.decoding.periodic_rule import PeriodicRule
from kvmerger.policies import registry
from kvmerger.policies.base import Policy
from kvmerger.prefill.evidence import Need, registered
from kvmerger.variant_names import ALIASES


class ServerNeed(StrEnum):
    """Something that paged engines do not offer policies by themselves; docs/policies.md explains each."""

    RAGGED_HEADS = "ragged heads"
    UNLIKE_LAYERS = "unlike layers"
    WHOLE_BLOCKS = "whole blocks"
    NEW_SLOTS = "new keys or values"
    LOGIT_BIAS = "logit bias"
    ATTENTION_WEIGHTS = "attention weights"
    HIDDEN_STATES = "hidden states or weights"
    SECOND_PASS = "second pass"
    EVERY_STEP = "eviction at every step"
    NOW_AND_THEN = "eviction now and then"


NOWHERE = "nowhere"
# Looked up in the engines' documentation, November 2026. Neighbours, not twins: docs/policies.md says where they differ.
_RUNS_TODAY = {
    "streaming_llm": "nearest: TensorRT-LLM, `max_attention_window` with `sink_token_length`",
    "snapkv": "nearest: TensorRT-LLM, the prompt's part of `rocket`",
    "triattention": "nearest: TensorRT-LLM, `TriAttention`",
    "streaming_llm_decode": "nearest: llama.cpp, `--context-shift` with `--keep`",
}
_USUAL_FRONT = "snapkv"


@dataclass(frozen=True, slots=True)
class Serving:
    """What one policy, or one part behind a ``+``, needs of a server, and where it runs today."""

    name: str
    is_wrapper: bool
    needs: tuple[ServerNeed, ...]
    runs_today: str

    @property
    def runs_somewhere(self) -> bool:
        """Whether an engine has it, or something near it."""
        return self.runs_today != NOWHERE

    @property
    def needs_shown(self) -> str:
        """The needs as a list, of words."""
        return ", ".join(self.needs) or "nothing more"


def describe() -> list[Serving]:
    """Every registered policy, then everything that may follow a ``+``, in the order of `registry.describe`."""
    return [
        Serving(
            it.name,
            it.is_wrapper,
            needs_of(_part(it.name, is_wrapper=it.is_wrapper)),
            _RUNS_TODAY.get(it.name, NOWHERE),
        )
        for it in registry.describe()
    ]


def needs_of(policy: Policy) -> tuple[ServerNeed, ...]:
    """What ``policy`` needs of a server beside what it wraps, in the order of `ServerNeed`."""
    # Of a rule any seed will do: what it reads does not depend on it.
    inner: Policy | None = getattr(policy, registry.INNER, None)
    found = _needs_of_evidence(policy.needs() - (inner.needs() if inner is not None else frozenset()))
    if inner is None or inner.decode_rule(0) is None:
        found |= _needs_of_rule(policy.decode_rule(0))
    told = {
        ServerNeed.RAGGED_HEADS: policy.heads_differ,
        ServerNeed.UNLIKE_LAYERS: policy.layers_differ,
        ServerNeed.WHOLE_BLOCKS: policy.keeps_whole_blocks,
        ServerNeed.NEW_SLOTS: not policy.keeps_slots_unchanged
        and (inner is None or inner.keeps_slots_unchanged),
        ServerNeed.LOGIT_BIAS: policy.adds_log_mass and not (inner is not None and inner.adds_log_mass),
    }
    found |= {need for need, is_told in told.items() if is_told}
    return tuple(need for need in ServerNeed if need in found)


def _needs_of_evidence(needs: Iterable[Need]) -> set[ServerNeed]:
    found = set()
    for need in needs:
        read = registered(need)
        if read.reads_queries:
            found.add(ServerNeed.ATTENTION_WEIGHTS)
        if read.reads_hidden_states:
            found.add(ServerNeed.HIDDEN_STATES)
        if read.pieces is not None:
            found.add(ServerNeed.SECOND_PASS)
    return found


def _needs_of_rule(rule: AnswerRule | None) -> set[ServerNeed]:
    if rule is None:
        return set()
    if isinstance(rule, PeriodicRule):
        return {ServerNeed.NOW_AND_THEN}
    told = {
        ServerNeed.EVERY_STEP: True,
        ServerNeed.ATTENTION_WEIGHTS: rule.reads_attention,
        # Values change where somebody inherits them.
        ServerNeed.NEW_SLOTS: isinstance(rule, DecodeRule) and type(rule).heirs is not DecodeRule.heirs,
    }
    return {need for need, is_told in told.items() if is_told}


def _part(name: str, *, is_wrapper: bool) -> Policy:
    """The policy, or the part behind what usually stands in front of it, with all defaults."""
    return build(ALIASES.get(name, f"{_USUAL_FRONT}+{name}") if is_wrapper else name, {})
