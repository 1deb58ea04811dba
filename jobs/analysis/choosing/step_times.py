"""How long one answering step took under one variant alone, from the seconds in isolated rows; nothing is estimated.

In a fused sweep all variants answer in one batch, whose seconds belong to none of them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.results.grouping import ISOLATED, grouped, prefill_of
from jobs.results.schema import DONE_STATUSES, Row

SECONDS = "seconds"
"""The heavy column that is read here."""
_DECODE, _RECORD = "decode_shared_s", "record_graph_shared_s"


@dataclass(frozen=True, slots=True)
class StepTime:
    """Mean seconds of a step in batches of `num_rows` requests, over `num_steps` steps."""

    step_s: float
    num_rows: int
    num_steps: int

    @property
    def tokens_per_s(self) -> float:
        """Of the whole batch, while every request still answers."""
        return self.num_rows / self.step_s


def step_times(rows: Sequence[Row], tokens: tuple[float, float]) -> dict[int, StepTime]:
    """Of one variant's rows, by requests in a batch; only contexts of `tokens` (least, most) tokens count.

    `rows` have the column `seconds`. A step is what follows an answer's first token; recording a CUDA graph is no step.
    """
    spent: dict[int, tuple[float, int]] = {}
    done = [row for row in rows if row["status"] in DONE_STATUSES and row["execution"] == ISOLATED]
    for batch in grouped(done, prefill_of).values():
        seconds = json.loads(batch[0][SECONDS] or "{}")
        num_steps = max(row["new_tokens"] or 0 for row in batch) - 1
        in_reach = tokens[0] <= (batch[0]["context_tokens"] or 0) <= tokens[1]
        if _DECODE not in seconds or num_steps < 1 or not in_reach:
            continue
        decode_s = seconds[_DECODE] - seconds.get(_RECORD, 0.0)
        total_s, total_steps = spent.get(len(batch), (0.0, 0))
        spent[len(batch)] = (total_s + decode_s, total_steps + num_steps)
    return {
        num_rows: StepTime(total_s / num_steps, num_rows, num_steps)
        for num_rows, (total_s, num_steps) in sorted(spent.items())
        if total_s > 0
    }
