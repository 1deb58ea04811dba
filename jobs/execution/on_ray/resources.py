"""How many actors there are and what each asks Ray for, decided from the settings and the nodes alone.

Never more actors than the nodes hold, unless the cluster can grow.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.settings.schema import ActorSettings, Settings

_ROUNDING = 1e-9  # a third of a GPU fits three times, whatever its last bit says


class ResourcesError(ValueError):
    """No actor found a place with the resources it asks for, or not as many as were asked for."""


@dataclass(frozen=True, slots=True)
class ActorResources:
    """How many actors at most, and what each of them asks Ray for."""

    num_actors: int
    num_cpus: float
    num_gpus: float

    def describe(self) -> str:
        """For people: `2 actors with 1 CPUs and 0.25 GPUs each`."""
        each = f"{self.num_cpus:g} CPUs and {self.num_gpus:g} GPUs"
        return (
            f"1 actor with {each}" if self.num_actors == 1 else f"{self.num_actors} actors with {each} each"
        )


def resources_for(
    nodes: Sequence[Mapping[str, Any]], *, device: str, asked: ActorSettings, can_grow: bool = False
) -> ActorResources:
    """What is asked for; where that is null, a GPU per actor where there are any, else all cores of the largest node.

    `nodes` is `ray.nodes()`. Without a count there are as many actors as the nodes hold at once; with one, CPU actors
    share the cores. `device: cpu` leaves GPUs alone; `cuda` asks for one even if no node has it yet. `can_grow`: more
    machines may come, so nothing is too much.

    Raises:
        ResourcesError: the nodes can never hold that much.
    """
    # `ray.nodes()` goes on listing nodes that have died.
    totals = [node["Resources"] for node in nodes if node["Alive"]]
    num_gpus = asked.num_gpus
    if num_gpus is None:
        num_gpus = 1.0 if device.startswith("cuda") or (has_gpus(nodes) and device != "cpu") else 0.0
    num_cpus = asked.num_cpus
    if num_cpus is None:
        # Beside a GPU one thread launches kernels; on a CPU, Ray sets OMP_NUM_THREADS from this number.
        num_cpus = 1.0 if num_gpus else _largest_share(totals, asked.count or 1)
    num_held = num_that_fit(totals, num_cpus, num_gpus)
    wanted = ActorResources(asked.count or max(1, num_held), num_cpus, num_gpus)
    if wanted.num_actors > num_held and not can_grow:
        raise ResourcesError(_too_much(wanted, num_held, totals))
    return wanted


def has_gpus(nodes: Sequence[Mapping[str, Any]]) -> bool:
    """Whether any node of `ray.nodes()` that is alive has a GPU."""
    return any(node["Resources"].get("GPU", 0) for node in nodes if node["Alive"])


def device_of_the_actors(settings: Settings) -> str:
    """The device the work will be done on; `auto` is decided by what actors ask for, else by the nodes they will run on.

    Raises:
        RayStartError: the cluster that is to be joined cannot be.
    """
    device, num_gpus = settings.model.device, settings.actors.num_gpus
    if settings.executor != "ray" or device != "auto":
        return device
    if num_gpus is not None:
        return "cuda" if num_gpus else "cpu"
    if os.environ.get("RAY_ADDRESS"):
        # Asked of the cluster, since the driver's machine may have no GPU; imported here, since a plan needs no Ray.
        from jobs.execution.on_ray.cluster import connected

        with connected(()) as cluster:
            return "cuda" if has_gpus(cluster.nodes) else "cpu"
    return device


def name_of_the_device(settings: Settings, device: str) -> str | None:
    """The name of the device that the work will be done on; None where only the machine that does it knows.

    Torch looks for it in this process, which may keep others off a GPU in exclusive mode: for plans and inline runs.
    """
    if settings.executor == "ray" and os.environ.get("RAY_ADDRESS"):
        return None
    import torch

    from kvmerger.device import device_name

    place = torch.device(device)
    if settings.executor == "inline" or place.type != "cuda":
        return device_name(place)
    # A Ray of this machine gives each actor a GPU of its choice: with several kinds, nobody knows which one.
    names = {device_name(torch.device("cuda", index)) for index in range(torch.cuda.device_count())}
    return names.pop() if len(names) == 1 else None


def refuse_absent_gpus(settings: Settings) -> None:
    """Raise `ResourcesError` where actors ask for a GPU and the Ray that a sweep starts here would have none.

    Of a cluster that is joined nothing is known here, and nothing is refused.
    """
    asked = settings.actors.num_gpus
    if not asked or settings.executor != "ray" or os.environ.get("RAY_ADDRESS"):
        return
    import torch

    if not torch.cuda.is_available():
        raise ResourcesError(
            f"actors.num_gpus is {asked:g}, and this machine has no GPU that torch can use; leave it at its default, or "
            "join a cluster with RAY_ADDRESS"
        )


def num_that_fit(totals: Iterable[Mapping[str, float]], num_cpus: float, num_gpus: float) -> int:
    """How many actors the nodes hold together; each lives on one node, and a fraction of a GPU on one GPU."""
    return sum(_num_on_node(total, num_cpus, num_gpus) for total in totals)


def _num_on_node(total: Mapping[str, float], num_cpus: float, num_gpus: float) -> int:
    by_cpus = math.floor(total.get("CPU", 0) / num_cpus + _ROUNDING) if num_cpus else None
    # Ray never spreads a fraction over two GPUs: two GPUs hold two actors of 0.6 each, not three.
    by_gpus = math.floor(total.get("GPU", 0)) * math.floor(1 / num_gpus + _ROUNDING) if num_gpus else None
    return min(number for number in (by_cpus, by_gpus) if number is not None)


def _largest_share(totals: Sequence[Mapping[str, float]], num_actors: int) -> float:
    """The most cores, at least 1, that each of so many actors can have at once."""
    most = math.floor(max((total.get("CPU", 0) for total in totals), default=0))
    shares = range(most, 1, -1)
    return float(next((share for share in shares if num_that_fit(totals, share, 0) >= num_actors), 1))


def _too_much(wanted: ActorResources, num_held: int, totals: Sequence[Mapping[str, float]]) -> str:
    nodes = "; ".join(f"{total.get('CPU', 0):g} CPUs and {total.get('GPU', 0):g} GPUs" for total in totals)
    return (
        f"{wanted.describe()} do not fit: this cluster holds {num_held} of them at once and cannot grow by itself "
        f"(its nodes have {nodes or 'nothing'}); change `actors` (count, num_cpus, num_gpus) or `model.device`, "
        f"add nodes, or run with `executor: inline`"
    )
