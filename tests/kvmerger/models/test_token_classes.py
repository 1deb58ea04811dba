"""Which tokens the demo model's tokenizer calls special, and which read as punctuation."""

from __future__ import annotations

import pytest

from kvmerger.models.loading import load_tokenizer
from kvmerger.models.token_classes import OTHER, PUNCTUATION, SPECIAL, TokenClasses


class Letters:
    """A tokenizer of single characters, two of which have no letter."""

    all_special_ids = (0,)

    def decode(self, token_ids: list[int]) -> str:
        assert 0 not in token_ids
        return "".join(map(chr, token_ids))


def test_punctuation_is_what_reads_as_nothing_else() -> None:
    classes = TokenClasses(Letters())
    ids = [0, *map(ord, "a,«¿ 7$")]
    wanted = [SPECIAL, OTHER, PUNCTUATION, PUNCTUATION, PUNCTUATION, OTHER, OTHER, PUNCTUATION]
    assert classes(ids) == wanted and classes(ids[::-1]) == wanted[::-1] and classes([]) == []


@pytest.mark.demo
def test_a_templates_tokens_are_special() -> None:
    tokenizer = load_tokenizer("demo")
    ids = tokenizer("<|im_start|>user\nIs it so, or not?<|im_end|>", add_special_tokens=False)["input_ids"]
    shown = [tokenizer.decode([token_id]).strip() for token_id in ids]
    by_class = dict(zip(shown, TokenClasses(tokenizer)(ids), strict=True))
    assert {text for text, it in by_class.items() if it == SPECIAL} == {"<|im_start|>", "<|im_end|>"}
    assert {text for text, it in by_class.items() if it == PUNCTUATION} == {",", "?"}
