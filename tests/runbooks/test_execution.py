"""The journal: what is fixed stays, what happened is read back, and what has no end was interrupted."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import product
from pathlib import Path

import pytest

from dr_pipelines.errors import ExecutionError, ObjectCorrupt
from dr_pipelines.repository.folder import FolderStore
from dr_pipelines.repository.store import Chunk
from dr_pipelines.runbooks.execution import (
    INTERRUPTED,
    TRANSITIONS,
    Event,
    EventKind,
    Execution,
    Journal,
    Outcome,
    advance,
)


@pytest.fixture
def at(outage: datetime) -> datetime:
    return outage


def started(at: datetime, step: str, attempt: int = 1, run_id: str = "run-1") -> Event:
    return Event(step=step, kind=EventKind.STARTED, attempt=attempt, at=at, run_id=run_id)


def ended(
    at: datetime, step: str, attempt: int = 1, kind: EventKind = EventKind.DONE, seconds: float = 2.0, detail: str = ""
) -> Event:
    end = at + timedelta(seconds=seconds)
    return Event(step=step, kind=kind, attempt=attempt, at=end, run_id="run-1", seconds=seconds, detail=detail)


def test_what_is_fixed_is_read_back(journal: Journal, execution: Execution) -> None:
    assert journal.begin(execution) == execution
    assert journal.execution() == execution


def test_the_outage_start_survives_a_second_beginning(journal: Journal, execution: Execution) -> None:
    journal.begin(execution)
    hour = timedelta(hours=1)
    later = execution.model_copy(update={"outage_started_at": execution.started_at + hour, "requested_by": "eve"})

    assert journal.begin(later) == execution
    assert journal.execution() == execution


def test_an_execution_without_outage_or_target_has_none(journal: Journal, execution: Execution) -> None:
    bare = execution.model_copy(update={"outage_started_at": None, "target_time": None})

    journal.begin(bare)

    assert journal.execution() == bare


def test_an_unknown_execution_is_refused(journal: Journal) -> None:
    with pytest.raises(ExecutionError, match="there is no execution 20260301T115900Z-drill-9f86d0"):
        journal.execution()


def test_events_are_read_in_the_order_they_were_written(journal: Journal, at: datetime) -> None:
    events = [started(at, "assess"), ended(at, "assess", detail="a backup"), started(at, "validate", run_id="run-2")]
    for event in events:
        journal.append(event)

    assert list(journal.events()) == events


def test_a_damaged_event_is_noticed(tmp_path: Path, at: datetime) -> None:
    store = FolderStore(tmp_path)
    journal = Journal(store, "x")
    journal.append(started(at, "assess"))
    key = "executions/x/events/000000.json"
    store.put(key, [store.get(key).replace(b"assess", b"asserts")])

    with pytest.raises(ObjectCorrupt, match="event 000000"):
        journal.steps()


def test_an_event_whose_answer_was_lost_is_there_once(
    journal: Journal, at: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a bucket's client does: it stores, loses the answer, tries again, and is told that the object is there."""
    put_if_absent = FolderStore.put_if_absent

    def put_twice(store: FolderStore, key: str, chunks: Sequence[Chunk]) -> bool:
        put_if_absent(store, key, chunks)
        return put_if_absent(store, key, chunks)

    monkeypatch.setattr(FolderStore, "put_if_absent", put_twice)
    journal.append(started(at, "assess"))
    journal.append(ended(at, "assess"))

    assert [event.kind for event in journal.events()] == [EventKind.STARTED, EventKind.DONE]


def test_a_step_runs_until_it_ends(journal: Journal, at: datetime) -> None:
    journal.append(started(at, "assess"))
    assert [step.outcome for step in journal.steps()] == [Outcome.RUNNING]

    journal.append(ended(at, "assess", seconds=2.5, detail="found it"))
    (step,) = journal.steps()
    assert (step.outcome, step.duration, step.detail) == (Outcome.DONE, timedelta(seconds=2.5), "found it")


def test_an_attempt_without_an_end_was_interrupted_when_the_next_one_begins(journal: Journal, at: datetime) -> None:
    journal.append(started(at, "assess"))
    journal.append(ended(at, "assess"))
    journal.append(started(at, "apply_wal", 1, "run-1"))
    journal.append(started(at + timedelta(minutes=1), "apply_wal", 2, "run-2"))
    journal.append(ended(at + timedelta(minutes=1), "apply_wal", 2))

    steps = journal.steps()

    assert [(step.step, step.attempt, step.outcome, step.run_id) for step in steps] == [
        ("assess", 1, Outcome.DONE, "run-1"),
        ("apply_wal", 1, Outcome.INTERRUPTED, "run-1"),
        ("apply_wal", 2, Outcome.DONE, "run-2"),
    ]
    assert (steps[1].duration, steps[1].detail) == (None, INTERRUPTED)


def test_an_end_that_comes_after_the_next_attempt_began_belongs_to_its_own(journal: Journal, at: datetime) -> None:
    journal.append(started(at, "apply_wal", 1))
    journal.append(started(at, "apply_wal", 2))
    journal.append(ended(at, "apply_wal", 1, EventKind.FAILED, detail="shut down"))
    journal.append(ended(at, "apply_wal", 2))

    assert [(step.attempt, step.outcome) for step in journal.steps()] == [(1, Outcome.FAILED), (2, Outcome.DONE)]


def test_an_end_without_a_start_is_refused(journal: Journal, at: datetime) -> None:
    journal.append(started(at, "assess"))
    journal.append(ended(at, "validate"))

    with pytest.raises(ExecutionError, match="the step validate, which never began"):
        journal.steps()


def test_a_step_that_has_ended_cannot_end_again(journal: Journal, at: datetime) -> None:
    journal.append(started(at, "assess"))
    journal.append(ended(at, "assess"))
    journal.append(ended(at, "assess", kind=EventKind.FAILED, seconds=3))

    with pytest.raises(ExecutionError, match="a step that is done cannot be failed"):
        journal.steps()


def test_only_what_the_table_holds_can_happen() -> None:
    states: list[Outcome | None] = [None, *Outcome]
    for state, event in product(states, EventKind):
        if (state, event) in TRANSITIONS:
            assert advance(state, event) is TRANSITIONS[state, event]
        else:
            with pytest.raises(ExecutionError, match="cannot be"):
                advance(state, event)
