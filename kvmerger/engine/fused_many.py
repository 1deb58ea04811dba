"""Several prompts at once: each is prefilled and compressed by itself, and their rows decode in one batch.

Which prompts decode together, and where their rows are, follows from numbers of rows alone. Where memory runs out, prompts
are parted first and then one prompt's variants, and every row keeps its place: that costs time, no row, and no number. Any
other error is looked for in the same way, and costs the rows of the prompt that it belongs to; only one that leaves the
device unusable costs all that follow. A prefill is repeated only if it did not fit.

Rows whose policies act while they answer have slots of their own: they, and rows with budgets like theirs, decode in batches
of their own prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from kvmerger.building import Variant
from kvmerger.decoding.step_graphs import StepGraphs
from kvmerger.engine.budgets import references_first, shape_for
from kvmerger.engine.fused import FusedRun, make_room, run_fused
from kvmerger.engine.fused_members import Member, Trouble, answer_members
from kvmerger.engine.groups import (
    POSITION_BYTES,
    BatchLayout,
    Group,
    by_answers,
    expected_bytes,
    labels_that_act,
    labels_without_kernels,
    plannable_bytes,
    prompts_together,
    tail_bytes,
)
from kvmerger.generation import Generation, Prompt, VariantFailure
from kvmerger.limits import Limits, another_bucket
from kvmerger.models.loading import LoadedModel
from kvmerger.prefill.prefill import prompt_seed
from kvmerger.variants import FULL_AA, NO_CONTEXT, REFERENCE_LABELS

Outcomes = list[Generation | VariantFailure]


def run_fused_many(
    model: LoadedModel,
    limits: Limits,
    prompts: Sequence[Prompt],
    variants: Sequence[Variant],
    seed: int,
    graphs: StepGraphs | None = None,
) -> list[Outcomes]:
    """Answer every prompt under all variants. See `Engine.run_many`."""
    many = _Many(model, limits, prompts, references_first(variants), seed, graphs)
    for number in range(len(prompts)):
        many.guard(number, partial(many.admit, number))
    bucket_by_prompt = {number: groups[0].bucket for number, groups in many.joining.items()}
    for numbers in prompts_together(bucket_by_prompt, limits.max_rows):
        if len(numbers) > 1:
            many.run_together(numbers)
        else:
            many.run_alone(*numbers)
    for number, prompt in enumerate(prompts):
        # Its later questions wait for its earlier answers, and other prompts' rows would wait beside them.
        if prompt.is_conversation and number not in many.troubles:
            many.run_alone(number)
    return [many.all_outcomes(number) for number in range(len(prompts))]


@dataclass
class _Many:
    """All prompts' outcomes so far, by their numbers, and what went wrong with a prompt as a whole."""

    model: LoadedModel
    limits: Limits
    prompts: Sequence[Prompt]
    variants: Sequence[Variant]
    seed: int
    graphs: StepGraphs | None
    joining: dict[int, list[Group]] = field(default_factory=dict)
    """Of each sound prompt that is no conversation, the groups that decode with those of other prompts.

    At least one, since no context acts.
    """
    apart: dict[int, list[Group]] = field(default_factory=dict)
    """And those that decode by themselves: what acts, and what is decoded to be read."""
    outcomes: dict[int, Outcomes] = field(default_factory=dict)
    troubles: dict[int, Trouble] = field(default_factory=dict)

    def guard(self, number: int, work: Callable[[], None]) -> None:
        """Do something for one prompt; what it raises is that prompt's trouble."""
        try:
            work()
        # Whatever it is, the other prompts' rows are owed all the same.
        except Exception as error:  # noqa: BLE001
            self.troubles[number] = Trouble.of("engine", error)

    def admit(self, number: int) -> None:
        """Check a prompt, and part its groups, with buckets and places as when alone: some join other prompts.

        Raises:
            InvalidPromptError: the prompt cannot be run on this model.
        """
        prompt = self.prompts[number]
        prompt.check(self.model.info.max_positions, self.model.info.vocab_size)
        if prompt.is_conversation:
            return
        apart = acting = labels_that_act(self.variants, prompt_seed(prompt.context_ids, self.seed))
        if self.graphs:
            # One row that is decoded to be read, and no step of its batch could be recorded.
            apart |= labels_without_kernels(self.variants)
        labels = [NO_CONTEXT, *(variant.label for variant in self.variants)]
        groups = by_answers(labels, acting, prompt, self.limits.max_rows)
        parts = [part for group in groups for part in group.parted(apart)]
        self.apart[number] = [part for part in parts if apart.issuperset(part.place_by_label)]
        self.joining[number] = [part for part in parts if part not in self.apart[number]]

    def all_outcomes(self, number: int) -> Outcomes:
        """Every row of a prompt, once: those it has no outcome for have failed as it did."""
        outcomes = self.outcomes.get(number, [])
        if number not in self.troubles:
            return outcomes
        known = {(outcome.label, outcome.question_index) for outcome in outcomes}
        trouble = self.troubles[number]
        return outcomes + [
            VariantFailure(label, question, *trouble[1:])
            for label in (*REFERENCE_LABELS, *(variant.label for variant in self.variants))
            for question in range(len(self.prompts[number].questions))
            if (label, question) not in known
        ]

    def run_alone(self, number: int) -> None:
        """Answer a prompt that decodes by itself."""

        def run() -> None:
            self.outcomes[number] = run_fused(
                self.model, self.limits, self.prompts[number], self.variants, self.seed, self.graphs
            )

        self.guard(number, run)

    def run_together(self, numbers: Sequence[int]) -> None:
        """Answer prompts that decode together: all at once, or as many at a time as memory allows."""
        waiting = list(numbers)
        while waiting:
            runs = self._prefilled(self._first_that_fit(waiting))
            waiting = [number for number in waiting if number not in runs and number not in self.troubles]
            self._answer_all(runs, numbers)
            self.outcomes |= {number: run.outcomes for number, run in runs.items()}
            runs.clear()  # or their caches would stay while the next ones are made

    def _prefilled(self, numbers: Sequence[int]) -> dict[int, FusedRun]:
        """Runs of the first of these prompts whose prefills fit beside each other."""
        runs: dict[int, FusedRun] = {}

        def start(number: int, *, is_last_try: bool) -> None:
            runs[number] = FusedRun.start(
                self.model, self.limits, self.prompts[number], self.variants, self.seed, self.graphs,
                is_last_try=is_last_try,
            )  # fmt: skip

        for number in numbers:
            self.guard(number, partial(start, number, is_last_try=False))
            # Memory alone is tried again, now that no exception holds what did not fit.
            if number not in self.troubles or not self.troubles[number].is_memory:
                continue
            del self.troubles[number]
            make_room(self.model, self.graphs)
            if runs:
                break  # its turn comes when these have answered
            self.guard(number, partial(start, number, is_last_try=True))
        return runs

    def _answer_all(self, runs: Mapping[int, FusedRun], numbers: Sequence[int]) -> None:
        """Answer all variants and references of prompts that are prefilled."""
        # Of all that belong together, also of those that memory makes wait: dummies stand in their places.
        groups = {number: self.joining[number] for number in numbers}
        num_rows = 0
        for turn in range(max(map(len, groups.values()))):
            of_turn = {number: its[turn] for number, its in groups.items() if turn < len(its)}
            layout = BatchLayout.of({number: group.bucket for number, group in of_turn.items()})
            num_rows = num_rows or layout.num_rows
            self._answer(self._members(runs, of_turn, layout), layout.num_rows)
        # Before what acts: an error of a rule's is not to cost the A/A row.
        self._answer_references(runs, groups, num_rows)
        for number, run in runs.items():
            if number not in self.troubles:
                self.guard(number, partial(run.answer_all, self.apart[number]))

    def _answer_references(
        self, runs: Mapping[int, FusedRun], groups: Mapping[int, Sequence[Group]], taken: int
    ) -> None:
        """The A/A rows, in another bucket than ``taken``; before, full rows that stood beside nothing that fitted."""
        layout = BatchLayout.of({number: its[0].bucket for number, its in groups.items()})
        alone = {
            number: Group({}, groups[number][0].bucket)
            for number, run in runs.items()
            if run.references is None
        }
        for member in self._members(runs, alone, layout):
            self._answer([member], layout.num_rows)
        again = {
            number: Group({FULL_AA: 0}, another_bucket(len(self.prompts[number].questions), its[0].bucket))
            for number, its in groups.items()
        }
        # In another size than the first batch's, or the A/A row would show no noise.
        layout = BatchLayout.of({number: group.bucket for number, group in again.items()}, taken)
        self._answer(self._members(runs, again, layout), layout.num_rows)

    def _members(
        self, runs: Mapping[int, FusedRun], group_by_prompt: Mapping[int, Group], layout: BatchLayout
    ) -> list[Member]:
        return [
            Member(number, runs[number], group, layout.start_by_prompt[number])
            for number, group in group_by_prompt.items()
            if number in runs and number not in self.troubles
        ]

    def _answer(self, members: Sequence[Member], num_rows: int) -> None:
        parts = [list(members)]
        if len(members) == 1:
            parts = [[members[0]._replace(group=part)] for part in members[0].run.parts(members[0].group)]
        for part in parts:
            self.troubles |= answer_members(self.model, part, num_rows, self.graphs)

    def _first_that_fit(self, numbers: Sequence[int]) -> list[int]:
        """The first of ``numbers``, at least one, that are expected to fit into memory side by side."""
        free_bytes = plannable_bytes(self.model.device)
        if free_bytes is None:
            return list(numbers)
        chosen: list[int] = []
        for number in numbers:
            free_bytes -= self._expected_bytes(number)
            if chosen and free_bytes < 0:
                break
            chosen.append(number)
        return chosen

    def _expected_bytes(self, number: int) -> int:
        """Bytes that one prompt is expected to hold: its full row, all of a group's prefixes, and its tails."""
        prompt, info = self.prompts[number], self.model.info
        token_bytes = info.kv_bytes_per_token + info.num_layers * info.num_kv_heads * POSITION_BYTES
        full_bytes = len(prompt.context_ids) * token_bytes
        seed = prompt_seed(prompt.context_ids, self.seed)
        expected = expected_bytes(self.variants, prompt, shape_for(info, prompt), seed)
        groups = self.joining[number]
        held = max(sum(expected.get(label, 0) for label in group.place_by_label) for group in groups)
        return full_bytes + held + tail_bytes(groups[0].bucket, prompt, full_bytes)
