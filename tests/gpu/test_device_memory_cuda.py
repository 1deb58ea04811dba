"""A share of a GPU is what is planned with, and all that is taken."""

import pytest
import torch

from kvmerger.device import available_bytes, free_memory, keep_to
from kvmerger.engine.groups import plannable_bytes

pytestmark = pytest.mark.gpu
SHARE = 0.02
SLACK_BYTES = 64 * 2**20
"""The allocator rounds up, and a share is a number of 64 bits."""


def test_a_share_is_what_is_planned_with_and_all_that_is_taken() -> None:
    device, (_, total_bytes) = torch.device("cuda", 0), torch.cuda.mem_get_info()
    free_memory(device)
    try:
        keep_to(SHARE)
        share_bytes = available_bytes(device)
        assert share_bytes + torch.cuda.memory_allocated() < SHARE * total_bytes
        planned_bytes = plannable_bytes(device)
        assert planned_bytes is not None and 0 < planned_bytes < share_bytes
        held = torch.empty(planned_bytes, dtype=torch.uint8, device=device)
        left_bytes = available_bytes(device)
        assert abs(left_bytes - (share_bytes - planned_bytes)) < SLACK_BYTES
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(left_bytes + SLACK_BYTES, dtype=torch.uint8, device=device)
        del held
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
