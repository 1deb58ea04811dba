"""Attention of one layer over packed prefixes, form by form, beside the plain kernel in the same run.

16 rows of 16,384 slots of an 8B model's layer, one new token each, all rows in one form; recorded as a CUDA graph, since a
call's Python takes longer than its kernels. Each form's floor is the bytes that it reads (`PackedLayer.read_tensors`) at the
bandwidth of a copy. Last, a step of 32 layers whose 16 rows have 16 forms between them, against the same ceiling.

Predicted for an H200 (copy 4.25 TB/s) from the instructions of the compiled loops, after a prototype with random codes (int4
95 us, kivi4 169 us, plain 276 us) and before the kernel of all forms was timed: plain 275 us, 92 % of its floor. int4
80-95 us (floor 67), limited by latency and not by instructions: a warp has 64 slots under way, and 10 warps fit a
multiprocessor. kivi4 115-130 us (floor 79): half as many instructions again, and registers for 8 warps. int8 and fp8
150-165 us (floor 131). nvfp4 and 3 bits at twice their floor or worse: two dots for a tile of two scales, and bits put
together one by one. The mixed step: the sum of its rows' times, and a third more for the ends of 15 small launches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.kernels import timing
from bench.kernels.ragged import Heads
from bench.kernels.timing import Bench, Ceilings, Measured
from kvmerger.cache.forms import registry
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.cache.packed_layer import HeldLayer, PackedLayer
from kvmerger.cache.ragged_layer import RaggedLayer
from kvmerger.decoding.ragged_cache import RaggedCache
from kvmerger.kernels import dispatch
from kvmerger.kernels.reference import ragged as reference

LAYERS_OF_A_STEP = 32
FEW_ROWS = 2
PLAIN = "plain"
FORMS = (
    *(
        "fp8",
        "fp8_scaled",
        "int8",
        "int4",
        "int4_rotated",
        "nvfp4",
        "kivi4",
        "kivi3",
        "kivi2",
        "k8v4",
        "k4v2",
    ),
    *("turboquant_k8v4", "turboquant_4bit_nc", "turboquant_k3v4_nc", "turboquant_3bit_nc"),
)


def measure_packed(
    heads: Heads,
    num_rows: int,
    num_slots: int,
    ceilings: Ceilings,
    deadline_s: float,
    report: Callable[[Measured], None],
) -> None:
    """Report the plain kernel and every form, then a step of all forms."""
    case = f"{num_rows} rows of {num_slots}"
    plain_s: float | None = None
    for form in (PLAIN, *FORMS):
        layer = make_layer(heads, [form] * num_rows, num_slots)
        num_bytes = read_bytes(layer)
        bench = Bench("packed attention, T=1", case, ceilings.floor_s(num_bytes), deadline_s, report)
        measured = _measure(bench, form, heads, layer, num_bytes, plain_s)
        plain_s = measured.device_s if form == PLAIN else plain_s
        del layer
    # So many rows that each form has one: what a sweep's batch looks like.
    layer = make_layer(heads, [(PLAIN, *FORMS)[row % (1 + len(FORMS))] for row in range(num_rows)], num_slots)
    num_bytes = LAYERS_OF_A_STEP * read_bytes(layer)
    bench = Bench(
        f"attention of {LAYERS_OF_A_STEP} layers", case, ceilings.floor_s(num_bytes), deadline_s, report
    )
    bench.run(
        "a form a row",
        lambda: recorded(heads, layer, LAYERS_OF_A_STEP),
        note=lambda _: f"{num_bytes / 1e9:.1f} GB",
    )


def _measure(
    bench: Bench, form: str, heads: Heads, layer: RaggedLayer, num_bytes: int, plain_s: float | None
) -> Measured:
    # The reference decodes to fp32, so of few rows only.
    few = slice(0, FEW_ROWS)
    first_rows = RaggedLayer(
        layer.prefix_R[few],
        layer.tail_k_RHCD[few],
        layer.tail_v_RHCD[few],
        layer.tail_start_R[few],
        layer.num_new_R[few],
    )
    q_RQTD = queries(heads, len(layer.prefix_R))
    expected = reference.ragged_attention(q_RQTD[few], first_rows, heads.head_dim**-0.5).out_RTQD

    def make() -> Callable[[], Tensor]:
        repeat = recorded(heads, layer, 1)
        return lambda: repeat()[few]

    def note(seconds: float) -> str:
        speed = f"{plain_s / seconds:.2f} x plain, " if plain_s else ""
        return f"{speed}{num_bytes / 1e6:.0f} MB"

    return bench.run(form, make, expected=expected, note=note)


def recorded(heads: Heads, layer: RaggedLayer, num_layers: int) -> Callable[[], Tensor]:
    """What repeats ``num_layers`` calls as a CUDA graph and returns the last output (R, T, Q, D)."""
    q_RQTD = queries(heads, len(layer.prefix_R))

    def call() -> Tensor:
        for _ in range(num_layers):
            out_RTQD = dispatch.ragged_attention(q_RQTD, layer, heads.head_dim**-0.5).out_RTQD
        return out_RTQD

    call()
    timing.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out_RTQD = call()

    def repeat() -> Tensor:
        graph.replay()
        return out_RTQD

    repeat()
    return repeat


def queries(heads: Heads, num_rows: int) -> Tensor:
    """The same random queries (R, Q, 1, D) at every call."""
    generator = torch.Generator(timing.DEVICE).manual_seed(0)
    shape = (num_rows, heads.num_heads * heads.num_groups, 1, heads.head_dim)
    return torch.randn(shape, generator=generator, dtype=torch.bfloat16, device=timing.DEVICE)


def make_layer(heads: Heads, form_R: Sequence[str], num_slots: int) -> RaggedLayer:
    """One layer whose row r has ``num_slots`` random slots a head in ``form_R[r]``, and one tail token."""
    num_rows = len(form_R)
    prefixes = [(_random_prefix(heads, form, num_slots),) for form in form_R]
    cache = RaggedCache(prefixes, [num_slots] * num_rows, 1)
    shape = (2, num_rows, heads.num_heads, 1, heads.head_dim)
    k_RHTD, v_RHTD = torch.randn(shape, dtype=torch.bfloat16, device=timing.DEVICE)
    return cache.append(0, k_RHTD, v_RHTD, (1,) * num_rows)


def _random_prefix(heads: Heads, form: str, num_slots: int) -> HeldLayer:
    k_SD, v_SD = (
        torch.randn(heads.num_heads * num_slots, heads.head_dim, dtype=torch.bfloat16, device=timing.DEVICE)
        for _ in range(2)
    )
    position_S = torch.arange(num_slots, dtype=torch.int32, device=timing.DEVICE).repeat(heads.num_heads)
    layer = LayerCache(k_SD, v_SD, position_S, (num_slots,) * heads.num_heads)
    return layer if form == PLAIN else PackedLayer.of(layer, registry.get(form)())


def read_bytes(layer: RaggedLayer) -> int:
    """Bytes of all that one call reads of the prefixes."""
    return sum(
        tensor.nbytes for prefix in layer.prefix_R if prefix is not None for tensor in prefix.read_tensors()
    )
