"""Against a server that stores what MLflow stores: it ends up with what was wanted, and with nothing twice."""

from __future__ import annotations

import random
from collections.abc import Mapping

from jobs.tracking.backlog import MAX_POINTS_PER_BATCH, PARENT, Backlog, PointBatch, RunState
from jobs.tracking.metrics import MetricPoint, Readings


class Store:
    """A run's points as MLflow keeps them: a set; the latest value of a key has the largest (step, time, value)."""

    def __init__(self) -> None:
        self.points: dict[str, set[MetricPoint]] = {}
        self.steps: dict[str, int] = {}
        self.calls: list[PointBatch] = []

    def take(self, batch: PointBatch) -> None:
        self.calls.append(batch)
        self.points.setdefault(batch.run, set()).update(batch.points)
        if batch.last_step is not None:
            self.steps[batch.run] = batch.last_step

    def latest(self, run: str) -> dict[str, float]:
        ordered = sorted(self.points.get(run, ()), key=lambda it: (it.step, it.timestamp_ms, it.value))
        return {point.key: point.value for point in ordered}

    def known(self) -> dict[str, RunState]:
        return {run: RunState(self.latest(run), self.steps.get(run, -1)) for run in self.points}

    def check_no_step_twice(self) -> None:
        for points in self.points.values():
            places = [(point.key, point.step) for point in points]
            assert len(set(places)) == len(places)


def deliver(backlog: Backlog, store: Store) -> None:
    while (batch := backlog.next_batch()) is not None:
        store.take(batch)
        backlog.confirm()


def readings(values: Mapping[str, float], num_rows: int, time_ms: int = 1000) -> Readings:
    return Readings(values, num_rows, time_ms)


def test_numbers_arrive_at_the_number_of_rows_behind_them() -> None:
    store, backlog = Store(), Backlog({})
    backlog.want("a", readings({"x": 1.0, "y": 2.0}, 7, 5))
    deliver(backlog, store)
    assert store.points == {"a": {MetricPoint("x", 1.0, 5, 7), MetricPoint("y", 2.0, 5, 7)}}
    assert store.steps == {"a": 7}


def test_tags_go_once_and_leave_the_steps_as_they_are() -> None:
    store, backlog = Store(), Backlog({})
    backlog.want("a", readings({"x": 1.0}, 7))
    backlog.want_tags("a", {"ray_job_id": "1", "ray_dashboard": "http://x"})
    deliver(backlog, store)
    deliver(backlog, store)
    assert [dict(call.tags) for call in store.calls if call.tags] == [
        {"ray_job_id": "1", "ray_dashboard": "http://x"}
    ]
    assert store.steps == {"a": 7} and store.latest("a") == {"x": 1.0}


def test_what_the_server_holds_is_not_sent_again() -> None:
    store = Store()
    for _ in range(3):
        backlog = Backlog(store.known())
        backlog.want("a", readings({"x": 0.1 + 0.2}, 3))
        deliver(backlog, store)
        backlog.want("a", readings({"x": 0.3}, 3))  # the same but for its last bits
        deliver(backlog, store)
    assert len(store.calls) == 1


def test_a_changed_number_gets_a_new_step_even_from_fewer_rows_and_is_the_latest() -> None:
    store = Store()
    for num_rows, value in [(100, 0.5), (100, 0.6), (50, 0.4), (101, 0.7)]:
        backlog = Backlog(store.known())
        backlog.want("a", readings({"x": value}, num_rows))
        deliver(backlog, store)
        assert store.latest("a") == {"x": value}
    assert sorted(point.step for point in store.points["a"]) == [100, 101, 102, 103]
    store.check_no_step_twice()


def test_an_unconfirmed_batch_is_the_next_again_point_for_point_whatever_is_wanted_by_then() -> None:
    backlog = Backlog({})
    backlog.want("a", readings({"x": 1.0}, 1))
    first = backlog.next_batch()
    backlog.want("a", readings({"x": 2.0}, 2))
    assert backlog.next_batch() == first
    backlog.confirm()
    second = backlog.next_batch()
    assert second is not None and second.points == (MetricPoint("x", 2.0, 1000, 2),)


def test_while_the_server_is_away_only_the_newest_numbers_wait() -> None:
    backlog, store = Backlog({}), Store()
    for num_rows in range(1, 500):
        backlog.want("a", readings({"x": float(num_rows)}, num_rows))
    deliver(backlog, store)
    assert [batch.points[0].value for batch in store.calls] == [499.0]


def test_batches_are_no_larger_than_mlflow_takes_and_nothing_is_lost() -> None:
    store, backlog = Store(), Backlog({})
    values = {f"x{index}": float(index) for index in range(2 * MAX_POINTS_PER_BATCH + 1)}
    backlog.want("a", readings(values, 1))
    deliver(backlog, store)
    assert [len(batch.points) for batch in store.calls] == [1000, 1000, 1]
    assert store.latest("a") == values
    store.check_no_step_twice()


def trace(*values: float, time_ms: int = 1) -> list[MetricPoint]:
    return [MetricPoint("t", value, time_ms, step) for step, value in enumerate(values)]


def test_a_trace_is_sent_once_and_another_rows_trace_gets_a_chart_of_its_own() -> None:
    store = Store()
    for points in (trace(3, 2), trace(3, 2, time_ms=9), trace(4, 1), trace(4, 1), []):
        backlog = Backlog(store.known())
        backlog.want_trace("a", points)
        deliver(backlog, store)
    assert [batch.points[0].key for batch in store.calls] == ["t", "t/2"]
    store.check_no_step_twice()


def test_a_trace_moves_no_step_of_the_numbers() -> None:
    store, backlog = Store(), Backlog({})
    backlog.want("a", readings({"x": 1.0}, 50))
    backlog.want_trace("a", trace(3, 2))
    deliver(backlog, store)
    assert store.steps == {"a": 50}


def test_crashes_and_lost_answers_double_nothing(seed: int) -> None:
    """Any mix of new wishes, answers that get lost and drivers that die ends in what was wanted last, once."""
    rng = random.Random(seed)
    for _ in range(50):
        store, backlog = Store(), Backlog({})
        wanted: dict[str, dict[str, float]] = {}
        for num_rows in range(1, 20):
            run = rng.choice([PARENT, "a", "b"])
            wanted[run] = {f"x{key}": float(rng.randrange(3)) for key in range(3)}
            backlog.want(run, readings(wanted[run], num_rows))
            match rng.randrange(4):
                case 0:
                    deliver(backlog, store)
                case 1 if (batch := backlog.next_batch()) is not None:
                    store.take(batch)  # it arrived, but nobody was told
                case 2:
                    backlog = Backlog(store.known())
                    for each, values in wanted.items():
                        backlog.want(each, readings(values, num_rows))
        deliver(backlog, store)
        assert {run: store.latest(run) for run in wanted} == wanted
        store.check_no_step_twice()
