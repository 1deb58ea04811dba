"""Every (item x variant) with its key, and whether it is done, impossible, or owed.

A row that cannot run is found here, before any weights are loaded, and keeps the policy's own words as its reason.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from evaluators.item import BenchmarkItem
from evaluators.long_text import num_chars, without_middle
from evaluators.prompting import (
    MIN_LIMIT_TOKENS,
    PromptError,
    TokenizedPrompt,
    Tokenizer,
    num_text_tokens,
    tokenize_item,
)
from jobs.planning.identity import RunSettings, context_digest, item_digest, row_identity
from jobs.planning.sizes import SizeForecast, VariantFacts
from jobs.planning.variant_list import VariantList
from jobs.planning.work import ModelFacts, PlannedItem, RowKey
from jobs.settings.schema import Settings
from kvmerger.bits_table import BitsTable, table_of
from kvmerger.budget import label_referred_to
from kvmerger.variants import REFERENCE_LABELS, VariantSpec

CheckVariant = Callable[[VariantSpec, int], str | None]
"""(variant, context tokens) -> why the policy cannot work on a prompt of that length, or None."""

CheckAnswering = Callable[[VariantSpec, int, int], str | None]
"""(variant, prompt tokens, most new tokens) -> why its rows cannot answer an item without context, or None."""

_MOST_CUTS = 3
"""A cut text is joined and encoded anew, and may then be a token or two longer than the cut was for."""
_REFERENCE_VERSION = "1"
"""Of `full`, `no_context` and `full_aa`; to be raised when their results change."""


def never_refused(spec: VariantSpec, num_tokens: int, num_new_tokens: int) -> None:
    """A `CheckAnswering` that finds no reason."""


class GeneratedPromptError(ValueError):
    """A prompt that was generated to a length does not fit: a mistake in the settings, not in an item."""


@dataclass(frozen=True, slots=True)
class PlannedRow:
    """One (item x variant) with what the plan found out about it.

    `planned` is None when no prompt could be made; `impossible_reason` is None when the row can run.
    """

    key: RowKey
    item: BenchmarkItem
    planned: PlannedItem | None
    spec: VariantSpec
    policy_version: str
    is_done: bool
    impossible_reason: str | None
    is_degenerate: bool

    @property
    def is_owed(self) -> bool:
        """Whether a unit must compute it."""
        return not self.is_done and self.impossible_reason is None


@dataclass(frozen=True)
class RowPlanner:
    """Makes the rows of one item after the other. `done` are identities of rows that have a result."""

    settings: Settings
    tokenizer: Tokenizer
    model: ModelFacts
    variants: VariantList
    facts: Mapping[str, VariantFacts]
    done: frozenset[str]
    check_variant: CheckVariant
    sizes: SizeForecast
    check_answering: CheckAnswering = never_refused
    _reasons: dict[tuple[str, int], str | None] = field(default_factory=dict)
    _tables: dict[str, BitsTable | None] = field(default_factory=dict)

    def rows_of(self, item: BenchmarkItem) -> list[PlannedRow]:
        """One row per variant, in the order of the variants. Changes nothing but the cache of `check_variant`'s answers.

        Raises:
            GeneratedPromptError: the item is generated, and would have to be cut.
        """
        planned, reason = self._tokenized(item)
        run = RunSettings(
            (self.model.name, self.model.revision, self.model.dtype),
            self.settings.query_mode.value,
            self.settings.execution,
            self.settings.seed,
        )
        # Once per item: a long prompt takes longer to digest than its rows to make.
        digest = item_digest(item, planned.tokens if planned else None, run)
        return [self._row(item, planned, reason, label, digest) for label in self.variants.specs]

    def _tokenized(self, item: BenchmarkItem) -> tuple[PlannedItem | None, str | None]:
        """The prompt, or why there is none."""
        try:
            read = without_middle(item, self.tokenizer, self._most_tokens(item))
            tokens = self._whole(item) if item.is_generated else self._fitted(read)
        except GeneratedPromptError:
            raise
        except PromptError as error:
            return None, str(error)
        # Tokenizers are not ours: a text one cannot take costs its item, not the sweep.
        except Exception as error:  # noqa: BLE001
            return None, f"the tokenizer raised {type(error).__name__}: {error}"
        if read is not item:  # nobody has counted the tokens of what was cut
            ratio = num_chars(item) / num_chars(read)
            tokens = replace(tokens, num_original_tokens=round(ratio * tokens.num_original_tokens))
        return PlannedItem(read, self._with_gold_that_fits(tokens)), None

    def _most_tokens(self, item: BenchmarkItem) -> int:
        """The most tokens of the user's text that a prompt can have."""
        asked = self.settings.model.max_prompt_tokens
        room = self.model.max_positions - item.max_new_tokens
        return room if asked is None else min(room, asked)

    def _whole(self, item: BenchmarkItem) -> TokenizedPrompt:
        """The prompt of a generated item, which is not cut: a cut may take away what is asked for, and nobody would know."""
        tokens, asked = self._tokenize(item, sys.maxsize), self.settings.model.max_prompt_tokens
        needed, room = _num_prompt_tokens(tokens) + item.max_new_tokens, self.model.max_positions
        made = f"{item.benchmark}/{item.task}: its prompts are generated and therefore never cut"
        if needed > room:
            raise GeneratedPromptError(
                f"{made}; with the answer one has {needed:,} tokens, and the model has {room:,} positions; set the task's "
                f"`length` to {room} or less"
            )
        if asked is not None and (num_text := num_text_tokens(item, self.tokenizer)) > asked:
            raise GeneratedPromptError(
                f"{made}; one has {num_text:,} tokens of text, and model.max_prompt_tokens is {asked:,}; raise it, or lower "
                f"the task's `length`"
            )
        return tokens

    def _fitted(self, item: BenchmarkItem) -> TokenizedPrompt:
        """A prompt that leaves the answer its positions. Raises PromptError where none does."""
        room, limit = self.model.max_positions - item.max_new_tokens, self._most_tokens(item)
        if room < MIN_LIMIT_TOKENS:
            raise PromptError(f"{item.item_id}: {self._too_many(item)}; lower max_new_tokens.")
        tokens = self._tokenize(item, limit)
        for _ in range(_MOST_CUTS):
            excess = _num_prompt_tokens(tokens) - room
            if excess <= 0:
                return tokens
            # The limit is on the user's text; chat template and answer prefix come on top. What is below the limit is cut
            # by so much of its own length.
            limit = min(limit, num_text_tokens(item, self.tokenizer)) - excess
            if limit < MIN_LIMIT_TOKENS:
                break
            tokens = self._tokenize(item, limit)
        raise PromptError(
            f"{item.item_id}: {self._too_many(item)} beside the chat template and the answer prefix; "
            "shorten them, or lower max_new_tokens."
        )

    def _too_many(self, item: BenchmarkItem) -> str:
        return (
            f"{item.max_new_tokens:,} answer tokens (max_new_tokens) leave no room for a prompt in the "
            f"{self.model.max_positions:,} positions of the model"
        )

    def _with_gold_that_fits(self, tokens: TokenizedPrompt) -> TokenizedPrompt:
        """The prompt without its gold answer where both are too long for the model: that costs its NLL alone."""
        room = self.model.max_positions - _num_prompt_tokens(tokens)
        if len(tokens.gold_ids) <= room:
            return tokens
        reason = (
            f"the first gold answer has {len(tokens.gold_ids):,} tokens, and the prompt leaves it {room:,} of the model's "
            f"{self.model.max_positions:,} positions; a lower model.max_prompt_tokens leaves more"
        )
        return replace(tokens, gold_ids=(), no_gold_reason=reason)

    def _tokenize(self, item: BenchmarkItem, max_prompt_tokens: int) -> TokenizedPrompt:
        return tokenize_item(item, self.tokenizer, self.settings.query_mode, max_prompt_tokens)

    def _row(
        self, item: BenchmarkItem, planned: PlannedItem | None, reason: str | None, label: str, digest: str
    ) -> PlannedRow:
        spec = self.variants.specs[label]
        version = self._version(label)
        # What a `like` budget refers to decides how many slots are kept, so its version counts as well.
        versions = [self._version(it) for it in self.variants.chain(label)]
        identity = row_identity(digest, self.variants.canonical(label), versions)
        return PlannedRow(
            key=RowKey(identity, item.item_id, label),
            item=item,
            planned=planned,
            spec=spec,
            policy_version=version,
            is_done=identity in self.done,
            impossible_reason=reason
            if planned is None
            else self._calibrated(spec, item) or self._reason_of(spec, planned),
            is_degenerate=planned is not None and self._does_nothing(label, planned),
        )

    def _version(self, label: str) -> str:
        return self.facts[label].version if label in self.facts else _REFERENCE_VERSION

    def _calibrated(self, spec: VariantSpec, item: BenchmarkItem) -> str | None:
        """Why the variant is not judged on an item whose context its own table was found on; None elsewhere."""
        if spec.label not in self._tables:
            self._tables[spec.label] = table_of(spec.policy, spec.params)
        table = self._tables[spec.label]
        if table is None or context_digest(item) not in table.items:
            return None
        return "its table of bits was calibrated on this context, so it is not judged by it; calibrate on other items"

    def _reason_of(self, spec: VariantSpec, planned: PlannedItem) -> str | None:
        if not planned.tokens.is_context_free:
            return self._reason(spec, len(planned.tokens.context_ids))
        if spec.label in REFERENCE_LABELS:
            return None
        return self.check_answering(spec, _num_prompt_tokens(planned.tokens), planned.item.max_new_tokens)

    def _does_nothing(self, label: str, planned: PlannedItem) -> bool:
        """Whether the row is foreseen to say nothing about its policy."""
        if not planned.tokens.is_context_free:
            return self._keeps_everything(label, len(planned.tokens.context_ids))
        return label not in REFERENCE_LABELS and not self.facts[label].acts_while_answering

    def _reason(self, spec: VariantSpec, num_tokens: int) -> str | None:
        """Why the variant cannot run on so many tokens, or None."""
        if spec.label in REFERENCE_LABELS:
            return None
        key = (spec.label, num_tokens)
        if key not in self._reasons:
            self._reasons[key] = self.check_variant(spec, num_tokens)
        like = label_referred_to(spec.budget)
        if self._reasons[key] is None and like is not None:
            reason = self._reason(self.variants.specs[like], num_tokens)
            return reason and f"its budget is like {like!r}, which cannot run: {reason}"
        return self._reasons[key]

    def _keeps_everything(self, label: str, num_tokens: int) -> bool:
        """Whether the budget is foreseen to drop nothing of a context of so many tokens."""
        if label in REFERENCE_LABELS or self.variants.end_of_slots(label).budget is None:
            return False
        size = self.sizes.of(label, num_tokens)
        return size is not None and not size.is_at_most and size.num_slots >= num_tokens


def _num_prompt_tokens(tokens: TokenizedPrompt) -> int:
    return len(tokens.context_ids) + tokens.most_tail_tokens
