"""Evidence of a repetition of the context: the most attention each token gets, and a sample of the queries.

Shapes: N tokens of the context, P of a part, T new tokens, B a block of them, X keys that a score is normalised over,
Q query heads, H KV heads, G = Q/H, D head size, M sampled tokens, K = M·G queries of a KV head.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kvmerger.prefill.evidence import Need, register_evidence
from kvmerger.prefill.output_norms import output_norms
from kvmerger.prefill.repeat_states import RepeatStates

# Bounds the fp32 scores alive at a time (64 MiB).
_MOST_SCORES = 2**24
# Queries are kept as long as evidence is: of a KV head at most half as many as it has keys.
_TOKENS_PER_QUERY = 2


def repeat_attention(n_sink: int, is_weighted: bool) -> Need:
    """The most attention that any token of a repetition pays to each token: fp32 (H, N), over queries and the group.

    Softmax is over the part that is repeated, ``n_sink`` first tokens before it and the repetition itself. ``is_weighted``
    divides by the norm of what goes into attention there and multiplies with that of W_o·v (KVzip+).
    """
    # Two names: only the weighted one makes a pass note what goes into its attention modules.
    return Need("repeat_weighted_attention" if is_weighted else "repeat_attention", (n_sink,))


def repeat_queries(num_queries: int) -> Need:
    """Queries of a repetition, evenly over the context, all heads of a group together: (H, K, D) in the model's dtype.

    K is at most ``num_queries`` and half the tokens of the context, and at least a token's.
    """
    return Need("repeat_queries", (num_queries,))


def repeat_mean_square(num_queries: int) -> Need:
    """The mean over `repeat_queries` of each token's squared share in attention to the context: fp32 (H, N)."""
    return Need("repeat_mean_square", (num_queries,))


@register_evidence("repeat_attention", reads_queries=True, pieces="joined")
def _repeat_attention(states: RepeatStates, n_sink: int) -> Tensor:
    """`repeat_attention` to the tokens of one part: fp32 (H, P)."""
    return _highest_attention(states, n_sink, is_weighted=False)


@register_evidence("repeat_weighted_attention", reads_queries=True, reads_hidden_states=True, pieces="joined")
def _repeat_weighted_attention(states: RepeatStates, n_sink: int) -> Tensor:
    """The same, weighted: fp32 (H, P)."""
    return _highest_attention(states, n_sink, is_weighted=True)


def _highest_attention(states: RepeatStates, n_sink: int, *, is_weighted: bool) -> Tensor:
    part, num_heads = states.part, states.k_HND.shape[0]
    num_sinks, num_part = min(n_sink, part.start), len(part)
    k_HXD = torch.cat(
        [
            states.k_HND[:, :num_sinks],
            states.k_HND[:, part.start : part.stop],
            states.k_HTD,
        ],
        dim=1,
    ).float()
    highest_QP = k_HXD.new_zeros(states.q_QTD.shape[0], num_part)
    for first, scores_QBX in _scores(states.q_QTD, k_HXD, states.scaling, num_sinks + num_part):
        share_QBP = scores_QBX.softmax(dim=2)[:, :, num_sinks : num_sinks + num_part]
        if is_weighted:
            assert states.hidden_TE is not None, "registered as reading hidden states"
            norm_B = states.hidden_TE[first : first + share_QBP.shape[1]].float().norm(dim=1)
            share_QBP = share_QBP / norm_B[:, None]
        highest_QP = highest_QP.maximum(share_QBP.amax(dim=1))
    if is_weighted:
        assert states.attention is not None, "registered as reading hidden states"
        # The same for every query, so that it can wait for the maximum over them.
        highest_QP = highest_QP * output_norms(
            states.v_HND[:, part.start : part.stop], states.attention, order=2
        )
    return highest_QP.unflatten(0, (num_heads, -1)).amax(dim=1)


@register_evidence("repeat_queries", reads_queries=True, pieces="joined")
def _repeat_queries(states: RepeatStates, num_queries: int) -> Tensor:
    """`repeat_queries` of one part: (H, K of the part, D)."""
    return _sampled(states, num_queries)


@register_evidence("repeat_mean_square", reads_queries=True, pieces="summed")
def _repeat_mean_square(states: RepeatStates, num_queries: int) -> Tensor:
    """One part's share of `repeat_mean_square`: fp32 (H, N)."""
    q_HKD = _sampled(states, num_queries)
    num_heads, num_tokens = states.k_HND.shape[:2]
    k_HND = states.k_HND.float()
    total_HN = k_HND.new_zeros(num_heads, num_tokens)
    block = max(1, _MOST_SCORES // (num_heads * num_tokens))
    for q_HBD in q_HKD.split(block, dim=1):
        logits_HBN = states.scaling * q_HBD.float() @ k_HND.mT
        total_HN += logits_HBN.softmax(dim=2).square().sum(dim=1)
    group = states.q_QTD.shape[0] // num_heads
    return total_HN / (_num_sampled(num_tokens, num_queries, group) * group)


def _scores(q_QTD: Tensor, k_HXD: Tensor, scaling: float, num_before: int) -> Iterator[tuple[int, Tensor]]:
    """Blocks of queries: each one's first, and scores (Q, B, X) where ``num_before`` keys stand before their own."""
    num_heads, num_keys, head_dim = k_HXD.shape
    num_queries, num_new = q_QTD.shape[:2]
    place_X = torch.arange(num_keys, device=q_QTD.device)
    block = max(1, _MOST_SCORES // (num_queries * num_keys))
    for first in range(0, num_new, block):
        q_QBD = scaling * q_QTD[:, first : first + block].float()
        # The query heads of a group as rows, so that keys are never repeated.
        scores_HRX = q_QBD.reshape(num_heads, -1, head_dim) @ k_HXD.mT
        scores_QBX = scores_HRX.view(num_queries, -1, num_keys)
        last_seen_B = num_before + torch.arange(first, first + scores_QBX.shape[1], device=q_QTD.device)
        yield first, scores_QBX.masked_fill_(place_X[None, :] > last_seen_B[:, None], -torch.inf)


def _sampled(states: RepeatStates, num_queries: int) -> Tensor:
    """Queries of the part's sampled tokens, heads of a group one after the other: (H, K of the part, D)."""
    num_heads, num_tokens = states.k_HND.shape[:2]
    group = states.q_QTD.shape[0] // num_heads
    num_sampled = _num_sampled(num_tokens, num_queries, group)
    # In the middle of equal stretches: no draw, and so the same everywhere.
    places = [(2 * index + 1) * num_tokens // (2 * num_sampled) for index in range(num_sampled)]
    offset = states.first_repeated - states.part.start
    place_M = torch.tensor(
        [place + offset for place in places if place in states.part],
        dtype=torch.int64,
        device=states.q_QTD.device,
    )
    # Indexing copies: a view would keep all of a part's queries alive.
    return states.q_QTD[:, place_M].unflatten(0, (num_heads, group)).transpose(1, 2).flatten(1, 2)


def _num_sampled(num_tokens: int, num_queries: int, group: int) -> int:
    """How many tokens are sampled, so that their queries are no more than is kept of them."""
    return max(1, min(num_queries, num_tokens // _TOKENS_PER_QUERY) // group)
