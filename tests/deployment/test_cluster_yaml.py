"""cluster.yaml is a file `ray up` accepts, and what it installs on a node is what a developer runs.

Checked without any machine. Ray's own check does not look inside `provider` or the shell commands; this does.
"""

import copy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml


@pytest.fixture(scope="module")
def cluster(repo_root: Path) -> dict[str, Any]:
    """cluster.yaml as written."""
    loaded: dict[str, Any] = yaml.safe_load((repo_root / "cluster.yaml").read_text(encoding="utf-8"))
    return loaded


def prepare(cluster: dict[str, Any]) -> dict[str, Any]:
    """What `ray up` makes of the file: defaults filled in, then held against Ray's schema."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: dict[str, Any] = prepare_config(copy.deepcopy(cluster))
    validate_config(prepared)
    return prepared


def test_ray_up_accepts_the_file(cluster: dict[str, Any]) -> None:
    prepared = prepare(cluster)
    assert prepared["max_workers"] == len(cluster["provider"]["worker_ips"]) == cluster["min_workers"]


def test_this_check_refuses_a_misspelt_key(cluster: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError, match="setup_comands"):
        prepare(cluster | {"setup_comands": []})


def test_every_node_installs_the_pinned_versions(cluster: dict[str, Any], repo_root: Path) -> None:
    commands = cluster["setup_commands"]
    assert any("constraints.txt" in command for command in commands)
    makefile = (repo_root / "Makefile").read_text(encoding="utf-8")
    assert any("make install" in command for command in commands) and "\ninstall:" in makefile


def test_mounts_bring_all_that_installing_needs(cluster: dict[str, Any], repo_root: Path) -> None:
    sources = {source for source in cluster["file_mounts"].values() if not source.startswith("~")}
    assert [source for source in sources if not (repo_root / source).exists()] == []
    packages = {path.parent.name for path in repo_root.glob("*/__init__.py") if path.parent.name != "tests"}
    assert packages | {"pyproject.toml", "constraints.txt", "Makefile", "README.md", "LICENSE"} <= sources


def test_ray_starts_from_the_installed_environment_with_a_token(cluster: dict[str, Any]) -> None:
    for role in ("head", "worker"):
        start = cluster[f"{role}_start_ray_commands"][-1]
        assert "RAY_AUTH_MODE=token ~/kvmerger/.venv/bin/ray start" in start
    assert "~/.ray/auth_token" in cluster["file_mounts"]
