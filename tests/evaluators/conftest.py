"""Tiny tokenizers built on the spot, so that no test needs a network or a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest

from evaluators.benchmarks.ruler.filler import load_haystack
from evaluators.item import BenchmarkItem
from evaluators.prompting import TokenizedPrompt

if TYPE_CHECKING:  # imported where used, so that collecting the tests stays fast
    from transformers import PreTrainedTokenizerFast

MakeTokenizer: TypeAlias = "Callable[..., PreTrainedTokenizerFast]"
LoadTask = Callable[..., list[BenchmarkItem]]

CASES = Path(__file__).parent / "cases"
SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"

CHAT_TEMPLATE = (
    "{% for message in messages %}<|user|>\n{{ message['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


NO_LIMIT = 100_000
PROSE = "The value of an object can change. Objects are never destroyed, they become unreachable. "
ITEM = BenchmarkItem(
    item_id="test/prompting/0",
    benchmark="test",
    task="prompting",
    cluster_id="c",
    before_context="Read this.\n",
    context=PROSE,
    after_context="\nWhat can change?",
    answer_prefix="",
    answers=("The value",),
    max_new_tokens=8,
    use_chat_template=True,
    metric="qa_f1",
)


def ids_of(prompt: TokenizedPrompt) -> tuple[int, ...]:
    return prompt.context_ids + prompt.tail_ids


@pytest.fixture(scope="session")
def byte_level_bpe() -> str:
    """A trained byte-level BPE as JSON: every text can be encoded and decodes to itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<s>", "</s>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(load_haystack(None).sentences[:200], trainer)
    return bpe.to_str()


@pytest.fixture(scope="session")
def make_tokenizer(byte_level_bpe: str) -> MakeTokenizer:
    """Build a tokenizer: with or without its own BOS, a chat template, offsets without the leading blank, a normalizer."""

    from tokenizers import Tokenizer, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    def make(
        *,
        adds_bos: bool = False,
        chat_template: str | None = None,
        trims_offsets: bool = False,
        normalizer: str | None = None,
    ) -> PreTrainedTokenizerFast:
        bpe = Tokenizer.from_str(byte_level_bpe)
        if normalizer:
            bpe.normalizer = getattr(normalizers, normalizer)()
        steps: list[object] = [processors.ByteLevel(trim_offsets=True)] if trims_offsets else []
        if adds_bos:
            bos = ("<s>", bpe.token_to_id("<s>"))
            steps.append(processors.TemplateProcessing(single="<s> $A", special_tokens=[bos]))
        bpe.post_processor = processors.Sequence(steps)
        return PreTrainedTokenizerFast(
            tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", chat_template=chat_template
        )

    return make
