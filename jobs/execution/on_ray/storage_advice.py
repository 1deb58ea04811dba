"""What is on a disk that not every node sees, and matters: the results, and the model's folder.

Only the driver writes results and reads data (items travel with their units), so a local disk breaks nothing until
the driver runs somewhere else; every actor loads the model from its own disk.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_MOUNTS = Path("/proc/mounts")
_NETWORK_TYPES = frozenset(
    {
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "lustre",
        "ceph",
        "gpfs",
        "beegfs",
        "glusterfs",
        "afs",
        "orangefs",
        "wekafs",
    }
)
_LOCAL_FUSE_TYPES = frozenset({"fuse.fuse-overlayfs", "fuse.snapfuse"})  # the root of a container
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a run writes and reads. `job_folder` is the unpacked copy a submitted job runs in, None without one."""

    output_dir: Path
    model: str
    host: str
    num_nodes: int
    job_folder: Path | None = None


def storage_advice(placement: Placement, mounts: str | None) -> str | None:
    """One or two sentences that name path and remedy, or None where all is well.

    `mounts` is the text of `/proc/mounts`; without one nothing is known, and nothing is said of shared disks.
    """
    sentences = []
    out, host, job = placement.output_dir, placement.host, placement.job_folder
    has_others = placement.num_nodes > 1 and mounts is not None
    if job is not None and out.is_relative_to(job):
        sentences.append(
            f"results go to {out}, inside the job's own copy of the submitted folder on {host}, which Ray deletes: "
            f"give --output_dir an absolute path"
        )
    elif has_others and not is_network_path(out, mounts or ""):
        sentences.append(
            f"results go to {out} on {host} only, one of {placement.num_nodes} nodes: the same command on another "
            f"node would begin anew; give --output_dir a folder that all nodes share"
        )
    model = Path(placement.model)
    if has_others and model.is_absolute() and not is_network_path(model, mounts or ""):
        sentences.append(
            f"every node loads the model from its own {model}: copy it to the same place everywhere, or put it on a "
            f"disk that all nodes share"
        )
    return ". ".join(sentences) or None


def read_mounts() -> str | None:
    """The mounts of this machine; None where the system does not tell (macOS)."""
    try:
        return _MOUNTS.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def is_network_path(path: Path, mounts: str) -> bool:
    """Whether the path, there or not yet, lies on a network file system by the lines of `/proc/mounts`."""
    kind, deepest = "", -1
    for line in mounts.splitlines():
        _, point, fs_type, *_ = line.split(" ")
        mounted = Path(_OCTAL.sub(lambda match: chr(int(match[1], 8)), point))
        if (
            path.is_relative_to(mounted) and len(mounted.parts) >= deepest
        ):  # a later mount hides an earlier one
            kind, deepest = fs_type, len(mounted.parts)
    return kind in _NETWORK_TYPES or (kind.startswith("fuse.") and kind not in _LOCAL_FUSE_TYPES)
