"""Parts joined by `+`: what is built, where parameters go, and what is refused."""

import pytest

from kvmerger.building import build
from kvmerger.names import VariantError
from kvmerger.policies.allocation.adakv import AdaKV
from kvmerger.policies.base import PolicyError
from kvmerger.policies.ranking.snapkv import SnapKV
from kvmerger.variants import parse_policy_entry


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
        ("snapkv+adakv", {"alhpa": 0.5}, VariantError, "did you mean 'alpha'"),
        ("snapkv+adakv", {"inner": 1}, VariantError, "no parameter 'inner'"),
        ("snapkv+adakv+adakv", {"alpha": 0.5}, VariantError, "more than one part"),
        ("snapkv+adakv", {"alpha": 1.5}, PolicyError, "from 0 to 1"),
        ("kvmerger+adakv", {}, PolicyError, "ranks tokens"),
        ("snapkv", {"window_size": 0}, PolicyError, "window_size"),
    ],
)
def test_what_makes_no_policy_is_refused_by_name(name, params, error, message) -> None:
    with pytest.raises(error, match=message):
        build(name, params)
