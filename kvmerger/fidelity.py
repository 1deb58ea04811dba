"""How far a variant's next-token distributions are from the full cache's, teacher-forced on the same tokens.

Logits exist for a few tokens at a time only. Each row is compared on its own, so the result does not depend on which
other rows ran.

Shapes: T tokens, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kvmerger.models import LoadedModel

# fp32 logits alive at a time, per model call: 64 MiB.
_MAX_CHUNK_LOGITS = 2**24


class Fidelity(NamedTuple):
    """Means over `num_tokens` tokens of the full row's own answer.

    kl_mean: KL(p_full ‖ p_variant), nats. top1_agreement: share (0–1) of tokens ranked first by both.
    """

    kl_mean: float
    top1_agreement: float
    num_tokens: int


def compare(model: LoadedModel, full_TE: Tensor, variant_TE: Tensor) -> Fidelity:
    """Compare two rows' hidden states (T ≥ 1) at the same teacher-forced positions."""
    kls, agreements = [], []
    for chunk in _chunks(model, full_TE.shape[0]):
        full_TV = model.logits(full_TE[chunk]).log_softmax(dim=-1)
        variant_TV = model.logits(variant_TE[chunk]).log_softmax(dim=-1)
        kls.append((full_TV.exp() * (full_TV - variant_TV)).sum(dim=-1))
        agreements.append(full_TV.argmax(dim=-1) == variant_TV.argmax(dim=-1))
    # Rounding can take a KL of 0 slightly below it.
    kl_mean = float(torch.cat(kls).double().mean().clamp_min(0))
    return Fidelity(kl_mean, float(torch.cat(agreements).double().mean()), full_TE.shape[0])


def continuation_nll(model: LoadedModel, hidden_TE: Tensor, token_ids: Sequence[int]) -> float:
    """Mean negative log-likelihood per token, nats, of ``token_ids`` (T ≥ 1) under the distributions before each."""
    target_T = torch.tensor(token_ids, device=hidden_TE.device)
    nlls = []
    for chunk in _chunks(model, hidden_TE.shape[0]):
        log_probs_TV = model.logits(hidden_TE[chunk]).log_softmax(dim=-1)
        nlls.append(-log_probs_TV.gather(1, target_T[chunk, None]).squeeze(1))
    return float(torch.cat(nlls).double().mean())


def _chunks(model: LoadedModel, num_tokens: int) -> Iterator[slice]:
    chunk_tokens = max(1, _MAX_CHUNK_LOGITS // model.info.vocab_size)
    for start in range(0, num_tokens, chunk_tokens):
        yield slice(start, min(start + chunk_tokens, num_tokens))
