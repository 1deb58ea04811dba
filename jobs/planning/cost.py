"""What a unit will cost, foreseen without weights: bytes of K/V, and a price that orders units by duration.

Bytes are what the engine holds at once in a fused run, counted the way the rows report them; where the number of
slots is an outcome of the prompt, all are assumed kept, so that a prediction is never too low.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobs.planning.sizes import ForeseenSize, bytes_per_token
from jobs.planning.work import ModelFacts, PlannedItem, WorkUnit
from kvmerger.variants import REFERENCE_LABELS

_PREFILL_TOKENS_PER_STEP = 50
"""One decode step of the whole batch takes as long as prefilling about so many tokens (demo model, 2 CPU cores)."""

_PREFILLS_PER_REPETITION = 1.5
"""A second pass feeds the context once more, on top of all of it: one to two prefills, the longer the context the more."""


@dataclass(frozen=True, slots=True)
class TaskCost:
    """What the owed rows of one task will take.

    Attributes:
        prompt_tokens: read once each: every context once a unit, and each question's tail.
        answer_tokens: the most that all rows together may say.
        kv_bytes: the most bytes of K/V at once, of the largest unit that has one of its items.
        cost_tokens: how long, in tokens of prefill. Those of all tasks add up to the units' sum.
    """

    task: str
    num_items: int
    prompt_tokens: int
    answer_tokens: int
    kv_bytes: int
    cost_tokens: float


def task_costs(units: Sequence[WorkUnit], kv_bytes: Mapping[str, int]) -> tuple[TaskCost, ...]:
    """The cost of every task that `units` have items of, in their order; `kv_bytes` by the units' ids."""
    items: dict[str, set[str]] = {}
    prompts, answers, prices = Counter[str](), Counter[str](), dict[str, float]()
    most: dict[str, int] = {}
    for unit in units:
        rows = Counter(key.item_id for key in unit.row_keys)
        steps = [cost_tokens_of(0, [it.item.max_new_tokens], is_repeated=False) for it in unit.items]
        contexts = [len(unit.items[its[0]].tokens.context_ids) for its in unit.contexts]
        # Passes over prompts cost the same per token throughout a unit: once, or more where they are repeated.
        per_token = (unit.cost_tokens - sum(steps)) / max(1, sum(contexts))
        for its, num_tokens in zip(unit.contexts, contexts, strict=True):
            # Where tasks share a context, the one that comes first is charged with it.
            first = task_of(unit.items[its[0]])
            prompts[first] += num_tokens
            prices[first] = prices.get(first, 0.0) + num_tokens * per_token
            for index in its:
                planned, task = unit.items[index], task_of(unit.items[index])
                items.setdefault(task, set()).add(planned.item.item_id)
                prompts[task] += planned.tokens.most_tail_tokens
                answers[task] += rows[planned.item.item_id] * planned.item.max_new_tokens
                prices[task] = prices.get(task, 0.0) + steps[index]
                most[task] = max(most.get(task, 0), kv_bytes[unit.unit_id])
    return tuple(
        TaskCost(task, len(ids), prompts[task], answers[task], most[task], prices[task])
        for task, ids in items.items()
    )


def task_of(planned: PlannedItem) -> str:
    """The task's name as the settings have it, and its length where one shapes it."""
    return f"{planned.item.benchmark}/{planned.item.task}"


def context_bytes(
    items: Sequence[PlannedItem],
    sizes: Sequence[ForeseenSize],
    model: ModelFacts,
    own: Sequence[ForeseenSize] = (),
) -> int:
    """Bytes of K/V that items on one context hold: one full prefix, each variant's prefix (`sizes`), every row's tail.

    The A/A row shares the full prefix and `no_context` has none; both have tails. `own` are the sizes of the variants that
    act while they answer: each of their rows has a copy of the prefix, plain, and of its question's tail.
    Where a device has less memory, the engine answers in groups.
    """
    # A row that acts drops slots as it answers, so it cannot share a prefix: a copy with the tail, and the tail once more.
    num_context = len(items[0].tokens.context_ids)
    num_rows = len(items) * (len(sizes) + len(REFERENCE_LABELS))
    # The gold answer is forced on every row, and may be longer than what the model is allowed to say.
    answer = max(max(it.item.max_new_tokens, len(it.tokens.gold_ids)) for it in items)
    tail = max(max(it.tokens.most_tail_tokens, 1) for it in items) + answer
    copies = sum(size.num_slots + 2 * max(it.tokens.most_tail_tokens, 1) for size in own for it in items)
    prefixes = sum(size.num_bytes for size in sizes)
    return prefixes + (num_context + num_rows * tail + copies) * bytes_per_token(model)


def cost_tokens(items: Sequence[PlannedItem], *, is_repeated: bool) -> float:
    """How long items on one context take, in tokens of prefill; see `cost_tokens_of`."""
    num_tokens = len(items[0].tokens.context_ids)
    return cost_tokens_of(num_tokens, [it.item.max_new_tokens for it in items], is_repeated=is_repeated)


def cost_tokens_of(context_tokens: int, new_tokens: Sequence[int], *, is_repeated: bool) -> float:
    """The passes over the prompt, then a batch of steps per question; `new_tokens` has each question's.

    `is_repeated`: whether a policy has the context repeated behind its prefill.
    """
    # One step more than tokens: the question's tail is read in a step of its own.
    num_steps = sum(count + 1 for count in new_tokens)
    return prompt_cost_tokens(context_tokens, is_repeated=is_repeated) + _PREFILL_TOKENS_PER_STEP * num_steps


def prompt_cost_tokens(context_tokens: int, *, is_repeated: bool) -> float:
    """The passes over the prompt alone: what every unit on it pays again."""
    return context_tokens * (1.0 + _PREFILLS_PER_REPETITION if is_repeated else 1.0)


def num_pieces(cost: float, prefill_cost: float, usual_cost: float) -> int:
    """Into how many units a group should be cut so that none takes much longer than the usual one."""
    # Each piece repeats the prefill: below two prefills' worth, more than half of the work would be repetition.
    longest = max(2 * prefill_cost, 2 * usual_cost)
    return max(1, math.ceil(cost / longest))
