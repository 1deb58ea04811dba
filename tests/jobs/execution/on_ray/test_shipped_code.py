"""What workers import travels: our packages and users' code, never what is installed, never over a job's own choice."""

import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

import evaluators
import jobs
import kvmerger
from jobs.execution.on_ray import shipped_code
from jobs.execution.on_ray.shipped_code import (
    OUR_PACKAGES,
    ShippedCodeError,
    code_to_send,
    runtime_env_to_join,
    runtime_env_to_start,
    source_alone,
    source_paths,
)

OURS = {"kvmerger": kvmerger, "evaluators": evaluators, "jobs": jobs}


def module(name: str, path: Path) -> ModuleType:
    made = ModuleType(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    made.__file__ = str(path)
    if path.name == "__init__.py":
        made.__path__ = [str(path.parent)]
    return made


@pytest.fixture
def loaded(tmp_path: Path) -> dict[str, ModuleType]:
    return OURS | {
        "mine": module("mine", tmp_path / "mine.py"),
        "beside": module("beside", tmp_path / "beside" / "__init__.py"),
        "beside.deep": module("beside.deep", tmp_path / "beside" / "deep.py"),
        "elsewhere": module("elsewhere", tmp_path / "other" / "elsewhere.py"),
        "__main__": module("__main__", tmp_path / "main.py"),
    }


def test_our_packages_always_travel(repo_root: Path) -> None:
    assert set(source_paths(["knorm"], sys.modules)) == {repo_root / name for name in OUR_PACKAGES}


def test_a_policys_module_travels_with_what_was_imported_from_its_folder(
    loaded: dict[str, ModuleType], tmp_path: Path
) -> None:
    own = {path for path in source_paths(["knorm", "mine:Policy"], loaded) if path.is_relative_to(tmp_path)}
    assert own == {tmp_path / "mine.py", tmp_path / "beside"}
    assert own == {
        path for path in source_paths(["knorm+mine:Form+h2o_decode"], loaded) if path.is_relative_to(tmp_path)
    }
    inside = {path for path in source_paths(["beside.deep:Policy"], loaded) if path.is_relative_to(tmp_path)}
    assert tmp_path / "beside" in inside


def test_what_is_installed_stays(repo_root: Path) -> None:
    assert set(source_paths(["numpy.linalg:norm", "json:X"], sys.modules)) == {
        repo_root / name for name in OUR_PACKAGES
    }


def test_code_that_is_too_large_is_named(
    loaded: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("weights.bin", "tables.py"):
        with (tmp_path / "beside" / name).open("wb") as file:
            file.truncate(shipped_code._MAX_BYTES + 1)  # sparse: takes no room
        if name == "weights.bin":  # which stays here
            assert source_paths(["beside:Policy"], loaded)
    with pytest.raises(ShippedCodeError, match=r"beside .*100 MiB of source.*on every node"):
        source_paths(["beside:Policy"], loaded)


def test_a_jobs_own_environment_is_never_overridden(tmp_path: Path) -> None:
    inside, outside = tmp_path / "job" / "jobs", tmp_path / "mine.py"
    for chosen in ({"py_modules": ["gcs://a.zip"]}, {"working_dir": "gcs://b.zip", "excludes": ["*.bin"]}):
        assert code_to_send([inside, outside], chosen, tmp_path / "job") == ()
    assert code_to_send([inside, outside], {"working_dir": "gcs://b.zip"}, tmp_path / "job") == (outside,)
    assert code_to_send([inside, outside], {}, tmp_path / "job") == (inside, outside)
    assert runtime_env_to_join([]) == {}
    assert runtime_env_to_join([outside]) == {"py_modules": [str(outside)]}


def test_source_travels_and_nothing_that_lies_beside_it(tmp_path: Path) -> None:
    source = ["__init__.py", "deep/policy.py", "deep/мой-файл 2.py", "stubs.pyi", "env/settings.py"]
    others = [
        ".env",
        ".env.py",
        ".git/config",
        ".git/hooks/hook.py",
        "id_rsa",
        "data/secret.csv",
        "data/keys.json",
        "token.txt",
        "__pycache__/a.cpython-311.pyc",
        "venv/pyvenv.cfg",
        "venv/lib/site-packages/other.py",
        "deep/.venv/other.py",
        "old.py~",
        "py",
    ]
    package = tmp_path / "my_pkg"
    for name in source + others:
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(name)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "private.py").touch()
    (package / "linked").symlink_to(tmp_path / "elsewhere")
    (package / "loop").symlink_to(package)
    module = tmp_path / "my-policy.py"
    module.write_text("x = 1")
    with source_alone([package, module]) as (its_copy, of_module):
        found = {
            str(path.relative_to(its_copy)): path.read_text()
            for path in its_copy.rglob("*")
            if path.is_file()
        }
        assert found == {name: name for name in source}
        # What is imported from the copies' parents is called as before.
        assert (its_copy.name, of_module.name, of_module.read_text()) == ("my_pkg", "my-policy.py", "x = 1")
        assert its_copy.parent != of_module.parent
    assert not its_copy.exists() and package.exists()


def test_our_packages_bring_what_they_read(repo_root: Path) -> None:
    with source_alone([repo_root / name for name in OUR_PACKAGES]) as copies:
        there = {
            str(file.relative_to(copy.parent))
            for copy in copies
            for file in copy.rglob("*")
            if file.is_file()
        }
    assert "evaluators/benchmarks/longbench/templates.json" in there and "kvmerger/__init__.py" in there
    assert not [name for name in there if name.endswith(".pyc")]


def test_a_ray_of_our_own_finds_the_code_where_it_is(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "jobs", tmp_path / "a" / "kvmerger", tmp_path / "b" / "mine.py"]
    search = runtime_env_to_start(paths, "/before")["env_vars"]["PYTHONPATH"].split(os.pathsep)
    assert search == [str(tmp_path / "a"), str(tmp_path / "b"), "/before"]
