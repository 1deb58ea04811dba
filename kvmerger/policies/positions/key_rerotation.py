"""Re-rotation: kept keys close ranks, so that positions count slots instead of the prompt's tokens.

Shapes: S slots of all heads together, H KV heads, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from kvmerger.budget import Budget
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.device import upload
from kvmerger.policies.base import PolicyError
from kvmerger.policies.registry import name_of, register_wrapper
from kvmerger.policies.wrapper import SlotWrapper
from kvmerger.prefill.before_rope import ROPE_FREQUENCIES, turned_keys
from kvmerger.prefill.evidence import Evidence, Need


@register_wrapper("key_rerotation")
@dataclass(frozen=True)
class KeyRerotation(SlotWrapper):
    """Turn the kept keys of every head to positions 0, 1, 2 and so on, and let the question follow behind the last of them.

    As StreamingLLM (arXiv 2309.17453) and FINCH (TACL 2024, doi 10.1162/tacl_a_00716) assign positions, once, at the end of
    the compressed part. Where heads or layers have unequal lengths the question stands behind the longest.

    Attributes:
        inner: what keeps slots. What it merges is turned as the slot's position says.
    """

    keeps_slots_unchanged = False

    def __post_init__(self) -> None:
        """Refuse a policy that re-rotates already, or that acts while answering."""
        if any(isinstance(part, KeyRerotation) for part in self.inner.parts):
            raise PolicyError(f"{name_of(self)} stands twice in the name; keep one of them")
        # Any seed will do: only whether there is a rule is asked.
        if self.inner.decode_rule(0) is not None:
            raise PolicyError(
                f"{name_of(self)} comes before what acts while answering, as in knorm+{name_of(self)}+cam"
            )

    def needs(self) -> frozenset[Need]:
        """What the wrapped policy reads, and the model's rotation."""
        return super().needs() | {ROPE_FREQUENCIES}

    def compress(self, layer: LayerCache, evidence: Evidence, budget: Budget) -> LayerCache:
        """What the wrapped policy keeps, its keys turned; their positions are the new ones."""
        kept = self.inner.compress(layer, evidence, budget)
        start_H = upload(torch.tensor(kept.head_starts, dtype=torch.int32), kept.device)
        position_S = (
            torch.arange(kept.num_slots, dtype=torch.int32, device=kept.device) - start_H[kept.head_S]
        )
        turn_SD = (position_S - kept.position_S)[:, None] * evidence.get(ROPE_FREQUENCIES)[kept.head_S]
        return replace(
            kept,
            k_SD=turned_keys(kept.k_SD, turn_SD),
            position_S=position_S,
            next_position=max(kept.num_slots_H),
        )
