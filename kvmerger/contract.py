"""What every policy must do, checked on random layers: for the project's own tests and for a user's policy.

Each check is independent and says in its message what was found. Layers are drawn afresh from the seed.

Shapes: N tokens, H KV heads, Q query heads, D head size, L layers.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from kvmerger.budget import Budget, BudgetError, KeptRatio
from kvmerger.compress import compress_all
from kvmerger.evidence import Evidence, LayerStates, needs_hidden_states
from kvmerger.layer_cache import LayerCache
from kvmerger.policies.base import Policy
from kvmerger.policies.composition import build
from kvmerger.prefill import Prefilled
from kvmerger.variants import Variant, VariantSpec, build_variant

NUM_LAYERS, NUM_KV_HEADS, NUM_QUERY_HEADS, HEAD_DIM, NUM_TOKENS = 8, 2, 4, 16, 311
KEPT_RATIO = 0.5
# A neighbour's share in each key, so that some neighbours are alike and some are not, as in real prompts.
_NEIGHBOUR_SHARE = 0.8


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
    build(name, {})
    cases = [_Case(name, seed, dtype) for dtype in (torch.float32, torch.bfloat16)]
    return [_run(check, case) for check in _CHECKS for case in cases]


def random_prefill(seed: int, dtype: torch.dtype, policy: Policy, num_tokens: int = NUM_TOKENS) -> Prefilled:
    """What a prefill would leave behind: correlated random keys, random queries and values, the policy's evidence.

    For policies that read hidden states there is a real attention module; its inputs are drawn apart from q, k and v.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(num_heads: int) -> torch.Tensor:
        return torch.randn(num_heads, num_tokens, HEAD_DIM, generator=generator)

    reads_hidden_states = needs_hidden_states(policy.needs())
    layers, evidence = [], []
    for layer_index in range(NUM_LAYERS):
        k_HND = draw(NUM_KV_HEADS)
        share_HN1 = _NEIGHBOUR_SHARE * torch.rand(NUM_KV_HEADS, num_tokens - 1, 1, generator=generator)
        k_HND[:, 1:] = share_HN1 * k_HND[:, :-1] + (1 - share_HN1) * k_HND[:, 1:]
        q_QND, v_HND = draw(NUM_QUERY_HEADS), draw(NUM_KV_HEADS)
        attention_input = _attention_input(generator, dtype, num_tokens) if reads_hidden_states else ()
        states = LayerStates(
            q_QND.to(dtype), k_HND.to(dtype), v_HND.to(dtype), HEAD_DIM**-0.5, *attention_input
        )
        gathered = Evidence(states, layer_index, NUM_LAYERS, prompt_seed=seed)
        gathered.capture(policy.needs())
        layers.append(LayerCache.from_dense(states.k_HND, states.v_HND))
        evidence.append(gathered)
    return Prefilled(tuple(layers), tuple(evidence))


def _attention_input(
    generator: torch.Generator, dtype: torch.dtype, num_tokens: int
) -> tuple[torch.Tensor, nn.Module, nn.Module]:
    """Hidden states, a Llama attention module with random weights, and its rotary embedding."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

    hidden_size = NUM_QUERY_HEADS * HEAD_DIM
    config = LlamaConfig(
        hidden_size=hidden_size, head_dim=HEAD_DIM,
        num_attention_heads=NUM_QUERY_HEADS, num_key_value_heads=NUM_KV_HEADS,
    )  # fmt: skip
    attention = LlamaAttention(config, layer_idx=0).requires_grad_(False)
    for weight in attention.parameters():
        weight.normal_(std=hidden_size**-0.5, generator=generator)
    hidden_NE = torch.randn(num_tokens, hidden_size, generator=generator)
    return hidden_NE.to(dtype), attention.to(dtype), LlamaRotaryEmbedding(config)


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
    """Not an assert statement: users may run Python with -O."""
    if not is_met:
        raise ContractError(message)


def _compressed(case: _Case, prefilled: Prefilled | None = None) -> Sequence[LayerCache]:
    compression = compress_all(prefilled or case.prefilled(), [case.variant()])
    if failure := compression.failed.get("checked"):
        raise ContractError(f"compress raised\n{failure.traceback}")
    return compression.done["checked"].prefix


def _bits(layers: Sequence[LayerCache]) -> list[tuple]:
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
    prefilled, needs = case.prefilled(), sorted(case.variant().policy.needs())
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
        kept = policy.compress(prefilled.layers[3], prefilled.evidence[3], ragged)
    except BudgetError:
        return
    is_within = all(
        slots <= allowed for slots, allowed in zip(kept.num_slots_H, ragged.num_slots_H, strict=True)
    )
    _expect(is_within, f"allowed {ragged.num_slots_H} slots in the two heads, kept {kept.num_slots_H}")


def _copes_with_a_single_token_or_refuses_it(case: _Case) -> None:
    variant = case.variant()
    prefilled = random_prefill(case.seed, case.dtype, variant.policy, num_tokens=1)
    compression = compress_all(prefilled, [variant])
    if failure := compression.failed.get("checked"):
        is_refused = isinstance(failure.error, BudgetError)
        _expect(
            is_refused,
            f"a prompt too short must raise a BudgetError, in check or in compress\n{failure.traceback}",
        )


_CHECKS: tuple[Callable[[_Case], None], ...] = (
    _is_a_frozen_dataclass_that_survives_pickle,
    _can_be_built_from_its_spec,
    _keeps_no_more_than_its_budget,
    _keeps_finite_numbers_in_the_models_dtype,
    _positions_are_the_prompts_and_ascend,
    _changes_none_of_its_inputs,
    _gives_the_same_bits_again,
    _kept_slots_are_prefills_own_unless_it_merges,
    _meets_budgets_that_differ_between_heads_or_says_why_not,
    _copes_with_a_single_token_or_refuses_it,
)
