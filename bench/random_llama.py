"""A Llama of a given shape with random weights, and prompts whose neighbouring keys are alike: cost without a download.

What a policy costs depends on shapes and on how many slots it keeps, not on what the weights know. Only one outcome depends
on the keys themselves: what KVMerger's threshold mode keeps. So prompts repeat each token a few times, which gives runs of
similar keys in every layer, and how often is chosen by looking at what is kept, for each length by itself.

More repeats keep less, for two reasons. Fewer neighbours are of different tokens. And the repeats themselves grow more alike:
from layer to layer a token's repeats part, because each looks at the prompt from a place of its own, but less so the fewer
different tokens there are to look at (8B's width, layer 5: cosine 0.78 at 2 repeats, 0.92 at 6, 0.97 at 16). So deep layers
need longer runs than the paper's 0.75 would, and how long depends on the prompt's length too.

    python -m bench.random_llama 8b FOLDER

saves such a model as a sweep can load it, with the demo model's tokenizer.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kvmerger.building import Variant, build_variant
from kvmerger.engine.compress import compress_all
from kvmerger.engine.fused import needs_of
from kvmerger.generation import Prompt, Question
from kvmerger.models.attention import ATTENTION_NAME, register_attention
from kvmerger.models.loading import LoadedModel, load_tokenizer, probed
from kvmerger.models.source import ModelInfo
from kvmerger.prefill.prefill import prefill
from kvmerger.variants import FULL, parse_policies

NUM_NEW_TOKENS = 64
BUDGETS = (0.5, 0.35)
EVICTING = ("streaming_llm", "knorm", "snapkv", "tova", "keydiff", "h2o")
MERGING = ("kvmerger_paper", "kvmerger")
SHAPES: dict[str, dict[str, Any]] = {
    "8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
    },
    "135m": {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 131072,
    },
    "tiny": {
        "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 12, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 1000, "max_position_embeddings": 131072,
    },
}  # fmt: skip
"""Llama-3.1-8B's, the demo model's, and one to try the benchmarks with on a CPU."""
_LLAMA_31_ROPE = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
_SHORTEST_RUN, _FIRST_RUN, _LONGEST_RUN = 1.0, 8.0, 128.0
_MOST_TRIALS = 9  # run lengths, a prefill each: seven halvings leave 4 % of a length still to be searched
WANTED_SHARES = (0.45, 0.55)
_TAIL_TOKENS = 8
_KIBI = 1024


def random_llama(shape: str, device: str, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> LoadedModel:
    """A model made on ``device``, behind the seam, without an end token: every answer has its full length."""
    register_attention()
    module = _random_module(SHAPES[shape], device, dtype, seed, attn_implementation=ATTENTION_NAME)
    return probed(LoadedModel(module, _info(shape, module.config, module, device), frozenset()))


def save_random_llama(shape: str, folder: Path, device: str, dtype: torch.dtype, seed: int = 0) -> None:
    """Write the model of `random_llama` to ``folder``, with the demo model's tokenizer, to be loaded by name."""
    tokenizer = load_tokenizer("demo")
    sizes = SHAPES[shape]
    # Every id of the tokenizer needs a row of the embedding.
    sizes = {**sizes, "vocab_size": max(sizes["vocab_size"], len(tokenizer))}
    _random_module(sizes, device, dtype, seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _random_module(sizes: dict[str, Any], device: str, dtype: torch.dtype, seed: int, **options: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **sizes, rope_parameters=_LLAMA_31_ROPE, bos_token_id=0, eos_token_id=None, pad_token_id=None
    )
    torch.manual_seed(seed)
    # Made where it runs: 8B parameters would take a processor minutes. Another kind of device draws other weights.
    with torch.device(device):
        module = LlamaForCausalLM._from_config(config, dtype=dtype, **options)
    module = module.eval().requires_grad_(False)
    module.generation_config.eos_token_id = None  # no answer ends early: every row decodes all its steps
    return module


def weight_bytes_per_step(model: LoadedModel) -> int:
    """Bytes of weights that one decoding step reads: all but the embedding table, of which it reads a row."""
    module: Any = model.module
    return (
        sum(parameter.nbytes for parameter in module.parameters())
        - module.get_input_embeddings().weight.nbytes
    )


def race_variants() -> list[Variant]:
    """The 14 variants of the race; with the full cache they are 15."""
    entries: list[dict[str, Any]] = [{"name": name, "budget": list(BUDGETS)} for name in EVICTING]
    entries += [{"name": name, "budget": BUDGETS[0]} for name in MERGING]
    return [build_variant(spec) for spec in parse_policies(entries)]


def planted_ids(num_tokens: int, run_length: float, vocab_size: int, seed: int = 0) -> tuple[int, ...]:
    """``num_tokens`` ids: a 0, then random tokens, each repeated ``run_length`` times on average."""
    draw = random.Random(seed)
    ids = [0]
    while len(ids) < num_tokens:
        # 2.3 times: twice, and in 30 % of the cases once more.
        repeats = int(run_length) + (draw.random() < run_length % 1)
        ids += [draw.randrange(1, vocab_size)] * repeats
    return tuple(ids[:num_tokens])


def make_prompt(
    model: LoadedModel, num_tokens: int, run_length: float, num_new_tokens: int, seed: int = 0
) -> Prompt:
    """A compressed part of ``num_tokens`` with one question, which compression does not see."""
    ids = planted_ids(num_tokens + _TAIL_TOKENS, run_length, model.info.vocab_size, seed)
    question = Question(
        ids[num_tokens:], (), num_new_tokens
    )  # no gold answer: its NLL costs a pass that no rival makes
    return Prompt(ids[:num_tokens], (question,))


@torch.inference_mode()
def kept_share(model: LoadedModel, prompt: Prompt) -> float:
    """What `kvmerger_paper` keeps of ``prompt``'s slots at its protected fractions for half of them."""
    (spec,) = parse_policies([{"name": "kvmerger_paper", "budget": BUDGETS[0]}])
    variant = build_variant(spec)
    done = compress_all(prefill(model, prompt.context_ids, needs_of([variant])), [variant]).done
    slots = {label: sum(layer.num_slots for layer in done[label].prefix) for label in (FULL, spec.label)}
    return slots[spec.label] / slots[FULL]


def choose_run_length(model: LoadedModel, num_tokens: int) -> tuple[float, float]:
    """A run length with which threshold mode keeps a wanted share of a prompt of ``num_tokens``, and that share.

    The nearest one tried if none does.
    """
    return bisect_run_length(
        lambda run_length: kept_share(model, make_prompt(model, num_tokens, run_length, 1))
    )


def bisect_run_length(share_at: Callable[[float], float]) -> tuple[float, float]:
    """A run length whose share is wanted, and the share, where longer runs mostly keep less; else the nearest one tried.

    Doubles or halves from the first length until two lengths lie on either side, then halves between them (their ratio).
    """
    middle = sum(WANTED_SHARES) / 2
    shares: dict[float, float] = {}
    run_length, too_short, too_long = _FIRST_RUN, 0.0, math.inf
    while len(shares) < _MOST_TRIALS and run_length not in shares:
        shares[run_length] = share = share_at(run_length)
        if WANTED_SHARES[0] <= share <= WANTED_SHARES[1]:
            return run_length, share
        if share > middle:
            too_short = run_length
        else:
            too_long = run_length
        if too_short and too_long < math.inf:  # both sides are known
            run_length = math.sqrt(too_short * too_long)
        else:
            run_length = run_length * 2 if share > middle else run_length / 2
            run_length = min(max(run_length, _SHORTEST_RUN), _LONGEST_RUN)
    best = min(shares, key=lambda length: abs(shares[length] - middle))
    return best, shares[best]


def _info(shape: str, config: Any, module: Any, device: str) -> ModelInfo:
    return ModelInfo(
        name=f"random-{shape}",
        revision="random",
        model_type=config.model_type,
        num_layers=config.num_hidden_layers,
        num_query_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.hidden_size // config.num_attention_heads,
        vocab_size=config.vocab_size,
        max_positions=config.max_position_embeddings,
        dtype=str(module.dtype).removeprefix("torch."),
        device=device,
        weight_bytes=sum(parameter.nbytes for parameter in module.parameters()),
    )


def tokens_of(text: str) -> int:
    """``16k`` is 16,384 tokens, ``500`` is 500."""
    number, factor = (text[:-1], _KIBI) if text.lower().endswith("k") else (text, 1)
    if not number.isdecimal() or int(number) < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of tokens; write 16k for 16,384, or a whole number"
        )
    return int(number) * factor


def main() -> None:
    """Save a model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    dtype = torch.bfloat16 if options.device.startswith("cuda") else torch.float32
    save_random_llama(options.shape, options.folder, options.device, dtype)


if __name__ == "__main__":
    main()
