"""A step of a runbook, timed against its budget while it runs."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from dr_pipelines.errors import DrError
from dr_pipelines.runbooks.execution import Event, EventKind, Journal
from dr_pipelines.timing import Clock, Stopwatch, format_duration

__all__ = ["WARN_AT", "Notes", "StepRunner"]

WARN_AT = 0.8
"""The share of its budget after which a step warns."""


class Notes(Protocol):
    """Where a step's words go: Dagster's log, the terminal."""

    def info(self, message: str) -> None: ...

    def warning(self, message: str) -> None: ...


@dataclass(frozen=True)
class StepRunner:
    """Carries out the steps of one execution within one run."""

    journal: Journal
    budgets: dict[str, timedelta]
    clock: Clock
    notes: Notes
    run_id: str | None

    @contextmanager
    def step(self, name: str) -> Iterator[Callable[[str], None]]:
        """Time the body as the step `name`; what it yields takes the one line that the step's result is told in.

        Journals the start before and the end after. Warns at 80 % of the budget and again when it is used up, while
        the body still runs, and lets it go on: an overrun is a finding, not a failure.
        """
        attempt = 1 + sum(state.step == name for state in self.journal.steps())
        watch = Stopwatch(self.clock)
        self.journal.append(
            Event(step=name, kind=EventKind.STARTED, attempt=attempt, at=watch.started_at, run_id=self.run_id)
        )
        self.notes.info(f"step {name}: started" + (f", attempt {attempt}" if attempt > 1 else ""))
        told: list[str] = []
        ended = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(name, watch, ended), daemon=True)
        watcher.start()
        try:
            yield told.append
        except BaseException as error:
            self._end(name, EventKind.FAILED, attempt, watch, str(error) if isinstance(error, DrError) else repr(error))
            raise
        else:
            self._end(name, EventKind.DONE, attempt, watch, "; ".join(told))
        finally:
            ended.set()
            watcher.join()

    def _end(self, name: str, kind: EventKind, attempt: int, watch: Stopwatch, detail: str) -> None:
        seconds = watch.elapsed().total_seconds()
        self.journal.append(
            Event(
                step=name,
                kind=kind,
                attempt=attempt,
                at=self.clock.wall(),
                run_id=self.run_id,
                seconds=seconds,
                detail=detail[:1000],
            )
        )
        budget = f" of {format_duration(self.budgets[name])}" if name in self.budgets else ""
        self.notes.info(
            f"step {name}: {kind} after {format_duration(watch.elapsed())}{budget}" + (f", {detail}" if detail else "")
        )

    def _watch(self, name: str, watch: Stopwatch, ended: threading.Event) -> None:
        budget = self.budgets.get(name)
        if budget is None:
            return
        for share, word in ((WARN_AT, "has used 80 % of"), (1.0, "has overrun")):
            while (rest := (budget * share - watch.elapsed()).total_seconds()) > 0:
                if ended.wait(min(rest, 1.0)):
                    return
            self.notes.warning(f"step {name} {word} its budget of {format_duration(budget)}; it goes on")
