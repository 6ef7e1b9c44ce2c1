"""The room that a restore takes: what is refused, what is warned of, and what counts."""

import os
import shutil
from collections import namedtuple
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dr_pipelines.engines.postgres import target
from dr_pipelines.engines.postgres.room import Room, require_space, room_for
from dr_pipelines.engines.postgres.target import Note
from dr_pipelines.errors import TargetRefused
from dr_pipelines.processes.identity import Identity, server_identity
from dr_pipelines.repository.folder import FolderStore
from dr_pipelines.repository.manifest import FileEntry, Manifest, Part, Range, part_key
from dr_pipelines.repository.repository import Repository
from dr_pipelines.settings import Settings
from tests import archived
from tests.archived import open_to_all
from tests.made_up import MadeUpArchive

MINE = Note("20260301T120000Z-restore-abcdef", "20260301T030000Z-full-abcdef", "1")
ID = "20260301T030000Z-full-abcdef"
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
MIB, GIB = 1 << 20, 1 << 30
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def folder() -> Iterator[Path]:
    with open_to_all() as folder:
        yield folder


@pytest.fixture
def identity() -> Identity | None:
    return server_identity(Settings())


def backup(size: int, **details: int) -> Manifest:
    """Of one file, of a cluster with segments of 16 MiB."""
    part = Part(
        key=part_key(ID, 0),
        codec="zstd",
        encryption="none",
        stored_sha256="0" * 64,
        stored_size=10,
        raw_size=size,
        ranges=(Range(0, 0, size),),
    )
    return Manifest(
        backup_id=ID,
        service="database",
        engine="postgres",
        system_identifier="1",
        server_version="18.6",
        tool_version="1",
        started_at=NOON,
        stopped_at=NOON,
        files=(FileEntry(path="base", kind="file", mode=0o600, size=size),),
        parts=(part,),
        details={"wal_segment_size": 16 * MIB, **details},
    )


def test_a_small_backup_with_much_log_needs_little_and_may_take_what_the_log_adds() -> None:
    room = room_for([backup(21 * MIB)], 20 * GIB)
    assert room.least == (21 + 256) * MIB
    # The log as data, the log that PostgreSQL keeps, and 24 segments fetched ahead.
    assert room.enough == room.least + 20 * GIB + GIB + 24 * 16 * MIB


def test_the_log_that_is_kept_is_the_servers_own_setting() -> None:
    room = room_for([backup(MIB, max_wal_size=4 * GIB)], 20 * GIB)
    assert room.enough - room_for([backup(MIB)], 20 * GIB).enough == 3 * GIB


def test_no_more_of_the_log_is_kept_or_fetched_than_there_is() -> None:
    room = room_for([backup(MIB)], 32 * MIB)
    assert room.enough == room.least + 3 * 32 * MIB


class TestFree:
    def test_less_than_the_least_is_refused_with_both_figures(self, folder: Path) -> None:
        with pytest.raises(TargetRefused, match=r"needs at least 1024\.0 TiB and .* has .* free"):
            require_space(folder / "not" / "yet" / "there", Room(1 << 50, 1 << 51))

    def test_between_least_and_enough_is_warned_of(self, folder: Path) -> None:
        said = require_space(folder / "data", Room(1 << 10, 1 << 50))
        assert said is not None and "up to 1024.0 TiB, by an upper estimate" in said

    def test_enough_is_enough(self, folder: Path) -> None:
        assert require_space(folder / "data", Room(1 << 10, 1 << 10)) is None

    def test_what_the_restore_itself_has_written_counts_as_free(self, folder: Path, identity: Identity | None) -> None:
        place = folder / "data"
        target.claim(place, MINE, identity)
        status = os.statvfs(folder)
        with (place / "base").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 512 << 20)
        needed = status.f_bavail * status.f_frsize - (256 << 20)
        assert require_space(place, Room(needed, needed)) is None
        (place / target.PRIVATE / "restore.json").unlink()
        with pytest.raises(TargetRefused):
            require_space(place, Room(needed, needed))


@pytest.mark.slow
@pytest.mark.parametrize(("free", "refused"), [(GIB // 4 - 1, True), (GIB // 4, False)])
def test_a_restore_is_stopped_only_where_it_cannot_succeed(
    settings: Settings,
    repository: Repository,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    free: int,
    refused: bool,
) -> None:
    store = repository.service(archived.SERVICE).child("7340000000000000001")
    assert isinstance(store, FolderStore)
    archive = MadeUpArchive(store)
    archive.segments(*range(4, 30))
    archive.backup(5, 4, 5)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(free, 0, free))
    with archived.restore(settings, repository) as restore:
        if refused:
            with pytest.raises(TargetRefused, match=r"needs at least 256\.0 MiB"):
                restore.prepare()
        else:
            assert restore.prepare().room == Room(free, free + (26 + 26 + 24) * MIB)
            assert "up to 332.0 MiB, by an upper estimate" in caplog.text
