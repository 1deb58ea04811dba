"""The identity of a row: changes with all that can change its numbers, and with nothing else."""

from collections.abc import Mapping
from typing import Any

import pytest

import jobs.planning.identity as identity_module
from tests.fakes.plans import CONTEXT, Model, identities, item, plan_of, settings_of

CHANGES: dict[str, dict[str, Any]] = {
    "context": {"item": {"context": "other words"}},
    "question": {"item": {"after_context": " what else"}},
    "gold": {"item": {"answers": ("another",)}},
    "answer length": {"item": {"max_new_tokens": 5}},
    "item id": {"item": {"item_id": "bench/task/9"}},
    "parameter": {"settings": {"policies": ["full", {"name": "knorm", "budget": 0.5, "seed": 1}]}},
    "budget": {"settings": {"policies": ["full", {"name": "knorm", "budget": 0.4}]}},
    "mode": {"settings": {"query_mode": "query_aware"}},
    "execution": {"settings": {"execution": "isolated"}},
    "seed": {"settings": {"seed": 1}},
    "version": {"version": "2"},
    "second answer": {"item": {"answers": ("gold", "or this")}},
    "metric": {"item": {"metric": "another"}},
    "classes": {"item": {"all_classes": ("a", "b")}},
    "stop at newline": {"item": {"stop_at_newline": True}},
    "revision": {"model": Model(revision="r2")},
    "dtype": {"model": Model(dtype="bfloat16")},
}
NO_CHANGES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "label": {"settings": {"policies": ["full", {"name": "knorm", "budget": 0.5, "label": "mine"}]}},
    "executor": {"settings": {"executor": "inline"}},
    "folder": {"settings": {"output_dir": "elsewhere"}},
    "other variants": {
        "settings": {"policies": [{"name": "random", "budget": 0.1}, {"name": "knorm", "budget": 0.5}]}
    },
    "metadata": {"item": {"metadata": {"depth": 1}}},
    "how it would be cut": {"item": {"truncation_separator": "..."}},
    "why it has no score": {"item": {"unscored_reason": "hidden"}},
}


def identity_of_knorm(change: Mapping[str, Any]) -> str:
    settings = settings_of(**change.get("settings", {}))
    rest = {key: value for key, value in change.items() if key in ("model", "version")}
    plan = plan_of(settings, [item(0, **change.get("item", {}))], **rest)
    return next(it.key.identity for it in plan.rows if it.spec.policy == "knorm")


@pytest.mark.parametrize("name", CHANGES)
def test_what_can_change_a_row_changes_its_identity(name: str) -> None:
    assert identity_of_knorm(CHANGES[name]) != identity_of_knorm({})


@pytest.mark.parametrize("name", NO_CHANGES)
def test_what_cannot_change_a_row_leaves_its_identity(name: str) -> None:
    assert identity_of_knorm(NO_CHANGES[name]) == identity_of_knorm({})


def test_results_of_another_engine_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity_of_knorm({})
    monkeypatch.setattr(identity_module, "RESULTS_VERSION", identity_module.RESULTS_VERSION + 1)
    assert identity_of_knorm({}) != before


def test_a_like_variant_is_another_when_the_version_of_what_it_is_like_changes() -> None:
    settings = settings_of(
        [
            {"name": "knorm", "budget": 0.5, "label": "a"},
            {"name": "random", "budget": {"like": "a"}, "label": "r"},
        ]
    )
    versions = ({"a": "1", "r": "1"}, {"a": "2", "r": "1"})
    found = [
        next(it.key.identity for it in plan_of(settings, [item(0)], versions=of).rows if it.key.label == "r")
        for of in versions
    ]
    assert found[0] != found[1]


def test_a_like_variant_is_another_when_what_it_is_like_changes() -> None:
    def identity(budget: float, label: str) -> str:
        named = {"name": "knorm", "budget": budget, "label": label}
        plan = plan_of(
            settings_of([named, {"name": "random", "budget": {"like": label}, "label": "r"}]), [item(0)]
        )
        return next(it.key.identity for it in plan.rows if it.key.label == "r")

    assert identity(0.5, "a") == identity(0.5, "b") != identity(0.4, "a")


def test_the_split_between_context_and_tail_is_part_of_the_identity() -> None:
    longer = {
        "before_context": "read this: " + CONTEXT,
        "context": " and",
        "after_context": " what is number 0",
    }
    shorter = longer | {"context": "", "after_context": " and what is number 0"}
    plans = [plan_of(settings_of(), [item(0, **shape)]) for shape in (longer, shorter)]
    both = [plan.units[0].items[0].tokens for plan in plans]
    assert both[0].context_ids + both[0].tail_ids == both[1].context_ids + both[1].tail_ids
    assert identities(plans[0])[0] != identities(plans[1])[0]
