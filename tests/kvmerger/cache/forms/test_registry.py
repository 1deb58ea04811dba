"""Names of forms: what they make, leave open, and are called by."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from kvmerger.cache.forms import registry
from kvmerger.cache.forms.base import Form
from kvmerger.names import FormError

# Bytes of one slot and head, keys and values together, positions apart: of the engines' own layouts, as their sources have
# them (shared cards, table 3.0); kivi's with a group of 32.
BYTES_OF_A_SLOT = {
    "fp8": (256, 128),
    "fp8_scaled": (264, 136),
    "int8": (264, 136),
    "int4": (136, 72),
    "nvfp4": (144, 72),
    "turboquant_k8v4": (196, 100),
    "turboquant_4bit_nc": (134, 70),
    "turboquant_k3v4_nc": (118, 62),
    "turboquant_3bit_nc": (102, 54),
    "kivi4": (160, 80),
    "kivi2": (96, 48),
}


@pytest.mark.parametrize("name", BYTES_OF_A_SLOT)
def test_a_slot_takes_the_bytes_of_its_layout(name: str) -> None:
    form = registry.get(name)()
    for head_dim, expected in zip((128, 64), BYTES_OF_A_SLOT[name], strict=True):
        of_heads = 4 * 2 if name == "nvfp4" else 0
        assert form.num_bytes((320,), head_dim) == 320 * expected + of_heads


@pytest.mark.parametrize("name", registry.names())
def test_a_name_makes_a_form_that_is_called_by_it(name: str) -> None:
    form = registry.get(name)()
    assert registry.name_of(form) == name
    assert form == registry.get(name)(**registry.parameters_of(name))
    assert hash(form) == hash(registry.get(name)())


def test_other_parameters_are_part_of_what_a_form_is_called() -> None:
    assert registry.name_of(registry.get("kivi4")(group_size=64)) == "kivi4(group_size=64)"
    assert registry.name_of(registry.get("kivi4")(bits_k=2, bits_v=2)) == "kivi2"
    assert registry.name_of(registry.get("int4")(rotate=True)) == "int4_rotated"
    assert registry.parameters_of("int4") == {"rotate": False}
    assert registry.parameters_of("kivi3") == {"bits_k": 3, "bits_v": 3, "group_size": 32}
    assert registry.parameters_of("fp8") == {}


@dataclass(frozen=True)
class Halves(Form):
    """A stranger's."""

    share: float = 0.5

    def num_bytes(self, num_slots_H, head_dim):
        return 2 * sum(num_slots_H) * head_dim

    def encode(self, k_SD, v_SD, num_slots_H):
        return {}

    def decode(self, parts, num_slots_H, head_dim):
        return NotImplemented


def test_a_strangers_form_is_called_by_its_path() -> None:
    assert registry.name_of(Halves()) == f"{__name__}:Halves(share=0.5)"
    assert Halves().bits(64) == (8.0, 8.0)
    assert Halves().layouts() is None


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("kivi4", {"bits_k": 5}, r"bits_k is one of \(2, 3, 4, 8\), got 5"),
        ("kivi4", {"bits_v": True}, r"bits_v is one of \(2, 3, 4, 8\), got True"),
        ("kivi2", {"group_size": 0}, r"group_size is one of \(16, 32, 64, 128\), got 0"),
        ("kivi4", {"group_size": 64.0}, r"group_size is one of .*, got 64.0"),
    ],
)
def test_what_no_form_can_have_is_refused(name: str, values: dict, message: str) -> None:
    with pytest.raises(FormError, match=message):
        registry.get(name)(**values)


def test_heads_that_a_form_cannot_store_are_refused() -> None:
    for name, head_dim, message in (
        ("nvfp4", 72, "multiple of 16 numbers, the model's have 72"),
        ("kivi3", 12, "codes of 3 bits need heads of a multiple of 8 numbers, the model's have 12"),
        ("kivi2", 66, "multiple of 4"),
        ("int4_rotated", 80, "power of two"),
    ):
        with pytest.raises(FormError, match=message):
            registry.get(name)().check(head_dim)
    with pytest.raises(FormError, match="no form 'int5'"):
        registry.get("int5")
