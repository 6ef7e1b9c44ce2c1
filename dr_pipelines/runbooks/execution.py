"""An execution: one carrying-out of a runbook, which may span several runs, and the journal of its steps.

The journal lies in the repository, below `executions/<id>/`, so that an execution goes on wherever it is resumed, also
on another machine: `execution.json` is written once and holds the outage start; each event after it is an object of its
own. A step that has a start and no end was interrupted.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from dr_pipelines.errors import ExecutionError, ObjectCorrupt, ObjectMissing
from dr_pipelines.repository.sealed import seal, unseal
from dr_pipelines.repository.store import Store

__all__ = ["INTERRUPTED", "Event", "EventKind", "Execution", "Journal", "Outcome", "StepState", "advance", "read_steps"]


INTERRUPTED = "its run ended before it did"
"""What is told of an attempt that has no end."""


class Outcome(StrEnum):
    """How a step came out; `overrun` of its budget is noted beside it."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


class EventKind(StrEnum):
    """What can happen to a step."""

    STARTED = "started"
    DONE = "done"
    FAILED = "failed"


TRANSITIONS: Mapping[tuple[Outcome | None, EventKind], Outcome] = {
    (None, EventKind.STARTED): Outcome.RUNNING,
    (Outcome.RUNNING, EventKind.DONE): Outcome.DONE,
    (Outcome.RUNNING, EventKind.FAILED): Outcome.FAILED,
    (Outcome.INTERRUPTED, EventKind.DONE): Outcome.DONE,
    (Outcome.INTERRUPTED, EventKind.FAILED): Outcome.FAILED,
}
"""The states of one attempt at a step. A start while it runs makes it INTERRUPTED: its run is gone, or is believed to
be; an end that comes all the same is what happened."""


def advance(state: Outcome | None, event: EventKind) -> Outcome:
    """The next state of an attempt. Raises ExecutionError for what cannot happen."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise ExecutionError(f"a step that is {state or 'not started'} cannot be {event}") from None


class Execution(BaseModel):
    """What is fixed when an execution begins, and survives every resume."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    kind: Literal["drill", "restore"]
    runbook: str
    """What is carried out, by the name of its job; the plan's budgets are found by the service."""
    service: str
    outage_started_at: AwareDatetime | None
    """When the users were hurt; None where nobody stated it, and then the RTO is not measured."""
    started_at: AwareDatetime
    target_time: AwareDatetime | None
    """What to restore to; None for the latest point."""
    timeline: int | None = None
    """Which timeline that is on, where somebody said so."""
    reason: str
    requested_by: str
    plan_sha256: str | None
    sandbox: str | None = None
    """The part of the repository with the backups, where they are a drill's own."""


class Event(BaseModel):
    """One line of the journal."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    step: str
    kind: EventKind
    attempt: int
    at: AwareDatetime
    run_id: str | None
    seconds: float | None = None
    """Measured with one process's monotonic clock; only on `done` and `failed`."""
    detail: str = ""


@dataclass(frozen=True)
class StepState:
    """One attempt at a step, read from the journal."""

    step: str
    attempt: int
    outcome: Outcome
    started_at: datetime
    duration: timedelta | None
    detail: str
    run_id: str | None


class Journal:
    """The journal of one execution, in the store at the root of the repository."""

    def __init__(self, store: Store, execution_id: str) -> None:
        self.execution_id = execution_id
        self._store = store.child(f"executions/{execution_id}")

    def begin(self, execution: Execution) -> Execution:
        """Write down what is fixed; returns what was written first, where that had happened before."""
        self._store.put_if_absent("execution.json", [seal(execution.model_dump(mode="json"))])
        return self.execution()

    def begun(self) -> Execution | None:
        """What is fixed; None where it has not begun."""
        return self.execution() if self._store.info("execution.json") is not None else None

    def execution(self) -> Execution:
        """What is fixed. Raises ExecutionError where there is no such execution, ObjectCorrupt."""
        try:
            data = self._store.get("execution.json")
        except ObjectMissing:
            raise ExecutionError(f"there is no execution {self.execution_id} in {self._store.url}") from None
        return _read(Execution, data, f"execution {self.execution_id}")

    def append(self, event: Event) -> None:
        """Add an event at the end."""
        data = seal(event.model_dump(mode="json"))
        number = len(self._store.names("events"))
        while not self._store.put_if_absent(f"events/{number:06d}.json", [data]):
            # A bucket whose answer was lost refuses the retry for the object that it has just stored.
            if self._store.get(f"events/{number:06d}.json") == data:
                return
            number += 1

    def events(self) -> Iterator[Event]:
        """All events, oldest first. Raises ObjectCorrupt."""
        for name in self._store.names("events"):
            yield _read(Event, self._store.get(f"events/{name}"), f"event {name} of {self.execution_id}")

    def steps(self) -> tuple[StepState, ...]:
        """Every attempt at every step, in the order of their starts."""
        return read_steps(tuple(self.events()))


_Read = TypeVar("_Read", Execution, Event)


def _read(kind: type[_Read], data: bytes, what: str) -> _Read:
    hint = "it cannot go on: begin anew, a restore with another target"
    try:
        return kind.model_validate(unseal(data, what=what))
    except ObjectCorrupt as error:
        raise ObjectCorrupt(error.message, hint=hint) from None
    except ValidationError as error:
        first = error.errors()[0]
        raise ObjectCorrupt(f"{what}: {'.'.join(map(str, first['loc']))}: {first['msg']}", hint=hint) from None


def read_steps(events: tuple[Event, ...]) -> tuple[StepState, ...]:
    """The attempts that a journal tells of. An attempt left running while another began was interrupted."""
    attempts: list[StepState] = []
    places: dict[tuple[str, int], int] = {}
    for event in events:
        key = (event.step, event.attempt)
        if event.kind is EventKind.STARTED:
            if attempts and attempts[-1].outcome is Outcome.RUNNING:
                attempts[-1] = _ended(attempts[-1], Outcome.INTERRUPTED, None, INTERRUPTED)
            places[key] = len(attempts)
            attempts.append(
                StepState(event.step, event.attempt, advance(None, event.kind), event.at, None, "", event.run_id)
            )
            continue
        if key not in places:
            raise ExecutionError(
                f"the journal ends attempt {event.attempt} at the step {event.step}, which never began"
            )
        state = attempts[places[key]]
        duration = timedelta(seconds=event.seconds) if event.seconds is not None else None
        attempts[places[key]] = _ended(state, advance(state.outcome, event.kind), duration, event.detail)
    return tuple(attempts)


def _ended(state: StepState, outcome: Outcome, duration: timedelta | None, detail: str) -> StepState:
    return StepState(state.step, state.attempt, outcome, state.started_at, duration, detail, state.run_id)
