"""One file per method. Importing this package registers every policy the project ships."""

from kvmerger.policies import (
    adakv,
    knorm,
    kvmerger,
    kvmerger_paper,
    pivots_only,
    protected_mass,
    random_tokens,
    reducers,
    snapkv,
    streaming_llm,
    zeromerge,
)

__all__ = [
    "adakv",
    "knorm",
    "kvmerger",
    "kvmerger_paper",
    "pivots_only",
    "protected_mass",
    "random_tokens",
    "reducers",
    "snapkv",
    "streaming_llm",
    "zeromerge",
]
