"""What every policy must do, checked on random layers: for the project's own tests and for a user's policy.

Each check is independent, draws its layers afresh from the seed, and says in its message what was found.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isclose, nan

import torch

from kvmerger.budget import Budget, BudgetError, KeptRatio
from kvmerger.building import Variant, build, build_variant
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.contract.decoding import Decoded, decode_at_random
from kvmerger.contract.layers import NUM_KV_HEADS, NUM_LAYERS, NUM_QUERY_HEADS, NUM_TOKENS, random_prefill
from kvmerger.decoding.decode_rule import DecodeRule, require_rule
from kvmerger.engine.compress import compress_all
from kvmerger.policies.base import Policy, declared_needs
from kvmerger.policies.scoring import ScoringPolicy
from kvmerger.prefill.prefill import Prefilled
from kvmerger.variants import VariantSpec

KEPT_RATIO = 0.5


class ContractError(Exception):
    """What a check found wrong."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One check's outcome; ``message`` is empty when it passed."""

    name: str
    is_ok: bool
    message: str


@dataclass(frozen=True, slots=True)
class _Case:
    """A policy built from its name, and what it is tried on."""

    name: str
    seed: int
    dtype: torch.dtype

    def variant(self, policy: Policy | None = None) -> Variant:
        return Variant("checked", policy or build(self.name, {}), KeptRatio(KEPT_RATIO))

    def prefilled(self) -> Prefilled:
        return random_prefill(self.seed, self.dtype, self.variant().policy)


def check_policy(name: str, *, seed: int = 0) -> list[CheckResult]:
    """Run every check on the policy called ``name``: registered, ``module:Class``, or parts joined by ``+``; defaults all.

    Raises:
        VariantError: there is no such policy.
    """
    # Before the checks: a name that gives no policy is the caller's mistake, not a finding.
    build(name, {})
    cases = [_Case(name, seed, dtype) for dtype in (torch.float32, torch.bfloat16)]
    return [_run(check, case) for check in _CHECKS for case in cases]


def _run(check: Callable[[_Case], None], case: _Case) -> CheckResult:
    name = f"{check.__name__.removeprefix('_').replace('_', ' ')} ({str(case.dtype).removeprefix('torch.')})"
    try:
        check(case)
    except ContractError as error:
        return CheckResult(name, False, str(error))
    # The policy is a stranger's: whatever it raises is the finding.
    except Exception:  # noqa: BLE001
        return CheckResult(name, False, traceback.format_exc(limit=-3))
    return CheckResult(name, True, "")


def _expect(is_met: bool, message: str) -> None:
    # Not an assert statement: users may run Python with -O.
    if not is_met:
        raise ContractError(message)


def _compressed(case: _Case, prefilled: Prefilled | None = None) -> Sequence[LayerCache]:
    compression = compress_all(prefilled or case.prefilled(), [case.variant()])
    if failure := compression.failed.get("checked"):
        raise ContractError(f"compress raised\n{failure.traceback}")
    return compression.done["checked"].prefix


def _bits(layers: Sequence[LayerCache]) -> list[tuple]:
    # Compared by ==, for which NaN differs from itself: a layer with NaN never counts as unchanged.
    return [
        (layer.num_slots_H, *(tensor.flatten().tolist() for tensor in layer.tensors())) for layer in layers
    ]


def _is_a_frozen_dataclass_that_survives_pickle(case: _Case) -> None:
    policy = case.variant().policy
    is_own = "__dataclass_params__" in vars(type(policy))
    _expect(
        is_own,
        "decorate the class itself with @dataclass(frozen=True): a policy must not carry state between items",
    )
    _expect(
        pickle.loads(pickle.dumps(policy)) == policy, "unpickled, the policy differs from what was pickled"
    )


def _can_be_built_from_its_spec(case: _Case) -> None:
    spec = VariantSpec("checked", case.name, (), KeptRatio(KEPT_RATIO))
    _expect(build_variant(spec).policy == case.variant().policy, "built from its spec, the policy differs")


def _scores_every_token_with_a_number(case: _Case) -> None:
    policy = case.variant().policy
    if not isinstance(policy, ScoringPolicy):
        return
    budget = Budget.uniform(int(KEPT_RATIO * NUM_TOKENS), NUM_KV_HEADS, KEPT_RATIO)
    # `compress` would not show it: NaN ranks above every number, and what is kept looks like any other choice.
    for index, evidence in enumerate(case.prefilled().evidence):
        num_nan = int(policy.scores_at(evidence, budget).isnan().sum())
        _expect(
            num_nan == 0,
            f"layer {index}: {num_nan} scores are NaN, which rank above all others; is it 0 / 0?",
        )


