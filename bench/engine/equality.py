"""Does a row alone have the bits it has among fifteen, and how often does another batch shape flip a token?

    python -m bench.engine.equality [--tokens 4k] [--prompts 4] [--new-tokens 32]

"Alone" is the same bucket and the same index with nothing but dummies around it: tokens and hidden states must be equal bit
for bit. A/A runs the same batch twice. Across buckets the full row is forced along one answer in batches of other shapes; a
flip is a position at which another token is ranked first. Exits with 1 if bits differ where none may.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from bench.random_llama import SHAPES, make_prompt, race_variants, random_llama, tokens_of
from kvmerger.building import Variant
from kvmerger.decoding.batch import Batch, Row
from kvmerger.decoding.step_graphs import StepGraphs, graphs_for
from kvmerger.engine.compress import compress_all
from kvmerger.engine.fused import needs_of, rows_of, with_references
from kvmerger.generation import Prompt
from kvmerger.limits import ROW_BUCKETS, bucket_for
from kvmerger.models.loading import LoadedModel
from kvmerger.prefill.prefill import prefill
from kvmerger.variants import FULL, FULL_AA

_RUN_LENGTH = 2.0
_MOST_ROWS = (
    32  # of the buckets the full row is forced in; each holds the row's bytes once, whatever its size
)


def main() -> int:
    """Measure and print; 1 when bits differ where none may."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=tokens_of, default=4096, help="of each prompt")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    options = parser.parse_args()
    model = random_llama(options.shape, options.device, getattr(torch, options.dtype))
    counts: Counter[str] = Counter()
    with torch.inference_mode():
        for seed in range(options.prompts):
            prompt = make_prompt(model, options.tokens, _RUN_LENGTH, options.new_tokens, seed)
            # += on a Counter drops counts of 0, which it gives back as 0 when they are asked for.
            counts += compare_one(model, prompt, race_variants())
            print(f"prompt {seed + 1} of {options.prompts}: {dict(counts)}", flush=True)
    print(_summary(counts, f"{options.dtype} on {options.device}, {options.tokens} tokens"))
    return int(counts["alone differs"] + counts["again differs"] > 0)


def compare_one(model: LoadedModel, prompt: Prompt, variants: Sequence[Variant]) -> Counter[str]:
    """Counts of one prompt: rows compared and rows that differ; positions compared and flipped, by bucket."""
    rows = _rows(model, prompt, variants)
    graphs = graphs_for(model)
    bucket = bucket_for(len(rows))
    tokens, hidden = _answers(model, graphs, prompt, rows, bucket)
    forced_ids = tokens[0]  # hidden states can be compared along the same tokens only
    counts: Counter[str] = Counter()
    again_tokens, again_hidden = _answers(model, graphs, prompt, rows, bucket, forced_ids)
    for index in rows:
        alone_tokens, alone_hidden = _answers(model, graphs, prompt, {index: rows[index]}, bucket, forced_ids)
        is_same = alone_tokens[index] == tokens[index] and torch.equal(alone_hidden[index], hidden[index])
        is_again = again_tokens[index] == tokens[index] and torch.equal(again_hidden[index], hidden[index])
        counts += Counter({"rows": 1, "alone differs": int(not is_same), "again differs": int(not is_again)})
    best_T = model.logits(hidden[0]).argmax(dim=-1)
    for other in (size for size in ROW_BUCKETS if size != bucket and size <= _MOST_ROWS):
        other_tokens, other_hidden = _answers(model, graphs, prompt, {0: rows[0]}, other, forced_ids)
        flipped_T = model.logits(other_hidden[0]).argmax(dim=-1) != best_T
        counts += Counter({
            f"bucket {other}: positions": flipped_T.numel(),
            f"bucket {other}: flipped": int(flipped_T.sum()),
            f"bucket {other}: answers that differ": int(other_tokens[0] != forced_ids),
        })  # fmt: skip
    return counts


def _rows(model: LoadedModel, prompt: Prompt, variants: Sequence[Variant]) -> dict[int, Row]:
    """The fused run's batch: the full row first, A/A not in it."""
    prefilled = prefill(model, prompt.context_ids, needs_of(variants))
    compressed = with_references(compress_all(prefilled, variants), prefilled)
    rows = rows_of(compressed, [label for label in compressed if label != FULL_AA], prompt)
    assert rows[0].label == FULL
    return dict(enumerate(rows))


def _answers(
    model: LoadedModel,
    graphs: StepGraphs | None,
    prompt: Prompt,
    rows: dict[int, Row],
    bucket: int,
    forced_ids: tuple[int, ...] | None = None,
) -> tuple[dict[int, tuple[int, ...]], dict[int, Tensor]]:
    """Greedy tokens of each row, and its hidden states along ``forced_ids`` (None: the first row's own tokens)."""
    batch = Batch(model, prompt, rows, bucket, graphs)
    tokens = {index: answer.token_ids for index, answer in batch.decode().items()}
    forced = tokens[0] if forced_ids is None else forced_ids
    return tokens, batch.force(dict.fromkeys(rows, forced), len(forced))


def _summary(counts: Counter[str], what: str) -> str:
    lines = [
        f"\n{what}: of {counts['rows']} rows, {counts['alone differs']} differ alone and {counts['again differs']} when run "
        f"again, in the same bucket",
        "\n| bucket | positions | flipped | rate | answers that differ |\n|--:|--:|--:|--:|--:|",
    ]
    for bucket in ROW_BUCKETS:
        positions, flipped = counts[f"bucket {bucket}: positions"], counts[f"bucket {bucket}: flipped"]
        if positions:
            differ = counts[f"bucket {bucket}: answers that differ"]
            lines.append(f"| {bucket} | {positions} | {flipped} | {flipped / positions:.2%} | {differ} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
