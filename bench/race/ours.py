"""Our sides of the race: the floor, all variants fused, the service's whole run of an item, every variant alone.

``fused`` and ``isolated`` answer and compare one token only, since the rival compares none; ``service`` is what a sweep runs:
KL along the whole answer too. The A/A row, which no rival has, is taken out of ``fused`` (its batch is timed by itself) and
reported beside it; the no-context row stays in.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch

from bench.clock import copy_bandwidth, timed
from bench.random_llama import weight_bytes_per_step
from kvmerger.building import Variant
from kvmerger.engine import Engine
from kvmerger.generation import Generation, Prompt, VariantFailure
from kvmerger.limits import Limits
from kvmerger.models.loading import LoadedModel
from kvmerger.variants import FULL, FULL_AA, NO_CONTEXT

NUM_REPEATS = 3
_OF_A_BATCH = (
    "batch_shared_s", "tails_shared_s", "decode_shared_s", "fidelity_shared_s", "results_shared_s",
)  # fmt: skip
_COMPARE_ONE_TOKEN = Limits(max_fidelity_tokens=1)


@torch.inference_mode()
def floor(model: LoadedModel, prompt: Prompt) -> dict[str, Any]:
    """Seconds of one plain prefill with torch's own attention, and the device's bandwidth."""
    module: Any = model.module
    ids_1T = torch.tensor([prompt.context_ids], device=model.device)
    module.set_attn_implementation("sdpa")
    try:
        runs = [
            # `and None` drops the output, whose cache would otherwise stay alive into the next run and its peak.
            timed(lambda: module.model(input_ids=ids_1T, use_cache=True) and None, model.device)
            for _ in range(NUM_REPEATS + 1)
        ][1:]
    finally:
        # The engine's calls land in our attention only under this name; the sides after this one share the module.
        module.set_attn_implementation("kvmerger")
    return {
        "seconds": statistics.median(run.seconds for run in runs),
        "peak_bytes": runs[0].peak_bytes,
        "bytes_per_s": copy_bandwidth(model.device),
        "weight_bytes": weight_bytes_per_step(model),
        "num_variants": 1,
    }


def fused(
    model: LoadedModel, prompt: Prompt, variants: Sequence[Variant], *, is_service: bool = False
) -> dict[str, Any]:
    """All variants on one prefill; the first run warms up and is not counted."""
    engine = Engine(model, None if is_service else _COMPARE_ONE_TOKEN)  # keeps what the first run records
    runs = [timed(lambda: engine.run(prompt, variants), model.device) for _ in range(NUM_REPEATS + 1)][1:]
    middle = sorted(runs, key=lambda run: run.seconds)[len(runs) // 2]
    rows = _by_label(middle.result)
    aa_s = _phases(rows[FULL_AA], *_OF_A_BATCH)
    return {
        "seconds": middle.seconds if is_service else middle.seconds - aa_s,
        "wall_s": middle.seconds,
        "wall_s_each": [run.seconds for run in runs],
        "aa_s": aa_s,
        "phases": {
            **dict(rows[FULL].seconds),
            "compress_s": sum(row.seconds.get("compress_s", 0.0) for row in rows.values()),
            "compress_s_each": {label: row.seconds.get("compress_s", 0.0) for label, row in rows.items()},
        },
        # What one decoding step reads of all rows but A/A, tails at their longest.
        "kv_bytes": sum(row.kv_bytes + row.tail_bytes for label, row in rows.items() if label != FULL_AA),
        "kept": {label: row.kv_bytes / row.full_kv_bytes for label, row in rows.items()},
        "num_steps": len(rows[FULL].token_ids),
        "num_variants": len(rows) - 2,  # without A/A and no context; the full cache is one of the 15
        "peak_bytes": middle.peak_bytes,
        "failures": _failures(middle.result),
    }


def isolated(model: LoadedModel, prompt: Prompt, variants: Sequence[Variant]) -> dict[str, Any]:
    """Every variant with a prefill and a batch of its own, one after the other; one variant warms up.

    Seconds are the phases of the 15 variants, without the reference rows that the fused side is not charged for either, and
    without recording decode steps, which the fused side has done while warming up.
    """
    engine = Engine(model, _COMPARE_ONE_TOKEN)
    engine.run(
        prompt, variants[:1], execution="isolated"
    )  # compiles kernels, which fused has done while warming up
    run = timed(lambda: engine.run(prompt, variants, execution="isolated"), model.device)
    rows = {label: row for label, row in _by_label(run.result).items() if label not in (FULL_AA, NO_CONTEXT)}
    each = {
        label: _phases(row, "prefill_s", "repeat_s", "compress_s", *_OF_A_BATCH)
        - _phases(row, "record_graph_shared_s")
        for label, row in rows.items()
    }
    return {
        "seconds": sum(each.values()),
        "wall_s": run.seconds,
        "seconds_each": each,
        "num_variants": len(each),
        # `isolated` counts what a row needs beyond the weights, and resets the peak for each row itself.
        "peak_bytes": max((row.peak_bytes or 0) + model.info.weight_bytes for row in rows.values())
        if model.device.type == "cuda"
        else None,
        "failures": _failures(run.result),
    }


def _by_label(outcomes: Sequence[Generation | VariantFailure]) -> dict[str, Generation]:
    return {outcome.label: outcome for outcome in outcomes if isinstance(outcome, Generation)}


def _failures(outcomes: Sequence[Generation | VariantFailure]) -> dict[str, str]:
    return {
        outcome.label: f"{outcome.error_type}: {outcome.message}"
        for outcome in outcomes
        if isinstance(outcome, VariantFailure)
    }


def _phases(row: Generation, *names: str) -> float:
    return sum(row.seconds.get(name, 0.0) for name in names)
