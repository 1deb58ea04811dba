"""What every form must do, checked on random keys and values: for the project's own tests and for a user's form.

Shapes: S slots of a layer, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from kvmerger.cache.forms.answers import Answers
from kvmerger.cache.forms.base import Form
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.cache.packed_layer import PackedLayer
from kvmerger.cache.slot_table import storage_addresses, storage_bytes
from kvmerger.contract.case import ContractError, expect
from kvmerger.names import FormError

HEAD_DIMS = (64, 80, 128)
# Ragged, with an empty head and one of one slot; neither a group nor a block divides them.
NUM_SLOTS_H = (70, 0, 33, 1)
_NUM_SPLITS = 20


@dataclass(frozen=True)
class FormCase:
    """A form on a layer of random keys and values."""

    form: Form
    seed: int
    dtype: torch.dtype
    head_dim: int

    def layer(
        self, num_slots_H: Sequence[int] = NUM_SLOTS_H, *, has_uneven_channels: bool = True
    ) -> LayerCache:
        """The same numbers at every call; with ``has_uneven_channels`` one channel of the keys is large and biased."""
        generator = torch.Generator().manual_seed(self.seed)
        num_slots = sum(num_slots_H)
        k_SD, v_SD = (torch.randn(num_slots, self.head_dim, generator=generator) for _ in range(2))
        if has_uneven_channels:
            k_SD[:, 1] = k_SD[:, 1] * 8 + 20
        position_S = torch.cat([torch.arange(count, dtype=torch.int32) for count in num_slots_H])
        log_mass_S = torch.randn(num_slots, generator=generator)
        return LayerCache(
            k_SD.to(self.dtype), v_SD.to(self.dtype), position_S, tuple(num_slots_H), log_mass_S
        )

    def encode(self, layer: LayerCache) -> Mapping[str, Tensor]:
        """The parts of ``layer``."""
        return self.form.encode(layer.k_SD, layer.v_SD, layer.num_slots_H)

    def decode(self, layer: LayerCache) -> tuple[Tensor, Tensor]:
        """Keys and values of ``layer``, encoded and decoded."""
        return self.form.decode(self.encode(layer), layer.num_slots_H, self.head_dim)


def form_cases(form: Form, seed: int, dtypes: Sequence[torch.dtype]) -> list[FormCase]:
    """One for each dtype and head size that the form takes.

    Raises:
        ContractError: it takes none of `HEAD_DIMS`, or its check raises what is no `FormError`.
    """
    taken = [head_dim for head_dim in HEAD_DIMS if _takes(form, head_dim)]
    expect(
        bool(taken), f"check() refuses heads of {HEAD_DIMS} numbers alike: no model has others to try it on"
    )
    return [FormCase(form, seed, dtype, head_dim) for dtype in dtypes for head_dim in taken]


def its_parts_take_the_bytes_it_says_in_storages_of_their_own(case: FormCase) -> None:
    """Parts are contiguous tensors on the layer's device, and `num_bytes` is what they hold."""
    layer = case.layer()
    parts = case.encode(layer)
    expect(
        isinstance(parts, Mapping) and all(isinstance(part, Tensor) for part in parts.values()),
        f"encode() must give tensors by name, got {type(parts).__name__}",
    )
    for name, part in parts.items():
        expect(part.is_contiguous(), f"part {name!r} is not contiguous: call .contiguous() on it")
    of_layer = storage_addresses(layer.tensors())
    shared = [name for name, part in parts.items() if storage_addresses([part]) & of_layer]
    expect(not shared, f"parts {shared} lie in the layer's own memory, which is given back: clone them")
    for num_slots_H in (NUM_SLOTS_H, (0, 0), (1,), (257, 31)):
        held = storage_bytes(case.encode(case.layer(num_slots_H)).values())
        said = Answers(case.form).num_bytes(num_slots_H, case.head_dim)
        expect(
            held == said, f"{num_slots_H} slots of {case.head_dim} take {held} bytes, num_bytes() says {said}"
        )


def its_bytes_are_no_more_than_it_says_however_heads_share_the_slots(case: FormCase) -> None:
    """`most_bytes` is at least what any split takes, so that budgets of bytes are not exceeded."""
    generator, answers = torch.Generator().manual_seed(case.seed), Answers(case.form)
    for mean in (1, 7, 40, 300):
        for _ in range(_NUM_SPLITS):
            weight_H = torch.rand(len(NUM_SLOTS_H), generator=generator).square()
            ends = (weight_H.cumsum(0) / weight_H.sum() * mean * len(NUM_SLOTS_H)).round().int().tolist()
            num_slots_H = [end - start for start, end in pairwise([0, *ends])]
            num_bytes = answers.num_bytes(num_slots_H, case.head_dim)
            most = answers.most_bytes(sum(num_slots_H), len(num_slots_H), case.head_dim)
            expect(
                num_bytes <= most,
                f"{num_slots_H} slots of {case.head_dim} take {num_bytes} bytes, most_bytes() says at most {most}",
            )


