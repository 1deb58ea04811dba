"""A process is known by its id and its start: one that is gone, or another of its id, is not it."""

import os
import subprocess
import sys

from jobs.console.processes import machine, started


def test_a_process_has_one_start_while_it_lives_and_none_afterwards() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        first = started(child.pid)
        assert first is not None and first == started(child.pid)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet fetched by us
        assert started(child.pid) is None
    assert started(child.pid) is None


def test_the_machine_is_the_same_for_all_its_processes(repo_root: object) -> None:
    command = "from jobs.console.processes import machine; print(machine())"
    done = subprocess.run(
        [sys.executable, "-c", command], cwd=str(repo_root), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == machine()
