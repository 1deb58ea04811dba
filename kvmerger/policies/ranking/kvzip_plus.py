"""KVzip+: as KVzip, with attention weighted by what it moves in the residual stream."""

from dataclasses import dataclass
from typing import ClassVar

from kvmerger.policies.ranking.kvzip import KVzip
from kvmerger.policies.registry import register


@register("kvzip_plus")
@dataclass(frozen=True)
class KVzipPlus(KVzip):
    """KVzip with attention times ‖W_o v‖₂, divided by the norm of what goes into the query's attention.

    Based on KVzip (arXiv 2505.23416) and its normalisation in kvpress (``kvzip_plus_normalization``). The weights come before
    the maximum over queries and the heads of a group.
    """

    is_weighted: ClassVar[bool] = True
