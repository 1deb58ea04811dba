"""A second pass: the model repeats the context, part by part, on top of its full cache, and evidence sees what it attends to.

Nothing of it is kept but the evidence: no key, no value, no logits. It knows the context alone, and no question. It is run
once for all policies and budgets of a prompt, and only if one of them asks for such evidence. A part is at most `PART_TOKENS`
long, which bounds what is held at a time.

Shapes: B = 1, N tokens of the context, P of them in the part that is repeated, T new tokens, Q query heads, H KV heads,
D head size, E hidden size.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kvmerger.kernels.prompt_attention import attention_after
from kvmerger.models.loading import LoadedModel
from kvmerger.models.repeat_words import RepeatWords
from kvmerger.prefill.evidence import EvidenceError, Need, repeat_needs
from kvmerger.prefill.prefill import Prefilled
from kvmerger.prefill.repeat_states import Gathered, RepeatStates

PART_TOKENS = 2048
"""As in kvpress; the authors' code has 2,000."""
_LAST_TOKENS = 8
"""Of the part before, given as where to start."""


class Part(NamedTuple):
    """A part of the context (its tokens' places), and all ids that are fed to have it repeated: it is their end."""

    tokens: range
    ids: tuple[int, ...]


def parts_of(context_ids: Sequence[int], words: RepeatWords, part_tokens: int) -> list[Part]:
    """The context's parts in order; all but the last are ``part_tokens`` long."""
    parts = []
    for start in range(0, len(context_ids), part_tokens):
        tokens = range(start, min(start + part_tokens, len(context_ids)))
        asked = (
            (*words.next_ids, *context_ids[max(start - _LAST_TOKENS, 0) : start])
            if start
            else words.first_ids
        )
        ids = (*asked, *words.suffix_ids, *context_ids[tokens.start : tokens.stop])
        parts.append(Part(tokens, ids))
    return parts


def most_positions(num_tokens: int, words: RepeatWords, part_tokens: int = PART_TOKENS) -> int:
    """Positions that a context of ``num_tokens`` takes with the longest of its parts repeated behind it."""
    # Which tokens they are does not matter to lengths.
    return num_tokens + max(len(part.ids) for part in parts_of(range(num_tokens), words, part_tokens))


class RepeatAttention:
    """Attention of a repetition to the context's cache and, causally, to itself; hands what it saw to evidence."""

    def __init__(self, prefilled: Prefilled, gathered_L: Sequence[Gathered]) -> None:
        self._prefilled = prefilled
        self._gathered_L = gathered_L
        self._attention_input: tuple[Tensor, nn.Module] | tuple[()] = ()
        self.part = range(0)

    def attend(
        self, layer_index: int, q_BQTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, scaling: float
    ) -> Tensor:
        """Attention (B, T, Q, D) over all of the context and the tokens so far."""
        full = self._prefilled.layers[layer_index]
        self._gathered_L[layer_index].add(
            RepeatStates(
                q_BQTD[0],
                k_BHTD[0],
                v_BHTD[0],
                full.k_HND,
                full.v_HND,
                self.part,
                scaling,
                *self._attention_input,
            )
        )
        return attention_after(full.k_HND[None], full.v_HND[None], q_BQTD, k_BHTD, v_BHTD, scaling)

    def see_input(self, hidden_1TE: Tensor, attention: nn.Module, residual_1TE: Tensor) -> None:
        """Note what goes into the attention module that asks next; nobody reads a repetition's residual stream."""
        self._attention_input = (hidden_1TE[0], attention)


def repeat(
    model: LoadedModel,
    context_ids: Sequence[int],
    prefilled: Prefilled,
    needs: Iterable[Need],
    *,
    is_last_try: bool = True,
    part_tokens: int = PART_TOKENS,
) -> bool:
    """Have the context repeated if any of ``needs`` reads that, and put what they ask for into ``prefilled``'s evidence.

    What goes wrong is an error of the policies that ask for it, and of no other: a model without a tokenizer, or without
    positions for the repetition behind the context.

    Returns:
        Whether it was run.

    Raises:
        torch.OutOfMemoryError: it does not fit, and this is not the last try.
    """
    wanted = repeat_needs(needs)
    if not wanted:
        return False
    failure: Exception
    try:
        gathered_L = _gathered(model, context_ids, prefilled, wanted, part_tokens)
        for evidence, gathered in zip(prefilled.evidence, gathered_L, strict=True):
            for need, found in gathered.found().items():
                evidence.put(need, found)
        return True
    except torch.OutOfMemoryError as error:
        if not is_last_try:
            raise
        failure = EvidenceError(f"repeating the context does not fit into the device's memory: {error}")
    # Reading a tokenizer can raise anything; policies that do not need the repetition are not to pay for it.
    except Exception as error:  # noqa: BLE001
        error.add_note(f"raised while the context was repeated:\n{traceback.format_exc()}")
        failure = error
    for evidence in prefilled.evidence:
        for need in wanted:
            evidence.put(need, failure)
    return True


def _gathered(
    model: LoadedModel,
    context_ids: Sequence[int],
    prefilled: Prefilled,
    needs: Sequence[Need],
    part_tokens: int,
) -> list[Gathered]:
    words = _words_of(model)
    parts = parts_of(context_ids, words, part_tokens)
    num_positions = most_positions(len(context_ids), words, part_tokens)
    if num_positions > model.info.max_positions:
        raise EvidenceError(
            f"repeating the context of {len(context_ids)} tokens takes {num_positions} positions, the model has "
            f"{model.info.max_positions}: lower model.max_prompt_tokens by {num_positions - model.info.max_positions}"
        )
    gathered_L = [Gathered(needs) for _ in prefilled.layers]
    handler = RepeatAttention(prefilled, gathered_L)
    watch = handler.see_input if gathered_L[0].reads_hidden_states else None
    for part in parts:
        handler.part = part.tokens
        ids_1T = torch.tensor([part.ids], device=model.device)
        # Every part starts where the context ends: of the one before nothing is left.
        position_1T = torch.arange(len(part.ids), device=model.device)[None] + len(context_ids)
        model.visit_layers(ids_1T, position_1T, handler, watch)
    return gathered_L


def _words_of(model: LoadedModel) -> RepeatWords:
    if model.repeat_words is None:
        raise EvidenceError(
            f"model {model.info.name!r} has no tokenizer here to ask it for a repetition with; load it with load_model, or "
            f"give LoadedModel.repeat_words"
        )
    return model.repeat_words()
