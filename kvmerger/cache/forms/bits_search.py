"""Which bits every layer gets: the table of least summed error at a mean number of bits, found exactly.

No torch here, and no model: errors go in, pairs come out. Layers are taken as independent: what each costs alone is added up.

Shapes: L layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

from kvmerger.bits_table import WIDTHS
from kvmerger.names import FormError

Pair = tuple[int, int]
"""Bits of keys, bits of values."""
PAIRS: tuple[Pair, ...] = tuple((bits_k, bits_v) for bits_k in WIDTHS for bits_v in WIDTHS)


def best_pairs(errors_L: Sequence[Mapping[Pair, float]], mean_bits: float) -> tuple[Pair, ...]:
    """A pair of every layer, so that the errors' sum is least and mean bits, over layers, keys and values, are at most
    ``mean_bits``; of equal sums one with the fewest bits.

    Exact dynamic programming over layers and bits spent, where the paper searches genetically (arXiv 2502.04420, section 5).

    Raises:
        FormError: an error that is no finite number from 0 on, or fewer bits than the least pairs have.
    """
    if not all(math.isfinite(error) and error >= 0 for errors in errors_L for error in errors.values()):
        raise FormError("a layer's error is no finite number from 0 on")
    # In the decimals that the user wrote, and in pairs' sums: twice the bits.
    most = math.floor(Fraction(str(mean_bits)) * 2 * len(errors_L))
    # By bits spent: the least error, and the pairs that give it.
    best: dict[int, tuple[float, tuple[Pair, ...]]] = {0: (0.0, ())}
    for errors in errors_L:
        longer: dict[int, tuple[float, tuple[Pair, ...]]] = {}
        for spent, (error, pairs) in best.items():
            for pair, own in errors.items():
                total = spent + sum(pair)
                if total <= most and (total not in longer or error + own < longer[total][0]):
                    longer[total] = (error + own, (*pairs, pair))
        best = longer
    if not best:
        raise FormError(f"no table has a mean of {mean_bits} bits or fewer; give {min(WIDTHS)} or more")
    return min(best.items(), key=lambda it: (it[1][0], it[0]))[1][1]
