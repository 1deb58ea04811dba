"""Units: one prefill each, about equally long, and foreseen in bytes."""

from hypothesis import given
from hypothesis import strategies as st

from jobs.planning.units import FEWEST_UNITS, MOST_CONTEXT_TOKENS, batches_of_contexts, items_at_once
from kvmerger.variants import REFERENCE_LABELS
from tests.fakes.plans import CONTEXT, Model, identities, item, plan_of, settings_of


def test_questions_on_one_context_share_a_unit_only_when_the_context_is_compressed_alone() -> None:
    items = [item(0), item(1), item(2, context=CONTEXT + " eleven")]
    agnostic = plan_of(settings_of(), items).units
    assert [len(unit.items) for unit in agnostic] == [2, 1]
    assert len({planned.tokens.context_ids for planned in agnostic[0].items}) == 1
    assert [len(unit.items) for unit in plan_of(settings_of(query_mode="query_aware"), items).units] == [
        1,
        1,
        1,
    ]


def test_a_long_queue_of_questions_is_cut_into_units_of_equal_size() -> None:
    many = [item(index) for index in range(40)] + [item(100 + n, context=f"{CONTEXT} {n}") for n in range(9)]
    plan = plan_of(settings_of(), many)
    sizes = [len(unit.items) for unit in plan.units if len(unit.items) > 1]
    assert sum(sizes) == 40 and len(sizes) > 4 and max(sizes) - min(sizes) <= max(sizes) // 2
    costs = [unit.cost_tokens for unit in plan.units]
    assert max(costs) <= 2.5 * sorted(costs)[len(costs) // 2]


def test_foreseen_bytes_are_those_of_the_shapes() -> None:
    policies = ["full", {"name": "knorm", "budget": 0.5}, {"name": "kvmerger_paper", "budget": 0.5}]
    plan = plan_of(settings_of(policies), [item(0)])
    tokens = plan.units[0].items[0].tokens
    num_context, num_tail = len(tokens.context_ids), len(tokens.tail_ids) + item(0).max_new_tokens
    num_rows = len(REFERENCE_LABELS) + 2
    slots = num_context + num_context // 2 + num_context  # full, knorm, and at most everything
    assert plan.predicted_bytes == (slots + num_rows * num_tail) * 2 * 2 * 3 * 4 * 4


def test_foreseen_bytes_have_room_for_a_gold_answer_longer_than_the_answer_may_be() -> None:
    def foreseen(num_words: int) -> int:
        gold = " ".join(["gold"] * num_words)
        return plan_of(settings_of(["full"]), [item(0, answers=(gold,))]).predicted_bytes

    # A word with the blank before it is two tokens; item 0 may answer with four, and the three reference rows hold a tail.
    assert foreseen(1) == foreseen(2)
    assert foreseen(5) - foreseen(2) == len(REFERENCE_LABELS) * 6 * 2 * 2 * 3 * 4 * 4


def test_foreseen_bytes_count_every_rows_own_slots() -> None:
    def foreseen(policy: str) -> int:
        plan = plan_of(settings_of([{"name": policy, "budget": 0.5}]), [item(0), item(1)])
        assert len(plan.units) == 1, "two questions on one context"
        return plan.predicted_bytes

    (unit,) = plan_of(settings_of([{"name": "knorm", "budget": 0.5}]), [item(0), item(1)]).units
    num_kept = len(unit.items[0].tokens.context_ids) // 2
    num_own = sum(num_kept + 2 * len(planned.tokens.tail_ids) for planned in unit.items)
    assert foreseen("knorm+streaming_llm_decode") - foreseen("knorm") == num_own * 2 * 2 * 3 * 4 * 4


def texts(count: int) -> list:
    """Items on a context each."""
    return [item(index, context=f"{CONTEXT} {index}", cluster_id=f"c{index}") for index in range(count)]


def names_of(plan) -> list[list[str]]:
    return [[planned.item.item_id for planned in unit.items] for unit in plan.units]


def test_contexts_are_joined_and_every_row_is_owed_once() -> None:
    items = texts(7)
    alone = plan_of(settings_of(), items)
    for mode in ("query_agnostic", "query_aware"):
        plan = plan_of(settings_of(items_at_once=3, query_mode=mode), items)
        plan.check_integrity()
        assert [len(unit.items) for unit in plan.units] == [3, 3, 1]
        assert [len(unit.contexts) for unit in plan.units] == [3, 3, 1]
        assert mode == "query_aware" or identities(plan) == identities(alone), (
            "what else is in a unit is no part of a key"
        )
    assert sum(unit.cost_tokens for unit in plan_of(settings_of(items_at_once=3), items).units) == sum(
        unit.cost_tokens for unit in alone.units
    )


def test_foreseen_bytes_of_a_joined_unit_are_those_of_all_its_contexts() -> None:
    items = texts(3)
    alone, (joined,) = (
        plan_of(settings_of(), items).unit_sizes,
        plan_of(settings_of(items_at_once=3), items).unit_sizes,
    )
    assert joined.kv_bytes == sum(it.kv_bytes for it in alone)
    assert (joined.num_contexts, joined.num_questions) == (3, 3)
    assert joined.context_tokens == max(it.context_tokens for it in alone)


def test_joining_does_not_depend_on_what_is_done() -> None:
    """An interrupted sweep goes on with the units it would have had, whichever of them it has finished."""
    settings, items = settings_of(items_at_once=2), texts(6)
    # The costliest are finished first; what they leave must not be cut as if it had been all.
    long = [item(index, context=f"{CONTEXT} {CONTEXT} {CONTEXT} {index}") for index in range(10, 16)]
    questions = [item(index, context="few words", max_new_tokens=20) for index in range(20, 23)]
    for planned in (items, [*long, *questions, *items]):
        whole = plan_of(settings, planned)
        for finished in range(1, len(whole.units)):
            done = [key.identity for unit in whole.units[:finished] for key in unit.row_keys]
            assert plan_of(settings, planned, done).units == whole.units[finished:]
    whole = plan_of(settings, items)
    one_row = [whole.units[1].row_keys[0].identity]
    rest = plan_of(settings, items, one_row)
    rest.check_integrity()
    assert names_of(rest) == [*names_of(whole)[:1], ["bench/task/2"], ["bench/task/3"], *names_of(whole)[2:]]


def test_questions_on_one_context_stay_together_when_contexts_are_joined() -> None:
    items = [item(0), *texts(2)[1:], item(2), item(3, context=CONTEXT + " twelve")]
    (unit,) = plan_of(settings_of(items_at_once=4), items).units
    assert [planned.item.item_id for planned in unit.items] == [f"bench/task/{n}" for n in (0, 2, 1, 3)]
    assert unit.contexts == ((0, 1), (2,), (3,))


def test_equal_prompts_that_are_compressed_with_their_questions_are_prefilled_each() -> None:
    twice = [item(0), item(1, after_context=item(0).after_context)]
    (unit,) = plan_of(settings_of(items_at_once=2, query_mode="query_aware"), twice).units
    assert unit.items[0].tokens.context_ids == unit.items[1].tokens.context_ids
    assert unit.contexts == ((0,), (1,))


def test_only_short_contexts_on_cuda_are_joined_unasked() -> None:
    settings = settings_of()
    for num_variants, expected in ((4, 16), (10, 5), (17, 4), (24, 2), (80, 1)):
        assert items_at_once(settings, num_variants, 1000, "cuda:0") == expected
        assert items_at_once(settings, num_variants, 1000, "cpu") == 1
        isolated = settings_of(execution="isolated")
        assert items_at_once(isolated, num_variants, 1000, "cuda") == 1
    assert items_at_once(settings, 4, FEWEST_UNITS * 3 + 5, "cuda") == 3
    assert items_at_once(settings, 4, 1, "cuda") == 1
    assert items_at_once(settings_of(items_at_once=9), 80, 1, "cpu") == 9
    units = plan_of(settings, texts(FEWEST_UNITS * 2), model=Model(device="cuda")).units
    assert {len(unit.items) for unit in units} == {2}


@given(
    sizes=st.lists(st.tuples(st.integers(1, 2 * MOST_CONTEXT_TOKENS), st.integers(1, 4)), max_size=30),
    most_items=st.integers(1, 9),
)
def test_batches_are_of_short_contexts_and_no_larger_than_they_may_be(
    sizes: list[tuple[int, int]], most_items: int
) -> None:
    by_context = dict(enumerate(sizes))
    batch_of = batches_of_contexts(by_context, most_items, MOST_CONTEXT_TOKENS)
    assert batch_of.keys() == by_context.keys()
    members: dict[int, list[int]] = {}
    for context, batch in batch_of.items():
        members.setdefault(batch, []).append(context)
    for contexts in members.values():
        assert len(contexts) == 1 or all(sizes[it][0] <= MOST_CONTEXT_TOKENS for it in contexts)
        assert len(contexts) == 1 or sum(sizes[it][1] for it in contexts) <= most_items
    short = [size for size in sizes if size[0] <= MOST_CONTEXT_TOKENS]
    if short and all(num_items == 1 for _, num_items in sizes):
        num_long = len(sizes) - len(short)
        assert len(members) == num_long + -(-len(short) // most_items), "no batch has room left but the last"


def test_of_a_prompt_without_context_every_variant_holds_everything() -> None:
    (asked,) = plan_of(
        settings_of(["full", "knorm@0.5"]), [item(0, before_context="", context="")]
    ).unit_sizes
    (whole,) = plan_of(
        settings_of(["full", "knorm@1.0"]), [item(0, before_context="", context="")]
    ).unit_sizes
    assert asked.kv_bytes == whole.kv_bytes
    plan = plan_of(settings_of(["full", "knorm@0.5"]), [item(0, before_context="", context=""), item(1)])
    assert plan.typical_tokens == len(plan.rows[-1].planned.tokens.context_ids)
    assert plan_of(settings_of(), [item(0, before_context="", context="")]).typical_tokens == 0
