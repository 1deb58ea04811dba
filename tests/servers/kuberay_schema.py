"""The fields of RayCluster and RayJob that our manifests use, strictly: any other key is a mistake until it stands here.

Names, types and words as in KubeRay 1.6 (ray-operator/apis/ray/v1/rayjob_types.go and raycluster_types.go of
github.com/ray-project/kuberay, and docs.ray.io's "KubeRay CRD API reference", v1.6.2). Its own schema is 1.3 MB of
YAML, nearly all of it pod templates: those are held against Kubernetes' own schema instead.
"""

from typing import Any

import jsonschema
import kubernetes_validate

KUBERNETES = "1.37"
_WORDS_TO_WORDS = {"type": "object", "additionalProperties": {"type": "string"}}
_POD_TEMPLATE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["spec"],
    "properties": {"metadata": {"type": "object"}, "spec": {"type": "object"}},
}
_COUNT = {"type": "integer", "minimum": 0}


def _record(required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": required,
        "properties": properties,
    }


CLUSTER_SPEC = _record(
    ["headGroupSpec"],
    rayVersion={"type": "string"},
    authOptions=_record([], mode={"enum": ["disabled", "token"]}, secretName={"type": "string"}),
    headGroupSpec=_record(
        ["rayStartParams", "template"], rayStartParams=_WORDS_TO_WORDS, template=_POD_TEMPLATE
    ),
    workerGroupSpecs={
        "type": "array",
        "items": _record(
            ["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"],
            groupName={"type": "string"},
            replicas=_COUNT,
            minReplicas=_COUNT,
            maxReplicas=_COUNT,
            rayStartParams=_WORDS_TO_WORDS,
            template=_POD_TEMPLATE,
        ),
    },
)
JOB_SPEC = _record(
    ["entrypoint", "rayClusterSpec"],
    entrypoint={"type": "string"},
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    backoffLimit=_COUNT,
    activeDeadlineSeconds={"type": "integer", "minimum": 1},
    shutdownAfterJobFinishes={"type": "boolean"},
    ttlSecondsAfterFinished=_COUNT,
    submitterPodTemplate=_POD_TEMPLATE,
    rayClusterSpec=CLUSTER_SPEC,
)
_SPECS = {"RayCluster": CLUSTER_SPEC, "RayJob": JOB_SPEC}


def validate_ray(manifest: dict[str, Any]) -> None:
    """Raise jsonschema.ValidationError or kubernetes_validate.ValidationError for what KubeRay would not take."""
    metadata = {"type": "object", "minProperties": 1}
    kinds = {"apiVersion": {"const": "ray.io/v1"}, "kind": {"enum": list(_SPECS)}, "metadata": metadata}
    spec = _SPECS[manifest["kind"]]
    jsonschema.validate(manifest, _record([*kinds, "spec"], **kinds, spec=spec))
    for template in pod_templates(manifest):
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": template.get("metadata", {}),
            "spec": template["spec"],
        }
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def cluster_spec(manifest: dict[str, Any]) -> dict[str, Any]:
    """The cluster of a RayCluster or a RayJob."""
    spec: dict[str, Any] = manifest["spec"]
    return spec.get("rayClusterSpec", spec)


def pod_templates(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The head's, then the workers', then the submitter's where there is one."""
    cluster, submitter = cluster_spec(manifest), manifest["spec"].get("submitterPodTemplate")
    workers = [it["template"] for it in cluster["workerGroupSpecs"]]
    return [cluster["headGroupSpec"]["template"], *workers, *([submitter] if submitter else [])]
