"""jobs/schedules: every file is what its scheduler accepts, and all of them name the same things.

Checked without a cluster: manifests against Kubernetes' and KubeRay's fields, commands against our own parser.
"""

import copy
import os
import re
import shlex
import stat
import subprocess
import zoneinfo
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from jobs.console.command_line import config_of
from tests.servers.kuberay_schema import KUBERNETES, cluster_spec, pod_templates, validate_ray

IN_IMAGE = "/opt/kvmerger"
FIELDS = {"minute": (0, 59), "hour": (0, 23), "day": (1, 31), "month": (1, 12), "weekday": (0, 7)}


@pytest.fixture(scope="module")
def schedules(repo_root: Path) -> Path:
    return repo_root / "jobs" / "schedules"


@pytest.fixture(scope="module")
def parse():
    """Reads arguments as `python jobs/nightly.py` does."""
    from jobs import nightly

    return nightly.build_parser().parse_args


def manifest(schedules: Path, name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((schedules / f"{name}.yaml").read_text(encoding="utf-8"))
    return loaded


def check_when(text: str) -> None:
    """Raise ValueError unless `text` is five cron fields in their ranges: numbers, lists, spans, steps or stars."""
    fields = text.split()
    if len(fields) != len(FIELDS):
        raise ValueError(f"{text!r} has {len(fields)} fields, not {len(FIELDS)}")
    for field, (name, (low, high)) in zip(fields, FIELDS.items(), strict=True):
        for part in field.split(","):
            match = re.fullmatch(r"(?:\*|(\d+)(?:-(\d+))?)(?:/([1-9]\d*))?", part)
            if match is None or not all(low <= int(it) <= high for it in match.groups()[:2] if it):
                raise ValueError(f"{field!r} is no {name} from {low} to {high}")


@pytest.mark.parametrize("text", ["30 1 * * *", "*/15 0-6 1,15 * 1-5", "0 0 31 12 7"])
def test_what_cron_takes_is_taken(text: str) -> None:
    check_when(text)


@pytest.mark.parametrize(
    "text", ["30 1 * *", "60 1 * * *", "30 24 * * *", "30 1 0 * *", "x 1 * * *", "1-99 1 * * *"]
)
def test_this_check_refuses_what_cron_would(text: str) -> None:
    with pytest.raises(ValueError):
        check_when(text)


# --- crontab


def crontab_lines(schedules: Path) -> tuple[dict[str, str], str, str]:
    """Variables, the five fields, and the command of the only job."""
    text = (schedules / "crontab").read_text(encoding="utf-8")
    assert text.endswith("\n")  # cron ignores a last line without its end
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    variables = dict(line.split("=", 1) for line in lines[:-1])
    assert all(re.fullmatch(r"[A-Z_]+", name) for name in variables)
    *fields, command = lines[-1].split(None, len(FIELDS))
    return variables, " ".join(fields), command


def test_the_crontab_has_a_time_and_a_command_that_exists(schedules: Path, repo_root: Path, parse) -> None:
    variables, when, command = crontab_lines(schedules)
    check_when(when)
    assert "%" not in command  # cron reads it as the end of the line
    assert variables["RAY_AUTH_MODE"] == "token" and variables["SHELL"] == "/bin/bash"
    words = shlex.split(command)
    start = words.index(".venv/bin/python")
    assert (repo_root / words[start + 1]).is_file()
    options = parse(words[start + 2 : words.index(">")])
    assert (repo_root / config_of(options, Path())).is_file() and options.executor == "ray"
    assert subprocess.run(["bash", "-n", "-c", command], check=False).returncode == 0


@pytest.fixture
def run_line(schedules: Path, tmp_path: Path):
    """Runs the crontab's command in a home whose Python is the given script."""

    def run(python: str) -> subprocess.CompletedProcess[str]:
        folder = tmp_path / "kvmerger" / ".venv" / "bin"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "python").write_text(f"#!/bin/sh\n{python}\n")
        (folder / "python").chmod(stat.S_IRWXU)
        _, _, command = crontab_lines(schedules)
        environment = os.environ | {"HOME": str(tmp_path)}
        return subprocess.run(
            ["/bin/bash", "-c", command], env=environment, capture_output=True, text=True, check=False
        )

    return run


