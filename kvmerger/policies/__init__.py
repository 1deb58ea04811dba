"""One file per method. Importing this package registers every policy the project ships."""

from kvmerger.policies import (
    adakv,
    cam,
    h2o_decode,
    knorm,
    kvmerger,
    kvmerger_paper,
    random_tokens,
    snapkv,
    streaming_llm,
    streaming_llm_decode,
    tova_decode,
)

__all__ = [
    "adakv",
    "cam",
    "h2o_decode",
    "knorm",
    "kvmerger",
    "kvmerger_paper",
    "random_tokens",
    "snapkv",
    "streaming_llm",
    "streaming_llm_decode",
    "tova_decode",
]
