"""What is done to a sweep, one function a fault: it starts drivers, disturbs them, and says how they ended.

Each draws its moments over the whole life of a driver, a tenth of them at its very start, a tenth at its end. After a fault
the same command is run until it ends with 0, as its user would; a fault that breaks a promise raises Broken.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path

from bench.chaos.disks import Mounted, mount
from bench.chaos.world import Driver, World, actors_of, drive

LIMIT_S = 240.0
_EDGE = 0.1  # of the moments, at either end
_MOST_RUNS = 4
_SHOWN_CHARS = 1500
_FEW_BYTES = 16 * 1024  # less than a file of rows, more than what a driver prints


class Broken(Exception):
    """A promise was broken; says which."""


Fault = Callable[[World, random.Random, float], str]
"""Disturbs a world; `life_s` is how long an undisturbed driver lives. Returns what was done."""


def moment(draw: random.Random, life_s: float) -> float:
    """Seconds from a driver's start."""
    where = draw.random()
    if where < _EDGE:
        return 0.0
    return life_s * (1.0 if where > 1 - _EDGE else draw.random())


def resumed(world: World, is_known: Callable[[str], bool] = lambda _: False) -> list[int]:
    """Run the command until it ends with 0; after a 2, which only `is_known` may explain, its remedy has been followed."""
    codes = []
    for _ in range(_MOST_RUNS):
        driver = drive(world)
        codes.append(driver.end(LIMIT_S))
        told = driver.log.read_text()
        if codes[-1] == 0:
            return codes
        if "Traceback" in told or not (codes[-1] == 3 or (codes[-1] == 2 and is_known(told))):
            raise Broken(f"the same command ended with {codes}: {_excerpt(told)!r}")
    raise Broken(f"the same command never ended with 0: {codes}")


def _told(driver: Driver, allowed: tuple[int, ...]) -> int:
    code = driver.end(LIMIT_S)
    told = driver.log.read_text()
    if code not in allowed or (code != -signal.SIGKILL and "Traceback" in told):
        raise Broken(f"ended with {code}, not {allowed}: {_excerpt(told)!r}")
    return code


def _excerpt(told: str) -> str:
    """The part of what a driver printed that says most."""
    at = told.find("Traceback")
    return told[at : at + _SHOWN_CHARS] if at >= 0 else told[-_SHOWN_CHARS:]


def killed(world: World, draw: random.Random, life_s: float) -> str:
    """SIGKILL of the driver, once to three times."""
    moments = []
    for _ in range(draw.randint(1, 3)):
        driver = drive(world)
        moments.append(moment(draw, life_s))
        driver.wait_until(moments[-1])
        driver.send(signal.SIGKILL)
        _told(driver, (0, -signal.SIGKILL))
    return f"killed at {_times(moments)}"


def interrupted(world: World, draw: random.Random, life_s: float) -> str:
    """SIGTERM or SIGINT of the driver."""
    number = draw.choice([signal.SIGTERM, signal.SIGINT])
    driver, at = drive(world), moment(draw, life_s)
    driver.wait_until(at)
    driver.send(number)
    # Before our handler is set and after it is gone, the signal does what it does to every process.
    is_early_or_late = not 0.3 * life_s < at < 0.9 * life_s
    code = _told(driver, (0, 130, -number) if is_early_or_late else (0, 130))
    return f"{number.name} at {_times([at])}: {code}"


def stopped(world: World, draw: random.Random, life_s: float) -> str:
    """SIGSTOP and SIGCONT of the driver; a second one meanwhile is refused."""
    driver, at = drive(world), moment(draw, life_s)
    is_there = driver.wait_until(at)
    driver.send(signal.SIGSTOP)
    code = None
    if is_there and (world.results / "writer.lock").exists():
        code = _told(drive(world, "second"), (2,))
    driver.send(signal.SIGCONT)
    _told(driver, (0,))
    return f"stopped at {_times([at])}, a second driver: {code}"


def second_driver(world: World, draw: random.Random, life_s: float) -> str:
    """Two drivers on one folder: the later one is refused, or finds all done."""
    first, at = drive(world), moment(draw, life_s)
    first.wait_until(at)
    second = drive(world, "second")
    codes = sorted([_told(first, (0, 2)), _told(second, (0, 2))])
    if codes == [2, 2]:
        raise Broken("both drivers were refused")
    refused = [it for it in (first, second) if it.code == 2]
    if any("is being written by another process, process" not in it.log.read_text() for it in refused):
        raise Broken("the second driver was not told who holds the folder")
    return f"{_times([at])} apart: {codes}"


def full_disk(world: World, draw: random.Random, life_s: float) -> str:
    """No file may grow beyond a few bytes from some moment on (RLIMIT_FSIZE), as on a full disk."""
    driver, at = drive(world), moment(draw, life_s)
    driver.wait_until(at)
    with suppress(ProcessLookupError):
        resource.prlimit(driver.pid, resource.RLIMIT_FSIZE, (_FEW_BYTES, _FEW_BYTES))
    # SIGXFSZ is ignored by Python, so a write fails with EFBIG.
    code = driver.end(LIMIT_S)
    if code not in (0, 2):
        raise Broken(f"a full disk ended with {code}: {_excerpt(driver.log.read_text())!r}")
    return f"from {_times([at])}: {code}"


def full_tmpfs(world: World, draw: random.Random, life_s: float) -> str:
    """A disk that is full for some of the rows."""
    num_bytes = draw.choice([8, 64, 160, 400]) * 1024
    with Mounted(world.folder / "disk", f"size={num_bytes}"):
        code = _told(drive(world), (0, 2))
        mount("-o", "remount,size=64m", str(world.folder / "disk"))
        codes = resumed(world)
        _bring_home(world)
    return f"{num_bytes // 1024} KiB: {code}, then {codes}"


