"""The loss itself, interrupted: the outage's start is written down once, or the drill does not go on."""

import logging
from collections.abc import Iterator
from datetime import timedelta

import pytest

from dr_pipelines.drills import database as drill
from dr_pipelines.errors import ExecutionError
from dr_pipelines.lab import database as lab_database
from dr_pipelines.lab.database import LogWay
from dr_pipelines.repository.identifiers import timed_id
from dr_pipelines.runbooks import database_restore as runbook
from dr_pipelines.runbooks.execution import Execution, Journal
from dr_pipelines.timing import SystemClock
from tests import archived

pytestmark = pytest.mark.slow


class Killed(BaseException):
    """What nothing catches, as nothing catches a SIGKILL."""


def killed(*_: object) -> None:
    raise Killed


@pytest.fixture
def staged() -> Iterator[tuple[runbook.Surroundings, drill.Staged]]:
    with archived.state() as settings, archived.open_to_all() as folder:
        around = runbook.surroundings(
            settings.model_copy(update={"repository": str(folder / "repository")}),
            logging.getLogger("tests"),
            create=True,
        )
        options = drill.DrillOptions(size_bytes=1_000_000, writers=1, archive_timeout=timedelta(seconds=1), seed=1)
        staged = drill.set_the_stage(around, options, timed_id("drill", SystemClock().wall()))
        yield around, staged
        drill.end_drill(around, staged.execution_id, None, keep=False)


def test_interrupted_while_it_deletes_it_goes_on_with_the_same_outage_start(
    staged: tuple[runbook.Surroundings, drill.Staged], monkeypatch: pytest.MonkeyPatch
) -> None:
    around, stage = staged
    lab = drill._lab(stage.lab_folder)
    with monkeypatch.context() as patch:
        patch.setattr(lab_database, "delete_host", killed)
        with pytest.raises(Killed):
            drill.lose_database(around, stage)
    begun = Journal(around.repository.store, stage.execution_id).execution()
    assert lab.data.exists()

    lost = drill.lose_database(around, stage)

    assert lost.execution == begun
    assert lost.execution.outage_started_at is not None and lost.recovery_point is not None
    assert lost.recovery_point < lost.execution.outage_started_at
    assert not lab.data.exists()


def test_interrupted_before_its_moment_was_written_down_it_is_given_up(
    staged: tuple[runbook.Surroundings, drill.Staged], monkeypatch: pytest.MonkeyPatch
) -> None:
    around, stage = staged

    def begin(journal: Journal, execution: Execution) -> Execution:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "begin", begin)
        with pytest.raises(Killed):
            drill.lose_database(around, stage)

    with pytest.raises(ExecutionError, match="since when was not written down"):
        drill.lose_database(around, stage)


@pytest.mark.parametrize(("way", "limit"), [("stream", timedelta(seconds=5)), ("synchronous", timedelta(0))])
def test_a_streamed_log_loses_seconds_and_a_synchronous_one_nothing(way: LogWay, limit: timedelta) -> None:
    with archived.state() as settings, archived.open_to_all() as folder:
        around = runbook.surroundings(
            settings.model_copy(update={"repository": str(folder / "repository")}),
            logging.getLogger("tests"),
            create=True,
        )
        options = drill.DrillOptions(size_bytes=1_000_000, writers=2, log=way, archive_timeout=timedelta(seconds=1))
        staged = drill.set_the_stage(around, options, timed_id("drill", SystemClock().wall()))
        record = drill.carry_out(around, drill.lose_database(around, staged), None)
        assert record.rpo_seconds is not None and timedelta(seconds=record.rpo_seconds) <= limit, record
        assert record.rows is not None and record.rows.acknowledged > 0
        assert record.verdicts.integrity == "met"
