"""Exposure: what would be lost at this moment, from the repository alone."""

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from dr_pipelines.engines.postgres.exposure import HEARTBEAT_LIMIT, Exposure, read_exposure
from dr_pipelines.engines.postgres.log import Log
from dr_pipelines.engines.postgres.position import ServerState
from dr_pipelines.engines.verdict import Verdict
from dr_pipelines.repository.folder import FolderStore
from tests.made_up import MadeUpArchive

RPO = timedelta(minutes=15)


@pytest.fixture
def service(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path)


@pytest.fixture
def archive(service: FolderStore) -> MadeUpArchive:
    """A backup at 5 minutes and the log that follows, stored up to segment 20; no agent has said anything."""
    archive = MadeUpArchive(FolderStore(Path(service.url) / "7340000000000000001"))
    archive.segments(*range(4, 21))
    archive.backup(5, 4, 5)
    return archive


def exposure(service: FolderStore, now: datetime, rpo: timedelta | None = RPO) -> Exposure:
    return read_exposure(service, "database", now=now, rpo=rpo)


def test_an_idle_database_whose_log_is_stored_is_not_exposed(service: FolderStore, archive: MadeUpArchive) -> None:
    archive.position(300, 20)
    found = exposure(service, archive.at(300))
    assert (found.exposure, found.unknown_since, found.verdict) == (timedelta(0), None, Verdict.MET)
    assert found.problem is None
    assert found.newest_segment == "000000010000000000000014"


def test_a_log_that_lags_within_the_promise_is_met_and_beyond_it_missed(
    service: FolderStore, archive: MadeUpArchive
) -> None:
    archive.position(20, 20)
    now = archive.at(20) + HEARTBEAT_LIMIT
    assert exposure(service, now).exposure == HEARTBEAT_LIMIT
    assert exposure(service, now).verdict is Verdict.MET
    assert exposure(service, now, rpo=HEARTBEAT_LIMIT - timedelta(seconds=1)).verdict is Verdict.MISSED


def test_without_a_promise_it_is_unverified(service: FolderStore, archive: MadeUpArchive) -> None:
    archive.position(20, 20)
    assert exposure(service, archive.at(20), rpo=None).verdict is Verdict.UNVERIFIED


def test_a_silent_agent_leaves_it_unknown_since_its_last_word(service: FolderStore, archive: MadeUpArchive) -> None:
    archive.position(20, 20)
    found = exposure(service, archive.at(20) + HEARTBEAT_LIMIT + timedelta(seconds=1))
    assert found.unknown_since == archive.at(20)
    assert found.verdict is Verdict.UNVERIFIED
    assert found.problem is not None and "the agent has been silent since" in found.problem


def test_a_silence_longer_than_the_promise_is_missed(service: FolderStore, archive: MadeUpArchive) -> None:
    archive.position(20, 20)
    assert exposure(service, archive.at(36)).verdict is Verdict.MISSED


def test_a_server_that_does_not_answer_leaves_it_unknown(service: FolderStore, archive: MadeUpArchive) -> None:
    archive.position(20, 20, server=ServerState.AWAY)
    found = exposure(service, archive.at(20))
    assert found.unknown_since == archive.at(20)
    assert found.verdict is Verdict.UNVERIFIED
    assert found.problem == "the server does not answer the agent"


def test_a_log_that_is_another_servers_leaves_it_unverified(service: FolderStore, archive: MadeUpArchive) -> None:
    archive.position(20, 20)
    log = Log(FolderStore(Path(archive.store.url)))
    position = log.read_position()
    assert position is not None
    log.write_position(position.model_copy(update={"foreign_from": "000000010000000000000012"}))
    found = exposure(service, archive.at(20))
    assert found.verdict is Verdict.UNVERIFIED
    assert found.problem is not None and "another server's" in found.problem


def test_without_an_agent_nothing_is_proven(service: FolderStore, archive: MadeUpArchive) -> None:
    found = exposure(service, archive.at(21))
    assert (found.recovery_point, found.exposure, found.verdict) == (None, None, Verdict.UNVERIFIED)
    assert found.unknown_since == archive.at(20)
    assert found.problem == "no agent has reported"


def test_a_hole_in_the_log_counts_from_where_it_begins(service: FolderStore, archive: MadeUpArchive) -> None:
    archive.position(40, 20)
    archive.store.delete(archive.key(10))
    found = exposure(service, archive.at(40))
    assert found.recovery_point == archive.at(9)
    assert (found.exposure, found.verdict) == (timedelta(minutes=31), Verdict.MISSED)
    assert found.problem is not None and "00000001000000000000000A" in found.problem


def test_without_a_backup_nothing_can_be_restored(service: FolderStore) -> None:
    found = exposure(service, MadeUpArchive(service).at(0))
    assert (found.recovery_point, found.exposure, found.verdict) == (None, None, Verdict.UNVERIFIED)
    assert found.problem is not None and "no complete backup" in found.problem


def test_clocks_that_differ_by_little_are_no_negative_exposure(service: FolderStore, archive: MadeUpArchive) -> None:
    archive.position(20, 20)
    found = exposure(service, archive.at(20) - timedelta(seconds=5))
    assert (found.exposure, found.unknown_since, found.verdict) == (timedelta(0), None, Verdict.MET)


def test_a_recovery_point_ahead_of_our_clock_measures_nothing(service: FolderStore, archive: MadeUpArchive) -> None:
    archive.position(30, 20)
    found = exposure(service, archive.at(24))
    assert (found.exposure, found.verdict) == (None, Verdict.UNVERIFIED)
    assert found.unknown_since == archive.at(20)
    assert found.problem == "the clocks are apart by 6m"


def test_a_heartbeat_ahead_of_our_clock_does_not_say_that_the_agent_is_at_work(
    service: FolderStore, archive: MadeUpArchive
) -> None:
    archive.position(30, 20)
    log = Log(archive.store)
    position = log.read_position()
    assert position is not None
    log.write_position(position.model_copy(update={"recovery_point": archive.at(23)}))
    found = exposure(service, archive.at(24))
    assert (found.exposure, found.verdict) == (timedelta(minutes=1), Verdict.UNVERIFIED)
    assert found.unknown_since == archive.at(20)
    assert found.problem == "the clocks are apart by 6m"
    assert exposure(service, archive.at(24), rpo=timedelta(seconds=30)).verdict is Verdict.MISSED
