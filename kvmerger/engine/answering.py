"""From a batch of rows to generations: decode, force the references' answers and the gold ones, compare, report.

Shapes: T tokens, E hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite
from typing import Literal

import torch
from torch import Tensor

from kvmerger.cache.forms.registry import name_of
from kvmerger.decoding.acting_rows import RuleFailure
from kvmerger.decoding.batch import Batch, Row
from kvmerger.decoding.decode_loop import Answer
from kvmerger.decoding.decode_rule import DecodeRuleError
from kvmerger.device import now_s
from kvmerger.engine.compress import Compressed
from kvmerger.engine.degenerate import DID_NOTHING, NOTHING_TO_COMPRESS, merged_counters
from kvmerger.engine.fidelity import compare, continuation_nll, fetched
from kvmerger.engine.storing import Sizes, bits_of
from kvmerger.generation import PLAIN_FORM, Generation, Prompt, VariantFailure
from kvmerger.limits import Limits
from kvmerger.models.loading import LoadedModel
from kvmerger.variants import FULL

_FIDELITY, _NLL, _NAN = "fidelity", "nll", "nan"


@dataclass(frozen=True, slots=True)
class Reference:
    """The full row's own answer to a question, cut to the fidelity limit, and the hidden states that predict it."""

    token_ids: tuple[int, ...]
    hidden_TE: Tensor


References = Mapping[int, Reference]
"""By question index."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A batch's results, in row order, and the references that other batches of the prompt are compared with."""

    results: list[Generation | VariantFailure]
    references: References


