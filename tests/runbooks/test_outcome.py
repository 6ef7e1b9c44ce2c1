"""From what an execution left behind to its record: what was not measured is never met."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from dr_pipelines.engines.checks import Check
from dr_pipelines.engines.verdict import Verdict
from dr_pipelines.plan import Plan
from dr_pipelines.runbooks.estimate import estimate_restore
from dr_pipelines.runbooks.execution import INTERRUPTED, Execution, Outcome, StepState
from dr_pipelines.runbooks.outcome import Loss, Restored, environment, make_record
from dr_pipelines.runbooks.record import Record, Rows

MET, MISSED, UNVERIFIED = Verdict.MET, Verdict.MISSED, Verdict.UNVERIFIED
SOUND = Check("amcheck", True, "no corruption found")
FIRST = Check("application_query", True, "answered 1")
MARKERS = Check("no_unknown_rows", True, "each was attempted")

MakeStep = Callable[..., StepState]


@pytest.fixture
def steps(make_step: MakeStep) -> list[StepState]:
    """Four steps that were done within 20 s of the outage."""
    return [
        make_step("assess", 1, 1),
        make_step("restore_latest_backup", 3, 7),
        make_step("apply_wal", 10, 5),
        make_step("validate", 15, 5),
    ]


@pytest.fixture
def restored(outage: datetime) -> Restored:
    """Validated 19 s after the outage, healthy a second later."""
    return Restored(
        checks=(SOUND, FIRST),
        validated_at=outage + timedelta(seconds=19),
        healthy_at=outage + timedelta(seconds=20),
    )


@pytest.fixture
def loss(outage: datetime) -> Loss:
    """Nothing was lost."""
    return Loss(timedelta(0), "markers", outage, Rows(acknowledged=10, recovered=10, lost=0), (MARKERS,))


MakeRecord = Callable[..., Record]


@pytest.fixture
def record_of(
    execution: Execution, steps: list[StepState], restored: Restored, loss: Loss, plan: Plan, outage: datetime
) -> MakeRecord:
    """Makes the record of a drill that went well, but for what is given."""

    def make(
        *,
        execution: Execution = execution,
        steps: list[StepState] = steps,
        restored: Restored = restored,
        loss: Loss = loss,
        plan: Plan | None = plan,
        errors: tuple[str, ...] = (),
    ) -> Record:
        return make_record(
            execution,
            steps,
            restored,
            loss,
            plan,
            environment("/backups", None, "a copy"),
            ended_at=outage + timedelta(seconds=21),
            run_id="run-1",
            scenario="the host is lost",
            errors=errors,
        )

    return make


def verdicts(record: Record) -> tuple[Verdict, Verdict, Verdict, Verdict]:
    return record.verdicts.rto, record.verdicts.rpo, record.verdicts.integrity, record.verdict


def test_a_drill_that_went_well_met_everything(record_of: MakeRecord, outage: datetime) -> None:
    record = record_of()

    assert verdicts(record) == (MET, MET, MET, MET)
    assert (record.rto_seconds, record.rto_objective_seconds) == (20.0, 3600.0)
    assert (record.rpo_seconds, record.rpo_objective_seconds) == (0.0, 900.0)
    assert record.service_restored_at == outage + timedelta(seconds=20)
    assert record.deviations == ()
    assert record.attempt == 1
    assert (record.tier, record.kind) == ("critical", "drill")


def test_phases_add_up_to_the_rto(record_of: MakeRecord) -> None:
    record = record_of()
    phases = record.phases

    assert (phases.decide, phases.restore, phases.validate_, phases.healthy) == (2.0, 13.0, 4.0, 1.0)
    assert phases.detect is None
    assert record.rto_seconds == sum(filter(None, (phases.decide, phases.restore, phases.validate_, phases.healthy)))


def test_the_later_of_validated_and_healthy_ends_the_rto(
    record_of: MakeRecord, restored: Restored, outage: datetime
) -> None:
    record = record_of(restored=replace(restored, healthy_at=outage + timedelta(seconds=17)))

    assert (record.rto_seconds, record.phases.healthy) == (19.0, 0.0)


def test_a_service_that_was_back_too_late_missed_its_rto(
    record_of: MakeRecord, restored: Restored, outage: datetime
) -> None:
    record = record_of(restored=replace(restored, healthy_at=outage + timedelta(hours=1, seconds=1)))

    assert verdicts(record) == (MISSED, MET, MET, MISSED)


def test_more_lost_than_promised_missed_the_rpo(record_of: MakeRecord, loss: Loss) -> None:
    record = record_of(loss=replace(loss, rpo=timedelta(minutes=16)))

    assert verdicts(record) == (MET, MISSED, MET, MISSED)


def test_rows_that_are_not_what_they_should_be_missed_integrity(record_of: MakeRecord, loss: Loss) -> None:
    record = record_of(loss=replace(loss, checks=(Check("no_unknown_rows", False, "row 7"),)))

    assert verdicts(record) == (MET, MET, MISSED, MISSED)
    assert record.deviations == ("check no_unknown_rows failed: row 7",)


@pytest.mark.parametrize(("passed", "integrity"), [(False, MISSED), (None, UNVERIFIED)])
def test_without_a_validation_that_passed_no_rto_was_measured(
    record_of: MakeRecord, restored: Restored, passed: bool | None, integrity: Verdict
) -> None:
    record = record_of(restored=replace(restored, checks=(Check("amcheck", passed, "page 3"), FIRST)))

    assert verdicts(record) == (UNVERIFIED, MET, integrity, integrity)
    assert record.rto_seconds is None
    assert record.rto_method == "not measured: validation did not pass (amcheck)"
    assert (record.moments.validated_at, record.service_restored_at) == (None, None)


def test_a_restore_that_checked_nothing_is_not_validated(record_of: MakeRecord, restored: Restored) -> None:
    record = record_of(restored=replace(restored, checks=()))

    assert record.verdicts.rto is UNVERIFIED
    assert "nothing was checked" in record.rto_method


def test_a_first_query_that_did_not_succeed_leaves_the_rto_unmeasured(
    record_of: MakeRecord, restored: Restored
) -> None:
    failed = Check("application_query", False, "no such table")
    record = record_of(restored=replace(restored, healthy_at=None, checks=(SOUND, failed)))

    assert verdicts(record) == (UNVERIFIED, MET, MISSED, MISSED)
    assert "application_query" in record.rto_method


def test_a_failed_restore_is_unverified_and_says_why(record_of: MakeRecord, make_step: MakeStep) -> None:
    record = record_of(
        steps=[make_step("assess", 1, 1, outcome=Outcome.FAILED, detail="part 3 is damaged")],
        restored=Restored(),
        loss=Loss(None, "not measured: the restore failed", None, None),
        errors=("part 3 is damaged",),
    )

    assert verdicts(record) == (UNVERIFIED,) * 4
    assert record.deviations == (
        "step assess, attempt 1: failed, part 3 is damaged",
        "part 3 is damaged",
        "RTO not measured: the restored server was not validated",
        "RPO not measured: the restore failed",
    )


def test_an_error_after_the_checks_leaves_integrity_unverified(record_of: MakeRecord) -> None:
    record = record_of(errors=("the markers could not be read",))

    assert verdicts(record) == (MET, MET, UNVERIFIED, UNVERIFIED)


def test_without_an_outage_start_no_rto_is_measured(record_of: MakeRecord, execution: Execution) -> None:
    record = record_of(execution=execution.model_copy(update={"outage_started_at": None}))

    assert record.verdicts.rto is UNVERIFIED
    assert record.rto_method == "not measured: the outage's start was not stated"
    assert record.phases.decide is None


def test_without_a_plan_there_is_nothing_to_be_met(record_of: MakeRecord) -> None:
    record = record_of(plan=None)

    assert verdicts(record) == (UNVERIFIED, UNVERIFIED, MET, UNVERIFIED)
    assert (record.rto_seconds, record.rto_objective_seconds, record.tier) == (20.0, None, None)
    assert all(step.budget_seconds is None and not step.overrun for step in record.steps)


@pytest.mark.parametrize("late", [timedelta(seconds=20), timedelta(seconds=30), timedelta(seconds=2.5)])
def test_durations_of_nothing_or_less_are_refused(
    record_of: MakeRecord, execution: Execution, outage: datetime, late: timedelta
) -> None:
    record = record_of(execution=execution.model_copy(update={"outage_started_at": outage + late}))

    assert record.verdicts.rto is UNVERIFIED
    assert record.rto_seconds is None
    assert "clock was set" in record.rto_method
    assert any("clock was set" in deviation for deviation in record.deviations)
    assert all(value is None or value >= 0 for value in record.phases.model_dump().values())


def test_a_clock_that_went_back_between_two_steps_makes_the_rto_doubtful(
    record_of: MakeRecord, steps: list[StepState], make_step: MakeStep
) -> None:
    record = record_of(steps=[*steps[:2], make_step("apply_wal", 14, 5.5), steps[3]])

    assert record.verdicts.rto is UNVERIFIED
    assert record.phases.validate_ is None


def test_a_negative_loss_is_refused(record_of: MakeRecord, loss: Loss) -> None:
    record = record_of(loss=replace(loss, rpo=timedelta(seconds=-3)))

    assert (record.rpo_seconds, record.verdicts.rpo, record.verdict) == (None, UNVERIFIED, UNVERIFIED)
    assert "a clock was set" in record.rpo_method


def test_a_step_past_its_budget_is_an_overrun_and_no_failure(record_of: MakeRecord, make_step: MakeStep) -> None:
    steps = [make_step("assess", 0, 301), make_step("apply_wal", 302, 900), make_step("validate", 1203, 10)]

    record = record_of(steps=steps)

    assert [(step.overrun, step.outcome) for step in record.steps] == [(True, "done"), (False, "done"), (False, "done")]
    assert "step assess, attempt 1: overran its budget of 5m, took 5m1s" in record.deviations


def test_every_run_and_attempt_of_a_resumed_execution_is_in_its_record(
    record_of: MakeRecord, steps: list[StepState], make_step: MakeStep
) -> None:
    first, rest = steps[:2], steps[3]
    cut = make_step("apply_wal", 10, None, outcome=Outcome.INTERRUPTED, run_id="run-0", detail=INTERRUPTED)
    again = make_step("apply_wal", 12, 3, attempt=2)

    record = record_of(steps=[*(replace(step, run_id="run-0") for step in first), cut, again, rest])

    assert (record.attempt, record.run_ids) == (2, ("run-0", "run-1"))
    assert [(step.name, step.attempt, step.outcome) for step in record.steps] == [
        ("assess", 1, "done"),
        ("restore_latest_backup", 1, "done"),
        ("apply_wal", 1, "interrupted"),
        ("apply_wal", 2, "done"),
        ("validate", 1, "done"),
    ]
    assert (record.rto_seconds, record.verdict) == (20.0, MET)
    assert record.deviations == (f"step apply_wal, attempt 1: interrupted, {INTERRUPTED}",)


def test_a_resume_that_only_measures_is_a_further_attempt(record_of: MakeRecord, steps: list[StepState]) -> None:
    record = record_of(steps=[replace(step, run_id="run-0") for step in steps])

    assert (record.attempt, record.run_ids) == (2, ("run-0", "run-1"))


def test_a_step_that_still_runs_when_the_execution_ends_was_interrupted(
    record_of: MakeRecord, make_step: MakeStep
) -> None:
    record = record_of(steps=[make_step("assess", 1, None, outcome=Outcome.RUNNING)], restored=Restored())

    assert (record.steps[0].outcome, record.steps[0].ended_at) == ("interrupted", None)


def test_the_moment_the_restore_began_is_that_of_its_first_attempt(
    record_of: MakeRecord, make_step: MakeStep, outage: datetime
) -> None:
    attempts = [
        make_step("restore_latest_backup", 3, None, outcome=Outcome.INTERRUPTED),
        make_step("restore_latest_backup", 9, 2, attempt=2),
    ]

    assert record_of(steps=attempts).moments.restore_started_at == outage + timedelta(seconds=3)


class TestTheEstimate:
    @pytest.fixture
    def estimated(self, restored: Restored, outage: datetime) -> Restored:
        sizes = {"restore_latest_backup": 100_000_000, "apply_wal": 0, "validate": 0}
        return replace(restored, estimate=estimate_restore(sizes, [], None, outage))

    def test_stands_beside_what_it_then_took(
        self, record_of: MakeRecord, estimated: Restored, steps: list[StepState], make_step: MakeStep
    ) -> None:
        record = record_of(restored=estimated, steps=[*steps, make_step("prepare", 2, 1)])
        assert record.estimate is not None
        found = {step.name: step.actual_seconds for step in record.estimate.steps}
        assert found == {"prepare": 1, "restore_latest_backup": 7, "apply_wal": 5, "validate": 5}
        assert [step.estimate_seconds for step in record.estimate.steps] == [0.3, 1.5, 1.0, 1.0]
        assert record.estimate.actual_seconds == 7 + 5 + 5 + 1
        assert {step.basis for step in record.estimate.steps} == {"assumed"}

    def test_is_not_compared_with_a_step_that_was_interrupted_or_never_came(
        self, record_of: MakeRecord, estimated: Restored, steps: list[StepState], make_step: MakeStep
    ) -> None:
        again = make_step("apply_wal", 8, None, outcome=Outcome.INTERRUPTED)
        record = record_of(restored=estimated, steps=[*steps[:2], again, *steps[2:]])
        assert record.estimate is not None
        assert record.estimate.actual_seconds is None
        taken = {step.name: step.actual_seconds for step in record.estimate.steps}
        assert taken == {"prepare": None, "restore_latest_backup": 7, "apply_wal": None, "validate": 5}

    def test_is_none_where_none_was_made(self, record_of: MakeRecord) -> None:
        assert record_of().estimate is None
