"""Ids that sort by time, and names that people gave."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from dr_pipelines.errors import RepositoryError
from dr_pipelines.repository.identifiers import check_name, kind_of, moment_of, timed_id

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_an_id_tells_its_moment_in_utc_and_its_kind() -> None:
    identifier = timed_id("restore-test", NOON.astimezone(timezone(timedelta(hours=5))))
    assert identifier.startswith("20260301T120000Z-restore-test-")
    assert (moment_of(identifier), kind_of(identifier)) == (NOON, "restore-test")


def test_ids_sort_by_time_and_are_unique() -> None:
    moments = [NOON + timedelta(seconds=number // 3) for number in range(30)]
    identifiers = [timed_id("full", moment) for moment in moments]
    assert len(set(identifiers)) == 30
    assert [moment_of(identifier) for identifier in sorted(identifiers)] == moments


@pytest.mark.parametrize("identifier", ["", "x", "20260301T120000Z-full", "20261301T120000Z-full-9f86d0", "../x"])
def test_other_text_is_no_id(identifier: str) -> None:
    with pytest.raises(ValueError):
        moment_of(identifier)


@pytest.mark.parametrize("kind", ["", "Full", "a/b", "1"])
def test_an_odd_kind_makes_no_id(kind: str) -> None:
    with pytest.raises(ValueError, match="not an id"):
        timed_id(kind, NOON)


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "a b", "-x", "x" * 101, "ä", "a\n"])
def test_what_could_mean_anything_else_is_no_name(name: str) -> None:
    with pytest.raises(RepositoryError, match="name of a service"):
        check_name(name, "service")
