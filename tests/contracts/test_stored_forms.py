"""Every shipped form keeps the contract of forms, and the contract notices forms that do not."""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import dataclass

import pytest
import torch

from kvmerger.cache.forms import registry
from kvmerger.cache.forms.base import Form
from kvmerger.contract.case import ContractError
from kvmerger.contract.checks import check_policy, first_failure
from kvmerger.contract.forms import (
    form_cases,
    its_bytes_are_no_more_than_it_says_however_heads_share_the_slots,
)
from kvmerger.names import FormError


@pytest.mark.parametrize("name", registry.names())
def test_a_shipped_form_keeps_the_contract(name: str, seed: int) -> None:
    results = check_policy(name, seed=seed)
    assert len(results) >= 10
    broken = [result for result in results if not result.is_ok]
    assert not broken, "\n".join(f"{result.name}: {result.message}" for result in broken)


@dataclass(frozen=True)
class Halves(Form):
    """Numbers rounded to fp16, each in two bytes."""

    def num_bytes(self, num_slots_H, head_dim):
        return 2 * 2 * sum(num_slots_H) * head_dim

    def encode(self, k_SD, v_SD, num_slots_H):
        return {"keys": k_SD.to(torch.float16, copy=True), "values": v_SD.to(torch.float16, copy=True)}

    def decode(self, parts, num_slots_H, head_dim):
        return parts["keys"].float(), parts["values"].float()

    def largest_errors(self, k_SD, v_SD, parts, num_slots_H):
        return k_SD.float().norm(dim=1) * 2**-10, v_SD.float().norm(dim=1) * 2**-10


@dataclass(frozen=True)
class SaysTooFewBytes(Halves):
    """Forgets the values."""

    def num_bytes(self, num_slots_H, head_dim):
        return 2 * sum(num_slots_H) * head_dim


@dataclass(frozen=True)
class LiesInTheLayer(Halves):
    """Hands the layer's own memory on."""

    def num_bytes(self, num_slots_H, head_dim):
        return 4 * 2 * sum(num_slots_H) * head_dim

    def encode(self, k_SD, v_SD, num_slots_H):
        return {"keys": k_SD, "values": v_SD}


@dataclass(frozen=True)
class TurnsSlotsRound(Halves):
    """The last slot first."""

    def decode(self, parts, num_slots_H, head_dim):
        return tuple(side.flip(0) for side in super().decode(parts, num_slots_H, head_dim))

    def largest_errors(self, k_SD, v_SD, parts, num_slots_H):
        return tuple(1e9 + side.float().norm(dim=1) for side in (k_SD, v_SD))


@dataclass(frozen=True)
class WorseThanItSays(Halves):
    """Forgets every second channel of the values."""

    def decode(self, parts, num_slots_H, head_dim):
        k_SD, v_SD = super().decode(parts, num_slots_H, head_dim)
        return k_SD, v_SD * (torch.arange(head_dim) % 2)


@dataclass(frozen=True)
class Throws(Halves):
    """Rounds by chance."""

    def encode(self, k_SD, v_SD, num_slots_H):
        return {
            name: side + torch.rand(side.shape).half() * 1e-3 * side
            for name, side in super().encode(k_SD, v_SD, num_slots_H).items()
        }

    def largest_errors(self, k_SD, v_SD, parts, num_slots_H):
        return k_SD.float().norm(dim=1), v_SD.float().norm(dim=1)


@dataclass(frozen=True)
class MixesHeads(Halves):
    """Takes away what all heads have in common."""

    def decode(self, parts, num_slots_H, head_dim):
        k_SD, v_SD = super().decode(parts, num_slots_H, head_dim)
        return k_SD + 1e-4 * k_SD.sum(), v_SD

    def largest_errors(self, k_SD, v_SD, parts, num_slots_H):
        return 1e3 + k_SD.float().norm(dim=1), v_SD.float().norm(dim=1)


