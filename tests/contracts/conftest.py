"""Benchmarks and metrics run their contracts with the tokenizers that their own tests build."""

from tests.evaluators.conftest import byte_level_bpe, make_tokenizer

__all__ = ["byte_level_bpe", "make_tokenizer"]
