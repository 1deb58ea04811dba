"""A form whose layers have bits of their own, (keys, values), from a table that was found once for the model.

Shapes: S slots of a layer, its heads one after the other, D head size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kvmerger.bits_table import FORM, SHOWN_DIGITS, checked
from kvmerger.cache.forms.base import Form
from kvmerger.cache.forms.layouts import CodeLayout
from kvmerger.cache.forms.shipped import TokenWise
from kvmerger.names import FormError
from kvmerger.nested import Nested, frozen


@dataclass(frozen=True)
class KvTuner(Form):
    """Each layer stored with its own pair of 8, 4 or 2 bits, one scale per token and head.

    Based on KVTuner (arXiv 2502.04420), whose pairs come of a genetic search on a benchmark's answers; ours are found by
    `forms.bits_search` on other texts. Its own quantiser rounds zero points and its residual stays unpacked; here layers are
    stored as by `TokenWise`. Of all layers together bytes are exact; for one, `num_bytes` gives the mean, rounded up.
    """

    table: Mapping[str, Any] = Nested()  # none: told in our words, not in those of a missing argument

    def __post_init__(self) -> None:
        checked(self.table)
        object.__setattr__(self, "table", frozen(self.table))

    @property
    def called(self) -> str:
        """Its name with the table's hash."""
        return f"{FORM}({self.table['hash'][:SHOWN_DIGITS]})"

    def of_layer(self, index: int, num_layers: int) -> Form:
        """See `Form.of_layer`."""
        forms_L = self._forms_L
        if num_layers != len(forms_L):
            raise FormError(
                f"its table is of {len(forms_L)} layers, and the model has {num_layers}; calibrate that model with `python "
                f"jobs/calibrate.py kvtuner CONFIG`"
            )
        return forms_L[index]

    def layouts(self) -> tuple[CodeLayout, CodeLayout]:
        """Those of the first layer: kernels read each layer by its own."""
        return self._forms_L[0].layouts()

    def check(self, head_dim: int) -> None:
        """See `Form.check`."""
        for form in self._forms_L:
            form.check(head_dim)

    def bits(self, head_dim: int) -> tuple[float, float]:
        """Means over layers."""
        sides = zip(*(form.bits(head_dim) for form in self._forms_L), strict=True)
        bits_k, bits_v = (sum(side) / len(self._forms_L) for side in sides)
        return bits_k, bits_v

    def num_bytes(self, num_slots_H: Sequence[int], head_dim: int) -> int:
        """The mean over layers, rounded up."""
        of_all = sum(form.num_bytes(num_slots_H, head_dim) for form in self._forms_L)
        return -(-of_all // len(self._forms_L))

    def most_bytes(self, num_slots: int, num_heads: int, head_dim: int) -> int:
        """Where all slots are in the layer that takes most: whoever moves slots between layers may put them there."""
        return max(form.most_bytes(num_slots, num_heads, head_dim) for form in self._forms_L)

    def encode(self, k_SD: Tensor, v_SD: Tensor, num_slots_H: Sequence[int]) -> dict[str, Tensor]:
        """Refused: which layer it is decides, see `of_layer`."""
        raise FormError("its layers have bits of their own: encode by what of_layer() gives")

    def decode(
        self, parts: Mapping[str, Tensor], num_slots_H: Sequence[int], head_dim: int
    ) -> tuple[Tensor, Tensor]:
        """Refused, as `encode` is."""
        raise FormError("its layers have bits of their own: decode by what of_layer() gives")

    @property
    def _forms_L(self) -> tuple[TokenWise, ...]:
        return tuple(TokenWise(bits_k, bits_v) for bits_k, bits_v in self.table["pairs"])
