"""A Ray cluster of several nodes on this machine, in a process of its own."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_NUM_NODES = 2
_NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
_HEALTH_CHECKS = {  # Ray notices a dead node after 2 s instead of 15
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 4,
}


@dataclass(frozen=True, slots=True)
class Nodes:
    """A Ray cluster of this machine: a head without cores, and nodes of one core each, by their raylet's process id."""

    address: str
    raylets: tuple[int, ...]

    def actors(self) -> dict[int, list[int]]:
        """The living engine actors of each node that lives."""
        found: dict[int, list[int]] = {}
        for raylet in self.raylets:
            with suppress(psutil.Error):
                inner = psutil.Process(raylet).children(recursive=True)
                found[raylet] = [it.pid for it in inner if _is_actor(it)]
        return found


@contextmanager
def cluster() -> Iterator[Nodes]:
    """One that lives as long as the block."""
    told, telling = os.pipe()
    owner = os.fork()  # Ray's threads are not to be in the process whose forks are drivers
    if owner == 0:
        _own_a_cluster(telling)
    os.close(telling)
    try:
        with os.fdopen(told) as pipe:
            address, raylets = json.loads(pipe.readline())
        yield Nodes(address, tuple(raylets))
    finally:
        os.kill(owner, signal.SIGTERM)
        os.waitpid(owner, 0)


def _own_a_cluster(telling: int) -> None:
    """The life of a process that has a cluster; never returns."""
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        from ray._private.ray_constants import PROCESS_TYPE_RAYLET
        from ray.cluster_utils import Cluster

        head = {**_NODE, "num_cpus": 0, "include_dashboard": False, "_system_config": _HEALTH_CHECKS}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            nodes = [cluster.add_node(**_NODE) for _ in range(_NUM_NODES)]
            raylets = [it.all_processes[PROCESS_TYPE_RAYLET][0].process.pid for it in nodes]
            os.write(telling, f"{json.dumps([cluster.address, raylets])}\n".encode())
            while True:
                signal.pause()
        finally:
            cluster.shutdown()
    except KeyboardInterrupt:
        pass
    finally:
        os._exit(0)


def _is_actor(process: psutil.Process) -> bool:
    try:
        return any("ray::EngineActor" in word for word in process.cmdline())
    except psutil.Error:
        return False
