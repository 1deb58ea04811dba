"""The prompt self-check as a person reads it: a block per task, warnings where a prompt looks wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import ConsoleRenderable, Group, RenderableType
from rich.table import Table
from rich.text import Text

from jobs.planning.prompt_check import PromptCheck


def render_prompts(checks: Sequence[PromptCheck], end_tokens: Sequence[str]) -> RenderableType:
    """One block per task. `end_tokens` are the tokens that end an answer, as text."""
    blocks: list[ConsoleRenderable] = []
    for check in checks:
        blocks += [_block(check, end_tokens), *_warnings(check, end_tokens), Text()]
    return Group(*blocks)


def _block(check: PromptCheck, end_tokens: Sequence[str]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, title=check.task, title_justify="left")
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    truncated = f"{check.num_truncated} of {check.num_items}"
    if check.num_truncated:
        truncated += f" (the longest had {check.longest_untruncated_tokens:,} tokens)"
    facts = {
        "tokens": f"median {check.median_tokens:,}, longest {check.longest_tokens:,}; "
        f"of the first {check.tail_tokens} are tail, never compressed",
        "cut in the middle": truncated,
        "chat template": check.template,
        "BOS": check.bos,
        "compressed up to": repr(check.compressed_end),
        "tail": repr(check.tail),
        "answer prefix": repr(check.answer_prefix) if check.answer_prefix else "none",
        "first gold answer": repr(check.first_gold) if check.first_gold else "none: only scored without one",
        "answer ends at": f"{check.max_new_tokens} tokens, or {' '.join(end_tokens) or 'nothing else'}",
    }
    for head, text in facts.items():
        table.add_row(head, Text(text))
    return table


def _warnings(check: PromptCheck, end_tokens: Sequence[str]) -> Iterator[Text]:
    if check.num_without_prompt:
        yield _warning(f"{check.num_without_prompt} of {check.num_items} items have no sound prompt")
    if not end_tokens:
        yield _warning("no end token is known: every answer will be as long as it may be")


def _warning(text: str) -> Text:
    return Text(f"warning: {text}", style="yellow")
