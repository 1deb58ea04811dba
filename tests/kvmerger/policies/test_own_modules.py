"""Whatever a user's module does when it is imported, or is called, ends in a sentence with its line and the remedy."""

import os
import py_compile
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

from kvmerger.building import build
from kvmerger.names import VariantError, words_of_path
from kvmerger.policies.own_modules import attribute_at, sources_of

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


def test_what_is_run_is_what_the_file_holds_and_its_source_stays_known(folder: Path) -> None:
    """Compiled code passes for up to date that is as old and as long as the file: of two quick saves the first would run."""
    file, name = folder / "saved_twice.py", "saved_twice"
    for number in (1, 2):
        source = f"{POLICY}\nNUMBER = {number}\n".encode()
        file.write_bytes(source)
        os.utime(file, (10**9, 10**9))
        if number == 1:  # as by whoever else imports it; it is still there the second time
            py_compile.compile(str(file), doraise=True)
        kind = attribute_at(f"{name}:Mine", "policy")
        assert vars(sys.modules.pop(name))["NUMBER"] == number
        file.write_text("NUMBER = 'saved since'")
        assert sources_of(kind) == [source]


def test_modules_that_it_imports_are_read_once_too_and_others_are_not_touched(folder: Path) -> None:
    (folder / "uses_beside.py").write_text("import beside_it, colorsys\nMine = beside_it.Mine\n")
    (folder / "beside_it.py").write_text(POLICY)
    sys.modules.pop("colorsys", None)
    finders = list(sys.meta_path)
    kind = attribute_at("uses_beside:Mine", "policy")
    assert sys.meta_path == finders
    (folder / "beside_it.py").write_text("")
    assert kind.__module__ == "beside_it" and sources_of(kind) == [POLICY.encode()]
    assert type(sys.modules["colorsys"].__loader__) is SourceFileLoader
    for name in ("uses_beside", "beside_it"):
        sys.modules.pop(name)


def test_what_a_policy_imports_from_beside_it_is_a_part_of_its_source_and_nothing_else_is(
    folder: Path,
) -> None:
    files = {
        "own_a.py": f"import own_b, json, numpy\nimport own_pack.deep as deep\n{POLICY}",
        "own_b.py": "from own_c import ANY\n",
        "own_c.py": "ANY = 1\nimport own_b\n",
        "own_other.py": f"import own_d\n{POLICY}",
        "own_d.py": "",
        "own_pack/__init__.py": "",
        "own_pack/deep.py": "from . import near\nfrom .near import ANY\n",
        "own_pack/near.py": "ANY = 1\n",
        "own_pack/unused.py": "",
    }
    (folder / "own_pack").mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    other = attribute_at("own_other:Mine", "policy")
    kind = attribute_at("own_a:Mine", "policy")
    names = [
        "own_a.py",
        "own_b.py",
        "own_c.py",
        "own_pack/__init__.py",
        "own_pack/deep.py",
        "own_pack/near.py",
    ]
    assert sources_of(kind) == [files[name].encode() for name in names]
    assert sources_of(other) == [files["own_other.py"].encode(), b""]
    for name in [it for it in sys.modules if it.startswith("own_")]:
        sys.modules.pop(name)
