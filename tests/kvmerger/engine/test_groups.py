"""Who decodes with whom: every label and prompt once, rows at places of their own, and no batch larger than it may be."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvmerger.building import build_variant
from kvmerger.engine.budgets import shape_of
from kvmerger.engine.compress import compress_all
from kvmerger.engine.groups import BatchLayout, by_bytes, by_rows, expected_bytes, prompts_together
from kvmerger.limits import bucket_for
from kvmerger.prefill.prefill import prefill
from kvmerger.variants import parse_policies
from tests.fakes.tiny_models import tiny_model
from tests.kvmerger.decoding.test_acting_rows import NUM_LAYERS, OTHERS, POLICIES, make_prompt

SEED = 5


def test_expected_bytes_are_those_held_or_more(seed: int) -> None:
    model, prompt = tiny_model(seed, num_layers=NUM_LAYERS), make_prompt(seed)
    chosen = [
        build_variant(spec)
        for spec in parse_policies([*OTHERS, *POLICIES, {"name": "kvmerger_paper", "budget": 0.5}])
    ]
    needs = frozenset(need for variant in chosen for need in variant.policy.needs())
    prefilled = prefill(model.ours, prompt.context_ids, needs, SEED)
    done = compress_all(prefilled, chosen).done
    expected = expected_bytes(chosen, prompt, shape_of(prefilled), 1)
    assert set(expected) == {variant.label for variant in chosen}
    for label, num_bytes in expected.items():
        held = done[label].nbytes
        if done[label].rule is not None:
            held *= 1 + len(prompt.questions)
        scores = 1.07  # 4 bytes beside the 132 of a slot of this small head; no budget counts them
        assert held <= num_bytes * scores, label
        if done[label].rule is None and not label.startswith("kvmerger_paper"):
            assert num_bytes <= held * scores, label


@given(
    sizes=st.lists(st.integers(0, 50), min_size=1, max_size=30),
    free_bytes=st.one_of(st.none(), st.integers(-5, 120)),
    num_questions=st.integers(1, 5),
    max_rows=st.integers(1, 70),
)
def test_groups_hold_every_label_once_in_order_and_no_more_than_they_may(
    sizes: list[int], free_bytes: int | None, num_questions: int, max_rows: int
) -> None:
    sizes_by_label = {f"v{index}": size for index, size in enumerate(sizes)}
    groups = by_rows(list(sizes_by_label), num_questions, max_rows)
    parts = [part for group in groups for part in by_bytes(group, sizes_by_label, free_bytes)]
    while any(len(part.place_by_label) > 3 for part in parts):
        parts = [
            half for part in parts for half in (part.halves() if len(part.place_by_label) > 3 else (part,))
        ]
    assert [label for part in parts for label in part.place_by_label] == list(sizes_by_label)
    whole = {
        label: (place, group.bucket) for group in groups for label, place in group.place_by_label.items()
    }
    for part in parts:
        labels = list(part.place_by_label)
        assert all(whole[label] == (part.place_by_label[label], part.bucket) for label in labels)
        assert max(part.place_by_label.values()) + num_questions <= part.bucket
        assert min(part.place_by_label.values()) >= num_questions, "the full row's places are its own"
        if free_bytes is not None and len(labels) > 1:
            assert sum(sizes_by_label[label] for label in labels) <= free_bytes
    for group in groups:
        assert len(group.place_by_label) == 1 or (len(group.place_by_label) + 1) * num_questions <= max_rows


@given(
    buckets=st.lists(st.integers(1, 60), min_size=1, max_size=12),
    max_rows=st.integers(1, 130),
    taken=st.integers(0, 128),
)
def test_rows_do_not_overlap_and_batches_hold_every_prompt(
    buckets: list[int], max_rows: int, taken: int
) -> None:
    bucket_by_prompt = {3 * number: bucket for number, bucket in enumerate(buckets)}
    found = prompts_together(bucket_by_prompt, max_rows)
    assert [number for batch in found for number in batch] == list(bucket_by_prompt)
    for batch in found:
        layout = BatchLayout.of({number: bucket_by_prompt[number] for number in batch}, bucket_for(taken))
        rows = [
            row
            for number, start in layout.start_by_prompt.items()
            for row in range(start, start + bucket_by_prompt[number])
        ]
        assert rows == list(range(len(rows)))
        assert len(rows) <= layout.num_rows != bucket_for(taken)
        assert len(batch) == 1 or len(rows) <= max_rows
