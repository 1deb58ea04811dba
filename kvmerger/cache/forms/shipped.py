"""The forms that are shipped. Their names, and which parameters each name leaves open, are in `registry`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvmerger.cache.forms.base import CodedForm
from kvmerger.cache.forms.layouts import CodeLayout, Grid, Per
from kvmerger.names import FormError

TOKEN_WISE_BITS = (2, 4, 8)
KIVI_BITS = (2, 3, 4, 8)
KIVI_GROUPS = (16, 32, 64, 128)
NVFP4_BLOCK = 16
_E4M3 = CodeLayout(Grid.E4M3, 8, Per.NOTHING)


@dataclass(frozen=True)
class Fp8(CodedForm):
    """8-bit floats (e4m3), at scale 1 as an engine's flag stores them, or with a scale of every token and head.

    Without a scale numbers beyond 448 are cut there, and counted. The scaled one is vLLM's ``fp8_per_token_head``.
    """

    is_scaled: bool = False

    def layouts(self) -> tuple[CodeLayout, CodeLayout]:
        """The same of keys and values."""
        layout = CodeLayout(Grid.E4M3, 8, Per.SLOT) if self.is_scaled else _E4M3
        return layout, layout


@dataclass(frozen=True)
class TokenWise(CodedForm):
    """Whole numbers with one scale of every token and head, keys and values alike (vLLM's ``int8_per_token_head`` and kin).

    8 bits are symmetric, with a scale in fp32. Fewer bits store the smallest number too; it and the scale are fp16.

    ``rotate`` multiplies keys and values by a Hadamard matrix first, which spreads a large channel over all.
    """

    bits_k: int
    bits_v: int
    rotate: bool = False

    def __post_init__(self) -> None:
        _require_bits(self.bits_k, self.bits_v, TOKEN_WISE_BITS)

    def layouts(self) -> tuple[CodeLayout, CodeLayout]:
        """Of keys and of values."""
        return _token_wise(self.bits_k, self.rotate), _token_wise(self.bits_v, self.rotate)


@dataclass(frozen=True)
class Kivi(CodedForm):
    """Keys with a scale per channel and group of tokens, values with one per token and group of channels.

    Based on KIVI (arXiv 2402.02750). Scales and smallest numbers are fp16. Where KIVI keeps the newest tokens unpacked, the
    last group of a head is short here; the question and the answer are not packed at all.
    """

    version: ClassVar[int] = 2

    bits_k: int
    bits_v: int
    group_size: int = 32

    def __post_init__(self) -> None:
        _require_bits(self.bits_k, self.bits_v, KIVI_BITS)
        # A float equals its whole number and is no size of a tensor.
        if type(self.group_size) is not int or self.group_size not in KIVI_GROUPS:
            raise FormError(f"group_size is one of {KIVI_GROUPS}, got {self.group_size!r}")

    def layouts(self) -> tuple[CodeLayout, CodeLayout]:
        """Of keys and of values."""
        return (
            CodeLayout(Grid.UNSIGNED, self.bits_k, Per.CHANNEL, self.group_size),
            CodeLayout(Grid.UNSIGNED, self.bits_v, Per.BLOCK, self.group_size),
        )


@dataclass(frozen=True)
class Nvfp4(CodedForm):
    """4-bit floats (e2m1) with an e4m3 scale of every 16 channels of a token and one fp32 scale of every head.

    NVIDIA's layout without the reordering that its tensor cores want; engines have one global scale a layer or a model.
    """

    def layouts(self) -> tuple[CodeLayout, CodeLayout]:
        """The same of keys and values."""
        layout = CodeLayout(Grid.E2M1, 4, Per.BLOCK, NVFP4_BLOCK)
        return layout, layout

    def check(self, head_dim: int) -> None:
        """Raise `FormError` unless a head is whole blocks."""
        if head_dim % NVFP4_BLOCK:
            raise FormError(
                f"nvfp4 needs heads of a multiple of {NVFP4_BLOCK} numbers, the model's have {head_dim}"
            )
        super().check(head_dim)


@dataclass(frozen=True)
class TurboQuant(CodedForm):
    """Keys rotated and coded by the best points for a normal distribution, values token-wise.

    Based on TurboQuant (arXiv 2504.19874) in the form that vLLM stores: without the correcting signs, with every decoded key
    as long as the one it stands for; with 8 bits, keys are e4m3 at scale 1 and not rotated. vLLM leaves the first and last
    two layers unpacked; here all are packed.
    """

    bits_k: int
    bits_v: int

    def __post_init__(self) -> None:
        _require_bits(self.bits_k, self.bits_v, (3, 4, 8))

    def layouts(self) -> tuple[CodeLayout, CodeLayout]:
        """Of keys and of values."""
        keys = _E4M3
        if self.bits_k != 8:
            keys = CodeLayout(Grid.GAUSSIAN, self.bits_k, Per.SLOT, is_rotated=True)
        return keys, CodeLayout(Grid.UNSIGNED, self.bits_v, Per.SLOT)


def _token_wise(bits: int, rotate: bool) -> CodeLayout:
    return CodeLayout(Grid.SIGNED if bits == 8 else Grid.UNSIGNED, bits, Per.SLOT, is_rotated=rotate)


def _require_bits(bits_k: int, bits_v: int, possible: tuple[int, ...]) -> None:
    for name, bits in (("bits_k", bits_k), ("bits_v", bits_v)):
        # True is 1 and 4.0 is 4 in Python, and neither is a number of bits.
        if type(bits) is not int or bits not in possible:
            raise FormError(f"{name} is one of {possible}, got {bits!r}")
