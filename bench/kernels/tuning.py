"""Which way of cutting the work is fastest here: one knob after the other, twice around, from the one in use.

Prints what to write into `kvmerger/kernels`; it changes nothing by itself, since results depend on it in their last bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bench.kernels.mass import make_prompt
from bench.kernels.packed import make_layer, queries
from bench.kernels.ragged import Heads, make_batch
from bench.kernels.timing import device_s
from kvmerger.cache.forms import registry
from kvmerger.kernels.prompt_attention import causal_attention

NUM_ROUNDS = 2
PACKED_FORMS = ("int4", "kivi4", "int8", "fp8")
PACKED_CHOICES = {
    "max_registers": (None, 200, 168, 144),
    "num_stages": (2, 3, 4),
    "most_parts": (8, 16, 32),
    "slots": (32, 64, 128),
    "num_warps": (1, 2),
}
WORTHWHILE = 0.98  # of the best time so far; less is noise
DIFFERENCE = 0.02  # of the largest number: more than rounding to bf16 means that a kernel is wrong
WARPS, STAGES = (2, 4, 8), (1, 2, 3, 4)
SPLITS = {"most_parts": (8, 16, 32, 64), "split_slots": (128, 256, 512)}
RAGGED_CHOICES = {
    1: {**SPLITS, "slots": (32, 64, 128), "num_warps": WARPS, "num_stages": STAGES},
    64: {"queries": (32, 64, 128), "slots": (32, 64, 128), "num_warps": (4, 8), "num_stages": STAGES},
}  # fmt: skip
MASS_CHOICES = {
    "queries": (32, 64, 128),
    "columns": (64, 128, 256),
    "num_warps": (4, 8),
    "num_stages": (2, 3, 4),
}


def tune_all(
    heads: Heads, num_rows: int, num_slots: int, deadline_s: float, say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Tune decoding, extending and mass; returns each one's times by tiling, and the best."""
    from kvmerger.kernels.triton import prompt as triton_prompt  # only where there is a GPU is Triton, too
    from kvmerger.kernels.triton import ragged as triton_ragged

    found = {}
    for num_tokens, choices in RAGGED_CHOICES.items():
        batch = make_batch(heads, num_rows, num_slots, num_tokens)

        def attend(tiling: triton_ragged.Tiling, batch: Any = batch) -> Tensor:
            return triton_ragged.ragged_attention(
                batch.q_RQTD, batch.layer, batch.scaling, tiling=tiling
            ).out_RTQD

        start = triton_ragged.tiling_for(batch.q_RQTD)
        name = f"ragged attention, T={num_tokens}"
        found[name] = tune(name, attend, start, choices, deadline_s, say)
    q_1QND, k_1HND, v_1HND = make_prompt(heads, num_slots)
    scaling = heads.head_dim**-0.5
    _, lse_QN = causal_attention(q_1QND, k_1HND, v_1HND, scaling)

    def mass(tiling: triton_prompt.Tiling) -> Tensor:
        return triton_prompt.attention_mass(q_1QND[0], k_1HND[0], scaling, lse_QN, tiling)

    found["attention mass"] = tune(
        "attention mass", mass, triton_prompt.tiling_for(q_1QND[0]), MASS_CHOICES, deadline_s, say
    )
    return found


def tune_packed(
    heads: Heads, num_rows: int, num_slots: int, deadline_s: float, say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Tune one new token's attention over packed prefixes, one form after the other: one tiling serves all of them."""
    from kvmerger.kernels.triton import ragged as triton_ragged
    from kvmerger.kernels.triton.tiling import packed_tiling_for

    found = {}
    q_RQTD, scaling = queries(heads, num_rows), heads.head_dim**-0.5
    for form in PACKED_FORMS:
        layer = make_layer(heads, [form] * num_rows, num_slots)

        def attend(tiling: Any, layer: Any = layer) -> Tensor:
            return triton_ragged.ragged_attention(q_RQTD, layer, scaling, packed_tiling=tiling).out_RTQD

        start = packed_tiling_for(q_RQTD, heads.num_groups).of(registry.get(form)().layouts() or ())
        found[form] = tune(form, attend, start, PACKED_CHOICES, deadline_s, say, recorded_s)
    return found


def recorded_s(call: Callable[[], object]) -> float:
    """`device_s` of a call as a CUDA graph: what it takes where Python does not hold the device up."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return device_s(graph.replay)


def tune(
    name: str,
    call: Callable[[Any], Tensor],
    start: Any,
    choices: Mapping[str, Sequence[int]],
    deadline_s: float,
    say: Callable[[str], None],
    time_of: Callable[[Callable[[], object]], float] = device_s,
) -> dict[str, Any]:
    """Coordinate descent over a tiling's fields; a tiling that fails or gives other numbers is never the best."""
    expected = call(start)
    seconds = {start: time_of(lambda: call(start))}
    best = start
    say(f"{name}: {1e6 * seconds[start]:.0f} us as it is, {start}")
    for _ in range(NUM_ROUNDS):
        for knob, values in choices.items():
            for tiling in (replace(best, **{knob: value}) for value in values):
                if tiling in seconds or time.monotonic() > deadline_s:
                    continue
                # `best` may change while a knob's values are tried; those still to come then go with its other fields.
                seconds[tiling] = _seconds_of(tiling, call, expected, time_of, say)
                if seconds[tiling] < WORTHWHILE * seconds[best]:
                    best = tiling
                    say(f"{name}: {1e6 * seconds[best]:.0f} us, {best}")
    left_out = " (the time was up before all were tried)" if time.monotonic() > deadline_s else ""
    say(
        f"{name}: best {1e6 * seconds[best]:.0f} us, {seconds[start] / seconds[best]:.2f} x as fast: {best}{left_out}"
    )
    return {"best": str(best), "seconds": {str(tiling): each for tiling, each in seconds.items()}}


def _seconds_of(
    tiling: Any,
    call: Callable[[Any], Tensor],
    expected: Tensor,
    time_of: Callable[[Callable[[], object]], float],
    say: Callable[[str], None],
) -> float:
    try:
        difference = float(
            (call(tiling).float() - expected.float()).abs().max() / expected.float().abs().max()
        )
        if difference <= DIFFERENCE:
            return time_of(lambda: call(tiling))
        say(f"  {tiling}: differs by {difference:.2g}")
    # Some blocks do not fit a device's shared memory, and that is Triton's to say.
    except Exception as error:  # noqa: BLE001
        say(f"  {tiling}: {type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:120])
    return float("inf")
