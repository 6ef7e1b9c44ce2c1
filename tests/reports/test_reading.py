"""Records are read back, newer ones are refused, and one that is damaged does not hide the others."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dr_pipelines.errors import FormatTooNew, ObjectCorrupt
from dr_pipelines.reports.reading import read_record, read_records
from dr_pipelines.repository.records import record_key
from dr_pipelines.repository.repository import Repository, open_repository
from dr_pipelines.settings import Settings

Document = Callable[..., dict[str, Any]]


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """A new repository in a folder."""
    return open_repository(str(tmp_path / "repository"), settings=Settings(), create=True)


def test_what_this_version_does_not_know_is_left_out(document: Document) -> None:
    stored = document()

    assert read_record({**stored, "weather": "fine"}) == read_record(stored)


def test_a_record_of_a_newer_version_is_refused(document: Document) -> None:
    with pytest.raises(FormatTooNew, match="record version 2, this version reads up to 1") as refusal:
        read_record(document(record_version=2, kind="rehearsal"))

    assert "newer one" in refusal.value.hint


@pytest.mark.parametrize("version", [None, 0, "1", True, 1.0])
def test_a_record_without_a_version_is_refused(document: Document, version: object) -> None:
    with pytest.raises(ObjectCorrupt, match="lacks its record_version"):
        read_record(document(record_version=version))


def test_what_is_no_record_is_refused_with_the_first_member_that_is_wrong(document: Document) -> None:
    steps = [{**document()["steps"][0], "outcome": "splendid"}]
    with pytest.raises(ObjectCorrupt, match=r"20260301T120000Z-drill-9f86d0 is not a record .*: steps\.0\.outcome"):
        read_record(document(steps=steps))


def test_records_are_read_newest_first(repository: Repository, document: Document) -> None:
    for day in (3, 1, 2):
        repository.records.put(document(day))

    found = read_records(repository)

    assert [record.execution_id[:8] for record in found] == ["20260304", "20260303", "20260302"]


def test_records_of_other_things_are_passed_over(repository: Repository, document: Document) -> None:
    repository.records.put({"record_id": "20260301T030000Z-full-9f86d0", "record_version": 1, "kind": "backup"})
    repository.records.put(document())

    assert [record.kind for record in read_records(repository)] == ["drill"]


def test_an_empty_repository_has_no_records(repository: Repository) -> None:
    assert read_records(repository) == []


def spoil(repository: Repository, document: Document) -> str:
    """Put a good record, a damaged one and one of a newer version there; returns the id of the good one."""
    good, damaged = document(0), document(1)
    repository.records.put(good)
    repository.records.put(damaged)
    repository.records.put(document(2, record_version=2))
    key = record_key(damaged["record_id"])
    repository.store.put(key, [repository.store.get(key).replace(b"20.4", b"10.4", 1)])
    return str(good["record_id"])


def test_a_damaged_or_newer_record_is_refused(repository: Repository, document: Document) -> None:
    spoil(repository, document)

    with pytest.raises(FormatTooNew):
        read_records(repository)


def test_it_can_be_told_of_and_left_out(repository: Repository, document: Document) -> None:
    good = spoil(repository, document)
    told: list[str] = []

    found = read_records(repository, told.append)

    assert [record.record_id for record in found] == [good]
    assert len(told) == 2
    assert "record version 2" in told[0]
    assert "20260302T120000Z-drill-9f86d0 is left out: " in told[1]
    assert "damaged" in told[1]
