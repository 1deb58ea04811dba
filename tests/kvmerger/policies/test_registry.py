"""What policies say of themselves is complete, and the documentation names each with what it reads."""

import re
from dataclasses import MISSING
from pathlib import Path

import pytest

from kvmerger.building import build
from kvmerger.cache.forms import registry as form_registry
from kvmerger.names import VariantError
from kvmerger.policies import registry

DESCRIBED = {(described.name, described.is_wrapper): described for described in registry.describe()}


def test_every_policy_and_wrapper_is_described_once() -> None:
    described = registry.describe()
    assert [it.name for it in described if not it.is_wrapper] == registry.names()
    assert [it.name for it in described if it.is_wrapper] == registry.wrapper_names()


@pytest.mark.parametrize("key", list(DESCRIBED))
def test_a_summary_is_one_sentence_of_the_policys_own(key: tuple[str, bool]) -> None:
    summary = DESCRIBED[key].summary
    assert re.fullmatch(r"[A-Z][^()]*\.", summary), summary
    assert [it.summary for it in DESCRIBED.values()].count(summary) == 1


@pytest.mark.parametrize("name", registry.names())
def test_the_described_defaults_build_the_default_policy(name: str) -> None:
    assert build(name, dict(DESCRIBED[name, False].parameters)) == build(name, {})


def test_what_a_wrapper_wraps_is_no_parameter() -> None:
    for name in registry.wrapper_names():
        parameters = dict(DESCRIBED[name, True].parameters)
        assert registry.INNER not in parameters
        assert MISSING not in parameters.values()


def rows(page: str) -> dict[str, list[str]]:
    """First cell (a name in backticks) → the other cells."""
    cells = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    return {first.strip("`"): rest for first, *rest in cells}


def test_the_documentation_has_a_row_for_each(repo_root: Path) -> None:
    page = (repo_root / "docs" / "policies.md").read_text(encoding="utf-8")
    policies, _, others = page.partition("## Wrappers")
    wrappers, _, stored = others.partition("## Forms")
    assert sorted(rows(policies)) == registry.names()
    assert sorted(rows(wrappers)) == registry.wrapper_names()
    assert sorted(rows(stored)) == sorted([*form_registry.names(), *form_registry.names_of_tables()])
    for name, (_, _, reads, *_) in rows(policies).items():
        assert set(re.findall(r"`(\w+)`", reads)) == {need.name for need in build(name, {}).needs()}, name


@pytest.mark.parametrize("name", form_registry.names())
def test_the_documentation_has_each_forms_bytes_and_options(name: str, repo_root: Path) -> None:
    page = (repo_root / "docs" / "policies.md").read_text(encoding="utf-8")
    _, _, at_128, at_64, options, _ = [None, *rows(page.partition("## Forms")[2])[name]]
    form = form_registry.get(name)()
    num_slots = 1024  # whole groups; what a head has once is told beside the table
    for told, head_dim in ((at_128, 128), (at_64, 64)):
        of_heads = form.num_bytes((num_slots, num_slots), head_dim) - form.num_bytes((num_slots,), head_dim)
        assert told == str(of_heads // num_slots), head_dim
    assert set(re.findall(r"`(\w+)`", options or "")) == set(form_registry.parameters_of(name))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("SnapKV", "snapkv"),
        ("SnapKVPress", "snapkv"),
        ("StreamingLLMPress", "streaming_llm"),
        ("KeyDiff-Press", "keydiff"),
        ("observed-attention", "observed_attention"),
        ("h2o_decod", "h2o_decode"),
        ("NVFP4_", "nvfp4"),
        ("mypol.Vnorm", "mypol:Vnorm"),
    ],
)
def test_a_name_as_others_write_it_is_answered_with_ours(name: str, meant: str) -> None:
    with pytest.raises(VariantError) as caught:
        registry.get(name)
    assert f"unknown policy {name!r} (did you mean {meant!r}?)" in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("text", "path", "told"),
    [
        ("x = 1\nimport nosuchlib\n", "{}:X", "{}.py, line 2, imports 'nosuchlib', which is not installed"),
        (
            "from os import nothing_there\n",
            "{}:X",
            "{}.py, line 1: cannot import name 'nothing_there' from 'os'",
        ),
        (
            "import os\nos.nothing_there\n",
            "{}:X",
            "{}.py, line 2: AttributeError: module 'os' has no attribute 'nothing_there'",
        ),
        ("class Vnorm: pass\n", "{}:Vnrm", "has no attribute 'Vnrm' (did you mean 'Vnorm'?)"),
        ("", "no_such_{}:X", "No module named 'no_such_{}'; is its folder on PYTHONPATH?"),
        ("", "no_such_{}.inner:X", "No module named 'no_such_{}'; is its folder on PYTHONPATH?"),
    ],
)
def test_what_keeps_a_users_module_from_being_imported_is_told_where_it_is(
    text: str,
    path: str,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    module = f"users_{abs(hash(request.node.name))}"  # a name of its own: what is imported stays imported
    (tmp_path / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(VariantError) as caught:
        registry.get(path.format(module))
    assert "cannot be imported: " in str(caught.value) and told.format(module) in str(caught.value)