def test_a_night_that_passes_prints_nothing_so_nothing_is_mailed(run_line, tmp_path: Path) -> None:
    result = run_line('echo "the verdict of $2"')
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    log = tmp_path / "kvmerger" / "results" / "nightly.log"
    assert log.read_text() == "the verdict of --config\n"


@pytest.mark.parametrize("code", [1, 2, 3, 4])
def test_any_other_night_prints_its_code_and_its_last_lines(run_line, code: int) -> None:
    result = run_line(f"seq 100; exit {code}")
    assert result.returncode == code
    assert result.stdout.splitlines() == [f"kvmerger nightly ended with {code}", *map(str, range(71, 101))]


def test_a_second_night_does_not_start_beside_the_first(run_line, tmp_path: Path) -> None:
    (tmp_path / "kvmerger" / "results").mkdir(parents=True)
    with subprocess.Popen(
        ["flock", str(tmp_path / "kvmerger" / "results" / "nightly.lock"), "cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        holder.stdin.write(b"held\n")
        holder.stdin.flush()
        holder.stdout.readline()  # the lock is taken once `cat` answers
        result = run_line("touch ran")
        holder.stdin.close()
    assert result.returncode == 75 and "ended with 75" in result.stdout
    assert not (tmp_path / "kvmerger" / "ran").exists()


# --- Kubernetes


@pytest.mark.parametrize("name", ["cronjob", "storage"])
def test_kubernetes_accepts_the_manifest(schedules: Path, name: str) -> None:
    kubernetes_validate.validate(manifest(schedules, name), KUBERNETES, strict=True)


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_kuberay_accepts_the_manifest(schedules: Path, name: str) -> None:
    validate_ray(manifest(schedules, name))


def changed(loaded: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with one value set, the keys on the way joined by dots."""
    result = copy.deepcopy(loaded)
    *parents, last = path.split(".")
    place: Any = result
    for key in parents:
        place = place[int(key)] if isinstance(place, list) else place[key]
    place[last] = value
    return result


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("cronjob", "spec.concurencyPolicy", "Forbid"),
        ("cronjob", "spec.jobTemplate.spec.backoffLimit", "0"),
        ("cronjob", "spec.jobTemplate.spec.template.spec.containers.0.command", "/bin/bash"),
        ("storage", "spec.accessMode", ["ReadWriteOnce"]),
        ("rayjob", "spec.entryPoint", "python"),
        ("rayjob", "spec.backoffLimit", "0"),
        ("rayjob", "spec.submissionMode", "K8SJobMode"),
        ("rayjob", "spec.rayClusterSpec.authOptions.mode", "Token"),
        ("rayjob", "spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus", 0),
        (
            "rayjob",
            "spec.rayClusterSpec.workerGroupSpecs.0.template.spec.containers.0.imagePulPolicy",
            "Always",
        ),
        ("raycluster", "spec.headGroupSpec.template.spec.containers.0.ports.0.containerPort", "6379"),
        ("raycluster", "apiVersion", "ray.io/v1alpha1"),
    ],
)
def test_these_checks_refuse_a_wrong_key_or_type(schedules: Path, name: str, path: str, value: Any) -> None:
    wrong = changed(manifest(schedules, name), path, value)
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        validate_ray(wrong) if name.startswith("ray") else kubernetes_validate.validate(
            wrong, KUBERNETES, strict=True
        )


def test_a_regression_is_not_tried_again_and_nights_do_not_overlap(schedules: Path) -> None:
    spec = manifest(schedules, "cronjob")["spec"]
    check_when(spec["schedule"])
    zoneinfo.ZoneInfo(spec["timeZone"])
    assert spec["concurrencyPolicy"] == "Forbid" and spec["jobTemplate"]["spec"]["backoffLimit"] == 0
    assert spec["jobTemplate"]["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    assert manifest(schedules, "rayjob")["spec"]["backoffLimit"] == 0


def container(loaded: dict[str, Any]) -> dict[str, Any]:
    """The CronJob's only one."""
    (only,) = loaded["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert isinstance(only, dict)
    return only


def nightly_words(schedules: Path) -> dict[str, list[str]]:
    """What each manifest runs, from the interpreter on."""
    script = "\n".join(container(manifest(schedules, "cronjob"))["args"]).replace("\\\n", " ")
    (submitted,) = re.findall(r"ray job submit .* -- (.*) &$", script, flags=re.MULTILINE)
    entrypoint = manifest(schedules, "rayjob")["spec"]["entrypoint"]
    return {"cronjob": submitted.split(), "rayjob": entrypoint.split()}


@pytest.mark.parametrize("name", ["cronjob", "rayjob"])
def test_the_command_is_there_in_the_image_and_our_parser_takes_it(
    schedules: Path, repo_root: Path, parse, name: str
) -> None:
    python, script, *arguments = nightly_words(schedules)[name]
    assert python == f"{IN_IMAGE}/.venv/bin/python" and script.startswith(IN_IMAGE)
    assert (repo_root / Path(script).relative_to(IN_IMAGE)).is_file()
    options = parse(arguments)
    assert options.executor == "ray" and Path(options.output_dir).is_absolute()
    (config_mount,) = (
        mount
        for template in pod_templates(manifest(schedules, "rayjob"))
        for mount in template["spec"]["containers"][0]["volumeMounts"]
        if mount["name"] == "config"
    )
    assert config_of(options, Path()).is_relative_to(config_mount["mountPath"])


def test_an_entrypoint_has_nothing_for_a_shell_to_read(schedules: Path) -> None:
    assert re.fullmatch(r"[\w./ =-]+", manifest(schedules, "rayjob")["spec"]["entrypoint"])


def test_both_clusters_are_the_same_and_have_the_pinned_ray(schedules: Path, repo_root: Path) -> None:
    clusters = [cluster_spec(manifest(schedules, name)) for name in ("raycluster", "rayjob")]
    assert clusters[0] == clusters[1]
    constraints = (repo_root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"ray=={clusters[0]['rayVersion']}" in constraints


def test_every_side_has_the_token_from_one_secret_and_no_manifest_holds_it(schedules: Path) -> None:
    submit = {it["name"]: it for it in container(manifest(schedules, "cronjob"))["env"]}
    secret = submit["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
    assert submit["RAY_AUTH_MODE"]["value"] == "token" and secret["key"] == "auth_token"
    for name in ("raycluster", "rayjob"):
        options = cluster_spec(manifest(schedules, name))["authOptions"]
        assert options == {"mode": "token", "secretName": secret["name"]}


def test_names_meet_across_the_files(schedules: Path) -> None:
    cluster, job = manifest(schedules, "raycluster"), manifest(schedules, "cronjob")
    address = {it["name"]: it.get("value") for it in container(job)["env"]}["RAY_API_SERVER_ADDRESS"]
    assert (
        address == f"http://{cluster['metadata']['name']}-head-svc:8265"
    )  # KubeRay's name for the head's service
    claims = {
        volume["persistentVolumeClaim"]["claimName"]
        for template in pod_templates(cluster)
        for volume in template["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert claims == {manifest(schedules, "storage")["metadata"]["name"]}
    images = {template["spec"]["containers"][0]["image"] for template in pod_templates(cluster)}
    assert images == {container(job)["image"]}


def test_the_image_has_all_that_installing_needs_and_is_built_from_what_is_there(
    schedules: Path, repo_root: Path
) -> None:
    """The same files as cluster.yaml brings to a machine."""
    text = (schedules / "Dockerfile").read_text(encoding="utf-8")
    copied = [word for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for word in line.split()[:-1]]
    assert [name for name in copied if not (repo_root / name).exists()] == []
    mounts = yaml.safe_load((repo_root / "cluster.yaml").read_text(encoding="utf-8"))["file_mounts"]
    assert set(copied) == {source for source in mounts.values() if not source.startswith("~")}
    assert f"WORKDIR {IN_IMAGE}\n" in text and "make install" in text


def test_the_documentation_creates_what_the_manifests_ask_for(schedules: Path, repo_root: Path) -> None:
    text = (repo_root / "docs" / "scheduling.md").read_text(encoding="utf-8")
    (volume,) = (
        it for it in pod_templates(manifest(schedules, "rayjob"))[0]["spec"]["volumes"] if "configMap" in it
    )
    assert f"kubectl create configmap {volume['configMap']['name']} --from-file=nightly.yaml=" in text
    secret = cluster_spec(manifest(schedules, "rayjob"))["authOptions"]["secretName"]
    assert f"kubectl create secret generic {secret} --from-literal=auth_token=" in text
    for path in schedules.iterdir():
        assert f"jobs/schedules/{path.name}" in text
