"""Groups of several prompts answered in one batch, or in several where memory runs out or one of them raises.

Every group keeps its rows whatever happens to the others: dummies are where those would have been.
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch

from kvmerger.decoding.step_graphs import StepGraphs
from kvmerger.decoding.together import Party, Together
from kvmerger.engine.answering import out_of_memory
from kvmerger.engine.fused import FusedRun, make_room
from kvmerger.engine.groups import Group
from kvmerger.models.loading import LoadedModel


class Member(NamedTuple):
    """What one prompt has in a batch of several: a group of its variants, whose first row is the batch's row ``start``."""

    number: int
    run: FusedRun
    group: Group
    start: int


class Trouble(NamedTuple):
    """Why rows did not come about. is_memory: they may in a smaller batch."""

    is_memory: bool
    phase: str
    error_type: str
    message: str
    traceback: str

    @classmethod
    def of(cls, phase: str, error: Exception) -> Trouble:
        """Of an exception that is being handled."""
        is_memory = isinstance(error, torch.OutOfMemoryError)
        return cls(is_memory, phase, type(error).__name__, str(error), traceback.format_exc())


def answer_members(
    model: LoadedModel, members: Sequence[Member], num_rows: int, graphs: StepGraphs | None
) -> dict[int, Trouble]:
    """Answer all groups in batches of ``num_rows``: their runs take the results. What ended a prompt, by its number."""
    troubles: dict[int, Trouble] = {}
    waiting = [list(members)] if members else []
    while waiting:
        some = waiting.pop(0)
        trouble = _try(model, some, num_rows, graphs)
        if trouble is None:
            continue
        # Outside the handler, whose exception held what did not fit.
        make_room(model, graphs)
        number, run, group, _ = some[0]
        if len(some) > 1:
            if not trouble.is_memory:
                what = f"{trouble.error_type}: {trouble.message}"
                warnings.warn(
                    f"{len(some)} prompts do not answer together: {what}", RuntimeWarning, stacklevel=2
                )
            middle = (len(some) + 1) // 2
            waiting[:0] = [some[:middle], some[middle:]]
        # A group without labels is the full row alone, for want of which the prompt has nothing to be compared with.
        elif not trouble.is_memory or not group.place_by_label:
            troubles[number] = trouble
        elif len(group.place_by_label) > 1:
            waiting[:0] = [[some[0]._replace(group=half)] for half in group.halves()]
        else:
            (label,) = group.place_by_label
            lack = (trouble.phase, trouble.message, trouble.traceback)
            run.failures += out_of_memory(label, run.prompt, *lack)
    return troubles


def _try(
    model: LoadedModel, members: Sequence[Member], num_rows: int, graphs: StepGraphs | None
) -> Trouble | None:
    """Answer all of these groups in one batch, or take nothing of them and say why."""
    phase = "compress"
    try:
        compressions = [it.run.compress(it.group) for it in members]
        phase = "decode"
        parties = [
            Party(it.run.prompt, it.run.rows(it.group, compression), it.group.bucket, it.start)
            for it, compression in zip(members, compressions, strict=True)
        ]
        together = Together(model, parties, num_rows, graphs)
        answers = together.decode()
        done = zip(members, together.batches, answers, compressions, strict=True)
        answered = [
            it.run.finish(it.group, batch, said, compression) for it, batch, said, compression in done
        ]
    # Models and policies may be a user's: parting the prompts finds whose error it is.
    except Exception as error:  # noqa: BLE001
        return Trouble.of(phase if isinstance(error, torch.OutOfMemoryError) else "engine", error)
    # Only now that nothing can fail any more: what is tried again must not be in the results twice.
    for it, results, compression in zip(members, answered, compressions, strict=True):
        it.run.take(results, compression)
    return None
