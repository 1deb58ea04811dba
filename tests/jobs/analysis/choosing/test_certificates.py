"""Certificates are those of a slow reference, split their error, and never come from too few or untested contexts."""

import random
from dataclasses import replace
from typing import Any

import pytest

from jobs.analysis.choosing.certificates import Certificates, Contract, certify
from jobs.analysis.choosing.losses import LOSS_KINDS, ChoiceError
from jobs.results.schema import FAILED, Row
from tests.fakes.rows import make_row
from tests.slow.certificates import slow_certified

Scores = dict[str, list[float]]  # context → scores of its items
FULL_BYTES = 1_000_000


def rows_of(label: str, scores: Scores, share: float | None = None, task: str = "t") -> list[Row]:
    policy = label.partition("@")[0]
    kept = 1.0 if share is None else share
    asked: Any = "null" if share is None else f'{{"kept_ratio": {share}}}'
    return [
        make_row(
            f"{task}/{label}/{context}/{index}",
            item_id=f"{task}/{context}/{index}",
            cluster_id=context,
            benchmark="b",
            task=task,
            variant=label,
            policy=policy,
            policy_params="{}",
            budget_asked=asked,
            score=score,
            kept_ratio=kept,
            kv_bytes=int(kept * FULL_BYTES),
            full_kv_bytes=FULL_BYTES,
            context_tokens=1000,
        )
        for context, items in scores.items()
        for index, score in enumerate(items)
    ]


def scores_with(rng: random.Random, num_contexts: int, num_bad: int) -> Scores:
    bad = set(rng.sample(range(num_contexts), num_bad))
    return {f"c{it}": [1.0, 0.5 if it in bad else 1.0] for it in range(num_contexts)}


def sweep(rng: random.Random, num_contexts: int, policies: dict[str, dict[float, int]]) -> list[Row]:
    """Rows of the references, and of policies (name → share of slots → number of contexts that are lost)."""
    full: Scores = {f"c{it}": [1.0, 1.0] for it in range(num_contexts)}
    rows = rows_of("full", full) + rows_of("no_context", {it: [0.0, 0.0] for it in full})
    for name, budgets in policies.items():
        for share, num_bad in budgets.items():
            rows += rows_of(f"{name}@{share}", scores_with(rng, num_contexts, num_bad), share)
    rng.shuffle(rows)
    return rows


def smallest(found: Certificates) -> dict[str, str | None]:
    (group,) = found.groups
    return {it.name: it.smallest.label if it.smallest else None for it in group.chains}


def test_a_chain_stops_at_its_first_refusal(seed: int) -> None:
    """At 0.35 fewer contexts are lost than at 0.5, which nobody may look at any more."""
    rows = sweep(random.Random(seed), 200, {"a": {0.9: 0, 0.7: 4, 0.5: 5, 0.35: 0}})
    found = certify(rows, Contract())
    assert smallest(found) == {"a": "a@0.7"}
    (chain,) = found.groups[0].chains
    assert chain.num_certified == 2 and chain.refused is not None and chain.refused.num_lost == 5
    cheapest = found.groups[0].cheapest
    assert cheapest is not None and cheapest.bytes_per_token == pytest.approx(700)
    assert found.groups[0].most_lost == 4


