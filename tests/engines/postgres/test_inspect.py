"""What a server's setup means: each thing that makes backups or restores fail is found, with its mend."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from dr_pipelines.engines.findings import Finding, Level
from dr_pipelines.engines.postgres.connection import ServerFacts
from dr_pipelines.engines.postgres.inspect import ArchiverState, Setup, judge_setup, spool_of_command
from dr_pipelines.engines.postgres.privileges import Missing

SPOOL = Path("/var/spool/dr")
OURS = "DR_SPOOL='/var/spool/dr' /app/scripts/backup.sh wal %p %f"
EARLY, LATE = datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 3, 2, tzinfo=UTC)

FACTS = ServerFacts(
    major=18,
    version="18.6",
    system_identifier="7",
    timeline=1,
    segment_size=1 << 24,
    size=1,
    superuser="postgres",
    tablespaces=(),
    archive_mode="on",
    archive_command=OURS,
    archive_timeout=60,
    max_wal_size=1 << 30,
    data_checksums=True,
    in_recovery=False,
)
ARCHIVER = ArchiverState(
    archived=5, last_archived_at=LATE, failed=0, last_failed_file=None, last_failed_at=None, waiting=0
)
GOOD = Setup(
    facts=FACTS,
    wal_level="replica",
    full_page_writes=True,
    fsync=True,
    max_wal_senders=10,
    replication_refused=None,
    missing=(),
    archiver=ARCHIVER,
)


def judge(setup: Setup) -> tuple[Finding, ...]:
    limit, rpo = timedelta(seconds=60), timedelta(minutes=15)
    return judge_setup(setup, "database", spool=SPOOL, archive_timeout=limit, rpo=rpo)


def worse(setup: Setup) -> list[Finding]:
    return [finding for finding in judge(setup) if finding.level is not Level.OK]


def test_a_good_setup_has_nothing_to_mend() -> None:
    assert worse(GOOD) == []
    assert all(finding.mend == "" for finding in judge(GOOD))


@pytest.mark.parametrize(
    ("changed", "level", "looked_at", "said"),
    [
        ({"archive_mode": "off", "archive_command": "(disabled)"}, Level.PROBLEM, "archive_mode", "nowhere"),
        ({"archive_command": ""}, Level.PROBLEM, "archive_command", "none is set"),
        ({"archive_command": "cp %p /backup/%f"}, Level.PROBLEM, "archive_command", "plain cp"),
        ({"archive_command": "test ! -f /b/%f && cp %p /b/%f"}, Level.PROBLEM, "archive_command", "plain cp"),
        ({"archive_command": "pgbackrest archive-push %p"}, Level.PROBLEM, "archive_command", "the agent gets nothing"),
        ({"archive_command": "/app/scripts/backup.sh wal %f %p"}, Level.PROBLEM, "archive_command", "not scripts"),
        (
            {"archive_command": "/app/scripts/backup.sh wal %p %f"},
            Level.WARNING,
            "archive_command",
            "not name the spool",
        ),
        (
            {"archive_command": OURS.replace("spool", "elsewhere")},
            Level.PROBLEM,
            "archive_command",
            "/var/elsewhere/dr",
        ),
        ({"archive_timeout": 0}, Level.PROBLEM, "archive_timeout", "0"),
        ({"archive_timeout": 120}, Level.WARNING, "archive_timeout", "2m"),
        ({"archive_timeout": 3600}, Level.PROBLEM, "archive_timeout", "1h"),
        ({"tablespaces": ("fast",)}, Level.PROBLEM, "tablespaces", "fast"),
        ({"data_checksums": False}, Level.WARNING, "data checksums", "off"),
        ({"in_recovery": True}, Level.PROBLEM, "the server", "standby"),
    ],
)
def test_what_the_server_says_of_itself(changed: dict[str, Any], level: Level, looked_at: str, said: str) -> None:
    found = worse(replace(GOOD, facts=replace(FACTS, **changed)))

    (first,) = [finding for finding in found if finding.looked_at == looked_at]
    assert first.level is level
    assert said in first.seen
    assert first.mend


@pytest.mark.parametrize(
    ("changed", "looked_at", "said"),
    [
        ({"wal_level": "minimal"}, "base backups", "minimal"),
        ({"max_wal_senders": 0}, "base backups", "max_wal_senders"),
        ({"replication_refused": "no pg_hba.conf entry"}, "base backups", "no pg_hba.conf entry"),
        ({"missing": (Missing("dr", "pg_control_system()", "backups"),)}, "privileges", "pg_control_system()"),
        ({"full_page_writes": False}, "fsync, full_page_writes", "full_page_writes off"),
        ({"fsync": False}, "fsync, full_page_writes", "fsync off"),
    ],
)
def test_settings_that_ruin_backups_are_problems(changed: dict[str, Any], looked_at: str, said: str) -> None:
    (found,) = worse(replace(GOOD, **changed))

    assert (found.level, found.looked_at) == (Level.PROBLEM, looked_at)
    assert said in found.seen and found.mend


def test_an_archiver_that_fails_now_is_a_problem_and_one_that_failed_once_is_not() -> None:
    failed = replace(ARCHIVER, failed=3, last_failed_file="0000000100000000000000AB")

    (now,) = worse(replace(GOOD, archiver=replace(failed, last_archived_at=EARLY, last_failed_at=LATE)))
    never_worked = worse(replace(GOOD, archiver=replace(failed, last_archived_at=None, last_failed_at=LATE)))
    past = worse(replace(GOOD, archiver=replace(failed, last_archived_at=LATE, last_failed_at=EARLY)))

    assert now.level is Level.PROBLEM and "0000000100000000000000AB" in now.seen
    assert [finding.level for finding in never_worked] == [Level.PROBLEM]
    assert past == []


def test_an_archiver_that_is_behind_is_told_of() -> None:
    (found,) = worse(replace(GOOD, archiver=replace(ARCHIVER, waiting=40)))

    assert found.level is Level.WARNING and "40 files wait" in found.seen


@pytest.mark.parametrize(
    ("command", "spool"),
    [
        (OURS, SPOOL),
        ("DR_SPOOL=/s backup.sh wal %p %f", Path("/s")),
        ('PATH=/bin DR_SPOOL="/a b" /x/backup.sh wal %p %f', Path("/a b")),
        ("backup.sh wal %p %f", None),
        ("MY_DR_SPOOL=/s backup.sh wal %p %f", None),
    ],
)
def test_the_spool_that_a_command_names(command: str, spool: Path | None) -> None:
    assert spool_of_command(command) == spool


def test_who_archives_a_streamed_log_is_nobodys_business() -> None:
    theirs = replace(GOOD, facts=replace(FACTS, archive_command="pgbackrest archive-push %p", archive_timeout=0))
    found = judge_setup(theirs, "database", spool=SPOOL, archive_timeout=None, rpo=None, streams=True)
    assert [finding for finding in found if finding.level is not Level.OK] == []


def test_whoever_archives_a_streamed_log_must_not_fail_since_a_base_backup_waits_for_him() -> None:
    failing = replace(ARCHIVER, failed=3, last_failed_file="0" * 24, last_archived_at=EARLY, last_failed_at=LATE)
    theirs = replace(GOOD, archiver=failing, facts=replace(FACTS, archive_command="pgbackrest archive-push %p"))
    nobodys = replace(theirs, facts=replace(FACTS, archive_mode="off"))

    for setup, expected in ((theirs, ["the archiver"]), (nobodys, [])):
        found = judge_setup(setup, "database", spool=SPOOL, archive_timeout=None, rpo=None, streams=True)
        assert [finding.looked_at for finding in found if finding.level is Level.PROBLEM] == expected
