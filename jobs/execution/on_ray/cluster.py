"""A connection to Ray that has the code its workers need, and what we know of the cluster behind it.

A Ray that was started here is stopped here; one that was joined is left as it was found.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray import exceptions as ray_errors
from ray.experimental import internal_kv

from jobs.console.interrupts import sigterm_interrupts
from jobs.console.paths import JOB_VARIABLE
from jobs.execution.on_ray.shipped_code import (
    code_to_send,
    runtime_env_to_join,
    runtime_env_to_start,
    source_alone,
)

_CONNECT_TIMEOUT_S = 5.0
_OBJECT_STORE_BYTES = 200 * 2**20  # rows are small; Ray would take a third of the memory
# Ray's own 15 would let every other program of the machine go before the model.
_WORKER_NICENESS = 0
_AUTOSCALER_STATUS_KEY = "__autoscaling_status"


class RayStartError(ValueError):
    """Ray cannot be reached or started; raised before any work is done."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """What a run sees at its start: `nodes` is `ray.nodes()`; `can_grow`: an autoscaler may add machines.

    `job_id` is the run's in a cluster that it joined, None in one that ends with it; `dashboard` is an address.
    """

    nodes: Sequence[Mapping[str, Any]]
    can_grow: bool
    job_id: str | None = None
    dashboard: str | None = None


@contextmanager
def connected(code: Sequence[Path]) -> Iterator[Cluster]:
    """An initialised Ray: the caller's own, the cluster that RAY_ADDRESS names, or a local one, which is stopped again.

    `code` are the files and folders that workers import; a Ray that is the caller's own has them already.
    SIGTERM raises KeyboardInterrupt inside.

    Raises:
        RayStartError: in seconds, with the remedy.
    """
    if ray.is_initialized():
        yield _cluster()
        return
    address = os.environ.get("RAY_ADDRESS")
    with sigterm_interrupts():
        try:
            context = _join(address, code) if address else _start(code)
        except SystemExit as error:
            # Early in `ray.init` Ray puts a handler of its own in the place of ours, and is at it for seconds.
            if error.code == signal.SIGTERM:
                raise KeyboardInterrupt from error
            raise
        except (
            OSError,
            RuntimeError,
            ValueError,
            ray_errors.RayError,
        ) as error:  # ConnectionError is an OSError
            raise RayStartError(
                f"Ray at {address or 'this machine'} cannot be used ({type(error).__name__}: {error}); check that "
                f"RAY_ADDRESS is right and RAY_AUTH_MODE and the token are the cluster's, or run with "
                f"`executor: inline`"
            ) from error
        # Ours again, until Ray is down.
        with sigterm_interrupts():
            try:
                yield _joined(context) if address else Cluster(ray.nodes(), can_grow=False)
            finally:
                ray.shutdown()


def job_env() -> dict[str, Any] | None:
    """The `runtime_env` of the submitted job that this process drives; None outside a job."""
    config = os.environ.get(JOB_VARIABLE)  # how the job was asked for, as JSON
    return None if config is None else dict(json.loads(config).get("runtime_env") or {})


def _cluster() -> Cluster:
    nodes = ray.nodes()
    return Cluster(nodes, _can_grow(nodes))


def _can_grow(nodes: Sequence[Mapping[str, Any]]) -> bool:
    """Whether machines may be added; True if the cluster does not say."""
    status = internal_kv._internal_kv_get(_AUTOSCALER_STATUS_KEY)
    report = json.loads(status).get("autoscaler_report") if status else None
    if not report:
        return True
    # A head without autoscaling settings runs an autoscaler too, one that only watches: it makes up a type for each node.
    types = {*report.get("active_nodes", {}), *(report.get("idle_nodes") or {})}
    return not types <= {f"node_{node['NodeID']}" for node in nodes}


def _joined(context: Any) -> Cluster:
    """The cluster that `ray.init` has joined, and returned `context` of."""
    dashboard = f"http://{context.dashboard_url}" if context.dashboard_url else None
    return replace(_cluster(), job_id=ray.get_runtime_context().get_job_id(), dashboard=dashboard)


def _join(address: str, code: Sequence[Path]) -> Any:
    _check_listening(address)
    asked = job_env() or {}
    with source_alone(code_to_send(code, asked, Path.cwd())) as copies:
        # Ray has packed and sent them when it returns.
        return ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.WARNING,
            runtime_env=runtime_env_to_join(copies),
        )


def _start(code: Sequence[Path]) -> Any:
    # Ray warns that a cluster it starts is protected by a token; whoever runs a sweep has nothing to do about it.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    return ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
        object_store_memory=_OBJECT_STORE_BYTES,
        runtime_env=runtime_env_to_start(code, os.environ.get("PYTHONPATH", "")) or None,
        _system_config={"worker_niceness": _WORKER_NICENESS},
    )


def _check_listening(address: str) -> None:
    """Raise OSError in seconds if nothing listens at the address."""
    # Ray itself would try for minutes and then end the process.
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT_S).close()
