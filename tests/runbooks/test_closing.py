"""What a restore without markers is said to have lost."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dr_pipelines.engines.checks import Check
from dr_pipelines.engines.postgres.recovery import RestoredServer
from dr_pipelines.engines.postgres.room import Room
from dr_pipelines.runbooks.closing import loss_of
from dr_pipelines.runbooks.database_restore import Assessment, Validated
from dr_pipelines.runbooks.execution import Execution

OUTAGE = datetime(2026, 3, 1, 12, tzinfo=UTC)


def before(seconds: float) -> datetime:
    return OUTAGE - timedelta(seconds=seconds)


def loss(
    *,
    last_commit_at: datetime | None,
    recovery_point: datetime | None,
    to_the_end: bool = True,
    target_time: datetime | None = None,
    outage: datetime | None = OUTAGE,
) -> tuple[timedelta | None, datetime | None, str]:
    execution = Execution(
        id="20260301T120000Z-restore-abcdef",
        kind="restore",
        runbook="database_restore",
        service="database",
        outage_started_at=outage,
        started_at=OUTAGE,
        target_time=target_time,
        reason="a test",
        requested_by="somebody",
        plan_sha256=None,
    )
    assessment = Assessment(
        execution=execution,
        target="/srv/data",
        backup_id="b",
        system_identifier="1",
        major=18,
        files=(),
        log_end="0/4000000",
        recovery_point=recovery_point,
        gap=None,
        raw_bytes=1,
        stored_bytes=1,
        log_bytes=1,
        room=Room(1, 1),
    )
    server = RestoredServer(
        data=Path("/srv/data"),
        port=1,
        socket=Path("/run"),
        superuser="postgres",
        system_identifier="1",
        timeline=2,
        replayed_lsn="0/4000000",
        last_commit_at=last_commit_at,
    )
    end, check = OUTAGE + timedelta(minutes=10), Check("log_replayed_to_its_end", to_the_end, "")
    found = loss_of(assessment, server, Validated((check,), end, end))
    assert found.rows is None
    return found.rpo, found.recovered_to, found.method


def test_an_idle_database_lost_nothing_up_to_what_was_proven() -> None:
    rpo, recovered_to, method = loss(last_commit_at=before(3600), recovery_point=before(2))
    assert (rpo, recovered_to) == (timedelta(seconds=2), before(2))
    assert "proven recovery point" in method


def test_a_commit_after_what_was_proven_counts() -> None:
    rpo, recovered_to, _ = loss(last_commit_at=before(1), recovery_point=before(2))
    assert (rpo, recovered_to) == (timedelta(seconds=1), before(1))


def test_what_was_proven_does_not_count_where_the_log_was_not_replayed_to_its_end() -> None:
    rpo, _, method = loss(last_commit_at=before(60), recovery_point=before(2), to_the_end=False)
    assert rpo == timedelta(seconds=60)
    assert method == "no markers: outage's start minus the last replayed commit; 0 where that is later"


def test_a_restore_to_a_time_has_lost_what_came_after_it() -> None:
    rpo, recovered_to, _ = loss(last_commit_at=before(700), recovery_point=before(2), target_time=before(600))
    assert (rpo, recovered_to) == (timedelta(seconds=600), before(600))


def test_writes_that_went_on_after_the_outages_start_are_no_loss() -> None:
    assert loss(last_commit_at=before(-30), recovery_point=before(-20))[0] == timedelta(0)


@pytest.mark.parametrize("to_the_end", [True, False])
def test_without_anything_to_go_by_it_is_not_measured(to_the_end: bool) -> None:
    rpo, recovered_to, method = loss(last_commit_at=None, recovery_point=None, to_the_end=to_the_end)
    assert (rpo, recovered_to) == (None, None)
    assert method.startswith("not measured")


def test_without_an_outages_start_it_is_not_measured() -> None:
    rpo, recovered_to, method = loss(last_commit_at=before(5), recovery_point=None, outage=None)
    assert (rpo, recovered_to) == (None, before(5))
    assert "outage's start was not stated" in method


@pytest.mark.parametrize(("commit", "point"), [(before(10), before(-3600)), (before(-3600), before(5))])
def test_what_is_dated_ahead_of_our_clock_measures_no_loss(commit: datetime, point: datetime) -> None:
    rpo, _, method = loss(last_commit_at=commit, recovery_point=point)
    assert rpo is None
    assert "one of the clocks is wrong" in method
