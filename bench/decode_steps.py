"""Decoding one prompt under many variants: a step of the eager loop, one of the CUDA graph, and the time to read the bytes.

    python bench/decode_steps.py [--tokens 16384] [--variants 13] [--new 64] [--questions 1] [--decode-rules]

Needs CUDA. The model has the shape of Llama-3.1-8B and random weights. The variants are `knorm` at budgets from 0.2 to 0.8
(with `--decode-rules` every second one slides a window while it answers); full and no-context rows come on top. "a step" is
the decode's wall clock without recording ÷ its steps. The floor is weights and K/V ÷ this device's bandwidth, measured by
copying. Both loops' answers are compared.
"""

from __future__ import annotations

import argparse

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from bench.kernels import copy_bandwidth
from kvmerger.attention import ATTENTION_NAME, register_attention
from kvmerger.batch import Answer, Batch, bucket_for
from kvmerger.compress import compress_all
from kvmerger.fused import needs_of, rows_of, with_references
from kvmerger.generation import Prompt, Question
from kvmerger.model_source import ModelInfo
from kvmerger.models import LoadedModel
from kvmerger.prefill import prefill
from kvmerger.step_graphs import StepGraphs, graphs_for
from kvmerger.variants import FULL_AA, build_variant, parse_policies

GIB = 2**30
NUM_REPEATS = 3
TAIL_TOKENS = 32


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--variants", type=int, default=13)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--questions", type=int, default=1)
    parser.add_argument("--decode-rules", action="store_true")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this benchmark measures a CUDA device, and torch sees none")
    with torch.inference_mode():
        measure(options)


def measure(options: argparse.Namespace) -> None:
    """Decode with both loops, and print a table."""
    model = llama_8b()
    prompt = random_prompt(options, model.info.vocab_size)
    batches = {"eager": None, "CUDA graph": graphs_for(model)}
    rows = make_rows(model, prompt, options)
    kv_bytes = sum(layer.nbytes for row in rows.values() for layer in row.prefix)
    floor_s = (model.info.weight_bytes + kv_bytes) / copy_bandwidth()
    table = Table(
        title=f"{len(rows)} rows, {kv_bytes / GIB:.1f} GiB of K/V, floor {1e3 * floor_s:.1f} ms a step"
    )
    for name in ("loop", "first decode s", "recording s", "decode s", "a step ms", "of the floor"):
        table.add_column(name, justify="left" if name == "loop" else "right")
    said: list[dict[int, Answer]] = []
    for name, graphs in batches.items():
        cells, answers = timed(model, prompt, rows, graphs, options.new - 1, floor_s)
        said.append(answers)
        table.add_row(name, *cells)
    console = Console(width=120)
    console.print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bfloat16", highlight=False)
    console.print(table)
    console.print("the answers are the same" if said[0] == said[1] else "THE ANSWERS DIFFER")
    console.print(f"most memory allocated: {torch.cuda.max_memory_allocated() / GIB:.1f} GiB")


def timed(
    model: LoadedModel, prompt: Prompt, rows: dict, graphs: StepGraphs | None, num_steps: int, floor_s: float
) -> tuple[list[str], dict[int, Answer]]:
    """A table row's cells, and the answers."""
    batch = Batch(model, prompt, rows, bucket_for(len(rows)), graphs)
    answers = batch.decode()
    first_s, record_s = batch.decode_s, batch.record_s
    seconds = []
    for _ in range(NUM_REPEATS):
        batch.decode()
        seconds.append(batch.decode_s - batch.record_s)
    best_s = min(seconds)
    step_s = best_s / num_steps
    cells = [first_s, record_s, best_s, 1e3 * step_s, step_s / floor_s]
    return [f"{cell:.2f}" for cell in cells], answers


def llama_8b() -> LoadedModel:
    """Random weights; nothing ends an answer."""
    config = LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=131072, rope_theta=500000.0, eos_token_id=None,
        bos_token_id=None, pad_token_id=None, tie_word_embeddings=False,
    )  # fmt: skip
    register_attention()
    with torch.device("cuda"):
        module = LlamaForCausalLM._from_config(
            config, attn_implementation=ATTENTION_NAME, dtype=torch.bfloat16
        )
    module.eval().requires_grad_(False)
    info = ModelInfo(
        name="8B-like", revision="random", model_type="llama", num_layers=32, num_query_heads=32, num_kv_heads=8,
        head_dim=128, vocab_size=config.vocab_size, max_positions=131072, dtype="bfloat16", device="cuda",
        weight_bytes=sum(it.numel() * it.element_size() for it in module.parameters()),
    )  # fmt: skip
    return LoadedModel(module, info, frozenset())


def random_prompt(options: argparse.Namespace, vocab_size: int) -> Prompt:
    """Random tokens, the same each time."""
    draw = torch.Generator().manual_seed(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(vocab_size, (count,), generator=draw).tolist())

    questions = tuple(Question(tokens(TAIL_TOKENS), (), options.new) for _ in range(options.questions))
    return Prompt(tokens(options.tokens), questions)


def make_rows(model: LoadedModel, prompt: Prompt, options: argparse.Namespace) -> dict:
    """Rows of all variants and of the full and no-context references, by index."""
    entries = []
    for index in range(options.variants):
        name = "knorm+streaming_llm_decode" if options.decode_rules and index % 2 else "knorm"
        budget = 0.2 + 0.6 * index / max(options.variants - 1, 1)
        entries.append({"name": name, "budget": round(budget, 3), "label": f"v{index}"})
    variants = [build_variant(spec) for spec in parse_policies(entries)]
    prefilled = prefill(model, prompt.context_ids, needs_of(variants))
    compressed = with_references(compress_all(prefilled, variants), prefilled)
    labels = [label for label in compressed if label != FULL_AA]
    return dict(enumerate(rows_of(compressed, labels, prompt)))


if __name__ == "__main__":
    main()
