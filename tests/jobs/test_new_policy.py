"""What `new-policy` writes is the page's example, passes the contract, and never takes the place of anything."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.new_policy import POLICY
from jobs.sweep import main


def test_it_is_the_example_that_contributing_shows(repo_root: Path) -> None:
    page = (repo_root / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)[0] == POLICY


def test_what_is_written_passes_its_checks_by_the_command_that_is_printed(
    tmp_path: Path, repo_root: Path
) -> None:
    script = str(repo_root / "jobs" / "sweep.py")
    written = subprocess.run(
        [sys.executable, script, "new-policy", "my_first.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = (it for it in written.stdout.splitlines() if it.startswith("check "))
    checked = subprocess.run(
        shlex.split(line.removeprefix("check ")), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert (tmp_path / "my_first.py").read_text() == POLICY


def test_nothing_is_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("x = 1\n")
    assert main(["new-policy", "mine.py"]) == 2
    assert "'mine.py' is there already" in capsys.readouterr().err
    assert (tmp_path / "mine.py").read_text() == "x = 1\n"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("my-policies.py", "is no name of a Python module"),
        ("my_policies", "is no name of a Python module"),
        ("2024.py", "is no name of a Python module"),
        ("random.py", "'random' is a package that is installed"),
        ("numpy.py", "'numpy' is a package that is installed"),
        ("nowhere/mine.py", "cannot write 'nowhere/mine.py': No such file or directory"),
    ],
)
def test_a_name_that_cannot_be_imported_is_refused(
    name: str,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new-policy", name]) == 2
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
