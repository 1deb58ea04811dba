"""A tokenizer reads texts as its own tokenizer.json says.

transformers' tokenizer classes put a splitting and a normalisation of their own in the place of the file's where a model's
family or ``tokenizer_class`` names such a class: the model then sees other tokens than it was trained on, and runs.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvmerger.models.errors import ModelError, ModelWarning, readable_errors

# What the splittings and normalisations in use treat differently: digits by one or three, blanks, line breaks, contractions,
# accents apart from their letter, scripts without blanks, and code.
_TEXTS = (
    "a", "plain words only", " the  magic number is 42", "needle 4217421 is\n\n42 here", "1234567890 12 3,456.78",
    "a\tb\r\n c  \n\n d", "Paris's I'LL we've don't", "caf\u00e9 cafe\u0301 \ufb01ne \u212b", "漢字とかな 한국어 ไทย",
    "\U0001f600\U0001f468\u200d\U0001f469 x", "def f(x):\n    return x**2  # no", "HTTPServer camelCase __init__ x_1",
    "\u2581under <0x0A> “quoted” … —", "  ", "\n", "",
)  # fmt: skip
# As many of the file's own added tokens are tried between letters: whether one strips the blanks beside it is told there.
_MAX_ADDED = 16


def as_in_its_file(tokenizer: Any, name: str, source: str, revision: str | None) -> Any:
    """``tokenizer``, or, where it reads texts differently, the tokenizer that ``source``'s tokenizer.json describes.

    Without that file ``tokenizer`` is all there is. Another one than given is told by a `ModelWarning`.

    Raises:
        ModelError: neither reads texts as the file does.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    with readable_errors(name):
        file = tokenizer_file(source, revision)
        if file is None:
            return tokenizer
        written = Tokenizer.from_file(str(file))
        texts = [*_TEXTS, *_around_added_tokens(written)]
        # An AutoTokenizer may have been given cut lengths or padding by the file; we encode whole texts, one by one.
        written.no_truncation()
        written.no_padding()
        expected = [written.encode(text).ids for text in texts]
        if _read_by(tokenizer, texts) == expected and _holds(tokenizer, written):
            return tokenizer
        plain = PreTrainedTokenizerFast.from_pretrained(source, revision=revision, trust_remote_code=False)
        # tokenizer_config.json may rightly change what the file says, as by `add_bos_token`; the file's own class obeys it.
        if _read_by(plain, texts) == _read_by(tokenizer, texts):
            return tokenizer
        bare = [written.encode(text, add_special_tokens=False).ids for text in texts]
        if _read_by(plain, texts, add_special_tokens=False) != bare:
            raise ModelError(
                f"model {name!r}: neither {type(tokenizer).__name__} nor the plain class of transformers reads texts as "
                f"{file.name} says; use another version of transformers, or save the tokenizer anew"
            )
    different = next(text for text in texts if _read_by(plain, [text]) != _read_by(tokenizer, [text]))
    warnings.warn(
        f"model {name!r}: transformers' {type(tokenizer).__name__} would read {different!r} as other tokens than the "
        f"folder's {file.name} does; the file is obeyed",
        ModelWarning,
        stacklevel=3,
    )
    return plain


def check_is_data(name: str, source: str, revision: str | None) -> None:
    """Raise `ModelError` for a tokenizer that is code of the model's own; with a tokenizer.json beside it, warn.

    Called before transformers reads the tokenizer: it would ask on the terminal whether to run that code.
    """
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    with readable_errors(name):
        code = get_tokenizer_config(source, revision=revision).get("auto_map")
        if not code:
            return
        has_file = tokenizer_file(source, revision) is not None
    if not has_file:
        raise ModelError(
            f"model {name!r}: its tokenizer is code of its own (auto_map), which is never run; give a folder with a "
            f"tokenizer.json"
        )
    warnings.warn(
        f"model {name!r}: its tokenizer comes with code of its own (auto_map), which is never run; tokenizer.json is read",
        ModelWarning,
        stacklevel=3,
    )


def tokenizer_file(source: str, revision: str | None) -> Path | None:
    """The tokenizer.json of a folder or hub id, or None where there is none."""
    from transformers.utils import cached_file

    path = cached_file(
        source,
        "tokenizer.json",
        revision=revision,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if path is None else Path(path)


def _around_added_tokens(written: Any) -> list[str]:
    added = json.loads(written.to_str())["added_tokens"][:_MAX_ADDED]
    return [f"a {token['content']} b{token['content']}" for token in added]


def _read_by(tokenizer: Any, texts: Sequence[str], **options: Any) -> list[list[int]]:
    return [list(tokenizer(text, verbose=False, **options)["input_ids"]) for text in texts]


def _holds(tokenizer: Any, written: Any) -> bool:
    """Whether the tokenizer has each token of the file under its number; it may have more."""
    return written.get_vocab().items() <= tokenizer.get_vocab().items()
