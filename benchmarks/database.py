"""A PostgreSQL to measure with: some GB of poorly compressible rows within a minute, then a server as one runs it."""

import base64
import random
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import psycopg

from dr_pipelines.engines.postgres.connection import connect
from dr_pipelines.errors import ProcessError
from dr_pipelines.lab.database import archive_script_source
from dr_pipelines.processes.identity import Identity, give_to, server_identity
from dr_pipelines.processes.leases import Leases
from dr_pipelines.processes.ports import free_port
from dr_pipelines.processes.postgres import Binaries, Server, find_binaries, initdb
from dr_pipelines.repository.repository import open_repository
from dr_pipelines.settings import Settings, load_settings
from dr_pipelines.timing import SystemClock, wait_until

__all__ = ["SERVICE", "Database", "database", "rows"]

SERVICE = "database"
_OWNER = "benchmark"
_TTL = timedelta(hours=6)
_TABLES = 4
_BLOCK = 16 << 20
"""Bytes of rows that are made once and copied in again and again: far beyond what zstd looks back at level 1."""
_LOADING = {
    "fsync": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "archive_mode": "off",
    "max_wal_size": "8GB",
    "maintenance_work_mem": "512MB",
}


@dataclass(frozen=True)
class Database:
    """A server that runs, its agent, and what our commands need to find them."""

    folder: Path
    settings: Settings
    leases: Leases
    server: Server
    password: str

    @property
    def data(self) -> Path:
        """The server's data directory."""
        return self.server.data

    @property
    def spool(self) -> Path:
        """Where archive_command puts segments for the agent."""
        return self.folder / "spool"

    @property
    def binaries(self) -> Binaries:
        return self.server.binaries

    @property
    def identity(self) -> Identity | None:
        """Who the server runs as."""
        return self.server.identity

    @property
    def dsn(self) -> str:
        """The connection as superuser."""
        return self.server.dsn("postgres")

    @property
    def environment(self) -> dict[str, str]:
        """What our commands read."""
        return {
            **self.settings.as_environment(),
            f"DR_DSN__{SERVICE}".upper(): self.dsn,
            f"DR_SPOOL__{SERVICE}".upper(): str(self.spool),
            "PATH": "/usr/bin:/bin",
        }

    @property
    def archive_command(self) -> str:
        """Ours, as a server is configured with it."""
        return f"DR_SPOOL={self.spool} {self.folder}/backup.sh wal %p %f"

    def start(self, **options: str) -> None:
        """Start the server, reachable over loopback and, for tools that want one, a socket in the folder."""
        self.server.start(
            self.leases,
            owner=_OWNER,
            ttl=_TTL,
            options={"unix_socket_directories": str(self.folder)} | options,
            timeout=300,
        )

    def start_agent(self) -> None:
        """Start the agent that ships what comes into the spool."""
        argv = [sys.executable, "-m", "dr_pipelines.agent", "--service", SERVICE]
        log = self.folder / "agent.log"
        self.leases.start(argv, kind="agent", owner=_OWNER, env=self.environment, log=log, ttl=_TTL)

    def end(self) -> None:
        """Stop server and agent."""
        for kind in ("postgres", "agent"):
            for lease in self.leases.of(_OWNER, kind):
                self.leases.end(lease, timeout=300)

    def archive_with(self, command: str) -> None:
        """Let the server archive so from now on; returns when its log up to here has been archived."""
        with connect(self.dsn) as connection:
            connection.execute(psycopg.sql.SQL("ALTER SYSTEM SET archive_command = {}").format(command))
            connection.execute("SELECT pg_reload_conf()")
            connection.execute("SELECT pg_logical_emit_message(false, 'benchmark', 'here')")
            row = connection.execute("SELECT pg_walfile_name(pg_switch_wal())").fetchone()
            assert row is not None

            def archived() -> bool:
                found = connection.execute("SELECT last_archived_wal >= %s FROM pg_stat_archiver", row).fetchone()
                return found is not None and bool(found[0])

            if not wait_until(archived, timeout=120):
                raise ProcessError(f"archive_command = '{command}' does not archive", hint=str(self.server.log_path))

    def size(self) -> int:
        """Bytes of all databases, as PostgreSQL counts them."""
        with connect(self.dsn) as connection:
            row = connection.execute("SELECT sum(pg_database_size(oid)) FROM pg_database").fetchone()
        assert row is not None
        return int(row[0])


