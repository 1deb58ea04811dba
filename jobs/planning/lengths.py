"""A length that no prompt of the sweep may have is refused before anything is generated to it.

What is drawn to a length is never cut, so such an item would be refused once it is made, which takes as long as it is long.
"""

from __future__ import annotations

from dataclasses import replace

from evaluators import registry
from evaluators.prompting import num_text_tokens
from evaluators.tokenizer import Tokenizer
from jobs.planning.rows import GeneratedPromptError
from jobs.settings.schema import Settings


def refuse_lengths(settings: Settings, tokenizer: Tokenizer, max_positions: int) -> None:
    """Look at the tasks' `length`; where it is over `max_prompt_tokens` at one item each.

    Raises:
        GeneratedPromptError: a length has no room in the model, or an item's text is over `max_prompt_tokens`.
        BenchmarkError: that item cannot be made.
    """
    asked = settings.model.max_prompt_tokens
    lengths = {f"tasks.{index} ({task.name})": task.length or 0 for index, task in enumerate(settings.tasks)}
    for place, length in lengths.items():
        if length > max_positions:
            raise GeneratedPromptError(
                f"{place}: prompts of `length` {length:,} are generated and never cut, and the model has {max_positions:,} "
                f"positions; set the task's `length` to {max_positions} or less"
            )
    for task, (place, length) in zip(settings.tasks, lengths.items(), strict=True):
        if asked is None or length <= asked:
            continue
        # The limit is on the text; template and answer are a part of the length as well, and only an item says how large.
        for item in registry.load_items(replace(task.to_spec(), limit=1), tokenizer):
            if item.is_generated and (num_text := num_text_tokens(item, tokenizer)) > asked:
                raise GeneratedPromptError(
                    f"{place}: prompts of `length` {length:,} are generated and never cut; one has {num_text:,} tokens of "
                    f"text, and model.max_prompt_tokens is {asked:,}; raise it, or lower the task's `length`"
                )
