"""The drill's cutover: what the application's notes mean, and a drill in which the application does not come back."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dr_pipelines.drills import cutover
from dr_pipelines.drills import database as drill
from dr_pipelines.drills.cutover import application_checks, first_answer
from dr_pipelines.engines.verdict import Verdict
from dr_pipelines.lab.application import Note
from dr_pipelines.processes.leases import Leases
from dr_pipelines.repository.approvals import Approvals, Decision, Standing
from dr_pipelines.repository.identifiers import timed_id
from dr_pipelines.runbooks.database_restore import Surroundings
from dr_pipelines.timing import SystemClock
from tests import archived
from tests.drills.test_can_fail import surroundings

OUTAGE = datetime(2026, 3, 1, 12, tzinfo=UTC)
OLD, NEW = "127.0.0.1:5432", "127.0.0.1:5433"


def answered(seconds: float, where: str) -> Note:
    return Note(True, OUTAGE + timedelta(seconds=seconds), where)


def in_vain(seconds: float) -> Note:
    return Note(False, OUTAGE + timedelta(seconds=seconds), "nowhere")


def passed(*notes: Note) -> tuple[bool | None, bool | None]:
    reconnected, silent = application_checks(notes, old=OLD, new=NEW, outage=OUTAGE)
    return reconnected.passed, silent.passed


def test_an_application_that_finds_the_new_server_by_itself() -> None:
    notes = [answered(-1, OLD), in_vain(1), in_vain(2), answered(12.5, NEW), answered(13, NEW)]

    reconnected, silent = application_checks(notes, old=OLD, new=NEW, outage=OUTAGE)

    assert (reconnected.passed, silent.passed) == (True, True)
    assert reconnected.detail == "without an answer for 13.5 s, after 2 attempts in vain"
    assert first_answer(notes, NEW) == OUTAGE + timedelta(seconds=12.5)


def test_one_that_does_not_has_failed() -> None:
    assert passed(answered(-1, OLD), in_vain(1), in_vain(60)) == (False, True)
    assert passed(answered(-1, OLD), answered(60, "127.0.0.1:9")) == (False, True)


def test_one_that_never_had_an_answer_before_shows_nothing() -> None:
    assert passed(answered(12, NEW)) == (None, None)
    assert passed() == (False, None)


def test_an_old_server_that_goes_on_answering_was_not_fenced() -> None:
    assert passed(answered(-1, OLD), answered(5, OLD), answered(12, NEW)) == (True, False)
    # The answer to what it had been asked before may be noted a moment later.
    assert passed(answered(0.5, OLD), answered(12, NEW)) == (True, True)


def options(**changes: object) -> drill.DrillOptions:
    small: dict[str, object] = {"size_bytes": 1_000_000, "writers": 1, "archive_timeout": timedelta(seconds=1)}
    return drill.DrillOptions(cutover=True, requested_by="ada", **(small | changes))  # type: ignore[arg-type]


@pytest.fixture
def around() -> Iterator[Surroundings]:
    with archived.state() as settings, archived.open_to_all() as folder:
        plan = Path(__file__).parents[2] / "recovery-plan.yaml"
        yield surroundings(settings.model_copy(update={"repository": str(folder / "repository"), "plan": plan}))


@pytest.mark.slow
def test_a_drill_whose_application_does_not_come_back_has_failed_and_measures_no_rto(
    around: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutover, "_PATIENCE", 1.0)
    execution_id = timed_id("drill", SystemClock().wall())
    lost = drill.lose_database(around, drill.set_the_stage(around, options(), execution_id))
    (application,) = around.leases.of(f"lab-{execution_id}", "application")
    around.leases.kill(application)

    record = drill.carry_out(around, lost, "run-1")

    failed = {check.name: check.detail for check in record.checks if not check.passed}
    assert list(failed) == ["application_reconnected_by_itself"]
    assert (record.verdicts.integrity, record.verdicts.rto) == (Verdict.MISSED, Verdict.UNVERIFIED)
    assert record.rto_seconds is None and "application_reconnected_by_itself" in record.rto_method
    assert record.cutover is not None and record.cutover.backup_id is not None
    assert not Leases(around.settings.state_dir).all(ending=True)


class Denying(SystemClock):
    """While somebody waits, somebody else denies."""

    approvals: Approvals | None = None

    def sleep(self, seconds: float) -> None:
        now = self.wall()
        approval = self.approvals.latest(now) if self.approvals is not None else None
        if self.approvals is not None and approval is not None and approval.standing is Standing.WAITING:
            self.approvals.answer(Decision.DENIED, target="", by="grace", now=now, reason="not today")
        super().sleep(seconds)


@pytest.mark.slow
def test_a_drill_that_is_to_be_approved_by_hand_and_is_denied_measures_no_rto(around: Surroundings) -> None:
    clock, execution_id = Denying(), timed_id("drill", SystemClock().wall())
    around = replace(around, clock=clock)
    lost = drill.lose_database(around, drill.set_the_stage(around, options(approve_by_hand=True), execution_id))
    clock.approvals = Approvals(around.repository.store, execution_id)

    record = drill.carry_out(around, lost, "run-1")

    assert record.verdict is Verdict.UNVERIFIED
    assert any("denied by grace" in deviation for deviation in record.deviations)
    assert record.cutover is not None and record.cutover.fenced_by is None
    assert record.cutover.approval is not None and record.cutover.approval.standing == "denied"
    assert "the cutover was not carried out" in record.rto_method
    assert not Leases(around.settings.state_dir).all(ending=True)