def test_the_same_as_the_slow_reference(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(5):
        num_contexts = rng.choice([60, 100, 150, 250])
        names = ["p", "q", "r"][: rng.randrange(1, 4)]
        shares = [0.8, 0.6, 0.4, 0.2]
        bad = {name: {it: rng.randrange(10) for it in shares} for name in names}
        rows = sweep(rng, num_contexts, bad)
        (group,) = certify(rows, Contract()).groups
        for chain in group.chains:
            assert [it.label for it in chain.levels] == [f"{chain.name}@{it}" for it in shares]
            by_label = [
                [row for row in rows if row["variant"] == f"{chain.name}@{share}"] for share in shares
            ]
            losses = [
                {
                    context: [1 - row["score"] for row in of_level if row["cluster_id"] == context]
                    for context in {row["cluster_id"] for row in of_level}
                }
                for of_level in by_label
            ]
            assert chain.num_certified == slow_certified(losses, 0.1, 0.05, 0.05 / len(names))


def test_the_error_is_split_over_all_chains_of_an_answer(seed: int) -> None:
    rng = random.Random(seed)
    alone = sweep(rng, 59, {"a": {0.5: 0}})
    assert smallest(certify(alone, Contract())) == {"a": "a@0.5"}
    beside = sweep(rng, 59, {"a": {0.5: 0}, "b": {0.5: 30}})
    found = certify(beside, Contract())
    assert smallest(found) == {"a": None, "b": None} and found.groups[0].is_too_few
    assert (found.groups[0].needed, found.needed_for_one) == (72, 59)
    # One that was chosen beforehand has the whole error.
    assert smallest(certify(beside, Contract(), ["a"])) == {"a": "a@0.5"}


@pytest.mark.parametrize(
    ("name", "levels"),
    [("snapkv", 2), ("SnapKVPress", 2), ("snapkv@0.50", 1), ("SnapKV@0.3", 1)],
)
def test_policies_are_named_as_people_name_them(name: str, levels: int, seed: int) -> None:
    rows = sweep(random.Random(seed), 60, {"snapkv": {0.5: 0, 0.3: 0}, "keydiff": {0.5: 0}})
    (chain,) = certify(rows, Contract(), [name]).groups[0].chains
    assert (chain.name, len(chain.levels)) == ("snapkv", levels)


def test_each_task_is_a_chain_of_its_own_when_asked(seed: int) -> None:
    rng = random.Random(seed)
    rows = sweep(rng, 100, {"a": {0.5: 0}})
    other = [
        row | {"task": "u", "item_id": f"u{row['item_id']}", "cluster_id": f"u{row['cluster_id']}"}
        for row in sweep(rng, 100, {"a": {0.5: 9}})
    ]
    (mixed,) = certify(rows + other, Contract()).groups
    assert mixed.contexts_by_task == {"b/t": 100, "b/u": 100} and mixed.num_contexts == 200
    found = certify(rows + other, Contract(), by_task=True)
    assert found.num_chains == 2 and found.error_of_chain == pytest.approx(0.025)
    assert {it.task: it.cheapest is not None for it in found.groups} == {"b/t": True, "b/u": False}


def test_failed_and_missing_rows_refuse_a_level(seed: int) -> None:
    rng = random.Random(seed)
    rows = sweep(rng, 100, {"a": {0.5: 0}})
    mine = [row for row in rows if row["variant"] == "a@0.5"]
    for row in rng.sample(mine, 8):
        row |= {"status": FAILED, "score": None}
    assert smallest(certify(rows, Contract())) == {"a": None}
    rows = sweep(rng, 100, {"a": {0.5: 0}})
    gone = {f"c{it}" for it in rng.sample(range(100), 5)}
    rows = [row for row in rows if row["variant"] != "a@0.5" or row["cluster_id"] not in gone]
    (chain,) = certify(rows, Contract()).groups[0].chains
    assert chain.levels[0].lost_by == {"no row": 5} and chain.smallest is None


def test_contexts_on_which_no_context_loses_nothing_certify_nothing(seed: int) -> None:
    rows = sweep(random.Random(seed), 100, {"a": {0.5: 0}})
    rows = [row | ({"score": 1.0} if row["variant"] == "no_context" else {}) for row in rows]
    (group,) = certify(rows, Contract()).groups
    assert group.is_blind and group.cheapest is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"most_loss": 10.0}, "0.1 are 10 points"),
        ({"most_loss": -0.1}, "is no bound on score"),
        ({"most_loss": float("nan")}, "is no bound on score"),
        ({"kind": LOSS_KINDS["nll"], "most_loss": -1.0}, "give one from 0 on"),
        ({"share": 5.0}, "share 5 does not lie between 0 and 1"),
        ({"confidence": 95.0}, "confidence 95 does not lie"),
        ({"kind": LOSS_KINDS["nll"]}, "the rows of the full cache have no nll; take --metric score"),
    ],
)
def test_a_contract_that_is_none_is_refused(values: dict[str, Any], said: str, seed: int) -> None:
    rows = sweep(random.Random(seed), 3, {"a": {0.5: 0}})
    with pytest.raises(ChoiceError, match=said):
        certify(rows, replace(Contract(), **values))


def test_no_policy_an_unknown_one_and_no_full_cache_are_refused(seed: int) -> None:
    rows = sweep(random.Random(seed), 3, {"snapkv": {0.5: 0}})
    with pytest.raises(ChoiceError, match="there is no variant 'snapvk'"):
        certify(rows, Contract(), ["snapvk"])
    with pytest.raises(ChoiceError, match="no finished row of the full cache"):
        certify([row for row in rows if row["variant"] != "full"], Contract())
    with pytest.raises(ChoiceError, match="no policy beside the full cache"):
        certify([row for row in rows if "@" not in row["variant"]], Contract())