@dataclass(frozen=True, slots=True)
class Answering:
    """What turns a batch into generations; the same for all batches of one prompt.

    compressed: by label, for every row of the batches. full: what the full row's prefix takes.
    """

    model: LoadedModel
    prompt: Prompt
    compressed: Mapping[str, Compressed]
    full: Sizes
    limits: Limits

    def finish(
        self,
        batch: Batch,
        answers: Mapping[int, Answer],
        *,
        references: References | None,
        seconds: Mapping[str, float],
        peak_bytes: int | None = None,
    ) -> Answered:
        """Compare every row of a decoded ``batch`` with ``references`` (of its questions or more); without any, its full rows
        become them.

        ``answers`` are the batch's own, by row index. ``seconds`` and ``peak_bytes`` go into every generation.
        """
        start_s = now_s(self.model.device)
        references = None if references is None else _asked_of(batch, references)
        tokens_by_row = self._fidelity_tokens(batch, answers, references)
        # All rows in matrices as wide as the longest answer wants: a row's bits depend on the width.
        forced = batch.force(tokens_by_row, max(len(ids) for ids in tokens_by_row.values()))
        if references is None:
            references = {
                row.question_index: Reference(self._cut(answers[index], row), forced[index])
                for index, row in batch.rows.items()
                if row.label == FULL
            }
        compared = self._compared(batch, forced, references)
        # The only wait for the device in here, for the numbers of all rows.
        nan_counts = {(_NAN, index): batch.num_nan_of(index).double()[None] for index in batch.acting}
        numbers = fetched({**compared, **self._gold_nlls(batch), **nan_counts})
        results_start_s = now_s(self.model.device)
        shared = {
            **seconds,
            "batch_shared_s": batch.build_s,
            "tails_shared_s": batch.tails_s,
            "decode_shared_s": batch.decode_s,
            "fidelity_shared_s": results_start_s - start_s,
        }
        if batch.record_s:
            shared["record_graph_shared_s"] = batch.record_s
        if batch.rules_s is not None:
            shared["decode_rules_shared_s"] = batch.rules_s
        results = [
            _failure(batch.rows[index], batch.failures[index])
            if index in batch.failures
            else self._result(batch, index, answers[index], numbers, len(forced[index]), peak_bytes)
            for index in sorted(batch.rows)
        ]
        shared["results_shared_s"] = now_s(self.model.device) - results_start_s
        return Answered([_with_seconds(result, shared) for result in results], references)

    def _fidelity_tokens(
        self, batch: Batch, answers: Mapping[int, Answer], references: References | None
    ) -> dict[int, tuple[int, ...]]:
        """The tokens every row is forced along: the full row's answer to the row's question."""
        if references is None:
            by_question = {
                row.question_index: self._cut(answers[index], row)
                for index, row in batch.rows.items()
                if row.label == FULL
            }
        else:
            by_question = {question: reference.token_ids for question, reference in references.items()}
        return {index: by_question[row.question_index] for index, row in batch.rows.items()}

    def _cut(self, full: Answer, row: Row) -> tuple[int, ...]:
        question = self.prompt.questions[row.question_index]
        return full.token_ids[: self.limits.fidelity_tokens(question.max_new_tokens)]

    def _compared(
        self, batch: Batch, forced: Mapping[int, Tensor], references: References
    ) -> dict[tuple[str, int], Tensor]:
        """KL and agreement of every row that has not failed, on the device."""
        compared: dict[tuple[str, int], Tensor] = {}
        for question, reference in references.items():
            of_question = {
                (_FIDELITY, index): forced[index]
                for index, row in batch.rows.items()
                if row.question_index == question and index not in batch.failures
            }
            compared |= compare(self.model, reference.hidden_TE, of_question)
        return compared

    def _gold_nlls(self, batch: Batch) -> dict[tuple[str, int], Tensor]:
        """Gold answers' NLL of every row that has one and has not failed, on the device."""
        gold = {
            index: self.prompt.questions[row.question_index].gold_ids for index, row in batch.rows.items()
        }
        longest = max(len(question.gold_ids) for question in self.prompt.questions)
        hidden = {
            (_NLL, index): hidden_TE
            for index, hidden_TE in batch.force(gold, longest).items()
            if index not in batch.failures
        }
        return continuation_nll(self.model, hidden, {key: gold[key[1]] for key in hidden})

    def _result(
        self,
        batch: Batch,
        index: int,
        own: Answer,
        numbers: Mapping[tuple[str, int], tuple[float, ...]],
        num_fidelity_tokens: int,
        peak_bytes: int | None,
    ) -> Generation | VariantFailure:
        row = batch.rows[index]
        compressed = self.compressed[row.label]
        if num_nan := numbers.get((_NAN, index), (0,))[0]:
            return _undecided(row, int(num_nan))
        kl_mean, top1_agreement = numbers[_FIDELITY, index]
        answer_nll = numbers.get((_NLL, index), (None,))[0]
        # No gold answer is no NLL, and not one that is not finite.
        if not all(map(isfinite, (kl_mean, answer_nll or 0.0))):
            return _not_finite(row, kl_mean, answer_nll)
        sizes, form = compressed.sizes, compressed.form
        bits_k, bits_v = bits_of(compressed.prefix)
        # Its first point is the uncompressed context, which is not this row's own.
        trace = batch.trace_of(index, len(own.token_ids), self.full.held, sizes.held)
        return Generation(
            label=row.label,
            question_index=row.question_index,
            token_ids=own.token_ids,
            stop_reason=self._stop_reason(own),
            kl_mean=kl_mean,
            top1_agreement=top1_agreement,
            num_fidelity_tokens=num_fidelity_tokens,
            answer_nll=answer_nll,
            slots_LH=tuple(layer.num_slots_H for layer in row.prefix),
            asked_slots=compressed.asked_slots,
            kv_bytes=sizes.held,
            full_kv_bytes=self.full.held,
            tail_bytes=max(point.live_bytes for point in trace[1:]) - sizes.held,
            peak_bytes=peak_bytes,
            degenerate_reason=_degenerate_reason(batch, index, compressed),
            counters=_counters(batch, index, compressed),
            seconds={"compress_s": compressed.compress_s},
            trace=trace,
            form=PLAIN_FORM if form is None else name_of(form),
            bits_k=bits_k,
            bits_v=bits_v,
            position_bytes=sizes.positions,
            full_position_bytes=self.full.positions,
            read_bytes=sizes.read,
            full_read_bytes=self.full.read,
        )

    def _stop_reason(self, own: Answer) -> Literal["eos", "stop", "length"]:
        if not own.is_complete:
            return "length"
        return "eos" if own.token_ids[-1] in self.model.eos_ids else "stop"


