"""What is done to a sweep, one function a fault: it starts drivers, disturbs them, and says how they ended.

Each draws its moments over the whole life of a driver, a tenth of them at its very start, a tenth at its end. After a fault
the same command is run until it ends with 0, as its user would; a fault that breaks a promise raises Broken.
"""

from __future__ import annotations

import random
import resource
import signal
import sqlite3
import subprocess
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path

from bench.chaos.disks import Mounted, mount
from bench.chaos.driving import LIMIT_S, Broken, Done, Fault, Life, ended, excerpt, moment, resumed, shown
from bench.chaos.world import World, drive

_FEW_BYTES = 16 * 1024  # less than a file of rows, more than what a driver prints


def killed(world: World, draw: random.Random, life: Life) -> Done:
    """SIGKILL of the driver, once to three times."""
    moments, hits = [], []
    for _ in range(draw.randint(1, 3)):
        driver = drive(world)
        moments.append(moment(draw, life.driver_s))
        hits.append(driver.wait_until(moments[-1]))
        driver.send(signal.SIGKILL)
        ended(driver, (0, -signal.SIGKILL))
    return Done(f"killed at {shown(moments)}", any(hits))


def interrupted(world: World, draw: random.Random, life: Life) -> Done:
    """SIGTERM or SIGINT of the driver."""
    number = draw.choice([signal.SIGTERM, signal.SIGINT])
    driver, at = drive(world), moment(draw, life.driver_s)
    is_there = driver.wait_until(at)
    driver.send(number)
    # Before our handler is set and after it is gone, the signal does what it does to every process.
    is_early_or_late = not 0.3 * life.driver_s < at < 0.9 * life.driver_s
    code = ended(driver, (0, 130, -number) if is_early_or_late else (0, 130))
    return Done(f"{number.name} at {shown([at])}: {code}", is_there)


def stopped(world: World, draw: random.Random, life: Life) -> Done:
    """SIGSTOP and SIGCONT of the driver; a second one meanwhile is refused."""
    driver, at = drive(world), moment(draw, life.driver_s)
    is_there = driver.wait_until(at)
    driver.send(signal.SIGSTOP)
    code = None
    if is_there and (world.results / "writer.lock").exists():
        code = ended(drive(world, "second"), (2,))
    driver.send(signal.SIGCONT)
    ended(driver, (0,))
    return Done(f"stopped at {shown([at])}, a second driver: {code}", is_there)


def second_driver(world: World, draw: random.Random, life: Life) -> Done:
    """Two drivers on one folder: the later one is refused, or finds all done."""
    first, at = drive(world), moment(draw, life.driver_s)
    is_there = first.wait_until(at)
    second = drive(world, "second")
    codes = sorted([ended(first, (0, 2)), ended(second, (0, 2))])
    if codes == [2, 2]:
        raise Broken("both drivers were refused")
    refused = [it for it in (first, second) if it.code == 2]
    if any("is being written by another process, process" not in it.log.read_text() for it in refused):
        raise Broken("the second driver was not told who holds the folder")
    return Done(f"{shown([at])} apart: {codes}", is_there)


def full_disk(world: World, draw: random.Random, life: Life) -> Done:
    """No file may grow beyond a few bytes from some moment on (RLIMIT_FSIZE), as on a full disk."""
    driver, at = drive(world), moment(draw, life.driver_s)
    is_there = driver.wait_until(at)
    with suppress(ProcessLookupError):
        resource.prlimit(driver.pid, resource.RLIMIT_FSIZE, (_FEW_BYTES, _FEW_BYTES))
    # SIGXFSZ is ignored by Python, so a write fails with EFBIG.
    code = driver.end(LIMIT_S)
    if code not in (0, 2):
        raise Broken(f"a full disk ended with {code}: {excerpt(driver.log.read_text())!r}")
    return Done(f"from {shown([at])}: {code}", is_there)


