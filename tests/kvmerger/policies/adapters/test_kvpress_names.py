"""Presses by name: what is refused before anything runs, what a row's identity says of a press, and the page about them."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.planning import policy_contract
from jobs.planning.preparation import _facts_of
from kvmerger.building import build, build_variant
from kvmerger.names import VariantError
from kvmerger.policies.adapters import presses
from kvmerger.policies.adapters.catalogue import ENTRIES, class_names, how_it_runs
from kvmerger.policies.adapters.page import written
from kvmerger.variants import VariantSpec, parse_policies
from tests.fakes.kvpress_runs import require_kvpress
from tests.kvmerger.policies.adapters.test_kvpress_bits import SETUPS

KNORM = {"name": "KnormPress"}
DECODING = {"name": "DecodingPress", "base_press": KNORM}
TURNING = {"name": "KeyRerotationPress", "press": KNORM}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"name": "kvpress:SnapKVPres", "budget": 0.5}, r"no press 'SnapKVPres' \(did you mean 'SnapKVPress'\?\)"),
    ({"name": "kvpress:SnapKVPress", "budget": 0.5, "windw_size": 3}, r"no parameter 'windw_size' \(did you mean"),
    ({"name": "kvpress:SnapKVPress", "window_size": 3}, "needs a budget, such as `budget: 0.5`"),
    ({"name": "kvpress:KVzipPress", "budget": 0.5}, "KVzipPress needs passes of its own over the prompt .*the one prefill"),
    ({"name": "kvpress:KVgradPress", "budget": 0.5}, "needs passes of its own"),
    ({"name": "kvpress:KVComposePress", "budget": 0.5}, "needs passes of its own"),
    ({"name": "kvpress:RestoreKVPress", "budget": 0.5}, "needs passes of its own"),
    ({"name": "kvpress:DecodingPress", "base_press": KNORM, "budget": 0.5}, "acts while the answer is made.*`h2o_decode`"),
    ({"name": "kvpress:CAMPress", "base_press": KNORM, "budget": 0.5}, "acts while the answer is made.*ours is `cam`"),
    ({"name": "kvpress:PrefillDecodingPress", "prefilling_press": KNORM, "decoding_press": DECODING},
     "DecodingPress acts while|acts in prefill alone"),
    ({"name": "kvpress:DMSPress", "press": KNORM, "threshold": 0, "decoding": True}, "decoding: true acts while"),
    ({"name": "kvpress:DMSPress", "press": KNORM, "threshold": 0, "budget": 0.5}, "takes no budget.*leave 0.5 out"),
    ({"name": "kvpress:DuoAttentionPress", "on_the_fly_scoring": True}, "needs passes of its own, over texts"),
    ({"name": "kvpress:FinchPress", "budget": 0.5}, "needs window_size"),
    ({"name": "kvpress:ScorerPress", "budget": 0.5}, "what presses are made from"),
    ({"name": "kvpress:AdaKVPress", "budget": 0.5, "press": TURNING}, "cannot be made with.*ScorerPress"),
    ({"name": "kvpress:AdaKVPress", "budget": 0.5, "press": {"name": "Knorm"}}, "no press 'Knorm' .did you mean"),
    ({"name": "kvpress:AdaKVPress", "budget": 0.5, "press": {**KNORM, "compression_ratio": 0.3}}, "beside its name alone"),
    ({"name": "kvpress:AdaKVPress", "budget": 0.5, "press": {**KNORM, "n": 1}}, "KnormPress has no parameter 'n'"),
    ({"name": "kvpress:AdaKVPress", "budget": 0.5, "press": "KnormPress"}, "cannot be made with"),
    ({"name": "kvpress:AdaKVPress", "budget": {"like": "full"}, "press": KNORM}, "told its ratio in prefill, before 'full'"),
    ({"name": "kvpress:AdaKVPress", "budget": {"bytes": {"like": "full"}}, "press": KNORM}, "told its ratio in prefill"),
    ({"name": "kvpress:ComposedPress", "presses": [TURNING, KNORM]}, "in its last press only"),
    ({"name": "kvpress:ComposedPress", "presses": []}, "ComposedPress has no press to run: name them"),
    ({"name": "kvpress:MergingPress+adakv", "budget": 0.5, "press": KNORM}, "needs a policy that ranks"),
    ({"name": "nowhere:Press", "budget": 0.5}, "cannot be imported"),
    ({"name": "json:JSONDecoder", "budget": 0.5}, "not a subclass of kvmerger.Policy"),
]  # fmt: skip


@pytest.fixture
def _kvpress() -> None:
    require_kvpress()


def variant_of(entry: dict[str, Any]) -> VariantSpec:
    (spec,) = parse_policies([entry])
    return spec


@pytest.mark.usefixtures("_kvpress")
@pytest.mark.parametrize(("entry", "words"), REFUSED, ids=[str(index) for index in range(len(REFUSED))])
def test_what_cannot_run_is_one_sentence_before_weights(entry: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        build_variant(variant_of(entry))
    assert "\n" not in str(error.value) and str(error.value).count("kvpress:KV") < 2


def test_without_kvpress_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for missing, remedy in (
        ("kvpress", presses.INSTALL),
        ("datasets", presses.INSTALL),
        ("cachetools", "pip install cachetools"),
    ):

        def fails(name: str, missing: str = missing) -> Any:
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

        monkeypatch.setattr(presses.importlib, "import_module", fails)
        with pytest.raises(VariantError, match=f"needs {missing}, which is not installed: ") as error:
            presses.imported("kvpress")
        assert str(error.value).endswith(remedy)
    assert presses.INSTALL == "pip install --no-deps kvpress==0.5.5 datasets fire"


@pytest.mark.usefixtures("_kvpress")
def test_importing_kvpress_leaves_attention_as_it_was_and_no_press_asked_for_imports_nothing() -> None:
    code = (
        "import sys\n"
        "from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as functions\n"
        "from kvmerger.building import build\n"
        "build('snapkv', {}); assert 'kvpress' not in sys.modules\n"
        "before = dict(functions.items())\n"
        "build('kvpress:SnapKVPress', {}); assert 'kvpress' in sys.modules\n"
        "assert dict(functions.items()) == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.usefixtures("_kvpress")
def test_nested_presses_are_part_of_what_a_variant_is() -> None:
    entry = {"name": "kvpress:AdaKVPress", "budget": 0.5, "press": {"name": "SnapKVPress", "window_size": 32}}
    spec = variant_of(entry)
    assert hash(spec) == hash(variant_of(entry)) and spec == variant_of(entry)
    assert spec.canonical()["params"] == {"press": {"name": "SnapKVPress", "window_size": 32}}
    other = variant_of({**entry, "press": {"name": "SnapKVPress", "window_size": 16}})
    assert other.canonical() != spec.canonical() and other != spec
    assert spec.label == "AdaKVPress@0.5" and spec.paths == {"kvpress:AdaKVPress", "SnapKVPress"}
    assert build(spec.policy, dict(spec.params)) == build_variant(spec).policy


@pytest.mark.usefixtures("_kvpress")
def test_versions_follow_kvpress_and_the_code_and_values_of_users_presses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    text = (
        "from dataclasses import dataclass\nfrom kvpress import KnormPress, SnapKVPress\n"
        "class Mine(KnormPress):\n    pass\n"
        "best = SnapKVPress(window_size={})\n"
        "@dataclass\nclass Fn(KnormPress):\n    how: object = None\n"
        "odd = Fn(how=lambda: 1)\n"
    )

    def versions(module: str, window: int) -> list[str]:
        (tmp_path / f"{module}.py").write_text(text.format(window))
        entries = [
            {"name": f"{module}:Mine", "budget": 0.5}, {"name": f"{module}:best", "budget": 0.5},
            {"name": "kvpress:AdaKVPress", "press": {"name": f"{module}:Mine"}, "budget": 0.5},
            {"name": "kvpress:SnapKVPress", "budget": 0.5}, {"name": f"{module}:odd", "budget": 0.5},
        ]  # fmt: skip
        return [_facts_of(build_variant(spec)).version for spec in parse_policies(entries)]

    first, changed = versions("first_presses", 16), versions("second_presses", 32)
    assert all(it.startswith("1+kvpress0.5.5-") for it in first)
    assert first[3] == changed[3] and not {*first[:3]} & {*changed[:3]}
    assert "window_size=16" in first[1] and "window_size=32" in changed[1]
    # No address of this process, or another one would find none of its rows, and refuse to make more.
    assert "how=<function <lambda>>" in first[4]


def test_contracts_are_tried_on_users_presses_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def first_failures(own: dict[str, Any]) -> Iterator[None]:
        for policy in own:
            tried.append(policy)
            yield None

    monkeypatch.setattr(policy_contract, "first_failures", first_failures)
    entries = [
        {"name": "kvpress:SnapKVPress", "budget": 0.5}, {"name": "mine:Press", "budget": 0.5},
        {"name": "kvpress:AdaKVPress", "press": {"name": "mine:Press"}, "budget": 0.5},
    ]  # fmt: skip
    policy_contract.require_contracts(parse_policies(entries), lambda words: None)
    assert tried == ["mine:Press", "kvpress:AdaKVPress"]


@pytest.mark.usefixtures("_kvpress")
def test_the_page_has_every_class_as_it_is_now(repo_root: Path) -> None:
    page = (repo_root / "docs" / "kvpress.md").read_text(encoding="utf-8")
    assert page == written(page), "run `python -m kvmerger.policies.adapters.page`"
    assert sorted(ENTRIES, key=str.casefold) == class_names() and len(ENTRIES) == 46


@pytest.mark.usefixtures("_kvpress")
def test_every_class_that_runs_is_compared_with_its_own_run() -> None:
    runs = {name for name in class_names() if how_it_runs(name).startswith("shared pass")}
    # Its own run needs eager attention, whose keys differ in the last bits: its tokens are those of ours.
    assert runs == {name for name, _ in SETUPS} | {"ObservedAttentionPress"}
    assert len(runs) == 37
