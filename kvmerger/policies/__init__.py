"""One file per method. Importing this package registers every policy the project ships."""

from kvmerger.policies import (
    adakv,
    cur,
    expected_attention,
    h2o,
    keydiff,
    knorm,
    kvmerger,
    kvmerger_paper,
    lagkv,
    observed_attention,
    pyramidkv,
    random_tokens,
    snapkv,
    streaming_llm,
    tova,
)

__all__ = [
    "adakv",
    "cur",
    "expected_attention",
    "h2o",
    "keydiff",
    "knorm",
    "kvmerger",
    "kvmerger_paper",
    "lagkv",
    "observed_attention",
    "pyramidkv",
    "random_tokens",
    "snapkv",
    "streaming_llm",
    "tova",
]