def _keeps_no_more_than_its_budget(case: _Case) -> None:
    kept = sum(layer.num_slots for layer in _compressed(case))
    allowed = int(KEPT_RATIO * NUM_TOKENS) * NUM_KV_HEADS * NUM_LAYERS
    is_within = case.variant().policy.budget_is_outcome or kept <= allowed
    _expect(is_within, f"the budget allows {allowed} slots over all layers and heads, {kept} were kept")
    _expect(kept > 0, "nothing was kept")


def _keeps_finite_numbers_in_the_models_dtype(case: _Case) -> None:
    for index, layer in enumerate(_compressed(case)):
        is_right = layer.k_SD.dtype == layer.v_SD.dtype == case.dtype
        _expect(is_right, f"layer {index} is {layer.k_SD.dtype}, not {case.dtype}")
        is_finite = all(bool(tensor.isfinite().all()) for tensor in layer.tensors())
        _expect(is_finite, f"layer {index} has numbers that are not finite")


def _positions_are_the_prompts_and_ascend(case: _Case) -> None:
    for layer in _compressed(case):
        layer.check_integrity()
        if layer.num_slots:
            low, high = int(layer.position_S.min()), int(layer.position_S.max())
            _expect(
                0 <= low <= high < NUM_TOKENS, f"positions reach from {low} to {high} in {NUM_TOKENS} tokens"
            )


def _changes_none_of_its_inputs(case: _Case) -> None:
    # By what they look like: parameters of two needs may be of unlike types, which have no order.
    prefilled, needs = case.prefilled(), sorted(declared_needs(case.variant().policy), key=repr)
    before = _bits(prefilled.layers)
    evidence_before = [[evidence.get(need).clone() for need in needs] for evidence in prefilled.evidence]
    _compressed(case, prefilled)
    _expect(_bits(prefilled.layers) == before, "compress changed the full row's cache in place")
    for evidence, tensors in zip(prefilled.evidence, evidence_before, strict=True):
        for need, tensor in zip(needs, tensors, strict=True):
            is_same = torch.equal(evidence.get(need), tensor)
            _expect(is_same, f"compress changed the shared evidence {need.name!r} in place")


def _gives_the_same_bits_again(case: _Case) -> None:
    is_same = _bits(_compressed(case)) == _bits(_compressed(case))
    _expect(is_same, "the same prompt was compressed differently the second time")


def _kept_slots_are_prefills_own_unless_it_merges(case: _Case) -> None:
    if not case.variant().policy.keeps_slots_unchanged:
        return
    # A prefill of its own: a policy that writes in place must not be compared with what it wrote.
    for index, (kept, whole) in enumerate(zip(_compressed(case), case.prefilled().layers, strict=True)):
        head_S = torch.repeat_interleave(torch.arange(kept.num_heads), torch.tensor(kept.num_slots_H))
        source_S = head_S * NUM_TOKENS + kept.position_S
        for name, ours, theirs in (("key", kept.k_SD, whole.k_SD), ("value", kept.v_SD, whole.v_SD)):
            _expect(
                torch.equal(ours, theirs[source_S]),
                f"layer {index}: a kept {name} differs from prefill's at its position; a policy that changes slots says "
                f"so with keeps_slots_unchanged = False",
            )


