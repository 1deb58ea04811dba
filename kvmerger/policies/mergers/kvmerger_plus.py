"""KVMerger with what held up when its parts were measured one by one (`docs/findings.md`)."""

from dataclasses import dataclass

from kvmerger.merging.merge import LogMass
from kvmerger.merging.weights import Weights
from kvmerger.policies.mergers.kvmerger import KVMerger
from kvmerger.policies.registry import register


@register("kvmerger_plus")
@dataclass(frozen=True)
class KVMergerPlus(KVMerger):
    """KVMerger's runs and pivots with keys left in place, and slots whose logits answer for the attention of all members.

    This project's own, from KVMerger's runs (arXiv 2407.08454) and a slot's logit that stands for several tokens (as in
    KeepKV, arXiv 2504.09936): a merged slot keeps its pivot's key, since moving keys is what loses most; its value is the
    members' mean by Gaussian × attention; and log(Σ mass ÷ the pivot's mass), at most ``max_log_mass``, is added to its
    logit. Of these the logit does the work: ``merge_values: false`` was as good.
    """

    merge_keys: bool = False
    weights: Weights = "gaussian_attention"
    log_mass: LogMass = "attention"
    max_log_mass: float | None = 3.0
