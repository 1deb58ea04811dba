"""What compressing costs: seconds, launches and waits of each policy, per layer, beside that layer's own attention.

    python -m bench.engine.compress [--shapes demo,8B] [--tokens N] [--policies kvmerger,snapkv+compensated]

"together" is how the engine compresses, many layers in one call; "one by one" calls the policy for each layer and checks
what it returns, as policies that do not take stacks of layers are called. Attention is torch's, causal, of the whole prompt
on itself. Keys are planted so that KVMerger's threshold keeps about half. Launches are torch operations that are no views
(a sort is several kernels; Triton's are not among them), waits those that need the device's queue to run empty; where there
is a CUDA device its profiler's own counts stand beside them, of all layers. With $OUT set, all numbers also go to
$OUT/compress.json.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from bench.engine.op_counter import OpCounter
from bench.planted import planted_keys
from kvmerger.budget import Budget, KeptRatio, num_slots_for
from kvmerger.building import Variant, build
from kvmerger.cache.layer_cache import LayerCache, room_for
from kvmerger.cache.slot_table import storage_addresses
from kvmerger.device import now_s
from kvmerger.engine.compress import compress_all
from kvmerger.policies.base import Policy
from kvmerger.prefill.evidence import Evidence, LayerStates, Need
from kvmerger.prefill.prefill import Prefilled

POLICIES = (
    "knorm", "streaming_llm", "snapkv", "h2o", "snapkv+adakv", "kvmerger", "kvmerger_paper", "pivots_only",
    "zeromerge", "snapkv+kvmerger", "snapkv+compensated", "snapkv+weighted_kv", "snapkv+nearest", "snapkv+d2o",
    "snapkv+keepkv",
)  # fmt: skip
BUDGET = KeptRatio(0.5)
NUM_CALLS = 5
_LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


@dataclass(frozen=True)
class Shape:
    """A model's attention, and a prompt."""

    num_kv_heads: int
    num_query_heads: int
    head_dim: int
    num_layers: int
    num_tokens: int


ON_CUDA = {"demo": Shape(3, 9, 64, 30, 2048), "8B": Shape(8, 32, 128, 32, 16384)}
ON_CPU = {"demo": Shape(3, 9, 64, 30, 256), "8B": Shape(8, 32, 128, 4, 256)}


@dataclass
class PolicyCost:
    """One policy at one shape; seconds, launches and waits are those of one layer, but CUDA's of all. None: not measured."""

    shape: str
    policy: str
    attention_s: float
    kept_ratio: float | None = None
    together_s: float | None = None
    one_by_one_s: float | None = None
    launches: float | None = None
    one_by_one_launches: float | None = None
    waits: float | None = None
    one_by_one_waits: float | None = None
    cuda_launches: float | None = None
    cuda_waits: float | None = None
    error: str = ""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shapes = ON_CUDA if device.type == "cuda" else ON_CPU
    parser.add_argument("--shapes", default=",".join(shapes))
    parser.add_argument("--tokens", type=int, help="instead of each shape's own")
    parser.add_argument("--policies", default=",".join(POLICIES))
    options = parser.parse_args()
    console = Console(width=150)
    name = (
        torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    )
    console.print(f"{name}, torch {torch.__version__}, bfloat16", highlight=False)
    found: list[PolicyCost] = []
    start_s = time.perf_counter()
    for shape_name in options.shapes.split(","):
        shape = shapes[shape_name]
        if options.tokens:
            shape = Shape(*(*asdict(shape).values(),)[:-1], options.tokens)
        of_shape = measure_shape(shape_name, shape, options.policies.split(","), device)
        console.print(table_of(shape_name, shape, of_shape))
        found += of_shape
    console.print(f"{time.perf_counter() - start_s:.0f} s in all", highlight=False)
    if folder := os.environ.get("OUT"):
        rows = {"device": name, "torch": torch.__version__, "measured": [asdict(it) for it in found]}
        Path(folder, "compress.json").write_text(json.dumps(rows, indent=1))


