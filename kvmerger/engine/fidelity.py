"""How far variants' next-token distributions are from the full cache's, teacher-forced on the same tokens.

Logits exist for a few tokens of two rows at a time only. Each row is compared on its own, so the result does not depend on
which other rows ran. Numbers stay on the device, where all rows' can be fetched at once.

Shapes: T tokens, E hidden size, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from kvmerger.device import upload
from kvmerger.models.loading import LoadedModel

# fp32 logits alive at a time, per model call: 64 MiB.
_MAX_CHUNK_LOGITS = 2**24
_Row = TypeVar("_Row", bound=Hashable)


def compare(
    model: LoadedModel, full_TE: Tensor, variant_TE_by_row: Mapping[_Row, Tensor]
) -> dict[_Row, Tensor]:
    """Compare rows' hidden states with the full row's (T ≥ 1) at the same teacher-forced positions.

    Returns:
        fp64 (2) for every row, means over the T tokens: KL(p_full ‖ p_variant) in nats, and the share (0–1) of tokens that
        both rank first. Nothing has waited for the device.
    """
    kls: dict[_Row, list[Tensor]] = {row: [] for row in variant_TE_by_row}
    agreements: dict[_Row, list[Tensor]] = {row: [] for row in variant_TE_by_row}
    # Tokens outside, rows inside: the full row's logits are computed once, and no third row's are alive beside them.
    for chunk in _chunks(model, full_TE.shape[0]):
        full_TV = model.logits(full_TE[chunk]).log_softmax(dim=-1)
        best_T, p_full_TV = full_TV.argmax(dim=-1), full_TV.exp()
        for row, variant_TE in variant_TE_by_row.items():
            variant_TV = model.logits(variant_TE[chunk]).log_softmax(dim=-1)
            kls[row].append((p_full_TV * (full_TV - variant_TV)).sum(dim=-1))
            agreements[row].append(best_T == variant_TV.argmax(dim=-1))
    return {
        # Rounding can take a KL of 0 slightly below it.
        row: torch.stack([_mean(kls[row]).clamp_min(0), _mean(agreements[row])])
        for row in variant_TE_by_row
    }


def continuation_nll(
    model: LoadedModel, hidden_TE_by_row: Mapping[_Row, Tensor], ids_by_row: Mapping[_Row, Sequence[int]]
) -> dict[_Row, Tensor]:
    """Mean negative log-likelihood per token, nats, of a row's ids (T ≥ 1) under the distributions before each.

    Returns:
        fp64 (1) for every row with hidden states. Nothing has waited for the device.
    """
    nlls = {}
    for row, hidden_TE in hidden_TE_by_row.items():
        target_T = upload(ids_by_row[row], hidden_TE.device)
        parts = []
        for chunk in _chunks(model, hidden_TE.shape[0]):
            log_probs_TV = model.logits(hidden_TE[chunk]).log_softmax(dim=-1)
            parts.append(-log_probs_TV.gather(1, target_T[chunk, None]).squeeze(1))
        nlls[row] = _mean(parts)[None]
    return nlls


def fetched(numbers_by_row: Mapping[_Row, Tensor]) -> dict[_Row, tuple[float, ...]]:
    """Every row's numbers (fp64, of one dimension) on the host; waits for the device once, for all of them."""
    if not numbers_by_row:
        return {}
    sizes = [len(numbers) for numbers in numbers_by_row.values()]
    values = iter(torch.cat(list(numbers_by_row.values())).tolist())
    return {
        row: tuple(itertools.islice(values, size)) for row, size in zip(numbers_by_row, sizes, strict=True)
    }


def _mean(parts: Sequence[Tensor]) -> Tensor:
    # fp64 for sums as long as an answer, and because torch has no mean of booleans.
    return torch.cat(list(parts)).double().mean()


def _chunks(model: LoadedModel, num_tokens: int) -> Iterator[slice]:
    # By the vocabulary alone: cut by free memory, the same row would round differently from day to day.
    chunk_tokens = max(1, _MAX_CHUNK_LOGITS // model.info.vocab_size)
    for start in range(0, num_tokens, chunk_tokens):
        yield slice(start, min(start + chunk_tokens, num_tokens))
