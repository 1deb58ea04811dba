"""Names of forms: ours, and those that engines give theirs, each understood as one of ours or refused with a reason.

A name is understood where it means the same arithmetic as one of ours, and nowhere else. No torch here: settings are read
without it. `kvmerger.cache.forms.registry` makes the forms; a test holds both lists together.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from kvmerger.bits_table import FORM
from kvmerger.names import VariantError, nearest

# fmt: off
NAMES = (
    "fp8", "fp8_scaled", "int4", "int4_rotated", "int8", "k2v4", "k2v8", "k4v2", "k4v8", "k8v2", "k8v4", "kivi2", "kivi3",
    "kivi4", "nvfp4", "turboquant_3bit_nc", "turboquant_4bit_nc", "turboquant_k3v4_nc", "turboquant_k8v4",
)
# fmt: on
OF_TABLES = (FORM,)
"""Forms that need a table besides their name."""
ALL_NAMES = (*NAMES, *OF_TABLES)
UNDERSTOOD = {
    "fp8_e4m3": "fp8",  # vLLM's and SGLang's flag, at scale 1
    "fp8_per_token_head": "fp8_scaled",  # vLLM
    "int8_per_token_head": "int8",  # vLLM
}
_PLAIN = "is the cache as it is, unpacked"
_BLOCKS = "has a scale of every 32 channels (llama.cpp)"
_RESIDUAL = "is transformers' cache, which packs whole blocks and leaves the newest tokens unpacked"
# What engines call forms that we do not have: (reason, the nearest of ours or "" where no form is meant).
_REFUSED = {
    "auto": ("is the model's own dtype, unpacked", ""),
    "f16": (_PLAIN, ""),
    "f32": (_PLAIN, ""),
    "bf16": (_PLAIN, ""),
    "float16": (_PLAIN, ""),
    "bfloat16": (_PLAIN, ""),
    "plain": (_PLAIN, ""),
    "fp8_e5m2": ("has two bits of mantissa and a range to 57344", "fp8"),
    "fp8_inc": ("is Intel Gaudi's, with scales from a calibration", "fp8_scaled"),
    "fp8_ds_mla": ("is a layout of DeepSeek's latent attention", "fp8_scaled"),
    "fp4_e2m1": ("has powers of two as scales of every 16 channels (SGLang)", "nvfp4"),
    "mxfp4": ("has powers of two as scales", "nvfp4"),
    "int4_per_token_head": ("rotates with random signs and keeps its zero points in the scales (vLLM)", "int4_rotated"),
    "q8_0": (_BLOCKS, "int8"),
    "q4_0": (_BLOCKS, "int4"),
    "q4_1": (f"{_BLOCKS} and their smallest number", "int4"),
    "q5_0": (f"has 5 bits, and {_BLOCKS}", "int8"),
    "q5_1": (f"has 5 bits, and {_BLOCKS} and their smallest number", "int8"),
    "iq4_nl": ("has a table of 16 uneven steps and a scale of every 32 channels (llama.cpp)", "int4"),
    "quanto": (_RESIDUAL, "kivi4"),
    "hqq": (f"{_RESIDUAL}, and refines its zero points", "kivi4"),
    "quantized": (_RESIDUAL, "kivi4"),
    "kivi": ("needs its bits in its name", "kivi4"),
    "turboquant": ("needs its bits in its name", "turboquant_4bit_nc"),
}  # fmt: skip
_WITH_BITS = re.compile(r"(int|fp|kivi|nvfp)(\d+)|k(\d+)v(\d+)")


class Split(NamedTuple):
    """Parts of a name: those that choose slots, the form they are stored in (None: plain), those that act while answering."""

    before: tuple[str, ...]
    form: str | None
    after: tuple[str, ...]


def understood(part: str) -> str:
    """Our name of the form that ``part`` names; ``part`` itself where it is no engine's.

    Raises:
        VariantError: a form we do not have, with the reason and the nearest of ours.
    """
    if part in ALL_NAMES or part in UNDERSTOOD:
        return UNDERSTOOD.get(part, part)
    # Whatever the case: llama.cpp and TensorRT-LLM write some of theirs in capitals.
    known = part.casefold()
    if known in _REFUSED:
        reason, ours = _REFUSED[known]
        remedy = f"the nearest of ours is {ours!r}" if ours else "leave the form out"
        raise VariantError(f"{part!r} is no form here: it {reason}; {remedy}")
    if known in ALL_NAMES or known in UNDERSTOOD:
        raise VariantError(
            f"{part!r} is no form{nearest(part, ALL_NAMES)}; names are written in small letters"
        )
    if bits := _WITH_BITS.fullmatch(known):
        raise VariantError(f"{part!r} is no form: {_why_not(*bits.groups())}")
    return part


def is_form(part: str, is_first: bool) -> bool:
    """Whether ``part`` names a form: one of ours, or a user's, which is a ``module:Class`` behind a ``+``."""
    return part in ALL_NAMES or (":" in part and not is_first)


def split_parts(parts: Sequence[str]) -> Split:
    """Cut the parts of a name at its form.

    Raises:
        VariantError: two forms.
    """
    places = [index for index, part in enumerate(parts) if is_form(part, index == 0)]
    if not places:
        return Split(tuple(parts), None, ())
    if len(places) > 1:
        first, second = (parts[index] for index in places[:2])
        raise VariantError(
            f"{'+'.join(parts)!r} stores the form {first!r} in another, {second!r}; a cache has one form: keep one of them"
        )
    place = places[0]
    return Split(tuple(parts[:place]), parts[place], tuple(parts[place + 1 :]))


def _why_not(kind: str | None, bits: str | None, of_keys: str | None, of_values: str | None) -> str:
    """Which number of bits is none, and what there is."""
    if kind is not None:
        there_is = [name for name in NAMES if name.startswith(kind)]
        return f"none of its kind has {bits} bits; there is {', '.join(there_is)}"
    if of_keys == of_values and of_keys in _OF_BOTH:
        return f"its keys and values have the same bits; write {_OF_BOTH[of_keys]!r}"
    return "keys and values each have 8, 4 or 2 bits, as in 'k8v4'"


_OF_BOTH = {"8": "int8", "4": "int4", "2": "kivi2"}
