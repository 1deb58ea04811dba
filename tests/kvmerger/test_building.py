"""Parts joined by `+`: what is built, where parameters go, and what is refused."""

from dataclasses import dataclass

import pytest

from kvmerger.budget import AskedBudget, BudgetError, BytesLike, BytesShare, KeptRatio, LikeVariant, SlotCount
from kvmerger.building import build, form_of, in_slots, layer_bytes
from kvmerger.cache.forms import registry as forms
from kvmerger.cache.forms.shipped import Kivi, TokenWise
from kvmerger.names import VariantError
from kvmerger.policies import registry
from kvmerger.policies.allocation.adakv import AdaKV
from kvmerger.policies.base import CacheShape, PolicyError
from kvmerger.policies.decoding.h2o_decode import H2ODecode
from kvmerger.policies.mergers.kvmerger import KVMerger
from kvmerger.policies.ranking.h2o import H2O
from kvmerger.policies.ranking.snapkv import SnapKV
from kvmerger.policies.reducers.keepkv import KeepKV
from kvmerger.policies.storage.stored import Everything, Stored
from kvmerger.variants import parse_policy_entry


@dataclass(frozen=True)
class Halved(TokenWise):
    """A form of a user's own, with a parameter of its own."""

    bits_k: int = 4
    bits_v: int = 4
    tidiness: float = 0.5


def test_parameters_go_to_the_part_that_has_them() -> None:
    built = build("snapkv+adakv", {"alpha": 0.5, "window_size": 16, "snapkv.kernel_size": 3})
    assert built == AdaKV(SnapKV(16, 3), 0.5)
    assert built.parts == (SnapKV(16, 3), built)


def test_kvpress_names_for_adakv_are_the_same_variant() -> None:
    ours, theirs = (
        parse_policy_entry({"name": name, "budget": 0.5}) for name in ("snapkv+adakv", "adakv_snapkv")
    )
    assert ours[0].canonical() == theirs[0].canonical()
    assert theirs[0].label == "snapkv+adakv@0.5"


@pytest.mark.parametrize(
    ("name", "params", "error", "message"),
    [
        ("snapkv+adakw", {}, VariantError, "did you mean 'adakv'"),
        ("snpkv+adakv", {}, VariantError, "did you mean 'snapkv'"),
        ("adakv+snapkv", {}, VariantError, r"write 'snapkv\+adakv'$"),
        (
            "criticalkv+adakv+snapkv+int4",
            {},
            VariantError,
            r"write 'snapkv\+adakv\+criticalkv\+int4'$",
        ),
        ("adakv", {}, VariantError, r"write 'snapkv\+adakv' or another policy"),
        ("snapkv+adakv", {"alhpa": 0.5}, VariantError, "did you mean 'alpha'"),
        ("snapkv+adakv", {"inner": 1}, VariantError, "no parameter 'inner'"),
        ("highest_attention+attention_matching", {"num_queries": 8}, VariantError, "more than one part"),
        ("snapkv+adakv", {"alpha": 1.5}, PolicyError, "from 0 to 1"),
        ("kvmerger+adakv", {}, PolicyError, "ranks tokens"),
        ("snapkv", {"window_size": 0}, PolicyError, "window_size"),
    ],
)
def test_what_makes_no_policy_is_refused_by_name(name, params, error, message) -> None:
    with pytest.raises(error, match=message):
        build(name, params)


@pytest.mark.parametrize("name", forms.names())
def test_a_form_follows_what_chooses_slots_or_stores_all_of_them(name: str) -> None:
    form = forms.get(name)()
    behind, alone = build(f"snapkv+{name}", {}), build(name, {})
    assert behind == Stored(inner=SnapKV(), form=form) and behind.parts == (SnapKV(), behind)
    assert alone == build(f"full+{name}", {}) == Stored(inner=Everything(), form=form)
    assert form_of(behind) == form_of(alone) == form and form_of(SnapKV()) is None
    assert registry.path_of(behind) == f"snapkv+{name}" and registry.path_of(alone) == f"full+{name}"


def test_merging_comes_before_a_form_and_what_acts_comes_after() -> None:
    built = build("h2o+keepkv+int4+h2o_decode", {})
    stored = Stored(inner=KeepKV(H2O()), form=TokenWise(4, 4))
    assert built == H2ODecode(stored)
    assert form_of(built) == TokenWise(4, 4)
    assert [part.form for part in built.parts] == [None, None, TokenWise(4, 4), None]


def test_parameters_of_forms_go_where_those_of_other_parts_go() -> None:
    values = {"group_size": 64, "window_size": 16, "kivi4.bits_v": 2}
    built = build("snapkv+kivi4", values)
    assert built == Stored(inner=SnapKV(16), form=Kivi(4, 2, 64))
    assert build("int8", {"rotate": True}) == Stored(inner=Everything(), form=TokenWise(8, 8, True))


