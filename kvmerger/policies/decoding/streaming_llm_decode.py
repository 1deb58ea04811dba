"""StreamingLLM while answering: the oldest token of the sliding window leaves; the sinks stay.

Shapes: L layers, H KV heads, X columns, as in `decode_rule`.
"""

from dataclasses import dataclass

from torch import Tensor

from kvmerger.decoding.decode_rule import DecodeRule, DecodeStep
from kvmerger.policies.decoding.base import DecodingPolicy
from kvmerger.policies.parameters import require_count
from kvmerger.policies.registry import register_wrapper


@dataclass(frozen=True)
class OldestLeaves(DecodeRule):
    """The oldest slot leaves; tokens that stand before position ``n_sink`` stay."""

    n_sink: int

    def worth(self, step: DecodeStep) -> Tensor:
        """A slot's position, ``inf`` for sinks: fp64."""
        # fp32 holds whole numbers up to 2²⁴ only, fp64 every int32.
        return step.position_LHX.double().masked_fill(step.position_LHX < self.n_sink, float("inf"))


@register_wrapper("streaming_llm_decode")
@dataclass(frozen=True)
class StreamingLLMDecode(DecodingPolicy):
    """At each token of the answer the oldest slot behind the sinks leaves.

    Based on "Efficient Streaming Language Models with Attention Sinks" (arXiv 2309.17453). Differs from it in that keys
    keep the positions they were computed at, and that the prompt is compressed once, at its end, by what stands in front:
    ``streaming_llm+streaming_llm_decode``.

    Attributes:
        sinks: how many of the prompt's first tokens never leave.
    """

    sinks: int = 4

    def __post_init__(self) -> None:
        """Refuse what is no number of tokens."""
        super().__post_init__()
        require_count("streaming_llm_decode", "sinks", self.sinks, at_least=0)

    @property
    def num_needed(self) -> int:
        """The sinks and one slot that can leave."""
        return self.sinks + 1

    @property
    def needed_for(self) -> str:
        """The parameter `sinks`, and the one more."""
        return f"sinks={self.sinks} and one that can leave"

    def decode_rule(self, prompt_seed: int) -> DecodeRule:
        """`OldestLeaves`; no part of it is random."""
        return OldestLeaves(self.sinks, room=self.room)
