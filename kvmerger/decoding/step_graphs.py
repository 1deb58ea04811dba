"""Decode steps recorded once and repeated without Python, for one batch after another.

A recorded step fits every batch of as many rows, in the same forms row by row, whose tails and prefixes stay within the same
rounded sizes: addresses and lengths come from tables on the device, and the tails of all batches live in the same memory, so
that one batch may be in use at a time. A step with rows whose policies act in every step is recorded anew for each answer,
which costs about two eager steps; those that act once in a while do so between two steps. What cannot be recorded runs
eagerly: no row depends on a graph.
"""

from __future__ import annotations

import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from kvmerger.cache.ragged_layer import Room, new_columns
from kvmerger.decoding.acting_rows import ActingRows
from kvmerger.decoding.decode_loop import Progress
from kvmerger.decoding.ragged_cache import Prefix, RaggedCache
from kvmerger.decoding.static_step import StaticStep
from kvmerger.device import free_memory, now_s
from kvmerger.kernels.dispatch import has_triton, is_supported
from kvmerger.models.loading import LoadedModel
from kvmerger.models.source import DTYPES

MOST_GRAPHS = 8
"""Kept at once, the longest unused goes first. Each holds its kernels' arguments; what they compute with, they share."""
CHECK_EVERY = 2
"""Steps between two looks at whether anybody still answers. The device is never waited for: while it works on the next
steps, the host reads how the last ones ended, so an answer's end is noticed at most twice as many steps late."""
LEAST_TAIL_TOKENS = 64
LEAST_SLOTS = 1024
LEAST_ENDS = 8
# Twice in a row: memory that runs out below torch's allocator looks like any other error, and has most likely passed by the
# next batch. Each failure costs about two eager steps.
MOST_FAILURES = 2
RuleNames = frozenset[str]


class Recorder(Protocol):
    """What repeats a step: a CUDA graph, or, in tests, a call."""

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        """Run ``step`` a few times, and return what runs it once more at every call."""
        ...

    def read_later(self, number: Tensor) -> Callable[[], int]:
        """Ask the device for what ``number`` (no dimension) is at this point of its work; the call waits for it."""
        ...


class _Key(NamedTuple):
    num_rows: int
    tail_capacity: int
    most_tokens: int
    most_slots: int
    most_ends: int
    groups: Hashable


class _Recorded(NamedTuple):
    step: StaticStep
    repeat: Callable[[], None]


class Refusals:
    """One for all that records a model's steps: a failed recording may cost memory until the process ends."""

    def __init__(self) -> None:
        self._num_failed: Counter[RuleNames] = Counter()

    def __contains__(self, rules: RuleNames) -> bool:
        """Whether steps with these rules are not to be tried, or any step at all."""
        return any(self._num_failed[names] >= MOST_FAILURES for names in (rules, frozenset()))

    def failed(self, rules: RuleNames) -> bool:
        """Count a failure; whether it was the last one there will be."""
        self._num_failed[rules] += 1
        return rules in self

    def succeeded(self, rules: RuleNames) -> None:
        """Begin to count anew."""
        del self._num_failed[rules]