def measure_shape(
    shape_name: str, shape: Shape, policies: Sequence[str], device: torch.device
) -> list[PolicyCost]:
    """Every policy on one prompt, whose evidence all share."""
    built = {name: _built(name) for name in policies}
    needs = frozenset(need for policy in built.values() for need in policy.needs())
    with torch.inference_mode():
        prefilled, states = planted_prefill(shape, needs, device)
        attention_s = seconds_per_call(lambda: _attention(states), device)
        return [
            measure(PolicyCost(shape_name, name, attention_s), policy, prefilled, device)
            for name, policy in built.items()
        ]


def planted_prefill(
    shape: Shape, needs: frozenset[Need], device: torch.device
) -> tuple[Prefilled, LayerStates]:
    """What a prefill leaves behind, of drawn queries and values and planted keys; and the last layer's states."""
    generator = torch.Generator(device).manual_seed(0)
    layers: tuple[LayerCache, ...] = ()
    evidence_L = []
    for index in range(shape.num_layers):
        k_HND = planted_keys(
            shape.num_kv_heads, shape.num_tokens, shape.head_dim, 0.5, index, torch.bfloat16, device
        )
        q_QND, v_HND = (
            torch.randn(heads, shape.num_tokens, shape.head_dim, generator=generator, device=device).to(k_HND)
            for heads in (shape.num_query_heads, shape.num_kv_heads)
        )
        states = LayerStates(q_QND, k_HND, v_HND, shape.head_dim**-0.5)
        evidence = Evidence(states, index, shape.num_layers, prompt_seed=0)
        evidence.capture(needs)
        # As a prefill does: one storage for all layers, which evidence reads instead of keeping copies of its own.
        layers = layers or room_for(shape.num_layers, k_HND)
        layers[index].k_HND.copy_(k_HND)
        layers[index].v_HND.copy_(v_HND)
        evidence.point_at(layers[index].k_HND, layers[index].v_HND)
        evidence_L.append(evidence)
    return Prefilled(layers, tuple(evidence_L)), states


def measure(it: PolicyCost, policy: Policy, prefilled: Prefilled, device: torch.device) -> PolicyCost:
    """Time one policy both ways; what it raises is written down."""
    num_layers = len(prefilled.layers)
    variants = [Variant(str(index), policy, BUDGET) for index in range(NUM_CALLS + 1)]
    try:
        compression = compress_all(prefilled, variants)
        if compression.failed:
            failure = next(iter(compression.failed.values()))
            raise RuntimeError(f"{failure.error_type.__name__}: {failure.message}")
        done = [compression.done[variant.label] for variant in variants]
        # The first call of all computes evidence and puts stacks together, for every policy.
        it.together_s = median(one.compress_s for one in done[1:]) / num_layers
        slots = sum(layer.num_slots for layer in done[0].prefix)
        it.kept_ratio = slots / sum(layer.num_slots for layer in prefilled.layers)
        del compression, done  # frees every variant's cache before the next timing
        it.one_by_one_s = seconds_per_call(lambda: _one_by_one(policy, prefilled), device) / num_layers
        with OpCounter() as together:
            compress_all(prefilled, variants[:1])
        with OpCounter() as one_by_one:
            _one_by_one(policy, prefilled)
        it.launches, it.waits = together.num_launches / num_layers, together.num_waits / num_layers
        it.one_by_one_launches = one_by_one.num_launches / num_layers
        it.one_by_one_waits = one_by_one.num_waits / num_layers
        if device.type == "cuda":
            it.cuda_launches, it.cuda_waits = _cuda_counts(lambda: compress_all(prefilled, variants[:1]))
    # One policy that cannot be measured must not cost the others' numbers.
    except Exception as error:  # noqa: BLE001
        it.error = f"{type(error).__name__}: {error}"
    return it


