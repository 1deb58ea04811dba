"""What every policy must do, checked on random layers: for the project's own tests and for a user's policy.

Each check is independent, draws its layers afresh from the seed, and says in its message what was found.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from math import isclose, nan
from typing import Any, TypeVar

import torch

from kvmerger.budget import Budget, BudgetError
from kvmerger.building import build, build_variant, form_of
from kvmerger.cache.forms.base import Form
from kvmerger.contract.case import KEPT_RATIO, Case, ContractError, bits, expect
from kvmerger.contract.forms import FORM_CHECKS, form_cases
from kvmerger.contract.layers import NUM_KV_HEADS, NUM_TOKENS
from kvmerger.contract.rule_checks import (
    its_decode_rule_changes_its_own_row_only,
    its_decode_rule_gives_the_same_bits_again,
    its_decode_rule_holds_as_many_slots_as_before_and_finite_numbers,
)
from kvmerger.contract.size_checks import (
    gives_heads_and_layers_unlike_shares_only_if_it_says_so,
    has_log_masses_only_if_it_says_so,
    keeps_no_more_than_its_budget,
)
from kvmerger.names import FormError
from kvmerger.policies.base import PolicyError, declared_needs
from kvmerger.policies.scoring import ScoringPolicy
from kvmerger.policies.storage.stored import Everything
from kvmerger.prefill.massive_counts import COUNTERS
from kvmerger.variants import VariantSpec

_DTYPES = (torch.float32, torch.bfloat16)
Check = Callable[[Case], None]
Tried = TypeVar("Tried")


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One check's outcome; ``message`` is empty when it passed."""

    name: str
    is_ok: bool
    message: str


def check_policy(name: str, *, seed: int = 0) -> list[CheckResult]:
    """Run every check on the policy called ``name``: registered, ``module:Class``, or parts joined by ``+``; defaults all.

    A form among its parts is checked by itself, as the policy is without it.

    Raises:
        VariantError: there is no such policy.
    """
    return list(check_results(name, seed=seed))


def check_results(name: str, *, seed: int = 0) -> Iterator[CheckResult]:
    """As `check_policy`, one check after the other."""
    # Before the checks: a name that gives no policy is the caller's mistake, not a finding.
    policy = build(name, {})
    with _one_thread():
        yield from _policy_results(Case(name, seed, dtype) for dtype in _DTYPES)
        if (form := form_of(policy)) is not None:
            yield from _form_results(form, seed)


def first_failure(name: str, params: Mapping[str, Any], *, seed: int = 0) -> CheckResult | None:
    """The first check that the policy ``name`` with ``params`` fails, in the order of `check_policy`; None where none does.

    A prompt of one token is not tried: no sweep has one. A policy that refuses the checks' prompt by a `BudgetError`, as one
    with a long window does, is not tried at all.
    """
    cases = [Case(name, seed, dtype, params) for dtype in _DTYPES]
    form = form_of(build(name, params))
    with _one_thread():
        results = chain(
            _policy_results(cases, without=_copes_with_a_single_token_or_refuses_it),
            () if form is None else _form_results(form, seed),
        )
        failure = cases[0].failure(cases[0].prefilled())
        if failure is not None and issubclass(failure.error_type, BudgetError):
            results = chain(() if form is None else _form_results(form, seed))
        return next((result for result in results if not result.is_ok), None)


def _policy_results(cases: Iterable[Case], without: Check | None = None) -> Iterator[CheckResult]:
    """All checks of policies, lazily; a policy that keeps everything, which no budget has, is not tried."""
    tried = [case for case in cases if not isinstance(case.variant().policy, Everything)]
    for check in _CHECKS:
        if check is not without:
            yield from (_run(check, case, _dtype_name(case.dtype)) for case in tried)


def _form_results(form: Form, seed: int) -> Iterator[CheckResult]:
    try:
        cases = form_cases(form, seed, _DTYPES)
    except ContractError as error:
        yield CheckResult("it takes heads of some size", False, str(error))
        return
    for check in FORM_CHECKS:
        for case in cases:
            yield _run(check, case, f"{_dtype_name(case.dtype)}, heads of {case.head_dim}")


