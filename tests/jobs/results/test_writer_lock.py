"""One writer: a second is told who it is, a dead one's place is taken over, and nothing stays behind."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from jobs.results.schema import ResultError
from jobs.results.store import ResultStore
from jobs.results.writer_lock import LOCK_NAME, FolderInUseError, Writer, WriterLock, refuse_other_writer
from tests.fakes.rows import make_row

_HOLD = """
import sys, time
from jobs.results.store import ResultStore
with ResultStore(sys.argv[1]).held():
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def other_driver(root: Path, repo_root: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", _HOLD, str(root), "--set", "tracking.uri=http://joe:PASSW@host"]
    with subprocess.Popen(command, cwd=repo_root, stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None and other.stdout.readline() == b"held\n"
            yield other
        finally:
            other.kill()


def leave_behind(root: Path, idle_s: float, **changes: object) -> None:
    """The file of a writer that is silent since `idle_s`."""
    root.mkdir(exist_ok=True)
    path = root / LOCK_NAME
    path.write_text(json.dumps(asdict(replace(Writer.this(), **changes))))
    os.utime(path, (time.time() - idle_s,) * 2)


def test_a_second_driver_is_told_who_holds_the_folder(tmp_path: Path, repo_root: Path) -> None:
    store = ResultStore(tmp_path / "results")
    with other_driver(store.root, repo_root) as other:
        with pytest.raises(FolderInUseError) as caught, store.held():
            pass
        told = str(caught.value)
        assert f"process {other.pid} on " in told and "--set" in told and "PASSW" not in told
        assert "PASSW" not in (store.root / LOCK_NAME).read_text()
        os.kill(other.pid, signal.SIGSTOP)  # stopped is not dead
        with pytest.raises(FolderInUseError), store.held():
            pass
        assert store.read_plan() is None  # readers are not asked
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
        with store.held():
            store.write_unit("u1", [make_row("a")])
    assert [path.name for path in store.root.iterdir()] == ["rows"]


def test_another_process_of_the_dead_ones_id_does_not_hold_it(tmp_path: Path) -> None:
    leave_behind(tmp_path, 0.0, pid=os.getpid(), process_started="1")
    with ResultStore(tmp_path).held():
        pass


def test_the_lock_is_let_go_by_whatever_ends_the_block(tmp_path: Path) -> None:
    root = tmp_path / "new" / "results"
    for ends in (KeyboardInterrupt, SystemExit, ResultError):
        with pytest.raises(ends), ResultStore(root).held():
            assert (root / LOCK_NAME).exists()
            raise ends
        assert list(tmp_path.iterdir()) == []  # folders too, where nothing came into them


def test_a_writer_on_another_machine_is_dead_after_its_limit(tmp_path: Path) -> None:
    leave_behind(tmp_path, 1000.0, machine="elsewhere 1 2")
    with ResultStore(tmp_path).held():
        pass
    leave_behind(tmp_path, 0.0, machine="elsewhere 1 2")
    with WriterLock(tmp_path, beat_s=0.05, limit_s=1.0).held():  # waits for the limit
        pass


def test_a_writer_on_another_machine_that_stirs_holds_it(tmp_path: Path) -> None:
    leave_behind(tmp_path, 5.0, machine="elsewhere 1 2", command="sweep.py far.yaml")
    path, ended = tmp_path / LOCK_NAME, threading.Event()

    def stir() -> None:
        while not ended.wait(0.1):
            os.utime(path)

    beating = threading.Thread(target=stir)
    beating.start()
    try:
        lock = WriterLock(tmp_path, beat_s=0.05, limit_s=60.0)
        with pytest.raises(FolderInUseError, match=r"elsewhere.*far\.yaml"), lock.held():
            pass
        with pytest.raises(FolderInUseError, match="elsewhere"):
            refuse_other_writer(tmp_path, limit_s=60.0)
    finally:
        ended.set()
        beating.join()
    assert path.exists()


def test_a_writer_touches_its_file(tmp_path: Path) -> None:
    with WriterLock(tmp_path, beat_s=0.02).held():
        path = tmp_path / LOCK_NAME
        os.utime(path, (1.0, 1.0))
        for _ in range(500):
            if path.stat().st_mtime > 1.0:
                break
            time.sleep(0.02)
        assert path.stat().st_mtime > 1.0


def test_who_was_taken_for_dead_writes_nothing_more(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    with store.held():
        store.write_unit("u1", [make_row("a")])
        leave_behind(tmp_path, 0.0, machine="elsewhere 1 2")
        with pytest.raises(FolderInUseError, match=r"taken over by .*elsewhere"):
            store.write_unit("u2", [make_row("b", "u2")])
    assert store.identities() == {"a"}
    assert (tmp_path / LOCK_NAME).exists()  # the other one's


def test_a_lock_that_was_swept_away_is_taken_again(tmp_path: Path, repo_root: Path) -> None:
    store = ResultStore(tmp_path)
    with store.held():
        (tmp_path / LOCK_NAME).unlink()
        store.write_unit("u1", [make_row("a")])
        assert (tmp_path / LOCK_NAME).exists()


@pytest.mark.parametrize("text", ["", "{", "3", '{"pid": 1}', "[" * 100_000])
def test_a_lock_that_says_nothing_is_told_with_the_remedy(tmp_path: Path, text: str) -> None:
    (tmp_path / LOCK_NAME).write_text(text)
    with pytest.raises(ResultError, match=r"writer\.lock.*delete it"), ResultStore(tmp_path).held():
        pass


def test_of_many_that_find_a_dead_writer_one_takes_its_place(tmp_path: Path, repo_root: Path) -> None:
    leave_behind(tmp_path, 0.0, process_started="1")
    command = [sys.executable, "-c", _HOLD, str(tmp_path)]
    running = [
        subprocess.Popen(command, cwd=repo_root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for _ in range(5)
    ]
    try:
        for _ in range(600):
            if sum(it.poll() is None for it in running) == 1:
                break
            time.sleep(0.1)
        (alive,) = [it for it in running if it.poll() is None]
        assert json.loads((tmp_path / LOCK_NAME).read_bytes())["pid"] == alive.pid
    finally:
        for it in running:
            with suppress(OSError):
                it.kill()
            it.communicate()


def test_a_folder_that_may_only_be_read_can_be_kept_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with ResultStore(tmp_path).kept_still():
        assert list(tmp_path.iterdir()) == []
    leave_behind(tmp_path, 0.0)
    with pytest.raises(FolderInUseError), ResultStore(tmp_path).kept_still():
        pass