@dataclass(frozen=True)
class TakesNoHeads(Halves):
    """Refuses everything."""

    def check(self, head_dim):
        raise FormError(f"heads of {head_dim}")


@dataclass(frozen=True)
class PadsTheFourth(Halves):
    """Gives every fourth head, where there is one, a page for each of its slots."""

    def num_bytes(self, num_slots_H, head_dim):
        return super().num_bytes(num_slots_H, head_dim) + 4096 * sum(num_slots_H[3::4])


@dataclass(frozen=True)
class FirstSlotsPlain(Halves):
    """Sixty-four slots of a head take more than the others."""

    def num_bytes(self, num_slots_H, head_dim):
        return sum(256 * min(count, 64) + 64 * count for count in num_slots_H)


def test_what_splits_take_is_bounded_by_what_single_heads_take(seed: int) -> None:
    for form, message in ((PadsTheFourth, r"bytes, most_bytes\(\) says at most"), (FirstSlotsPlain, None)):
        (case, *_) = form_cases(form(), seed, [torch.float32])
        with pytest.raises(ContractError, match=message) if message else nullcontext():
            its_bytes_are_no_more_than_it_says_however_heads_share_the_slots(case)


@dataclass(frozen=True)
class CannotSay(Halves):
    """Raises what is no refusal."""

    def check(self, head_dim):
        raise LookupError("no table")


@dataclass(frozen=True)
class SaysHalfABit(Halves):
    """Has one number where there are two."""

    def bits(self, head_dim):
        return (0.5,)


@dataclass(frozen=True)
class SaysAFloat(Halves):
    """Divides."""

    def num_bytes(self, num_slots_H, head_dim):
        return super().num_bytes(num_slots_H, head_dim) / 1


@pytest.mark.parametrize(
    ("form", "check", "message"),
    [
        (SaysTooFewBytes, "take the bytes", r"bytes, num_bytes\(\) says"),
        (LiesInTheLayer, "take the bytes", "lie in the layer's own memory"),
        (TurnsSlotsRound, "keep their order", "is nearer to slot"),
        (WorseThanItSays, "within its stated error", r"values of slot \d+ are .* away"),
        (Throws, "is deterministic", "differs when the same layer is encoded once more"),
        (MixesHeads, "do not depend on each other", "alone is decoded to other numbers"),
        (TakesNoHeads, "heads of some size", "refuses heads of"),
        (CannotSay, "heads of some size", r"^check\(64\) raised LookupError: no table; .* raises FormError$"),
        (SaysHalfABit, "is deterministic", r"^.*:SaysHalfABit: bits\(64\) must give two numbers"),
        (SaysAFloat, "take the bytes", r"an int, got \d+\.0: divide by // in place of /$"),
    ],
)
def test_a_form_that_breaks_the_contract_is_told_what_it_breaks(
    form: type[Form], check: str, message: str, seed: int
) -> None:
    broken = [it for it in check_policy(f"full+{__name__}:{form.__name__}", seed=seed) if not it.is_ok]
    assert any(check in it.name for it in broken), [it.name for it in broken]
    failure = first_failure(f"full+{__name__}:{form.__name__}", {}, seed=seed)
    assert failure is not None
    assert any(re.search(message, it.message) for it in broken), [it.message for it in broken]


def test_a_form_behind_a_policy_is_checked_beside_it(seed: int) -> None:
    assert first_failure(f"snapkv+{__name__}:Halves", {}, seed=seed) is None
    names = {result.name for result in check_policy(f"knorm+{__name__}:Halves", seed=seed)}
    assert any(name.startswith("its slots keep their order (bfloat16") for name in names)
    assert any(name.startswith("is a frozen dataclass") for name in names)
    of_the_policy = first_failure("tests.contracts.test_policies:KeepsEverything+int4", {}, seed=seed)
    assert of_the_policy is not None and "budget" in of_the_policy.message