@contextmanager
def _one_thread() -> Iterator[None]:
    """Inside, torch computes with one thread; more than one wait for each other in work this small."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _run(check: Callable[[Tried], None], case: Tried, where: str) -> CheckResult:
    name = f"{check.__name__.removeprefix('_').replace('_', ' ')} ({where})"
    try:
        check(case)
    # All are a sentence that names the fault.
    except (ContractError, FormError, PolicyError) as error:
        return CheckResult(name, False, str(error))
    # The policy is a stranger's: whatever it raises is the finding, and so is an exit.
    except (Exception, SystemExit):  # noqa: BLE001
        return CheckResult(name, False, traceback.format_exc(limit=-3))
    return CheckResult(name, True, "")


def _is_a_frozen_dataclass_that_survives_pickle(case: Case) -> None:
    policy = case.variant().policy
    is_own = "__dataclass_params__" in vars(type(policy))
    expect(
        is_own,
        "decorate the class itself with @dataclass(frozen=True): a policy must not carry state between items",
    )
    expect(
        pickle.loads(pickle.dumps(policy)) == policy, "unpickled, the policy differs from what was pickled"
    )


def _can_be_built_from_its_spec(case: Case) -> None:
    made = build(case.name, case.params)
    spec = VariantSpec("checked", case.name, tuple(case.params.items()), case.budget(made))
    expect(build_variant(spec).policy == made, "built from its spec, the policy differs")


def _scores_every_token_with_a_number(case: Case) -> None:
    policy = case.variant().policy
    if not isinstance(policy, ScoringPolicy):
        return
    budget = Budget.uniform(int(KEPT_RATIO * NUM_TOKENS), NUM_KV_HEADS, KEPT_RATIO)
    for index, evidence in enumerate(case.prefilled().evidence):
        num_nan = int(policy.checked_scores(evidence, budget).isnan().sum())
        expect(
            num_nan == 0,
            f"layer {index}: {num_nan} scores are NaN, which rank above all others; is it 0 / 0?",
        )


def _keeps_finite_numbers_in_the_models_dtype(case: Case) -> None:
    for index, layer in enumerate(case.compressed()):
        is_right = layer.k_SD.dtype == layer.v_SD.dtype == case.dtype
        expect(is_right, f"layer {index} is {layer.k_SD.dtype}, not {case.dtype}")
        is_finite = all(bool(tensor.isfinite().all()) for tensor in layer.tensors())
        expect(is_finite, f"layer {index} has numbers that are not finite")


def _positions_are_the_prompts_and_ascend(case: Case) -> None:
    for layer in case.compressed():
        layer.check_integrity()
        if layer.num_slots:
            low, high = int(layer.position_S.min()), int(layer.position_S.max())
            expect(
                0 <= low <= high < NUM_TOKENS, f"positions reach from {low} to {high} in {NUM_TOKENS} tokens"
            )


def _changes_none_of_its_inputs(case: Case) -> None:
    # By what they look like: parameters of two needs may be of unlike types, which have no order.
    prefilled, needs = case.prefilled(), sorted(declared_needs(case.variant().policy), key=repr)
    before = bits(prefilled.layers)
    evidence_before = [[evidence.get(need).clone() for need in needs] for evidence in prefilled.evidence]
    case.compressed(prefilled)
    expect(bits(prefilled.layers) == before, "compress changed the full row's cache in place")
    for evidence, tensors in zip(prefilled.evidence, evidence_before, strict=True):
        for need, tensor in zip(needs, tensors, strict=True):
            is_same = torch.equal(evidence.get(need), tensor)
            expect(is_same, f"compress changed the shared evidence {need.name!r} in place")


def _gives_the_same_bits_again(case: Case) -> None:
    is_same = bits(case.compressed()) == bits(case.compressed())
    expect(is_same, "the same prompt was compressed differently the second time")


def _kept_slots_are_prefills_own_unless_it_merges(case: Case) -> None:
    policy = case.variant().policy
    # What is stored in a form of the policy's own comes back within that form's error, which has checks of its own.
    if not policy.keeps_slots_unchanged or form_of(policy) is not None:
        return
    # A prefill of its own: a policy that writes in place must not be compared with what it wrote.
    for index, (kept, whole) in enumerate(zip(case.compressed(), case.prefilled().layers, strict=True)):
        head_S = torch.repeat_interleave(torch.arange(kept.num_heads), torch.tensor(kept.num_slots_H))
        source_S = head_S * NUM_TOKENS + kept.position_S
        for name, ours, theirs in (("key", kept.k_SD, whole.k_SD), ("value", kept.v_SD, whole.v_SD)):
            expect(
                torch.equal(ours, theirs[source_S]),
                f"layer {index}: a kept {name} differs from prefill's at its position; a policy that changes slots says "
                f"so with keeps_slots_unchanged = False",
            )


def _meets_budgets_that_differ_between_heads_or_says_why_not(case: Case) -> None:
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
    expect(is_within, f"allowed {ragged.num_slots_H} slots in the two heads, kept {kept.num_slots_H}")


def _keeps_of_layers_together_what_it_keeps_of_each_alone(case: Case) -> None:
    prefilled = case.prefilled()
    together = case.compressed(prefilled)
    for index, budget in enumerate(case.budgets(prefilled)):
        alone, among = case.alone(prefilled, index, budget), together[index]
        remedy = "let it treat every head by itself, or say compresses_stacks = False"
        is_same = bits([alone]) == bits([among])
        expect(is_same, f"layer {index} is kept differently when compressed with its neighbours; {remedy}")
        differing = [
            name
            for name in {*alone.counters, *among.counters} - COUNTERS  # which the engine adds, not the policy
            # Missing on one side it is NaN, which is close to nothing. Means of means may round in another order.
            if not isclose(alone.counters.get(name, nan), among.counters.get(name, nan), rel_tol=1e-6)
        ]
        expect(not differing, f"layer {index} counts {differing} differently with its neighbours; {remedy}")


def _copes_with_a_single_token_or_refuses_it(case: Case) -> None:
    if failure := case.failure(case.prefilled(num_tokens=1)):
        is_refused = issubclass(failure.error_type, BudgetError)
        expect(
            is_refused,
            f"a prompt too short must raise a BudgetError, in check or in compress\n{failure.traceback}",
        )


_CHECKS: tuple[Callable[[Case], None], ...] = (
    _is_a_frozen_dataclass_that_survives_pickle,
    _can_be_built_from_its_spec,
    _scores_every_token_with_a_number,
    keeps_no_more_than_its_budget,
    _keeps_finite_numbers_in_the_models_dtype,
    has_log_masses_only_if_it_says_so,
    gives_heads_and_layers_unlike_shares_only_if_it_says_so,
    _positions_are_the_prompts_and_ascend,
    _changes_none_of_its_inputs,
    _gives_the_same_bits_again,
    _kept_slots_are_prefills_own_unless_it_merges,
    _meets_budgets_that_differ_between_heads_or_says_why_not,
    _keeps_of_layers_together_what_it_keeps_of_each_alone,
    _copes_with_a_single_token_or_refuses_it,
    its_decode_rule_holds_as_many_slots_as_before_and_finite_numbers,
    its_decode_rule_gives_the_same_bits_again,
    its_decode_rule_changes_its_own_row_only,
)
