"""What runs in a process of its own gives its values one by one, and its death is an error that says how."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs.console.child_process import ChildDiedError, yielded
from kvmerger.names import VariantError


def its_own(*values: int) -> Iterator[tuple[int, int]]:
    for value in values:
        yield os.getpid(), value


def leaves(code: int) -> Iterator[int]:
    yield 1
    os._exit(code)


def dies_of(number: int) -> Iterator[int]:
    yield 1
    os.kill(os.getpid(), number)
    time.sleep(60)


def hangs(pid_file: str) -> Iterator[int]:
    Path(pid_file).write_text(str(os.getpid()))
    yield 1
    time.sleep(600)


def leaves_another_behind() -> Iterator[int]:
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(20)"], close_fds=False)
    yield 1
    os._exit(4)


def raises_ours() -> Iterator[int]:
    yield 1
    raise VariantError("no such policy")


class StrangersError(Exception):
    """Of a module that is none of ours."""


def raises_a_strangers() -> Iterator[int]:
    yield 1
    raise StrangersError("boom")


def test_values_come_from_one_other_process() -> None:
    found = list(yielded(its_own, 3, 4))
    assert [value for _, value in found] == [3, 4]
    assert len({pid for pid, _ in found} - {os.getpid()}) == 1


@pytest.mark.parametrize(
    ("function", "argument", "how"),
    [
        (leaves, 0, r"its process ended itself with exit code 0$"),
        (leaves, 7, r"its process ended itself with exit code 7$"),
        (dies_of, signal.SIGSEGV, r"its process died of SIGSEGV$"),
        (dies_of, signal.SIGABRT, r"its process died of SIGABRT$"),
        (
            dies_of,
            signal.SIGKILL,
            r"its process died of SIGKILL, which the system sends when memory runs out$",
        ),
    ],
)
def test_a_death_is_an_error_that_says_how(
    function: Callable[[int], Iterator[int]], argument: int, how: str
) -> None:
    values = yielded(function, argument)
    assert next(values) == 1
    with pytest.raises(ChildDiedError, match=how):
        next(values)


def test_a_process_that_it_leaves_behind_does_not_hide_its_death() -> None:
    begin_s = time.monotonic()
    with pytest.raises(ChildDiedError, match="exit code 4"):
        list(yielded(leaves_another_behind))
    assert time.monotonic() - begin_s < 15


def test_one_that_hangs_is_ended_with_the_limit_in_the_sentence(tmp_path: Path) -> None:
    values = yielded(hangs, str(tmp_path / "pid"), limit_s=3.0)
    assert next(values) == 1
    with pytest.raises(ChildDiedError, match=r"^it gave no answer within the limit of 3 s$"):
        next(values)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_one_whose_values_nobody_wants_any_more_is_ended(tmp_path: Path) -> None:
    values = yielded(hangs, str(tmp_path / "pid"))
    assert next(values) == 1
    values.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_errors_of_ours_come_as_they_are_and_a_strangers_with_its_trace() -> None:
    with pytest.raises(VariantError, match=r"^no such policy$"):
        list(yielded(raises_ours))
    with pytest.raises(RuntimeError, match=r"(?s)in raises_a_strangers.*StrangersError: boom"):
        list(yielded(raises_a_strangers))


def test_a_main_script_without_a_guard_is_not_run_again(tmp_path: Path, repo_root: Path) -> None:
    script = tmp_path / "unguarded.py"
    script.write_text(
        "from jobs.console.child_process import yielded\n"
        "from tests.jobs.console.test_child_process import its_own\n"
        "print('ran', [value for _, value in yielded(its_own, 5)])\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=repo_root,
        env={**os.environ, "PYTHONPATH": str(repo_root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "ran [5]\n", done.stderr