def full_tmpfs(world: World, draw: random.Random, life: Life) -> Done:
    """A disk that is full for some of the rows."""
    num_bytes = draw.choice([8, 64, 160, 400]) * 1024
    with Mounted(world.folder / "disk", f"size={num_bytes}"):
        code = ended(drive(world), (0, 2))
        mount("-o", "remount,size=64m", str(world.folder / "disk"))
        codes = resumed(world)
        _bring_home(world)
    return Done(f"{num_bytes // 1024} KiB: {code}, then {codes}", is_finished=True)


def read_only(world: World, draw: random.Random, life: Life) -> Done:
    """The disk is switched to read-only from some moment on; a start on it is refused, a report is not."""
    with Mounted(world.folder / "disk", "size=64m"):
        driver, at = drive(world), moment(draw, life.driver_s)
        is_there = driver.wait_until(at)
        # Refused while a file is open for writing, so it is tried again.
        while driver.is_alive() and not mount("-o", "remount,ro", str(world.folder / "disk"), is_sure=False):
            time.sleep(0.002)
        code = ended(driver, (0, 2))
        mount("-o", "remount,ro", str(world.folder / "disk"))
        again = ended(drive(world), (2,))
        mount("-o", "remount,rw", str(world.folder / "disk"))
        codes = resumed(world)
        _bring_home(world)
    return Done(f"from {shown([at])}: {code}, again {again}, then {codes}", is_there, is_finished=True)


def damaged(world: World, draw: random.Random, life: Life) -> Done:
    """A finished file is changed, cut off, emptied or overwritten, during the run or after it."""
    driver, at = drive(world), moment(draw, life.driver_s)
    driver.wait_until(at)
    path = _damage(world, draw)
    code = ended(driver, (0, 2, 3))
    codes = resumed(world, lambda told: _remedied(told, path))
    name = path.name[-20:] if path else "nothing"
    return Done(f"{name} at {shown([at])}: {code}, then {codes}", path is not None, is_finished=True)


def deleted(world: World, draw: random.Random, life: Life) -> Done:
    """Finished files are taken away during the run or after it; 0 means that all rows are there."""
    driver, at = drive(world), moment(draw, life.driver_s)
    driver.wait_until(at)
    files = sorted((world.results / "rows").glob("*.parquet"))
    taken = draw.sample(files, draw.randint(1, len(files))) if files else []
    for path in taken:
        path.unlink()
    code = ended(driver, (0, 3))
    # While files were still to come, the driver had not looked for the last time.
    if code == 0 and taken and len(files) < world.num_files:
        raise Broken("0 with rows missing")
    return Done(f"{len(taken)} at {shown([at])}: {code}", bool(taken))


def locked_database(world: World, draw: random.Random, life: Life) -> Done:
    """MLflow's database is locked from some moment on for some time."""
    driver, at = drive(world), moment(draw, life.driver_s)
    is_there = driver.wait_until(at)
    locked_s = draw.uniform(0.0, 2 * life.driver_s)
    with closing(sqlite3.connect(world.database, timeout=30)) as other:
        with suppress(sqlite3.OperationalError):
            other.execute("BEGIN EXCLUSIVE")
        time.sleep(locked_s)
        other.rollback()
    code = ended(driver, (0, 2))
    return Done(f"at {shown([at])} for {locked_s:.1f} s: {code}", is_there)


def policy_changed(world: World, draw: random.Random, life: Life) -> Done:
    """The file of the user's policy is saved anew while a run goes on, which is then killed, interrupted or left alone."""
    versions, told, hits = [2, 1][: draw.randint(1, 2)], [], []
    for version in versions:
        driver, at = drive(world), moment(draw, life.driver_s)
        hits.append(driver.wait_until(at))
        world.write_policy(version)
        number = draw.choice([signal.SIGKILL, signal.SIGINT, None])
        if number is not None:
            driver.send(number)
        # 3: a process that began after the file was saved has refused to work under the earlier version's name.
        code = ended(driver, (0, 3, 130, -signal.SIGKILL, -signal.SIGINT))
        told.append(f"version {version} at {shown([at])}, {number.name if number else 'left alone'}: {code}")
    return Done("; ".join(told), any(hits), versions=(1, *versions))


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
    "policy changed": policy_changed,
}