def read_only(world: World, draw: random.Random, life_s: float) -> str:
    """The disk is switched to read-only from some moment on; a start on it is refused, a report is not."""
    with Mounted(world.folder / "disk", "size=64m"):
        driver, at = drive(world), moment(draw, life_s)
        driver.wait_until(at)
        # Refused while a file is open for writing, so it is tried again.
        while driver.is_alive() and not mount("-o", "remount,ro", str(world.folder / "disk"), is_sure=False):
            time.sleep(0.002)
        code = _told(driver, (0, 2))
        mount("-o", "remount,ro", str(world.folder / "disk"))
        again = _told(drive(world), (2,))
        mount("-o", "remount,rw", str(world.folder / "disk"))
        codes = resumed(world)
        _bring_home(world)
    return f"from {_times([at])}: {code}, again {again}, then {codes}"


def damaged(world: World, draw: random.Random, life_s: float) -> str:
    """A finished file is changed, cut off, emptied or overwritten, during the run or after it."""
    driver, at = drive(world), moment(draw, life_s)
    driver.wait_until(at)
    path = _damage(world, draw)
    code = _told(driver, (0, 2, 3))
    codes = resumed(world, lambda told: _remedied(told, path))
    return f"{path.name[-20:] if path else 'nothing'} at {_times([at])}: {code}, then {codes}"


def deleted(world: World, draw: random.Random, life_s: float) -> str:
    """Finished files are taken away during the run or after it; 0 means that all rows are there."""
    driver, at = drive(world), moment(draw, life_s)
    driver.wait_until(at)
    files = sorted((world.results / "rows").glob("*.parquet"))
    taken = draw.sample(files, draw.randint(1, len(files))) if files else []
    for path in taken:
        path.unlink()
    code = _told(driver, (0, 3))
    # While files were still to come, the driver had not looked for the last time.
    if code == 0 and taken and len(files) < world.num_files:
        raise Broken("0 with rows missing")
    return f"{len(taken)} at {_times([at])}: {code}"


def locked_database(world: World, draw: random.Random, life_s: float) -> str:
    """MLflow's database is locked from some moment on for some time."""
    driver, at = drive(world), moment(draw, life_s)
    driver.wait_until(at)
    locked_s = draw.uniform(0.0, 2 * life_s)
    with closing(sqlite3.connect(world.database, timeout=30)) as other:
        with suppress(sqlite3.OperationalError):
            other.execute("BEGIN EXCLUSIVE")
        time.sleep(locked_s)
        other.rollback()
    code = _told(driver, (0, 2))
    return f"at {_times([at])} for {locked_s:.1f} s: {code}"


def actors_killed(world: World, draw: random.Random, life_s: float) -> str:
    """SIGKILL or SIGTERM of an actor, once or twice; the same run goes on."""
    driver, moments = drive(world), sorted(moment(draw, life_s) for _ in range(draw.randint(1, 2)))
    sent = []
    for at in moments:
        driver.wait_until(at)
        number = draw.choice([signal.SIGKILL, signal.SIGTERM])
        for pid in draw.sample(found := actors_of(driver), min(len(found), 1)):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
                sent.append(number.name)
    code = _told(driver, (0, 3))
    return f"{', '.join(sent) or 'none there'} at {_times(moments)}: {code}"


def actors_stopped(world: World, draw: random.Random, life_s: float) -> str:
    """SIGSTOP of an actor for some seconds; the same run goes on."""
    driver, at = drive(world), moment(draw, life_s)
    driver.wait_until(at)
    found = actors_of(driver)[:1]
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        time.sleep(draw.uniform(0.5, 3.0) if number == signal.SIGSTOP else 0.0)
    _told(driver, (0,))
    return f"{len(found)} at {_times([at])}"


def _damage(world: World, draw: random.Random) -> Path | None:
    files = sorted((world.results / "rows").glob("*.parquet"))
    files += [
        it
        for name in ("plan.json", "run_meta.json", "settings.yaml")
        if (it := world.results / name).exists()
    ]
    if not files:
        return None
    path = draw.choice(files)
    whole = path.read_bytes()
    at = draw.randrange(len(whole))
    flipped = whole[:at] + bytes([whole[at] ^ (1 << draw.randrange(8))]) + whole[at + 1 :]
    path.write_bytes(draw.choice([flipped, flipped, whole[:at], b"", draw.randbytes(len(whole))]))
    return path


def _remedied(told: str, path: Path | None) -> bool:
    """Whether the damaged file was named with its remedy, which is then followed."""
    if path is None or path.name not in told or "delete it" not in told:
        return False
    path.unlink()
    return True


def _bring_home(world: World) -> None:
    """Copy the results to where they are looked at once the disk is gone."""
    subprocess.run(["cp", "-a", str(world.results), str(world.folder / "results")], check=True)


def _times(moments: list[float]) -> str:
    return ", ".join(f"{it:.2f}" for it in moments) + " s"


INLINE: Mapping[str, Fault] = {
    "driver killed": killed,
    "driver interrupted": interrupted,
    "driver stopped": stopped,
    "second driver": second_driver,
    "file limit": full_disk,
    "full disk": full_tmpfs,
    "read-only disk": read_only,
    "damaged file": damaged,
    "deleted files": deleted,
    "locked database": locked_database,
}
ON_RAY: Mapping[str, Fault] = {
    "actor killed (Ray)": actors_killed,
    "actor stopped (Ray)": actors_stopped,
    "driver killed (Ray)": killed,
    "driver interrupted (Ray)": interrupted,
}
