"""Whatever a user's module does when it is imported, or is called, ends in a sentence with its line and the remedy."""

import sys
from pathlib import Path

import pytest

from kvmerger.building import build
from kvmerger.names import VariantError, words_of_path
from kvmerger.policies.own_modules import attribute_at

POLICY = """
from dataclasses import dataclass
from kvmerger import KEY_NORMS, ScoringPolicy


@dataclass(frozen=True)
class Mine(ScoringPolicy):
    def needs(self):
        return frozenset({KEY_NORMS})

    def scores(self, evidence):
        return evidence.get(KEY_NORMS)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        "my-policy",
        "my policy",
        "политика",
        "mein_äöü",
        "汉字",
        "it's",
        "pol[v2]",
        "50%",
        "2nd",
        "class",
        "=1+1",
    ],
)
def test_a_file_may_be_called_anything(name: str, folder: Path) -> None:
    (folder / f"{name}.py").write_text(POLICY, encoding="utf-8")
    if "+" in name:  # which joins parts
        assert attribute_at(f"{name}:Mine", "policy").__module__ == name
        return
    assert type(build(f"{name}:Mine", {})).__module__ == name
    sys.modules.pop(name)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (b"def (:\n", "line 1: SyntaxError"),
        (b"x = 1\nraise RuntimeError('why')\n", "line 2: RuntimeError: why"),
        (b"import sys\nsys.exit(0)\n", "line 2: SystemExit: 0"),
        (b"class E(BaseException): pass\nraise E\n", "line 2: E; "),
        (b"\nraise GeneratorExit\n", "line 2: GeneratorExit; "),
        (b"def f(): f()\nf()\n", "RecursionError"),
        (b"a\0b", "SyntaxError"),
        (b"x = '\xff'\n", "SyntaxError"),
        (b"open('/no/such')\n", "line 1: FileNotFoundError"),
        (b"import nosuchlib\n", "line 1, imports 'nosuchlib', which is not installed"),
        (b"from os import nosuch\n", "line 1: cannot import name 'nosuch'"),
        (b"def __getattr__(name): raise KeyError(name)\n", "line 1: KeyError: 'Mine'"),
        (b"Mein = 1\n", "did you mean 'Mein'"),
        (
            POLICY.encode() + b"\n    def __post_init__(self): raise OSError('boom')\n",
            "OSError: boom; mend it there",
        ),
    ],
)
def test_what_a_module_raises_is_told_with_its_line(code: bytes, told: str, folder: Path) -> None:
    name = f"broken_{abs(hash(code))}"
    (folder / f"{name}.py").write_bytes(code)
    with pytest.raises(VariantError) as caught:
        build(f"{name}:Mine", {})
    assert told in str(caught.value) and name in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "remedy"),
    [
        ("my_pol.py:Mine", "write 'my_pol:Mine'"),
        ("./my_pol:Mine", "write 'my_pol:Mine', and put its folder"),
        ("a/b/my-pol.py:Mine", "write 'my-pol:Mine', and put its folder"),
        ("..\\evil:Evil", "write 'evil:Evil'"),
        (".foo:Bar", "names no class"),
        (":Foo", "names no class"),
        ("foo:", "names no class"),
        ("../:Foo", "names no class"),
    ],
)
def test_a_file_that_is_written_as_a_path_is_told_how_it_is_named(path: str, remedy: str) -> None:
    with pytest.raises(VariantError) as caught:
        words_of_path(path)
    assert remedy in str(caught.value)


def test_a_file_that_is_hidden_by_another_of_its_name_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Last on the path, as what lies beside the settings is.
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    (tmp_path / "random.py").write_text(POLICY)
    (tmp_path / "my.pol.py").write_text(POLICY)
    with pytest.raises(VariantError, match=r"random\.py, and .*random\.py is never read: rename your file"):
        attribute_at("random:Mine", "policy")
    with pytest.raises(VariantError, match=r"my\.pol\.py' has a dot in its name.*rename it"):
        attribute_at("my.pol:Mine", "policy")
