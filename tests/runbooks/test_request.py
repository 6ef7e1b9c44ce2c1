"""What an operator may ask of a restore."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dr_pipelines.errors import UsageError
from dr_pipelines.plan import load_plan
from dr_pipelines.repository.repository import Repository, open_repository
from dr_pipelines.runbooks.execution import Execution
from dr_pipelines.runbooks.request import RestoreRequest, begin, read_request
from dr_pipelines.settings import Settings

PLAN = load_plan(Path(__file__).parents[2] / "recovery-plan.yaml")
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
GOOD = {
    "service": "database",
    "outage_started_at": "2026-03-01T12:30:00+01:00",
    "target_time": "latest",
    "target_location": "",
    "backup_id": "",
    "reason": " the disk died ",
}


def request(**fields: str) -> RestoreRequest:
    return read_request(**(GOOD | fields), plan=PLAN, now=NOW, called={})


def test_a_form_that_is_filled_in() -> None:
    assert request() == RestoreRequest(
        service="database",
        outage_started_at=datetime(2026, 3, 1, 11, 30, tzinfo=UTC),
        target_time=None,
        destination=None,
        backup_id=None,
        reason="the disk died",
    )
    asked = request(target_time="2026-03-01T11:00:00Z", target_location="/srv/new")
    assert asked.target_time == datetime(2026, 3, 1, 11, tzinfo=UTC)
    assert asked.destination == Path("/srv/new")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"service": "databse"}, 'did you mean "database"'),
        ({"service": "redis"}, "those are: database"),
        ({"outage_started_at": "2026-03-01T11:30:00"}, "outage_started_at: .* has no time zone"),
        ({"outage_started_at": "2026-03-01T12:30:00Z"}, "outage_started_at: .* is yet to come"),
        ({"target_time": "2026-03-01T12:30:00Z"}, "target_time: .* is yet to come"),
        ({"target_time": ""}, "target_time: "),
        ({"target_location": "data"}, "target_location: data is not an absolute path"),
        ({"reason": " "}, "reason: it is empty"),
    ],
)
def test_what_cannot_be_accepted_is_named(fields: Mapping[str, str], message: str) -> None:
    with pytest.raises(UsageError) as refused:
        request(**fields)
    assert refused.match(message)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return open_repository(str(tmp_path / "repository"), settings=Settings(), create=True)


def started(repository: Repository, asked: RestoreRequest, now: datetime) -> Execution:
    return begin(
        repository,
        asked,
        execution_id="20260301T120000Z-restore-abcdef",
        now=now,
        requested_by="somebody",
        plan_sha256=None,
    )


def test_an_execution_that_goes_on_is_as_it_began(repository: Repository) -> None:
    first = started(repository, request(), NOW)
    assert started(repository, request(), NOW + timedelta(minutes=5)) == first
    assert first.started_at == NOW


@pytest.mark.parametrize(
    "fields", [{"outage_started_at": "2026-03-01T11:00:00Z"}, {"target_time": "2026-03-01T11:00:00Z"}]
)
def test_an_execution_does_not_go_on_for_something_else(repository: Repository, fields: Mapping[str, str]) -> None:
    started(repository, request(), NOW)
    with pytest.raises(UsageError, match="2026-03-01T11:00:00") as refused:
        started(repository, request(**fields), NOW)
    assert refused.value.hint.startswith("launch a new restore")