@contextmanager
def database(folder: Path, size_bytes: int, major: int, settings: Settings | None = None) -> Iterator[Database]:
    """A new server with that much data that archives its log, and an agent; all of it ended at the end.

    `settings` name the repository; without, it is a folder beside the data.
    """
    if settings is None:
        places = {"repository": str(folder / "repository"), "state_dir": folder / "state"}
        settings = load_settings().model_copy(update=places)
    binaries = find_binaries(settings, major)
    settings = settings.model_copy(update={"postgres_bin": binaries.folder})
    leases = Leases(settings.state_dir, SystemClock())
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
    assert settings.repository is not None
    open_repository(settings.repository, settings=settings, create=True)
    identity, password = server_identity(settings), secrets.token_hex(12)
    server = Server(binaries, folder / "data", free_port(), identity, password)
    made = Database(folder, settings, leases, server, password)
    made.spool.mkdir()
    script = folder / "backup.sh"
    script.write_bytes(archive_script_source().read_bytes())
    script.chmod(0o755)
    for place in (folder, made.spool):
        give_to(place, identity)
    try:
        initdb(binaries, made.data, identity=identity, password=password, options=["--no-sync"])
        made.start(**_LOADING)
        _load(made.dsn, size_bytes)
        server.stop(timeout=300)
        subprocess.run(["sync", "-f", str(folder)], check=True)
        made.start(archive_mode="on", max_wal_size="2GB")
        made.start_agent()
        made.archive_with(made.archive_command)
        yield made
    finally:
        leases.end_owner(_OWNER)


def rows(size_bytes: int, seed: int = 1) -> bytes:
    """Lines of COPY, a text each of 200 to 1400 characters of which a compressor saves a quarter."""
    draw = random.Random(seed)
    text = base64.b64encode(draw.randbytes(size_bytes * 3 // 4))
    lines, position = [], 0
    while position < len(text):
        length = draw.randrange(200, 1400)
        lines.append(text[position : position + length])
        position += length
    return b"\n".join(lines) + b"\n"


def _load(dsn: str, size_bytes: int) -> None:
    """Fill some tables, two at a time; with wal_level minimal what a new table is filled with is not logged."""
    if not size_bytes:
        return
    block = rows(min(_BLOCK, max(1, size_bytes // _TABLES)))
    # A table takes some percent more than its rows' text, its index as much again.
    blocks = max(1, round(size_bytes / _TABLES / 1.09 / len(block)))
    failures: list[BaseException] = []

    def fill(tables: range) -> None:
        try:
            for table in tables:
                with psycopg.connect(dsn) as connection:
                    name = psycopg.sql.Identifier(f"messages_{table}")
                    connection.execute(
                        psycopg.sql.SQL(
                            "CREATE TABLE {} (id bigint GENERATED ALWAYS AS IDENTITY (CACHE 1000), body text)"
                        ).format(name)
                    )
                    with connection.cursor().copy(
                        psycopg.sql.SQL("COPY {} (body) FROM STDIN (FREEZE)").format(name)
                    ) as copy:
                        for _ in range(blocks):
                            copy.write(block)
                    connection.execute(psycopg.sql.SQL("ALTER TABLE {} ADD PRIMARY KEY (id)").format(name))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=fill, args=(range(start, _TABLES, 2),)) for start in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for failure in failures:
        raise failure