def test_a_users_form_is_a_part_like_any_other() -> None:
    name = f"{__name__}:Halved"
    assert form_of(build(f"snapkv+{name}", {"tidiness": 0.25})) == Halved(tidiness=0.25)
    assert build(f"full+{name}", {}) == Stored(inner=Everything(), form=Halved())
    assert registry.path_of(build(f"snapkv+{name}", {})).startswith(f"snapkv+{name}(")


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("snapkv+fp8+keepkv", {}, "write 'snapkv\\+keepkv\\+fp8'"),
        ("snapkv+fp8+adakv", {}, "write 'snapkv\\+adakv\\+fp8'"),
        ("h2o+h2o_decode+fp8", {}, "write 'h2o\\+fp8\\+h2o_decode'"),
        ("snapkv+h2o_decode+int4+keepkv", {}, "write 'snapkv\\+keepkv\\+int4\\+h2o_decode'"),
        ("fp8+int4", {}, "a cache has one form"),
        (
            f"{__name__}:Halved",
            {},
            f"it is a form, so write snapkv\\+{__name__}:Halved, or full\\+{__name__}:Halved",
        ),
        (
            "snapkv+criticalkv+criticalkv",
            {},
            "'criticalkv' stands twice in 'snapkv\\+criticalkv\\+criticalkv'; keep one",
        ),
        ("snapkv+chunkkv+adakv+chunkkv+int4", {}, "'chunkkv' stands twice"),
        ("snapkv+int4+kivi4", {}, "a cache has one form"),
        ("snapkv+int5", {}, "5 bits"),
        ("snapkv+fp9_scaled", {}, "did you mean 'fp8_scaled'"),
        ("itn4_rotated", {}, "did you mean 'int4_rotated'"),
        ("kivi4", {"bits_k": 5}, "bits_k is one of .* got 5"),
        ("kivi4", {"group_size": 33}, "group_size is one of .* got 33"),
        ("int4", {"bits_k": 8}, "int4 has no parameter 'bits_k'"),
        ("snapkv+kivi4", {"gruop_size": 8}, "did you mean 'group_size'"),
        ("snapkv+no_such_module:Form", {}, "form .* cannot be imported"),
        ("snapkv+kvmerger.policies.ranking.snapkv:SnapKV", {}, "not a subclass of kvmerger.Form"),
    ],
)
def test_forms_that_make_no_policy_are_refused_by_name(name: str, params: dict, message: str) -> None:
    with pytest.raises(VariantError, match=message):
        build(name, params)


def test_a_form_on_a_form_is_refused_whoever_puts_it_there() -> None:
    inner = build("snapkv+fp8", {})
    with pytest.raises(PolicyError, match="int4 cannot store what fp8 has stored"):
        Stored(inner=inner, form=TokenWise(4, 4))


SHAPE = CacheShape(num_tokens=1000, num_layers=3, num_kv_heads=2, head_dim=128, itemsize=2)


@pytest.mark.parametrize(
    ("name", "budget", "num_slots"),
    [
        ("snapkv", BytesShare(0.25), 250),
        ("snapkv+fp8", BytesShare(0.25), 500),
        ("snapkv+int8", BytesShare(0.25), 128_000 // 264),
        ("snapkv+keepkv", BytesShare(0.25), 128_000 // 516),
        ("snapkv+keepkv+int8", BytesShare(0.25), 128_000 // 268),
        ("h2o+int8+h2o_decode", BytesShare(0.25), 128_000 // 264),
        ("snapkv+fp8", BytesLike("other"), 200),
    ],
)
def test_bytes_are_the_slots_that_the_form_leaves(name: str, budget: AskedBudget, num_slots: int) -> None:
    # The other variant holds 200 slots of 256 bytes in 2 heads of 3 layers, and a few bytes that are no slot.
    found = in_slots(budget, build(name, {}), SHAPE, {"other": 200 * 256 * 2 * 3 + 100}.__getitem__)
    assert found == SlotCount(num_slots)


def test_other_budgets_are_what_they_are_and_no_bytes_are_asked_for() -> None:
    for budget in (KeptRatio(0.5), SlotCount(7), LikeVariant("other")):
        assert in_slots(budget, SnapKV(), CacheShape(10, 1, 1), {}.__getitem__) == budget


def test_bytes_of_a_variant_that_holds_too_little_are_refused() -> None:
    with pytest.raises(BudgetError, match=r"bytes:like:other is 33 bytes a layer.*takes 528"):
        in_slots(BytesLike("other"), build("snapkv+int8", {}), SHAPE, lambda _: 100)


def test_log_masses_count_only_where_they_are_added() -> None:
    masses = {
        name: layer_bytes(build(name, {}), SHAPE).adds_log_mass
        for name in ("snapkv", "zeromerge", "kvmerger")
    }
    assert masses == {"snapkv": False, "zeromerge": True, "kvmerger": False}
    assert KVMerger(log_mass="count").adds_log_mass
    assert build("kvmerger+fp8+h2o_decode", {"log_mass": "count"}).adds_log_mass