def _meets_budgets_that_differ_between_heads_or_says_why_not(case: _Case) -> None:
    policy, prefilled = case.variant().policy, case.prefilled()
    if policy.budget_is_outcome:
        return
    ragged = Budget((NUM_TOKENS // 2, NUM_TOKENS // 2 + 9), KEPT_RATIO)
    try:
        # A layer from the middle: KVMerger leaves the first two and the last alone.
        kept = policy.compress(prefilled.layers[3], prefilled.evidence[3], ragged)
    except BudgetError:
        return
    is_within = all(
        slots <= allowed for slots, allowed in zip(kept.num_slots_H, ragged.num_slots_H, strict=True)
    )
    _expect(is_within, f"allowed {ragged.num_slots_H} slots in the two heads, kept {kept.num_slots_H}")


def _keeps_of_layers_together_what_it_keeps_of_each_alone(case: _Case) -> None:
    policy, prefilled = case.variant().policy, case.prefilled()
    even = Budget.uniform(int(KEPT_RATIO * NUM_TOKENS), NUM_KV_HEADS, KEPT_RATIO)
    budget_L = policy.allocate([even] * NUM_LAYERS, prefilled.evidence)
    together = _compressed(case, prefilled)
    for index, (layer, evidence, budget) in enumerate(
        zip(prefilled.layers, prefilled.evidence, budget_L, strict=True)
    ):
        alone, among = policy.compress(layer, evidence, budget), together[index]
        remedy = "let it treat every head by itself, or say compresses_stacks = False"
        is_same = _bits([alone]) == _bits([among])
        _expect(is_same, f"layer {index} is kept differently when compressed with its neighbours; {remedy}")
        differing = [
            name
            for name in {*alone.counters, *among.counters}
            # Missing on one side it is NaN, which is close to nothing. Means of means may round in another order.
            if not isclose(alone.counters.get(name, nan), among.counters.get(name, nan), rel_tol=1e-6)
        ]
        _expect(not differing, f"layer {index} counts {differing} differently with its neighbours; {remedy}")


def _copes_with_a_single_token_or_refuses_it(case: _Case) -> None:
    variant = case.variant()
    prefilled = random_prefill(case.seed, case.dtype, variant.policy, num_tokens=1)
    compression = compress_all(prefilled, [variant])
    if failure := compression.failed.get("checked"):
        is_refused = issubclass(failure.error_type, BudgetError)
        _expect(
            is_refused,
            f"a prompt too short must raise a BudgetError, in check or in compress\n{failure.traceback}",
        )


def _rule(case: _Case) -> DecodeRule | None:
    return require_rule(case.variant().policy.decode_rule(case.seed))


def _decoded(case: _Case, rule: DecodeRule | None, prefix: Sequence[LayerCache]) -> Decoded:
    neighbour = case.prefilled().layers
    return decode_at_random(tuple(prefix), neighbour, rule, NUM_QUERY_HEADS, NUM_TOKENS, case.seed)


def _its_decode_rule_holds_as_many_slots_as_before_and_finite_numbers(case: _Case) -> None:
    if (rule := _rule(case)) is None:
        return
    decoded = _decoded(case, rule, _compressed(case))
    num_slots = decoded.num_slots[rule.room :]
    _expect(len(set(num_slots)) == 1, f"slots held while the rule acts, step by step: {num_slots}")
    for index, layer in enumerate(decoded.layers):
        is_finite = all(bool(tensor.isfinite().all()) for tensor in layer.tensors())
        _expect(is_finite, f"layer {index} has numbers that are not finite after decoding")


def _its_decode_rule_gives_the_same_bits_again(case: _Case) -> None:
    if (rule := _rule(case)) is None:
        return
    _expect(rule == _rule(case), "decode_rule gave another rule for the same prompt the second time")
    # A fresh rule each time, as every prompt of a sweep gets one.
    first, again = (_decoded(case, _rule(case), _compressed(case)) for _ in range(2))
    _expect(_bits(first.layers) == _bits(again.layers), "the same tokens were decoded differently again")


def _its_decode_rule_changes_its_own_row_only(case: _Case) -> None:
    if (rule := _rule(case)) is None:
        return
    shared = _compressed(case)
    before = _bits(shared)
    beside = _decoded(case, rule, shared).neighbour
    _expect(_bits(shared) == before, "decoding changed the prefix that all rows of the variant share")
    # With nothing acting, the rows read the same tokens for as long.
    without = _decoded(case, None, shared).neighbour
    is_same = all(torch.equal(ours, theirs) for ours, theirs in zip(beside, without, strict=False))
    _expect(is_same, "the row beside the one that acts has other attention outputs than without it")


_CHECKS: tuple[Callable[[_Case], None], ...] = (
    _is_a_frozen_dataclass_that_survives_pickle,
    _can_be_built_from_its_spec,
    _scores_every_token_with_a_number,
    _keeps_no_more_than_its_budget,
    _keeps_finite_numbers_in_the_models_dtype,
    _positions_are_the_prompts_and_ascend,
    _changes_none_of_its_inputs,
    _gives_the_same_bits_again,
    _kept_slots_are_prefills_own_unless_it_merges,
    _meets_budgets_that_differ_between_heads_or_says_why_not,
    _keeps_of_layers_together_what_it_keeps_of_each_alone,
    _copes_with_a_single_token_or_refuses_it,
    _its_decode_rule_holds_as_many_slots_as_before_and_finite_numbers,
    _its_decode_rule_gives_the_same_bits_again,
    _its_decode_rule_changes_its_own_row_only,
)
