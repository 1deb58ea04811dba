"""Reductions over runs against plain loops, on runs of every length from one up."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvmerger.merging.runs import (
    Runs,
    eligible_links,
    first_argmax,
    highest_links,
    protect,
    run_sums,
    runs_of,
)

links = st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=3)


@given(links=links)
def test_runs_partition_every_head_at_the_missing_links(links: list[list[bool]]) -> None:
    runs = runs_of(torch.tensor(links))
    expected, lengths = [], []
    for row in links:
        expected.append(1 + row.count(False))
        length = 1
        for is_link in row:
            if is_link:
                length += 1
            else:
                lengths.append(length)
                length = 1
        lengths.append(length)
    assert runs.num_runs_H == tuple(expected)
    assert runs.length_R.tolist() == lengths
    assert runs.run_F.tolist() == [run for run, length in enumerate(lengths) for _ in range(length)]


@given(links=links, data=st.data())
def test_sums_and_first_argmax_equal_loops(links: list[list[bool]], data: st.DataObject) -> None:
    runs = runs_of(torch.tensor(links))
    num_tokens = runs.run_F.numel()
    # Few distinct values, so that ties happen.
    values = data.draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=num_tokens, max_size=num_tokens))
    sums, firsts, start = [], [], 0
    for length in runs.length_R.tolist():
        run = values[start : start + length]
        sums.append(sum(run))
        firsts.append(start + run.index(max(run)))
        start += length
    assert run_sums(torch.tensor(values), runs).tolist() == pytest.approx(sums)
    assert first_argmax(torch.tensor(values), runs).tolist() == firsts


def test_sums_repeat_bit_for_bit(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    runs = runs_of(torch.rand(4, 999, generator=generator) > 0.3)
    values_FD = torch.randn(4000, 16, generator=generator)
    assert isinstance(runs, Runs)
    assert torch.equal(run_sums(values_FD, runs), run_sums(values_FD, runs))


def test_protected_tokens_have_no_links() -> None:
    mass_HN = torch.tensor([[9.0, 1.0, 2.0, 8.0, 3.0, 4.0]])
    is_protected_HN = protect(mass_HN, num_recent=1, num_heavy=2)
    assert is_protected_HN.tolist() == [[True, False, False, True, False, True]]
    assert eligible_links(is_protected_HN).tolist() == [[False, True, False, False, False]]


def test_the_highest_eligible_links_are_taken_and_no_others() -> None:
    cosine_HN = torch.tensor([[0.9, 0.5, 0.99, 0.7], [0.1, 0.2, 0.3, 0.4]])
    is_eligible_HN = torch.tensor([[True, True, False, True], [True, False, False, False]])
    taken = highest_links(cosine_HN, is_eligible_HN, (2, 3))
    assert taken.tolist() == [[True, False, False, True], [True, False, False, False]]
