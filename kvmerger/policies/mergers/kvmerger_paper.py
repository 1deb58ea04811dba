"""KVMerger with the settings its paper states."""

from dataclasses import dataclass
from typing import Literal

from kvmerger.policies.mergers.kvmerger import KVMerger
from kvmerger.policies.registry import register


@register("kvmerger_paper")
@dataclass(frozen=True)
class KVMergerPaper(KVMerger):
    """KVMerger as in arXiv 2407.08454: cosine above 0.75, values multiplied by the size of their merging set.

    ``budget: 0.5`` takes the paper's protected fractions 0.17 recent + 0.12 heavy, ``budget: 0.35`` 0.08 + 0.02. How many
    slots that keeps depends on the prompt, so its rows are named by the slots measured and never "50 %".
    """

    # `threshold_label` goes by this default: rows get their labels before this class can be imported.
    mode: Literal["exact", "threshold"] = "threshold"
    value_factor: Literal["convex", "count"] = "count"
