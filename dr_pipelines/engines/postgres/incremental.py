"""Incremental backups: what the next one is based on, or why it has to be a full one.

PostgreSQL itself knows which blocks changed since the parent: from 17 on it summarizes its log (`summarize_wal`), and
pg_basebackup is given the parent's own `backup_manifest`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

from dr_pipelines.engines.findings import Finding, Level
from dr_pipelines.engines.pieces import read_file
from dr_pipelines.engines.postgres.connection import Connection, ServerFacts
from dr_pipelines.engines.postgres.details import look_at_backups
from dr_pipelines.errors import BackupError, NoIncrementals, RepositoryError
from dr_pipelines.repository.chains import chain_of, missing_parts
from dr_pipelines.repository.manifest import Manifest
from dr_pipelines.repository.store import Store

__all__ = [
    "FIRST_MAJOR",
    "LABEL",
    "OWN_MANIFEST",
    "Basis",
    "NoBasis",
    "find_basis",
    "judge_incrementals",
    "require_incrementals",
    "summarizes_wal",
]

FIRST_MAJOR = 17
"""PostgreSQL's first major version with incremental backups."""
LABEL = "backup_label"
"""Where pg_basebackup says where the log begins that a backup needs; among its files."""
OWN_MANIFEST = "backup_manifest"
"""Where pg_basebackup lists the files of a backup; among its files."""


class NoBasis(BackupError):
    """There is nothing that an incremental backup could be based on; the message says why. A full one can be made."""


@dataclass(frozen=True)
class Basis:
    """What an incremental backup is based on: its parent, and the parent's own `backup_manifest`."""

    parent: Manifest
    own_manifest: bytes

    @contextmanager
    def file(self) -> Iterator[Path]:
        """The parent's `backup_manifest` as a file, for pg_basebackup."""
        with NamedTemporaryFile(prefix="dr-parent-") as file:
            file.write(self.own_manifest)
            file.flush()
            yield Path(file.name)


def summarizes_wal(connection: Connection) -> bool:
    """Whether the server notes which blocks its log changes; False before PostgreSQL 17, which cannot."""
    row = connection.execute("SELECT current_setting('summarize_wal', true)").fetchone()
    return row is not None and row[0] == "on"


def require_incrementals(connection: Connection, facts: ServerFacts) -> None:
    """Raises NoIncrementals where this server makes no incremental backups, whatever there is to base one on.

    Nothing else is made instead: as often as incremental backups are wanted, full ones would fill the repository.
    """
    if facts.major < FIRST_MAJOR:
        raise NoIncrementals(
            f"PostgreSQL {facts.version} makes no incremental backups, which began with {FIRST_MAJOR}; none was made",
            hint="take `incremental` out of the service's backup in the plan; dr backup full makes full ones",
        )
    if not summarizes_wal(connection):
        raise NoIncrementals(
            "summarize_wal is off, and without it PostgreSQL makes no incremental backups; none was made",
            hint="ALTER SYSTEM SET summarize_wal = on; SELECT pg_reload_conf(); then one full backup, and incremental "
            "ones are possible",
        )


def judge_incrementals(connection: Connection, facts: ServerFacts, area: str) -> Finding:
    """Whether this server makes the incremental backups that the plan has."""
    try:
        require_incrementals(connection, facts)
    except NoIncrementals as error:
        return Finding(area, "incremental backups", Level.WARNING, error.message, error.hint)
    return Finding(area, "incremental backups", Level.OK, "summarize_wal is on")


def find_basis(store: Store, major: int, full_every: int) -> Basis:
    """The newest backup, where its chain is whole and has less than `full_every` incremental ones. Raises NoBasis.

    Whole means: every manifest is there and can be read, every part is there with its size.
    """
    survey = look_at_backups(store)
    newest = survey.complete[0] if survey.complete else None
    for backup_id, error in survey.damaged:
        # Ids sort by time. What is damaged may have been the newest link of the chain.
        if newest is None or backup_id > newest.backup_id:
            raise NoBasis(f"the newest backup, {backup_id}, cannot be used: {error.message}")
    if newest is None:
        raise NoBasis("there is no backup that it could be based on")
    if int(newest.details["major"]) != major:
        raise NoBasis(f"the newest backup, {newest.backup_id}, is one of PostgreSQL {newest.server_version}")
    chain = chain_of(newest, survey)
    if chain.broken is not None:
        raise NoBasis(f"the newest backup, {newest.backup_id}, cannot be used: {chain.broken}")
    if len(chain.backups) > full_every:
        raise NoBasis(f"there were {len(chain.backups) - 1} incremental ones since the last full one")
    for backup in chain.backups:
        if missing := missing_parts(store, backup):
            raise NoBasis(f"of the backup {backup.backup_id} {', '.join(missing[:3])} is missing or cut off")
    try:
        return Basis(newest, read_file(store, newest, OWN_MANIFEST))
    except RepositoryError as error:
        if error.retryable:
            raise
        raise NoBasis(f"the newest backup, {newest.backup_id}, cannot be used: {error.message}") from error
