"""Records: written once, never changed, found newest first."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone

import pytest
from pydantic import BaseModel

from dr_pipelines.errors import ObjectConflict, ObjectCorrupt, ObjectMissing, RepositoryError
from dr_pipelines.repository.records import Records, new_record_id
from dr_pipelines.repository.store import Store

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def records(store: Store) -> Records:
    return Records(store)


def put(records: Records, moment: datetime, *, kind: str = "drill", service: str = "database") -> str:
    record_id = new_record_id(kind, moment)
    records.put({"record_id": record_id, "service": service, "kind": kind, "rto_seconds": 41.25})
    return record_id


class Measured(BaseModel):
    record_id: str
    started_at: datetime


def test_a_record_comes_back_as_it_was_put(records: Records, store: Store) -> None:
    record_id = new_record_id("drill", NEW_YEAR)
    record = {"record_id": record_id, "figures": [1, 2.5, None], "name": "ä"}
    assert records.put(record) == f"records/2026/01/{record_id}.json"
    assert records.get(record_id) == record


def test_a_model_is_a_record(records: Records) -> None:
    record_id = new_record_id("restore-test", NEW_YEAR)
    records.put(Measured(record_id=record_id, started_at=NEW_YEAR))
    assert records.get(record_id) == {"record_id": record_id, "started_at": "2026-01-01T00:00:00Z"}


def test_a_record_is_never_changed(records: Records) -> None:
    record_id = new_record_id("drill", NEW_YEAR)
    for _ in range(2):
        records.put({"record_id": record_id, "verdict": "missed"})
    with pytest.raises(ObjectConflict, match="never changed"):
        records.put({"record_id": record_id, "verdict": "met"})
    assert records.get(record_id)["verdict"] == "missed"


def test_records_are_listed_newest_first_over_months_and_years(records: Records) -> None:
    moments = [NEW_YEAR + timedelta(days=days) for days in (-400, -31, -1, 0, 1, 40)]
    ids = [put(records, moment) for moment in moments]
    assert [record["record_id"] for record in records.list()] == ids[::-1]
    assert list(records.ids()) == ids[::-1]


def test_records_are_listed_since_a_moment_in_any_zone(records: Records) -> None:
    ids = [put(records, NEW_YEAR + timedelta(hours=hours)) for hours in (-25, -1, 0, 1)]
    since = NEW_YEAR - timedelta(hours=1)
    for zone in (UTC, timezone(timedelta(hours=9))):
        assert list(records.ids(since=since.astimezone(zone))) == ids[:0:-1]
    assert list(records.ids(since=NEW_YEAR + timedelta(days=300))) == []


def test_records_are_listed_by_service_and_kind(records: Records) -> None:
    put(records, NEW_YEAR, service="cache")
    put(records, NEW_YEAR, kind="restore-test")
    wanted = put(records, NEW_YEAR)
    assert [record["record_id"] for record in records.list(service="database", kind="drill")] == [wanted]


def test_without_records_none_are_listed(records: Records) -> None:
    assert list(records.list()) == []
    with pytest.raises(ObjectMissing):
        records.get(new_record_id("drill", NEW_YEAR))


def test_a_damaged_record_is_found_and_the_others_can_be_read(
    records: Records, store: Store, flip: Callable[[Store, str, int], None]
) -> None:
    old, damaged = put(records, NEW_YEAR), put(records, NEW_YEAR + timedelta(seconds=1))
    flip(store, f"records/2026/01/{damaged}.json", 30)
    with pytest.raises(ObjectCorrupt, match=damaged):
        list(records.list())
    assert list(records.ids()) == [damaged, old]
    assert records.get(old)["service"] == "database"


def test_what_else_lies_there_is_no_record(records: Records, store: Store) -> None:
    store.put("records/2026/01/note.txt", [b"x"])
    store.put("records/readme/x", [b"x"])
    wanted = put(records, NEW_YEAR)
    assert list(records.ids()) == [wanted]


@pytest.mark.parametrize("record", [{}, {"record_id": "x"}, {"record_id": "../../services/x"}, {"record_id": None}])
def test_what_has_no_id_is_no_record(records: Records, record: dict[str, object]) -> None:
    with pytest.raises(RepositoryError, match="cannot be a record"):
        records.put(record)
