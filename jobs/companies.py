"""Which contexts are computed in one unit, so that their rows decode in one batch and weights are read once for all of them.

Settled by all that a sweep plans, done or not: one that goes on after an interruption has the units it would have had. Only
an item of which some cells are done goes on without its company.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from jobs.settings.schema import Settings
from kvmerger.limits import Limits, bucket_for

MOST_CONTEXT_TOKENS = 4096
"""Of a context that has company where nothing else is asked for: with longer ones a step reads more K/V than weights."""
FEWEST_UNITS = 32
"""A short sweep rather keeps many devices busy."""


def items_at_once(settings: Settings, num_variants: int, num_items: int, device: str) -> int:
    """How many items a unit may hold because of their company; `num_variants` includes the references.

    Automatically: on CUDA as many as the engine decodes in one batch, elsewhere one: two cores gain less by it (the shipped
    sweep takes 106 s instead of 130 with four at once), and an interruption costs all that are under way.
    """
    if settings.items_at_once != "auto":
        return settings.items_at_once
    if settings.execution == "isolated" or not device.startswith("cuda"):
        return 1
    num_rows = num_variants - 1  # the A/A row has a batch of its own
    return max(1, min(Limits().max_rows // bucket_for(num_rows), num_items // FEWEST_UNITS))


def companies(
    sizes: Mapping[Hashable, tuple[int, int]], most_items: int, most_tokens: int | None
) -> dict[Hashable, int]:
    """The number of each context's company. `sizes`: tokens and items of every context, in order.

    Contexts of more than `most_tokens` have none, and no company has more than `most_items`, unless one context has.
    """
    company_of: dict[Hashable, int] = {}
    num_companies = num_items = 0
    current: int | None = None
    for context, (num_tokens, items) in sizes.items():
        if most_tokens is not None and num_tokens > most_tokens:
            company_of[context] = num_companies
            num_companies += 1
            continue
        if current is None or num_items + items > most_items:
            current, num_items = num_companies, 0
            num_companies += 1
        company_of[context] = current
        num_items += items
    return company_of
