"""Questions that follow on others: asked in turns, each row with the answers that it gave itself.

A question of an ordinary prompt follows on nothing; all of them are asked in one turn.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import NamedTuple

from kvmerger.decoding.batch import Row
from kvmerger.decoding.decode_loop import Answer
from kvmerger.engine.answering import Answered, Reference
from kvmerger.generation import EarlierTurn, Generation, Prompt, Question, VariantFailure


class InTurn(NamedTuple):
    """What one batch has said: every row's answer by its place, those that went wrong, and the results."""

    answers: Mapping[int, Answer]
    failed: Collection[int]
    answered: Answered


def with_every_turn(prompt: Prompt) -> Prompt:
    """``prompt`` with every turn that one of its questions follows on as a question of its own, behind its own questions.

    Nothing compares those that are added with gold answers.
    """
    questions = list(prompt.questions)
    known = {_key(question) for question in questions}
    for question in prompt.questions:
        for number, turn in enumerate(question.earlier):
            before = Question(
                turn.tail_ids, (), turn.max_new_tokens, question.stop_ids, question.earlier[:number]
            )
            if _key(before) not in known:
                known.add(_key(before))
                questions.append(before)
    return replace(prompt, questions=tuple(questions))


def answer_in_turns(
    prompt: Prompt, row_by_place: Mapping[int, Row], answer: Callable[[dict[int, Row]], InTurn]
) -> Answered:
    """Have ``answer`` decode the rows of each turn once those of the turns before have answered; all results together.

    ``prompt`` has every turn (`with_every_turn`). Rows whose earlier answer went wrong come back as failed.
    """
    parent = _parents(prompt)
    said: dict[tuple[str, int], tuple[int, ...]] = {}
    results: list[Generation | VariantFailure] = []
    references: dict[int, Reference] = {}
    for turn, questions in itertools.groupby(
        sorted(range(len(prompt.questions)), key=lambda index: len(prompt.questions[index].earlier)),
        key=lambda index: len(prompt.questions[index].earlier),
    ):
        asked = set(questions)
        rows = {place: row for place, row in row_by_place.items() if row.question_index in asked}
        if turn:
            lost = {
                place for place, row in rows.items() if (row.label, parent[row.question_index]) not in said
            }
            results += [_unheard(rows[place]) for place in sorted(lost)]
            rows = {
                place: replace(row, before_ids=said[row.label, parent[row.question_index]])
                for place, row in rows.items()
                if place not in lost
            }
        if not rows:
            continue
        answers, failed, answered = answer(rows)
        for place, row in rows.items():
            if place not in failed:
                said[row.label, row.question_index] = (
                    *row.before_ids,
                    *prompt.questions[row.question_index].tail_ids,
                    *_without_end(answers[place]),
                )
        results += answered.results
        references |= answered.references
    return Answered(results, references)


def _parents(prompt: Prompt) -> dict[int, int]:
    """Of each question that follows on another the one just before it, by index."""
    index_of = {_key(question): index for index, question in enumerate(prompt.questions)}
    return {
        index: index_of[question.earlier[:-1], question.earlier[-1], question.stop_ids]
        for index, question in enumerate(prompt.questions)
        if question.earlier
    }


def _key(question: Question) -> tuple[tuple[EarlierTurn, ...], EarlierTurn, tuple[int, ...]]:
    """Equal for questions that rows answer alike."""
    return (
        question.earlier,
        EarlierTurn(question.tail_ids, question.max_new_tokens),
        question.stop_ids,
    )


def _without_end(answer: Answer) -> tuple[int, ...]:
    # What ends a turn belongs to the next one's tail: there it is the chat template's.
    return answer.token_ids[:-1] if answer.is_complete else answer.token_ids


def _unheard(row: Row) -> VariantFailure:
    message = (
        f"{row.label!r} gave no answer to an earlier question of this conversation: see why in that one's row"
    )
    return VariantFailure(row.label, row.question_index, "decode", "EarlierAnswerError", message, "")
