"""One file per method. Importing this package registers every policy the project ships."""

from kvmerger.policies import (
    adakv,
    knorm,
    kvmerger,
    kvmerger_paper,
    random_tokens,
    snapkv,
    streaming_llm,
)

__all__ = ["adakv", "knorm", "kvmerger", "kvmerger_paper", "random_tokens", "snapkv", "streaming_llm"]
