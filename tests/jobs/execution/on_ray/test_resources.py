"""Actors never outnumber what the nodes hold, take what they were told to, and share where nobody said how."""

from typing import Any

import pytest
import torch

from jobs.execution.on_ray.resources import (
    ActorResources,
    ResourcesError,
    num_that_fit,
    refuse_absent_gpus,
    resources_for,
)
from jobs.settings.schema import ActorSettings
from tests.fakes.engine import make_settings


def node(is_alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"Alive": is_alive, "Resources": resources}


def resources(nodes: list[dict[str, Any]], device: str = "auto", **asked: Any) -> ActorResources:
    return resources_for(nodes, device=device, asked=ActorSettings(**asked))


@pytest.mark.parametrize(
    ("nodes", "device", "expected"),
    [
        ([node(CPU=8)], "auto", ActorResources(1, 8, 0)),
        ([node(CPU=4), node(CPU=16)], "auto", ActorResources(1, 16, 0)),
        ([node(CPU=8), node(CPU=8)], "auto", ActorResources(2, 8, 0)),
        ([node(CPU=8, GPU=4), node(CPU=8, GPU=2)], "auto", ActorResources(6, 1, 1)),
        ([node(CPU=2, GPU=4)], "auto", ActorResources(2, 1, 1)),
        ([node(CPU=8, GPU=4)], "cpu", ActorResources(1, 8, 0)),
        ([node(CPU=8), node(is_alive=False, CPU=8, GPU=8)], "auto", ActorResources(1, 8, 0)),
    ],
)
def test_an_actor_gets_one_gpu_or_all_cores(
    nodes: list[dict[str, Any]], device: str, expected: ActorResources
) -> None:
    assert resources(nodes, device) == expected


@pytest.mark.parametrize(
    ("nodes", "asked", "expected"),
    [
        ([node(CPU=8)], {"count": 2}, ActorResources(2, 4, 0)),
        ([node(CPU=8)], {"count": 3}, ActorResources(3, 2, 0)),
        ([node(CPU=4), node(CPU=16)], {"count": 2}, ActorResources(2, 8, 0)),
        ([node(CPU=8)], {"num_cpus": 2.5}, ActorResources(3, 2.5, 0)),
        ([node(CPU=8)], {"num_cpus": 0.5, "count": 4}, ActorResources(4, 0.5, 0)),
        ([node(CPU=8, GPU=1)], {"num_gpus": 0.25}, ActorResources(4, 1, 0.25)),
        ([node(CPU=8, GPU=2)], {"num_gpus": 0.4}, ActorResources(4, 1, 0.4)),
        ([node(CPU=8, GPU=1)], {"num_gpus": 1 / 3}, ActorResources(3, 1, 1 / 3)),
        ([node(CPU=8, GPU=2)], {"num_gpus": 0}, ActorResources(1, 8, 0)),
        ([node(CPU=8, GPU=2)], {"count": 1, "num_cpus": 4}, ActorResources(1, 4, 1)),
    ],
)
def test_what_is_asked_for_is_taken_and_the_rest_is_shared(
    nodes: list[dict[str, Any]], asked: dict[str, Any], expected: ActorResources
) -> None:
    assert resources(nodes, **asked) == expected


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        (
            {"count": 9, "num_cpus": 1},
            "9 actors with 1 CPUs and 0 GPUs each do not fit: this cluster holds 8",
        ),
        ({"num_cpus": 9}, r"1 actor with 9 CPUs .* holds 0 .* 8 CPUs and 0 GPUs"),
        ({"num_gpus": 0.5}, r"0\.5 GPUs .* holds 0"),
    ],
)
def test_more_than_the_nodes_hold_is_refused_unless_the_cluster_can_grow(
    asked: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ResourcesError, match=complaint):
        resources([node(CPU=8)], **asked)
    resources_for([node(CPU=8)], device="auto", asked=ActorSettings(**asked), can_grow=True)


def test_a_gpu_that_no_node_has_yet_may_come() -> None:
    made = resources_for([node(CPU=8)], device="cuda", asked=ActorSettings(), can_grow=True)
    assert made == ActorResources(1, 1, 1)


def test_no_share_of_cores_is_larger_than_fits() -> None:
    """Held against placing actors one by one, node after node."""
    for sizes in ([1], [3, 5], [2, 2, 7], [16, 4, 4]):
        for count in range(1, sum(sizes) + 1):
            share = int(resources([node(CPU=size) for size in sizes], count=count).num_cpus)
            for cores, fits in ((share, True), (share + 1, False)):
                free, placed = list(sizes), 0
                while placed < count and max(free) >= cores:
                    free[free.index(max(free))] -= cores
                    placed += 1
                assert (placed == count) is fits, (sizes, count, cores)
            assert num_that_fit([{"CPU": size} for size in sizes], share, 0) >= count


@pytest.mark.parametrize(
    ("num_gpus", "executor", "address", "has_cuda", "is_refused"),
    [
        (1, "ray", None, False, True),
        (0.5, "ray", None, False, True),
        (1, "ray", None, True, False),
        (0, "ray", None, False, False),
        (None, "ray", None, False, False),
        (1, "inline", None, False, False),
        (1, "ray", "head:6379", False, False),
    ],
)
def test_gpus_that_this_machine_lacks_are_refused_before_the_run(
    num_gpus: float | None,
    executor: str,
    address: str | None,
    has_cuda: bool,
    is_refused: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    settings = make_settings(actors={"num_gpus": num_gpus}, executor=executor)
    if not is_refused:
        refuse_absent_gpus(settings)
        return
    with pytest.raises(ResourcesError, match=f"actors.num_gpus is {num_gpus:g}, and this machine has no GPU"):
        refuse_absent_gpus(settings)