class StepGraphs:
    """The recorded steps of one model, the memory they share, and what has turned out not to be recordable."""

    def __init__(
        self,
        model: LoadedModel,
        recorder: Recorder,
        check_every: int = CHECK_EVERY,
        refusals: Refusals | None = None,
    ) -> None:
        """Nothing is recorded yet; what the ``refusals`` that it shares with others know is not tried again."""
        self._model = model
        self._recorder = recorder
        self._check_every = check_every
        self._refusals = refusals or Refusals()
        self._by_key: OrderedDict[_Key, _Recorded] = OrderedDict()
        # Reused by the same rows alone, but kept until the next one: its memory then goes from one to the other.
        self._last_acting: _Recorded | None = None
        self._last_acting_of: Hashable = None
        self._arena: Tensor | None = None
        self._columns: dict[int, Tensor] = {}
        self._room: Room | None = None
        self.num_recorded = 0
        """How often a step was recorded."""
        self.record_s = 0.0
        """What that took, trying the steps out included."""

    def room_for(self, num_rows: int, tail_tokens: int, template: Prefix) -> Room:
        """Memory for a batch's tails, each of at least ``tail_tokens``; takes it from the batch that had it before."""
        layer = template[0]
        capacity = rounded_up(tail_tokens, LEAST_TAIL_TOKENS)
        shape_LRHCD = (2 * len(template), num_rows, layer.num_heads, capacity, layer.head_dim)
        num_elements = torch.Size(shape_LRHCD).numel()
        if self._arena is None or self._arena.numel() < num_elements or self._arena.dtype != layer.dtype:
            self.forget()  # the old tails' addresses are in what was recorded
            self._arena = torch.zeros(num_elements, dtype=layer.dtype, device=layer.device)
        if num_rows not in self._columns:
            self._columns[num_rows] = new_columns(num_rows, template)
        # Always from the arena's start: batches of one shape get the same addresses.
        tails = list(self._arena[:num_elements].view(shape_LRHCD))
        self._room = Room(tails[: len(template)], tails[len(template) :], self._columns[num_rows])
        return self._room

    def forget(self) -> None:
        """Let go of all memory; what comes next is recorded anew."""
        self._by_key.clear()
        self._last_acting = self._arena = self._room = None
        self._columns.clear()

    @torch.inference_mode()
    def run(
        self, cache: RaggedCache, acting: ActingRows, progress: Progress, most_steps: int | None = None
    ) -> list[list[int]] | None:
        """Decode until every row has ended, or for ``most_steps``: every row's token after every step, (T, R).

        ``cache`` lives in the room that was lent last; neither its lengths nor ``progress`` are brought up to date. None
        when the step could not be recorded: nothing has happened then that a rewind of the cache does not undo.
        """
        assert cache.is_in(self._room), "another batch has this one's tails"
        if not cache.has_kernels or acting.rule_names in self._refusals:
            return None
        recorded = self._recorded_if_possible(cache, acting, progress)
        if recorded is None:
            # Only now: until it had been dealt with, the error's frames held what was to be recorded.
            self.forget_recorded()
            # To the driver, which instantiates graphs with it, and to libraries that take work spaces.
            free_memory(self._model.device)
            return None
        try:
            recorded.step.start(progress)
            longest = max(progress.left.values())
            num_steps = longest if most_steps is None else min(longest, most_steps)
            return recorded.step.said(self._repeat(recorded, num_steps))
        finally:
            recorded.step.aim_at(None, None)  # or the batch would live as long as the graph

    def _repeat(self, recorded: _Recorded, most_steps: int) -> int:
        """Repeat the step until no row goes on, at most ``most_steps`` times; how often it was."""
        num_going: Callable[[], int] | None = None
        for step in range(1, most_steps + 1):
            recorded.repeat()
            if step % self._check_every == 0:
                # The look before this one: while the host waits for it, the device has newer steps to work on.
                if num_going is not None and num_going() == 0:
                    return step
                num_going = self._recorder.read_later(recorded.step.num_going)
        return most_steps

    def _recorded_if_possible(
        self, cache: RaggedCache, acting: ActingRows, progress: Progress
    ) -> _Recorded | None:
        """`_recorded`, or None where that fails; what fails too often is refused from then on, with a warning."""
        try:
            recorded = self._recorded(cache, acting, progress)
        except torch.OutOfMemoryError:
            return None
        # Whatever a model's or a rule's code does that cannot be recorded, the eager loop can.
        except Exception as error:  # noqa: BLE001
            if self._refusals.failed(acting.rule_names):
                who = f" with the decode rules {sorted(acting.rule_names)}" if acting else ""
                warnings.warn(
                    f"decoding{who} runs without CUDA graphs, token by token: {type(error).__name__}: {error}",
                    RuntimeWarning,
                    stacklevel=3,
                )
            return None
        self._refusals.succeeded(acting.rule_names)
        return recorded

    def _recorded(self, cache: RaggedCache, acting: ActingRows, progress: Progress) -> _Recorded:
        key = _Key(
            cache.num_rows,
            cache.tail_capacity,
            # Of a row whose slots are bounded the answer may be longer than its tail ever gets.
            max(cache.tail_capacity, rounded_up(max(progress.left.values()), LEAST_TAIL_TOKENS)),
            rounded_up(cache.most_slots, LEAST_SLOTS, finer=1),
            rounded_up(max(map(len, progress.ends.values())), LEAST_ENDS),
            cache.group_key,
        )
        acting_of = (key, acting.token)
        if not acting and key in self._by_key:
            self._by_key.move_to_end(key)
            self._by_key[key].step.aim_at(cache, acting)
            return self._by_key[key]
        # With rules only for the same rows in the same answer: their slots are at addresses of its own.
        if acting and self._last_acting is not None and self._last_acting_of == acting_of:
            self._last_acting.step.aim_at(cache, acting)
            return self._last_acting
        step = StaticStep(self._model, key.num_rows, key.most_tokens, key.most_ends, key.most_slots)
        step.aim_at(cache, acting)
        start_s = now_s(self._model.device)
        # No row reads anything while the step is tried out, so nothing of the batch changes.
        recorded = _Recorded(step, self._recorder.record(step))
        self.num_recorded += 1
        self.record_s += now_s(self._model.device) - start_s
        if acting:
            self._last_acting, self._last_acting_of = recorded, acting_of
            return recorded
        self._by_key[key] = recorded
        if len(self._by_key) > MOST_GRAPHS:
            self._by_key.popitem(last=False)
        return recorded

    def forget_recorded(self) -> None:
        """Let go of what was recorded, but not of the tails, which a batch may be using."""
        self._by_key.clear()
        self._last_acting = None


def graphs_for(model: LoadedModel, refusals: Refusals | None = None) -> StepGraphs | None:
    """Graphs for a model on a GPU whose attention is computed by a kernel that reads lengths there; otherwise None."""
    if model.device.type != "cuda" or not has_triton():
        return None
    # On no device: only shape and dtype are looked at.
    a_query = torch.empty(1, 1, 1, model.info.head_dim, dtype=DTYPES[model.info.dtype], device="meta")
    if not is_supported(a_query):
        return None
    from kvmerger.decoding.cuda_recorder import CudaRecorder

    return StepGraphs(model, CudaRecorder(model.device), refusals=refusals)


def rounded_up(count: int, least: int, finer: int = 4) -> int:
    """``least``, or ``count`` rounded up to one of few sizes: ``finer`` of them between a power of two and the next."""
    step = max(least, 1 << max(count - 1, 1).bit_length() - 1) // finer
    return max(least, -(-count // max(step, 1)) * max(step, 1))
