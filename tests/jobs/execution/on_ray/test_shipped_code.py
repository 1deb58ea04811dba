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
    runtime_env_to_join,
    runtime_env_to_start,
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
    with (tmp_path / "beside" / "weights.bin").open("wb") as file:
        file.truncate(shipped_code._MAX_BYTES + 1)  # sparse: takes no room
    with pytest.raises(ShippedCodeError, match=r"beside .*100 MiB.*on every node"):
        source_paths(["beside:Policy"], loaded)


def test_a_jobs_own_environment_is_never_overridden(tmp_path: Path) -> None:
    inside, outside = tmp_path / "job" / "jobs", tmp_path / "mine.py"
    for chosen in ({"py_modules": ["gcs://a.zip"]}, {"working_dir": "gcs://b.zip", "excludes": ["*.bin"]}):
        assert runtime_env_to_join([inside, outside], chosen, tmp_path / "job") == {}
    for job_env, modules in (({"working_dir": "gcs://b.zip"}, [outside]), ({}, [inside, outside])):
        made = runtime_env_to_join([inside, outside], job_env, tmp_path / "job")
        assert made["py_modules"] == [str(path) for path in modules] and not made.keys() & job_env.keys()
    assert runtime_env_to_join([inside], {"working_dir": "gcs://b.zip"}, tmp_path / "job") == {}


def test_a_ray_of_our_own_finds_the_code_where_it_is(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "jobs", tmp_path / "a" / "kvmerger", tmp_path / "b" / "mine.py"]
    search = runtime_env_to_start(paths, "/before")["env_vars"]["PYTHONPATH"].split(os.pathsep)
    assert search == [str(tmp_path / "a"), str(tmp_path / "b"), "/before"]
