"""Budgets of policies that spend bytes themselves, on slots of unlike widths: no number of slots stands for those."""

from __future__ import annotations

from dataclasses import dataclass

from kvmerger.budget import BytesShare, LayerBytes, SlotCount, share_of


@dataclass(frozen=True, slots=True)
class ByteCount(SlotCount):
    """Bytes of each KV head of each layer; ``num_slots`` is the most that they might hold."""

    num_bytes: int


def bytes_of_share(share: BytesShare, layer: LayerBytes, num_tokens: int) -> ByteCount:
    """The bytes of a head at ``share`` of the full cache's, on ``num_tokens`` tokens; rounded down."""
    return _of_layer(share_of(layer.full(num_tokens), share.ratio), layer, num_tokens)


def bytes_like(num_bytes: int, num_layers: int, layer: LayerBytes, num_tokens: int) -> ByteCount:
    """The bytes of a head where ``num_layers`` layers may take ``num_bytes``; rounded down."""
    return _of_layer(num_bytes // num_layers, layer, num_tokens)


def _of_layer(num_bytes: int, layer: LayerBytes, num_tokens: int) -> ByteCount:
    return ByteCount(num_tokens, num_bytes // layer.num_heads)
