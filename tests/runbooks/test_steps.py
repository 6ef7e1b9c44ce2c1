"""A step is timed against its budget while it runs: it warns, it overruns, it goes on."""

import threading
from dataclasses import dataclass, field
from datetime import timedelta

import pytest

from dr_pipelines.errors import RestoreError
from dr_pipelines.runbooks.execution import Journal, Outcome
from dr_pipelines.runbooks.steps import StepRunner
from dr_pipelines.timing import Clock, FakeClock, SystemClock, wait_until


@dataclass
class Told:
    """Collects what a step says."""

    infos: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def info(self, message: str) -> None:
        self.infos.append(message)

    def warning(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def runner(journal: Journal, clock: Clock, told: Told, run_id: str = "run-1", **budgets: float) -> StepRunner:
    limits = {name: timedelta(seconds=value) for name, value in budgets.items()}
    return StepRunner(journal, limits, clock, told, run_id)


def test_a_step_leaves_its_start_its_end_and_what_it_told(journal: Journal, clock: FakeClock, told: Told) -> None:
    with runner(journal, clock, told, assess=300).step("assess") as tell:
        clock.advance(2.5)
        tell("a backup")
        tell("and its log")

    (step,) = journal.steps()
    assert (step.step, step.attempt, step.outcome, step.run_id) == ("assess", 1, Outcome.DONE, "run-1")
    assert step.duration == timedelta(seconds=2.5)
    assert step.detail == "a backup; and its log"
    assert told.infos == ["step assess: started", "step assess: done after 2.5s of 5m, a backup; and its log"]
    assert told.warnings == []


def test_its_length_is_that_of_the_monotonic_clock(journal: Journal, clock: FakeClock, told: Told) -> None:
    with runner(journal, clock, told).step("assess"):
        clock.advance(3)
        clock.now -= timedelta(hours=1)

    assert journal.steps()[0].duration == timedelta(seconds=3)


def test_a_failure_is_journalled_and_goes_on_its_way(journal: Journal, clock: FakeClock, told: Told) -> None:
    def fail() -> None:
        with runner(journal, clock, told).step("prepare"):
            clock.advance(1)
            raise RestoreError("disk full", hint="make room")

    with pytest.raises(RestoreError, match="disk full"):
        fail()

    (step,) = journal.steps()
    assert (step.outcome, step.detail, step.duration) == (
        Outcome.FAILED,
        "disk full (make room)",
        timedelta(seconds=1),
    )


def test_an_interruption_is_journalled_too(journal: Journal, clock: FakeClock, told: Told) -> None:
    with pytest.raises(KeyboardInterrupt), runner(journal, clock, told).step("prepare"):
        raise KeyboardInterrupt

    assert journal.steps()[0].outcome is Outcome.FAILED


def test_attempts_are_counted_over_runs(journal: Journal, clock: FakeClock, told: Told) -> None:
    with pytest.raises(RestoreError), runner(journal, clock, told, "run-1").step("prepare"):
        raise RestoreError("no room")
    with runner(journal, clock, told, "run-2").step("prepare"):
        pass

    assert [(step.attempt, step.run_id) for step in journal.steps()] == [(1, "run-1"), (2, "run-2")]
    assert "step prepare: started, attempt 2" in told.infos


@pytest.mark.slow
def test_it_warns_at_80_percent_of_its_budget_and_again_past_it(journal: Journal, clock: FakeClock, told: Told) -> None:
    with runner(journal, clock, told, assess=100).step("assess"):
        clock.advance(79)
        assert not wait_until(lambda: told.warnings, timeout=1.5)
        clock.advance(1)
        assert wait_until(lambda: len(told.warnings) == 1, timeout=10)
        clock.advance(19)
        assert not wait_until(lambda: len(told.warnings) > 1, timeout=1.5)
        clock.advance(1)
        assert wait_until(lambda: len(told.warnings) == 2, timeout=10)

    assert told.warnings == [
        "step assess has used 80 % of its budget of 1m40s; it goes on",
        "step assess has overrun its budget of 1m40s; it goes on",
    ]
    assert journal.steps()[0].outcome is Outcome.DONE


def test_on_the_real_clock_it_warns_while_the_step_still_runs(journal: Journal, told: Told) -> None:
    with runner(journal, SystemClock(), told, assess=0.2).step("assess"):
        assert wait_until(lambda: len(told.warnings) == 2, timeout=10)

    duration = journal.steps()[0].duration
    assert duration is not None
    assert duration >= timedelta(seconds=0.2)


def test_a_step_without_a_budget_never_warns(journal: Journal, clock: FakeClock, told: Told) -> None:
    with runner(journal, clock, told).step("assess"):
        clock.advance(1e6)

    assert told.warnings == []


def test_a_step_that_ended_is_no_longer_watched(journal: Journal, clock: FakeClock, told: Told) -> None:
    before = threading.active_count()
    with runner(journal, clock, told, assess=10).step("assess"):
        clock.advance(1)
    clock.advance(100)

    assert threading.active_count() == before
    assert told.warnings == []
