"""What bench.kernels does without a GPU: floors, failures as rows, tuning over made-up times, and rivals' numbers."""

from __future__ import annotations

import io
import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from rich.console import Console

from bench.kernels import compress as kernel_compress
from bench.kernels import ragged as kernel_ragged
from bench.kernels import timing
from bench.kernels.__main__ import table_of
from bench.kernels.ragged import Heads, floor_s, make_batch, padded_sdpa
from bench.kernels.timing import Bench, Ceilings, Measured
from bench.kernels.tuning import tune

HEADS = Heads(num_heads=2, num_groups=3, head_dim=16)


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "DEVICE", "cpu")
    monkeypatch.setattr(kernel_compress, "DEVICE", "cpu")
    monkeypatch.setattr(kernel_ragged, "TAIL_TOKENS", 5)


@pytest.mark.parametrize("num_tokens", [1, 3])
def test_the_floor_counts_visible_slots_once(num_tokens: int) -> None:
    batch = make_batch(HEADS, 4, 40, num_tokens)
    num_visible = sum(len(k_ND) for k_ND, _ in batch.visible())
    held = [prefix for prefix in batch.layer.prefix_R if prefix is not None]
    assert num_visible == sum(prefix.num_slots for prefix in held) + 4 * 2 * (5 + num_tokens)
    by_bytes, by_flop = Ceilings(1.0, math.inf, math.inf), Ceilings(math.inf, 1.0, math.inf)
    assert floor_s(batch, by_bytes) == num_visible * 16 * 2 * 2  # keys and values, two bytes each
    assert (
        floor_s(batch, by_flop) == num_visible * 3 * num_tokens * 16 * 2 * 2
    )  # two products, two operations each


@pytest.mark.parametrize("num_tokens", [1, 3])
def test_padded_rows_give_the_references_numbers(num_tokens: int) -> None:
    batch = make_batch(HEADS, 4, 40, num_tokens)
    out_RTQD = padded_sdpa(batch, HEADS)()
    torch.testing.assert_close(out_RTQD, batch.by_reference(), atol=2e-2, rtol=2e-2)


def test_what_cannot_be_measured_is_a_row_with_its_reason() -> None:
    rows: list[Measured] = []

    def broken() -> torch.Tensor:
        raise RuntimeError("no kernel here\nand more")

    Bench("kernel", "case", 1e-3, math.inf, rows.append).run("broken", lambda: broken)
    Bench("kernel", "case", 1e-3, -math.inf, rows.append).run("late", lambda: broken)
    assert [row.note for row in rows] == ["RuntimeError: no kernel here", "left out: the time is up"]
    assert all(row.device_s is None and row.difference is None for row in rows)
    console = Console(width=160, file=io.StringIO())
    console.print(table_of(rows))
    assert "no kernel here" in console.file.getvalue()  # type: ignore[attr-defined]


def test_groups_to_merge_are_a_partition_of_every_row() -> None:
    num_rows, num_tokens = 3, 40
    member_M, length_S, target_S, num_groups_H = kernel_compress._runs(num_rows, num_tokens)
    assert member_M.tolist() == [*range(num_rows * num_tokens)]
    for length_R in length_S.split(num_groups_H):
        assert length_R.sum() == num_tokens and set(length_R.tolist()) == {1, 2, 3}
    first_S = [0, *itertools.accumulate(length_S.tolist())][:-1]
    assert target_S.tolist() == first_S


@dataclass(frozen=True)
class Knobs:
    width: int
    depth: int


def test_tuning_finds_the_best_and_never_what_fails_or_is_wrong() -> None:
    times = {
        (1, 1): 4.0,
        (2, 1): 3.0,
        (2, 2): 2.0,
        (2, 3): 1.0,
        (1, 2): 9.0,
        (1, 3): 9.0,
        (4, 3): 0.1,
        (4, 1): 0.1,
    }
    called: list[Knobs] = []

    def call(knobs: Knobs) -> torch.Tensor:
        called.append(knobs)
        if knobs.width == 8:
            raise MemoryError("too large")
        return torch.tensor([float("nan") if knobs.width == 4 else 1.0])

    def time_of(run: object) -> float:
        run()  # type: ignore[operator]
        return times[called[-1].width, called[-1].depth]

    said: list[str] = []
    choices = {"width": (1, 2, 4, 8), "depth": (1, 2, 3)}
    found = tune("toy", call, Knobs(1, 1), choices, math.inf, said.append, time_of)
    assert found["best"] == str(Knobs(2, 3))
    assert found["seconds"][str(Knobs(4, 1))] == found["seconds"][str(Knobs(8, 1))] == math.inf
    assert "4.00 x as fast" in said[-1]
