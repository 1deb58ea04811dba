"""Fake engines that say where they ran, and wait for each other or hang on request, so that no test needs a clock."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from jobs.execution.unit_runner import LoadedEngine
from jobs.settings.schema import ModelSettings
from kvmerger.generation import Prompt
from tests.fakes.engine import FakeEngine, FakeInfo, FakeTokenizer, build_fake_variant

HANG_ONCE_ID = 1005
"""First token of a context on which the first engine hangs for ever; the next one runs it."""
MEETING_TIMEOUT_S = 120


@dataclass(frozen=True)
class PlacedEngine(FakeEngine):
    """Runs nothing before `num_expected` engines are loaded."""

    folder: Path = Path()
    num_expected: int = 1
    place: str = ""

    def run(self, prompt: Prompt, variants: Sequence[Any], **options: Any) -> list[Any]:
        deadline_s = time.monotonic() + MEETING_TIMEOUT_S
        while len(list(self.folder.glob("loaded-*"))) < self.num_expected and time.monotonic() < deadline_s:
            time.sleep(0.05)
        hanging = self.folder / "hanging"
        if prompt.context_ids[0] == HANG_ONCE_ID and not hanging.exists():
            unfinished = self.folder / "hanging.tmp"
            unfinished.write_text(self.place)
            unfinished.rename(hanging)
            time.sleep(10 * MEETING_TIMEOUT_S)
        return super().run(prompt, variants, **options)


@dataclass(frozen=True)
class PlacedLoad:
    """Loads a `PlacedEngine`; rows name it in `device_name` as `node:process`."""

    folder: Path
    num_expected: int = 1

    def __call__(self, settings: ModelSettings) -> LoadedEngine:
        place = f"{ray.get_runtime_context().get_node_id()}:{os.getpid()}"
        (self.folder / f"loaded-{os.getpid()}").touch()
        engine = PlacedEngine(folder=self.folder, num_expected=self.num_expected, place=place)
        return LoadedEngine(engine, FakeTokenizer(), FakeInfo(), build_fake_variant, "fused", place)
