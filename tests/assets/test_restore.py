"""The job `database_restore`, of a database that is really gone."""

import os
import signal
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import dagster as dg
import psycopg
import pytest

from dr_pipelines.engines.verdict import Verdict
from dr_pipelines.processes.postgres import running_pid
from dr_pipelines.timing import SystemClock, format_moment, wait_until
from tests.assets.conftest import Machine, failure_of, new_hotel

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outage(machine: Machine) -> Iterator[datetime]:
    """When the hotel's database was lost; it had been backed up, and a row written after that."""
    with new_hotel(machine) as hotel:
        assert machine.run("database_backup").success
        hotel.do("CREATE TABLE written AS SELECT 'after the backup' AS what")
        hotel.settle()
        yield hotel.lose()


def form(outage: datetime, **fields: object) -> dict[str, object]:
    config = {"service": "database", "outage_started_at": format_moment(outage), "reason": "a test", **fields}
    return {"ops": {"assess": {"config": config}}}


def output(result: dg.ExecuteInProcessResult, op: str) -> dict[str, dg.MetadataValue]:
    for event in result.all_events:
        if event.is_successful_output and event.step_key == op:
            return dict(event.step_output_data.metadata)
    raise AssertionError(failure_of(result))


def end_server(data: Path) -> None:
    """As an operator would: nothing of ours keeps the server any more."""
    pid = running_pid(data)
    assert pid is not None
    os.kill(pid, signal.SIGINT)
    assert wait_until(lambda: running_pid(data) is None, timeout=30)


def test_what_was_lost_is_brought_back_and_left_to_the_operator(machine: Machine, outage: datetime) -> None:
    result = machine.run("database_restore", form(outage))
    told = output(result, "validate")
    data = Path(str(told["data"].value))
    try:
        record = machine.records()[0]
        assert (record.kind, record.verdict) == ("restore", Verdict.MET), record.deviations
        assert record.outage_started_at == outage
        assert record.rpo_method.startswith("no markers")
        assert record.rpo_seconds is not None and 0 <= record.rpo_seconds < 900
        assert record.reason == "a test"
        # The server is nobody's: no lease ends it.
        assert machine.leases.of(record.execution_id) == []
        machine.leases.reap()
        assert Path(str(told["stop"].value).split(": ")[1].split()[0]).is_file()
        socket_dsn = str(told["psql"].value).removeprefix("psql ").strip("'")
        with psycopg.connect(socket_dsn, dbname="hotel") as connection:
            assert connection.execute("SELECT what FROM written").fetchall() == [("after the backup",)]
    finally:
        end_server(data)


def test_a_chosen_place_and_time(machine: Machine, outage: datetime) -> None:
    place = machine.settings.state_dir.parent / "chosen"
    newest = machine.records()[0].recovery_point if machine.records() else None
    moment = (newest or outage) - timedelta(milliseconds=1)
    result = machine.run(
        "database_restore", form(outage, target_location=str(place), target_time=format_moment(moment))
    )
    try:
        assert result.success, failure_of(result)
        record = machine.records()[0]
        assert record.recovered_to == record.target_time == moment
        assert "the time that was asked for" in record.rpo_method
    finally:
        end_server(place)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"service": "databse"}, 'did you mean "database"'),
        ({"service": "redis"}, "no PostgreSQL service"),
        ({"outage_started_at": "yesterday"}, "outage_started_at"),
        ({"outage_started_at": "2026-03-01T12:00:00"}, "no time zone"),
        ({"outage_started_at": "2999-03-01T12:00:00Z"}, "yet to come"),
        ({"target_time": "noon"}, "target_time"),
        ({"target_location": "relative/path"}, "target_location"),
        ({"reason": "  "}, "reason"),
    ],
)
def test_a_form_that_cannot_be_accepted_leaves_nothing(
    machine: Machine, outage: datetime, fields: dict[str, str], named: str
) -> None:
    before = machine.repository.store.names("executions")
    said = failure_of(machine.run("database_restore", form(outage, **fields)))
    assert said is not None and named in (said.description or "")
    assert said.metadata["code"].value == "usage-error"
    assert machine.repository.store.names("executions") == before


def test_a_target_that_is_not_empty_is_refused_untouched_and_recorded_as_unverified(
    machine: Machine, outage: datetime, world_readable_folder: Path
) -> None:
    (world_readable_folder / "precious").write_text("data")
    result = machine.run("database_restore", form(outage, target_location=str(world_readable_folder)))
    said = failure_of(result)
    assert said is not None and said.metadata["code"].value == "target-refused"
    record = machine.records()[0]
    assert (record.kind, record.verdict, record.run_id) == ("restore", Verdict.UNVERIFIED, result.run_id)
    assert (world_readable_folder / "precious").read_text() == "data"


def test_a_run_that_goes_on_with_another_keeps_its_execution_and_its_outage(machine: Machine, outage: datetime) -> None:
    occupied = machine.settings.state_dir.parent / "occupied"
    occupied.mkdir()
    (occupied / "file").touch()
    first = machine.run("database_restore", form(outage, target_location=str(occupied)))
    assert not first.success
    # What Dagster writes on a run that re-executes another.
    tags = {"dagster/root_run_id": first.run_id, "dagster/parent_run_id": first.run_id}
    later = SystemClock().wall()
    changed = failure_of(machine.run("database_restore", form(later, target_location=str(occupied)), tags))
    assert changed is not None and "launch a new restore" in str(changed.metadata["hint"].value)
    (occupied / "file").unlink()
    second = machine.run("database_restore", form(outage, target_location=str(occupied)), tags)
    try:
        assert second.success, failure_of(second)
        record, *_ = machine.records()
        assert record.run_ids == (first.run_id, second.run_id)
        assert (record.outage_started_at, record.verdict) == (outage, Verdict.MET)
        assert [(step.name, step.attempt) for step in record.steps[:4]] == [
            ("assess", 1),
            ("prepare", 1),
            ("assess", 2),
            ("prepare", 2),
        ]
    finally:
        end_server(occupied)