def seconds_per_call(call: Callable[[], object], device: torch.device) -> float:
    """Median seconds, the device's work included."""
    call()  # compiles, and computes what later calls find ready
    seconds = []
    for _ in range(NUM_CALLS):
        start_s = now_s(device)
        call()
        seconds.append(now_s(device) - start_s)
    return median(seconds)


def _built(name: str) -> Policy:
    """With every layer compressed, so that "per layer" means each."""
    is_protecting = name in ("kvmerger", "kvmerger_paper", "pivots_only", "protected_mass")
    return build(name, {"skip_layers": ()} if is_protecting else {})


def _attention(states: LayerStates) -> torch.Tensor:
    return F.scaled_dot_product_attention(
        states.q_QND[None], states.k_HND[None], states.v_HND[None], is_causal=True, enable_gqa=True
    )


def _one_by_one(policy: Policy, prefilled: Prefilled) -> list[dict[str, float]]:
    num_tokens, num_heads = prefilled.evidence[0].num_tokens, prefilled.layers[0].num_heads
    budget = Budget.uniform(num_slots_for(BUDGET, num_tokens), num_heads, BUDGET.ratio)
    # A policy may return slices of the prefill; the engine would copy those, so that is timed as well.
    forbidden = storage_addresses(tensor for layer in prefilled.layers for tensor in layer.tensors())
    counters = []
    for layer, evidence, own in zip(
        prefilled.layers,
        prefilled.evidence,
        policy.allocate([budget] * len(prefilled.layers), prefilled.evidence),
        strict=True,
    ):
        kept = policy.compress(layer, evidence, own).owning(forbidden)
        kept.check_integrity()
        counters.append(dict(kept.counters))
    return counters


def _cuda_counts(call: Callable[[], object]) -> tuple[int, int]:
    """Kernel launches and synchronisations, as CUDA's own profiler counts them."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
    count_of = {event.key: event.count for event in profiler.key_averages()}
    launches, waits = (sum(count_of.get(name, 0) for name in names) for names in (_LAUNCHES, _WAITS))
    return launches, waits


def table_of(shape_name: str, shape: Shape, found: Sequence[PolicyCost]) -> Table:
    """One row per policy; per layer."""
    table = Table(
        box=None,
        title=f"{shape_name}: {shape.num_query_heads}/{shape.num_kv_heads} heads of {shape.head_dim}, "
        f"{shape.num_layers} layers, {shape.num_tokens} tokens; attention {1e6 * found[0].attention_s:.0f} µs a layer",
        title_justify="left",
        caption="a variant: ms of all layers; µs, launches and waits are a layer's; in brackets: one by one. "
        "CUDA: launches / waits its profiler saw, of all layers",
        caption_justify="left",
    )
    heads = (
        "policy",
        "kept",
        "ms a variant",
        "µs together",
        "one by one",
        "speed-up",
        "of attention",
        "launches",
        "waits",
        "CUDA",
    )
    for head in heads:
        table.add_column(head, justify="left" if head == "policy" else "right")
    for it in found:
        if it.together_s is None or it.one_by_one_s is None:
            table.add_row(it.policy, it.error)
            continue
        table.add_row(
            it.policy,
            f"{it.kept_ratio:.1%}",
            f"{1e3 * it.together_s * shape.num_layers:.2f}",
            f"{1e6 * it.together_s:.0f}",
            f"{1e6 * it.one_by_one_s:.0f}",
            f"{it.one_by_one_s / it.together_s:.1f}x",
            f"{it.together_s / it.attention_s:.2f}",
            f"{_shown(it.launches, 1)} [{_shown(it.one_by_one_launches, 0)}]",
            f"{_shown(it.waits, 2)} [{_shown(it.one_by_one_waits, 1)}]",
            it.error or f"{_shown(it.cuda_launches, 0)} / {_shown(it.cuda_waits, 0)}",
        )
    return table


def _shown(number: float | None, digits: int) -> str:
    return "-" if number is None else f"{number:.{digits}f}"


if __name__ == "__main__":
    main()