def _asked_of(batch: Batch, references: References) -> References:
    """Those of the questions that ``batch`` has rows of."""
    asked = {row.question_index for row in batch.rows.values()}
    return {question: it for question, it in references.items() if question in asked}


def _with_seconds(
    result: Generation | VariantFailure, shared: Mapping[str, float]
) -> Generation | VariantFailure:
    if isinstance(result, VariantFailure):
        return result
    return replace(result, seconds={**shared, **result.seconds})


def _failure(row: Row, failure: RuleFailure) -> VariantFailure:
    return VariantFailure(
        row.label, row.question_index, "decode", failure.error_type, failure.message, failure.traceback
    )


def _undecided(row: Row, num_tokens: int) -> VariantFailure:
    """The failure of a row whose decode rule could not say, at so many tokens, which slot leaves."""
    message = (
        f"{row.label!r}: its decode rule's worth is NaN for slots that are held, at {num_tokens} tokens of its answers: look "
        f"for 0 / 0; where 'full' fails too, it is the model: set another model.dtype"
    )
    return VariantFailure(row.label, row.question_index, "decode", DecodeRuleError.__name__, message, "")


def _not_finite(row: Row, kl_mean: float, answer_nll: float | None) -> VariantFailure:
    """The failure of a row whose numbers are NaN or infinite."""
    # Not a missing number: left out of means it would flatter the policy.
    nll = "" if answer_nll is None else f", the gold answer's NLL {answer_nll}"
    message = (
        f"{row.label!r} gives logits that are NaN or infinite (KL {kl_mean}{nll}): look for 0 / 0 and overflow in what its "
        f"policy makes of keys, values and log-mass; where 'full' fails too, it is the model: set another model.dtype"
    )
    return VariantFailure(row.label, row.question_index, "fidelity", FloatingPointError.__name__, message, "")


def _degenerate_reason(batch: Batch, index: int, compressed: Compressed) -> str | None:
    """Why the row says nothing about its policy; one that keeps the whole prompt may still act on the answer."""
    reason = compressed.degenerate_reason
    return None if reason in (DID_NOTHING, NOTHING_TO_COMPRESS) and batch.has_acted(index) else reason


def _counters(batch: Batch, index: int, compressed: Compressed) -> dict[str, float]:
    return {
        **merged_counters(batch.rows[index].prefix),
        **_budget_counter(compressed),
        **batch.counters_by_row.get(index, {}),
        **({"num_prompts_together": float(batch.num_prompts)} if batch.num_prompts > 1 else {}),
    }


def _budget_counter(compressed: Compressed) -> dict[str, float]:
    """Whether the budget was reached, over the whole model; nothing where there was none."""
    if compressed.asked_slots is None:
        return {}
    kept = sum(layer.num_slots for layer in compressed.prefix)
    return {"is_budget_reached": float(kept <= compressed.asked_slots)}


def out_of_memory(
    label: str, prompt: Prompt, phase: str, message: str, traceback_text: str
) -> list[VariantFailure]:
    """A failure per question of a variant that does not fit even by itself."""
    remedy = (
        f"{label!r} does not fit into the device's memory, with no other variant beside it "
        f"({len(prompt.context_ids)} tokens compressed, {len(prompt.questions)} questions): give it a smaller budget, "
        f"set model.max_prompt_tokens, or run on a device with more memory. {message}"
    )
    return [
        VariantFailure(label, question, phase, torch.OutOfMemoryError.__name__, remedy, traceback_text)
        for question in range(len(prompt.questions))
    ]
