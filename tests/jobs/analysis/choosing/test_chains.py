"""Budgets of one policy and kind are one chain, mildest first, whatever the rows say about losses."""

import json
import random
from typing import Any

from jobs.analysis.choosing.chains import chains_of, root_budget, rung_of
from jobs.results.schema import Row
from tests.fakes.rows import make_row


def row(label: str, budget: Any, policy: str = "snapkv", params: str = "{}", **values: Any) -> Row:
    return make_row(
        label, variant=label, policy=policy, policy_params=params, budget_asked=json.dumps(budget)
    ) | {"kept_ratio": 0.5, **values}


def test_each_kind_of_budget_is_a_chain_from_mild_to_strict(seed: int) -> None:
    shares = [0.9, 0.5, 0.35, 0.2]
    rows = [row(f"snapkv@{it}", {"kept_ratio": it}) for it in shares]
    rows += [row(f"snapkv@{it}", {"slots": it}) for it in (1024, 512)]
    rows += [row(f"snapkv@bytes:{it}", {"bytes": it}) for it in (0.4, 0.1)]
    rows += [row("full", None, "full"), row("no_context", None, "no_context")]
    random.Random(seed).shuffle(rows)
    found = {it.labels for it in chains_of(rows)}
    assert found == {
        tuple(f"snapkv@{it}" for it in shares),
        ("snapkv@1024", "snapkv@512"),
        ("snapkv@bytes:0.4", "snapkv@bytes:0.1"),
    }
    # One name would stand for three chains.
    assert len({it.name for it in chains_of(rows)}) == 3


def test_other_parameters_or_another_form_are_another_chain() -> None:
    rows = [
        row("snapkv@0.5", {"kept_ratio": 0.5}),
        row("wide", {"kept_ratio": 0.4}, params='{"window_size": 64}'),
        row("snapkv@0.3+fp8", {"kept_ratio": 0.3}, policy="snapkv+fp8"),
        row("int4", None, policy="int4"),
    ]
    assert [(it.name, it.labels) for it in chains_of(rows)] == [
        ("snapkv", ("snapkv@0.5",)),
        ("wide", ("wide",)),
        ("snapkv+fp8", ("snapkv@0.3+fp8",)),
        ("int4", ("int4",)),
    ]


def test_budgets_like_those_of_one_policy_stand_in_its_order() -> None:
    rows = [
        row("kvmerger@0.3", {"kept_ratio": 0.3}, policy="kvmerger"),
        row("kvmerger@0.6", {"kept_ratio": 0.6}, policy="kvmerger"),
        row("random@like:kvmerger@0.3", {"like": "kvmerger@0.3"}, policy="random"),
        row("random@like:kvmerger@0.6", {"like": "kvmerger@0.6"}, policy="random"),
        row("random@bytes:like:kvmerger@0.6", {"bytes": {"like": "kvmerger@0.6"}}, policy="random"),
        row("random@like:gone", {"like": "gone"}, policy="random"),
    ]
    found = [it.labels for it in chains_of(rows)]
    assert ("random@like:kvmerger@0.6", "random@like:kvmerger@0.3") in found and len(found) == 4
    asked = {it["variant"]: it for it in rows}
    assert root_budget("random@bytes:like:kvmerger@0.6", asked) == {"kept_ratio": 0.6}
    assert root_budget("random@like:gone", asked) is None


def test_budgets_like_each_other_end() -> None:
    asked = {"a": row("a", {"like": "b"}), "b": row("b", {"like": "a"})}
    assert root_budget("a", asked) is None and rung_of("a", asked).size == 1.0


def test_what_is_named_by_what_it_kept_loses_its_set_up_in_the_name() -> None:
    failed = row("kvmerger_paper[0.17+0.12]", {"kept_ratio": 0.5}, "kvmerger_paper", kept_ratio=None)
    done = failed | {"kept_ratio": 0.51}
    assert [it.name for it in chains_of([failed, done])] == ["kvmerger_paper"]
