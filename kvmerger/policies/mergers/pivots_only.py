"""The control that shows what merging itself is worth: KVMerger's own slots with nothing merged into them."""

from dataclasses import dataclass, field
from typing import Literal

from kvmerger.merging.weights import Weights
from kvmerger.policies.mergers.kvmerger import KVMerger
from kvmerger.policies.registry import register


@register("pivots_only")
@dataclass(frozen=True)
class PivotsOnly(KVMerger):
    """Keep each merging set's pivot, and every single token, as they are; evict the other members.

    The control that KVMerger (arXiv 2407.08454) is compared with on identical slots: at the same settings the positions
    are the same. ``log_mass`` still works, and then nothing but the slots' logits tells of the members.
    """

    # Not settable: these have no effect where nothing is merged, and a parameter without effect is refused.
    weights: Weights = field(default="gaussian", init=False)
    sigma: float | None = field(default=None, init=False)
    value_factor: Literal["convex", "count"] = field(default="convex", init=False)
    merge_keys: bool = field(default=False, init=False)
    merge_values: bool = field(default=False, init=False)

    keeps_slots_unchanged = True
