"""Every failure gets a decision, and transient ones are retried a bounded number of times."""

from __future__ import annotations

import pytest

from jobs.execution.scheduling.failure import ErrorKind, FailureDecision, FailurePolicy

TRANSIENT = (
    ErrorKind.ACTOR_DIED,
    ErrorKind.NODE_DIED,
    ErrorKind.OUT_OF_HOST_MEMORY,
    ErrorKind.DEVICE_LOST,
    ErrorKind.RESULT_LOST,
)


@pytest.mark.parametrize("kind", TRANSIENT)
def test_transient_failure_is_retried_until_the_last_attempt(kind: ErrorKind) -> None:
    policy = FailurePolicy(max_attempts=3)
    decisions = [policy.decide(kind, attempt) for attempt in (1, 2, 3)]
    assert decisions == [FailureDecision.RETRY, FailureDecision.RETRY, FailureDecision.GIVE_UP]


def test_an_exception_of_the_unit_itself_is_not_tried_again() -> None:
    assert FailurePolicy(max_attempts=3).decide(ErrorKind.UNIT_RAISED, 1) is FailureDecision.GIVE_UP


@pytest.mark.parametrize("kind", [ErrorKind.LOAD_RAISED, ErrorKind.NO_RESOURCES, ErrorKind.INTERNAL])
def test_what_no_other_unit_would_survive_ends_the_run(kind: ErrorKind) -> None:
    assert FailurePolicy().decide(kind, 1) is FailureDecision.RAISE


@pytest.mark.parametrize("kind", list(ErrorKind))
def test_no_kind_is_retried_for_ever(kind: ErrorKind) -> None:
    policy = FailurePolicy(max_attempts=2, max_preemptions=2)
    assert policy.decide(kind, 2) is not FailureDecision.RETRY


def test_preemptions_have_a_budget_of_their_own() -> None:
    policy = FailurePolicy(max_attempts=1, max_preemptions=3)
    decisions = [policy.decide(ErrorKind.PREEMPTED, number, has_worked=True) for number in (1, 2, 3)]
    assert decisions == [FailureDecision.RETRY, FailureDecision.RETRY, FailureDecision.GIVE_UP]


@pytest.mark.parametrize("budget", ["max_attempts", "max_preemptions"])
def test_a_budget_below_one_is_refused_with_name_and_value(budget: str) -> None:
    with pytest.raises(ValueError, match=f"{budget} must be at least 1, got 0"):
        FailurePolicy(**{budget: 0})
