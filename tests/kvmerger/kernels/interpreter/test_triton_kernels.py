"""Runs the Triton kernels' tests under the interpreter, which must be chosen before Triton is imported."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

TIMEOUT_S = 900
NO_CASES = ("test_triton_kernels.py", "triton_interpreter.py")
INTERPRETED = sorted(it for it in Path(__file__).parent.glob("*.py") if it.name not in NO_CASES)


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="triton is not installed: it comes with torch's CUDA builds, or pip install --no-deps triton",
)
@pytest.mark.parametrize("tests", INTERPRETED, ids=lambda path: path.stem)
def test_kernels_under_the_interpreter(tests: Path, repo_root: Path) -> None:
    command = [sys.executable, "-m", "pytest", str(tests), "-q", "-p", "no:cacheprovider"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    environment = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        command,
        cwd=repo_root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
