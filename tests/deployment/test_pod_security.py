"""jobs/schedules: Pod Security "restricted" lets every pod in, nobody else reaches it, and images are named by digest.

The rules are those of kubernetes.io/docs/concepts/security/pod-security-standards, written out here: no cluster is asked.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.servers.kuberay_schema import KUBERNETES, pod_templates

PLACE_FOR_A_DIGEST = "registry.example.org/kvmerger@sha256:CHANGE"
FILES = ("cronjob", "raycluster", "rayjob")
VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}


def load(repo_root: Path, name: str) -> dict[str, Any]:
    text = (repo_root / "jobs" / "schedules" / f"{name}.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def templates_of(loaded: dict[str, Any]) -> list[dict[str, Any]]:
    if loaded["kind"] == "CronJob":
        return [loaded["spec"]["jobTemplate"]["spec"]["template"]]
    return pod_templates(loaded)


def violations(pod: dict[str, Any]) -> list[str]:
    """What "restricted" refuses in a pod's spec, in words."""
    of_pod, found = pod.get("securityContext", {}), []
    found += [key for key in ("hostNetwork", "hostPID", "hostIPC", "hostUsers") if pod.get(key)]
    for volume in pod.get("volumes", []):
        found += [f"volume {kind}" for kind in volume.keys() - {"name"} - VOLUMES]
    for it in [*pod["containers"], *pod.get("initContainers", [])]:
        own = it.get("securityContext", {})
        both = of_pod | own
        if both.get("runAsNonRoot") is not True or both.get("runAsUser") == 0:
            found.append(f"{it['name']}: may run as root")
        if both.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
            found.append(f"{it['name']}: no seccomp profile")
        if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
            found.append(f"{it['name']}: may gain privileges")
        capabilities = own.get("capabilities", {})
        if "ALL" not in capabilities.get("drop", []) or set(capabilities.get("add", [])) - {
            "NET_BIND_SERVICE"
        }:
            found.append(f"{it['name']}: keeps capabilities")
        found += [f"{it['name']}: host port" for port in it.get("ports", []) if port.get("hostPort")]
    return found


@pytest.mark.parametrize("name", FILES)
def test_every_pod_is_restricted_and_writes_only_where_it_must(repo_root: Path, name: str) -> None:
    for template in templates_of(load(repo_root, name)):
        pod = template["spec"]
        assert violations(pod) == []
        assert pod["automountServiceAccountToken"] is False
        volumes = {it["name"]: it for it in pod["volumes"]}
        for it in pod["containers"]:
            assert it["securityContext"]["readOnlyRootFilesystem"] is True
            mounts = {mount["mountPath"]: mount["name"] for mount in it["volumeMounts"]}
            assert {"/tmp", "/home/kvmerger"} <= set(mounts)
            assert all("emptyDir" in volumes[mounts[path]] for path in ("/tmp", "/home/kvmerger"))
            assert set(mounts.values()) <= set(volumes)


def drop(*keys: str) -> Callable[[dict[str, Any]], None]:
    def change(pod: dict[str, Any]) -> None:
        place: Any = pod
        for key in keys[:-1]:
            place = place[int(key)] if isinstance(place, list) else place[key]
        del place[keys[-1]]

    return change


@pytest.mark.parametrize(
    "change",
    [
        drop("securityContext"),
        drop("securityContext", "runAsNonRoot"),
        drop("securityContext", "seccompProfile"),
        drop("containers", "0", "securityContext"),
        drop("containers", "0", "securityContext", "allowPrivilegeEscalation"),
        drop("containers", "0", "securityContext", "capabilities"),
        lambda pod: pod["containers"][0]["securityContext"].update(runAsUser=0),
        lambda pod: pod["containers"][0]["securityContext"]["capabilities"].update(add=["SYS_PTRACE"]),
        lambda pod: pod["volumes"].append({"name": "host", "hostPath": {"path": "/"}}),
        lambda pod: pod.update(hostNetwork=True),
    ],
)
@pytest.mark.parametrize("name", FILES)
def test_this_check_refuses_a_pod_with_more_rights(
    repo_root: Path, name: str, change: Callable[[Any], None]
) -> None:
    for template in templates_of(load(repo_root, name)):
        pod = copy.deepcopy(template["spec"])
        change(pod)
        assert violations(pod)


def test_an_image_is_named_by_digest_and_its_place_says_that_it_must_be_filled(repo_root: Path) -> None:
    images = {
        it["image"]
        for name in FILES
        for template in templates_of(load(repo_root, name))
        for it in template["spec"]["containers"]
    }
    assert images == {PLACE_FOR_A_DIGEST}
    assert not re.search(r"sha256:[0-9a-f]{64}", PLACE_FOR_A_DIGEST)  # nothing that could pass for one
    text = (repo_root / "docs" / "scheduling.md").read_text(encoding="utf-8")
    assert f"s|{PLACE_FOR_A_DIGEST}|$image|" in text and "RepoDigests" in text


def test_the_base_image_has_to_be_given_by_digest(repo_root: Path) -> None:
    text = (repo_root / "jobs" / "schedules" / "Dockerfile").read_text(encoding="utf-8")
    assert re.findall(r"^FROM (.*)$", text, re.MULTILINE) == ["${BASE}"]
    # Once before FROM, which names the base, and once behind it, where the check reads it.
    assert text.count("ARG BASE\n") == 2 and 'case "$BASE" in *@sha256:*)' in text
    docs = (repo_root / "docs" / "scheduling.md").read_text(encoding="utf-8")
    assert re.search(r"--build-arg BASE=\S+@sha256:DIGEST", docs)


def test_the_network_policy_covers_every_pod_and_lets_in_only_us_and_the_operator(repo_root: Path) -> None:
    policy = load(repo_root, "networkpolicy")
    kubernetes_validate.validate(policy, KUBERNETES, strict=True)
    spec = policy["spec"]
    ours = spec["podSelector"]["matchLabels"]
    for name in FILES:
        for template in templates_of(load(repo_root, name)):
            assert ours.items() <= template["metadata"]["labels"].items()
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    among_us, operator = spec["ingress"]
    assert among_us == {"from": [{"podSelector": {"matchLabels": ours}}]}
    # In one entry: both must hold. In two, every pod of every namespace would be let in.
    (sender,) = operator["from"]
    assert sender["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "kuberay-operator"}
    assert operator["ports"] == [{"protocol": "TCP", "port": 8265}]


def test_what_leaves_goes_to_us_to_dns_or_to_https_and_never_to_the_clouds_keys(repo_root: Path) -> None:
    egress = load(repo_root, "networkpolicy")["spec"]["egress"]
    ports = [{it["port"] for it in rule.get("ports", [])} for rule in egress]
    assert ports == [set(), {53}, {443}]
    assert "podSelector" in egress[0]["to"][0]
    excepted = {block for it in egress[2]["to"] for block in it["ipBlock"]["except"]}
    assert "169.254.0.0/16" in excepted
