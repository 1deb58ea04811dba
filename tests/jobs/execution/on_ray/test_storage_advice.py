"""Advice is given where a disk that not all nodes see does harm, once, with path and remedy, and nowhere else."""

from pathlib import Path

import pytest

from jobs.execution.on_ray.storage_advice import Placement, is_network_path, storage_advice

MOUNTS = """\
overlay / overlay rw,relatime 0 0
proc /proc proc rw 0 0
server:/export /shared nfs4 rw,vers=4.2 0 0
/dev/sdb1 /shared/scratch ext4 rw 0 0
bucket /data/with\\040blank fuse.s3fs rw 0 0
fuse-overlayfs /sandbox fuse.fuse-overlayfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "is_network"),
    [
        ("/results/a", False),
        ("/shared/results", True),
        ("/shared", True),
        ("/sharedness", False),
        ("/shared/scratch/results", False),
        ("/data/with blank/x", True),
        ("/sandbox/x", False),
    ],
)
def test_the_deepest_mount_decides(path: str, is_network: bool) -> None:
    assert is_network_path(Path(path), MOUNTS) is is_network


def test_a_later_mount_hides_an_earlier_one() -> None:
    assert not is_network_path(Path("/shared/a"), f"{MOUNTS}/dev/sdc1 /shared ext4 rw 0 0\n")


def placement(out: str, num_nodes: int = 2, model: str = "org/model", job: str | None = None) -> Placement:
    return Placement(Path(out), model, "host7", num_nodes, None if job is None else Path(job))


@pytest.mark.parametrize(
    ("placed", "mounts"),
    [
        (placement("/results", num_nodes=1, model="/models/m", job="/tmp/job"), MOUNTS),
        (placement("/shared/results", num_nodes=9, model="/shared/m"), MOUNTS),
        (placement("/results", model="/models/m"), None),
    ],
)
def test_nothing_is_said_where_all_is_well_or_unknown(placed: Placement, mounts: str | None) -> None:
    assert storage_advice(placed, mounts) is None


@pytest.mark.parametrize(
    ("placed", "parts"),
    [
        (
            placement("/results/a"),
            ["/results/a on host7 only", "2 nodes", "--output_dir a folder that all nodes"],
        ),
        (placement("/shared/a", model="/models/m"), ["its own /models/m"]),
        (
            placement("/tmp/job/out", num_nodes=1, job="/tmp/job"),
            ["/tmp/job/out", "deletes", "absolute path"],
        ),
    ],
)
def test_path_and_remedy_are_named(placed: Placement, parts: list[str]) -> None:
    advice = storage_advice(placed, MOUNTS)
    assert advice is not None and all(part in advice for part in parts)


def test_the_root_of_this_machine_can_be_looked_up() -> None:
    from jobs.execution.on_ray.storage_advice import read_mounts

    mounts = read_mounts()
    if mounts is None:
        pytest.skip("no /proc/mounts here")
    assert not is_network_path(Path("/proc/self"), mounts)
