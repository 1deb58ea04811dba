"""What the model will really be given, task by task: BOS, chat template, truncation and the cut before the question.

These are the mistakes that change scores most and show nowhere else. Pure over a plan: nothing is loaded or run.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from evaluators.item import BenchmarkItem
from evaluators.long_text import CHARS_BEFORE_CUT, MOST_CHARS
from evaluators.prompting import QueryMode
from evaluators.tokenizer import Tokenizer, adds_bos, decode
from jobs.planning.plan import Plan
from jobs.planning.rows import PlannedRow
from jobs.planning.work import PlannedItem

_SHOWN_CHARS = 90


@dataclass(frozen=True, slots=True)
class PromptCheck:
    """One task's prompts. Token counts are of the whole input; texts are those of the task's first sound prompt.

    `bos` and `template` say in words how often BOS stands in that prompt and who put it there, and what became of the
    model's chat template. `is_context_free`: nothing of it is compressed. `compressed_end` and `tail` are the text on both
    sides of the cut between what is compressed and what is not. `warnings` are sentences on items whose text or gold answer
    is not what their author may think.
    """

    task: str
    num_items: int
    num_without_prompt: int
    num_truncated: int
    median_tokens: int
    longest_tokens: int
    longest_untruncated_tokens: int
    is_context_free: bool
    bos: str
    template: str
    answer_prefix: str
    compressed_end: str
    tail: str
    tail_tokens: int
    max_new_tokens: int
    first_gold: str
    warnings: tuple[str, ...]


def check_prompts(plan: Plan, tokenizer: Tokenizer) -> tuple[PromptCheck, ...]:
    """One check per task of the plan, in its order, without tasks none of whose items has a prompt."""
    by_task: dict[str, dict[str, PlannedRow]] = {}
    for planned in plan.rows:
        task = f"{planned.item.benchmark}/{planned.item.task}"
        by_task.setdefault(task, {}).setdefault(planned.item.item_id, planned)
    checks = []
    for task, rows in by_task.items():
        sound = [row.planned for row in rows.values() if row.planned is not None]
        if sound:
            checks.append(_check(task, len(rows), sound, tokenizer))
    return tuple(checks)


def told_of_shared_contexts(plan: Plan, mode: QueryMode) -> str | None:
    """How often contexts with several questions are compressed; None where every question has a context of its own."""
    prompts = {row.item.item_id: row.planned for row in plan.rows if row.planned is not None}
    asked = Counter(it.item.cluster_id for it in prompts.values() if not it.tokens.is_context_free)
    num_contexts, num_questions = len(asked), asked.total()
    if num_contexts == num_questions:
        return None
    if mode is QueryMode.AWARE:
        return (
            f"{num_questions} questions on {num_contexts} contexts: each question has a compression of its own, which no "
            "server that keeps a cache can do; query_mode: query_agnostic compresses a context once"
        )
    own = any(it.tokens.earlier for it in prompts.values())
    stays = "; the model's own answers to earlier questions stay in the cache" if own else ""
    return f"{num_questions} questions on {num_contexts} contexts, each compressed once{stays}"


def _check(task: str, num_items: int, prompts: Sequence[PlannedItem], tokenizer: Tokenizer) -> PromptCheck:
    first = prompts[0]
    lengths = [len(it.tokens.context_ids) + it.tokens.most_tail_tokens for it in prompts]
    ids = first.tokens.context_ids + first.tokens.tail_ids
    return PromptCheck(
        task=task,
        num_items=num_items,
        num_without_prompt=num_items - len(prompts),
        num_truncated=sum(it.tokens.is_truncated for it in prompts),
        median_tokens=int(statistics.median(lengths)),
        longest_tokens=max(lengths),
        longest_untruncated_tokens=max(it.tokens.num_original_tokens for it in prompts),
        is_context_free=first.tokens.is_context_free,
        bos=_bos(ids, tokenizer),
        template=_template(first.item, tokenizer),
        answer_prefix=first.item.answer_prefix,
        # Enough ids for so many characters: decoding a whole long context would take seconds.
        compressed_end=_text(first.tokens.context_ids[-_SHOWN_CHARS:], tokenizer)[-_SHOWN_CHARS:],
        tail=_text(first.tokens.tail_ids, tokenizer)[-_SHOWN_CHARS:],
        tail_tokens=len(first.tokens.tail_ids),
        max_new_tokens=first.item.max_new_tokens,
        first_gold=_shortened(first.item.answers[0]) if first.item.answers else "",
        warnings=(
            *_of_controls(prompts, num_items),
            *_of_gold(prompts, num_items),
            *_of_size(prompts, num_items),
        ),
    )


def _of_controls(prompts: Sequence[PlannedItem], num_items: int) -> Iterator[str]:
    spelled = [it.tokens.spelled_controls for it in prompts if it.tokens.spelled_controls]
    if spelled:
        yield (
            f"{len(spelled)} of {num_items} items spell out control tokens ({_each_once(spelled)}) in their own text; "
            "the model reads them as plain text"
        )
    meant = [it.tokens.meant_controls for it in prompts if it.tokens.meant_controls]
    if meant:
        yield (
            f"{len(meant)} of {num_items} items spell out control tokens ({_each_once(meant)}) in their own text that the "
            "model's tokenizer does not mark as special; the model reads them as these tokens, not as plain text"
        )


def _each_once(texts_of_items: Iterable[Iterable[str]]) -> str:
    return ", ".join(sorted({text for texts in texts_of_items for text in texts}))


def _of_gold(prompts: Sequence[PlannedItem], num_items: int) -> Iterator[str]:
    reasons = [it.tokens.no_gold_reason for it in prompts if it.tokens.no_gold_reason]
    if reasons:
        yield f"{len(reasons)} of {num_items} items have no answer NLL: {reasons[0]}"


def _of_size(prompts: Sequence[PlannedItem], num_items: int) -> Iterator[str]:
    cut = [it for it in prompts if CHARS_BEFORE_CUT in it.item.metadata]
    if cut:
        yield (
            f"{len(cut)} of {num_items} items have more than {MOST_CHARS:,} characters: of what truncation drops, most was "
            "cut before the text was tokenised, and their untruncated length is estimated"
        )


def _bos(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    if tokenizer.bos_token_id is None:
        return "the tokenizer has none"
    count = ids.count(tokenizer.bos_token_id)
    if adds_bos(tokenizer):
        return f"{count}, put in front by the tokenizer"  # `self_check` refuses prompts with more or fewer
    return f"{count}, from the chat template or the text: the tokenizer adds none"


def _template(item: BenchmarkItem, tokenizer: Tokenizer) -> str:
    if not item.use_chat_template:
        return "withheld, as the task wants it"
    return "the model's" if tokenizer.chat_template else "none: the model has none"


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"


def _text(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    # With special tokens: where they stand is what a reader looks for.
    return decode(ids, tokenizer, skip_special_tokens=False)