def its_numbers_come_back_within_its_stated_error(case: FormCase) -> None:
    """Each slot's key and value, by `largest_errors`."""
    layer = case.layer()
    parts = case.encode(layer)
    decoded = case.form.decode(parts, layer.num_slots_H, case.head_dim)
    bounds = case.form.largest_errors(layer.k_SD, layer.v_SD, parts, layer.num_slots_H)
    for name, ours_SD, x_SD, bound_S in zip(
        ("keys", "values"), decoded, (layer.k_SD, layer.v_SD), bounds, strict=True
    ):
        expect(
            ours_SD.shape == x_SD.shape and ours_SD.dtype == torch.float32,
            f"decoded {name} are {tuple(ours_SD.shape)} of {ours_SD.dtype}, not {tuple(x_SD.shape)} of torch.float32",
        )
        expect(bool(ours_SD.isfinite().all()), f"decoded {name} are not all finite")
        error_S = (ours_SD - x_SD.float()).norm(dim=1)
        # Rounding of the check's own sums.
        worst = (error_S - bound_S * 1.0001 - 1e-5).argmax()
        expect(
            bool(error_S[worst] <= bound_S[worst] * 1.0001 + 1e-5),
            f"{name} of slot {int(worst)} are {float(error_S[worst]):.4g} away from the stored ones, largest_errors() says "
            f"at most {float(bound_S[worst]):.4g}",
        )


def its_slots_keep_their_order(case: FormCase) -> None:
    """Each decoded slot is nearer to the slot that it stands for than to any other."""
    # A channel much larger than the others leaves two bits nothing to tell slots apart by.
    layer = case.layer(has_uneven_channels=False)
    for name, ours_SD, x_SD in zip(
        ("key", "value"), case.decode(layer), (layer.k_SD, layer.v_SD), strict=True
    ):
        nearest_S = torch.cdist(ours_SD, x_SD.float()).argmin(dim=1)
        wrong = (nearest_S != torch.arange(len(nearest_S))).nonzero().flatten().tolist()
        expect(
            not wrong,
            f"the decoded {name} of slot {wrong and wrong[0]} is nearer to slot {wrong and int(nearest_S[wrong[0]])}'s",
        )


def its_heads_do_not_depend_on_each_other(case: FormCase) -> None:
    """A head alone is decoded as it is beside others."""
    layer = case.layer()
    together = case.decode(layer)
    for head, (start, length) in enumerate(zip(layer.head_starts, layer.num_slots_H, strict=True)):
        part = slice(start, start + length)
        alone = case.form.decode(
            case.form.encode(layer.k_SD[part], layer.v_SD[part], (length,)), (length,), case.head_dim
        )
        expect(
            all(torch.equal(ours[part], own) for ours, own in zip(together, alone, strict=True)),
            f"head {head} alone is decoded to other numbers than beside the other heads",
        )


def it_is_deterministic_and_changes_nothing(case: FormCase) -> None:
    """The same layer gives the same bits; positions and log masses stay as they are."""
    layer, before = case.layer(), case.layer()
    packed, again = PackedLayer.of(layer, case.form), PackedLayer.of(layer, case.form)
    for name, tensor in layer.by_name().items():
        expect(torch.equal(tensor, before.by_name()[name]), f"encode() has changed {name}")
    for name, part in packed.parts.items():
        expect(
            part.shape == again.parts[name].shape
            and torch.equal(part.view(torch.uint8), again.parts[name].view(torch.uint8)),
            f"part {name!r} differs when the same layer is encoded once more",
        )
    plain = packed.plain()
    expect(plain.dtype == case.dtype, f"decoded into {plain.dtype}, not {case.dtype}")
    for name in ("position_S", "log_mass_S"):
        expect(torch.equal(plain.by_name()[name], before.by_name()[name]), f"storing has changed {name}")
    packed.check_integrity()
    Answers(case.form).check(case.head_dim)


FORM_CHECKS: Sequence[Callable[[FormCase], None]] = (
    its_parts_take_the_bytes_it_says_in_storages_of_their_own,
    its_bytes_are_no_more_than_it_says_however_heads_share_the_slots,
    its_numbers_come_back_within_its_stated_error,
    its_slots_keep_their_order,
    its_heads_do_not_depend_on_each_other,
    it_is_deterministic_and_changes_nothing,
)


def _takes(form: Form, head_dim: int) -> bool:
    try:
        form.check(head_dim)
    except FormError:
        return False
    # The form is a stranger's: what else it raises says nothing of what it takes.
    except Exception as error:
        raise ContractError(
            f"check({head_dim}) raised {type(error).__name__}: {error}; for heads that it cannot store it raises FormError"
        ) from error
    return True
