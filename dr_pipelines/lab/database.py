"""The lab's database host: a real PostgreSQL of its own with the hotel's data, its agent, its spool, and writers.

Everything lies in one scratch folder below the state folder and runs under leases of one owner, so that it is found and
ended whatever happens. `kill_host` and `delete_host` are the disaster: every process of the host is killed, its data
and its spool are gone; the writers' logs are not on that host and stay.
"""

import os
import secrets
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

import psycopg
from pydantic import TypeAdapter

from dr_pipelines.agent.receiver import slot_of
from dr_pipelines.engines.postgres.connection import connect
from dr_pipelines.engines.postgres.production import archive_command, set_settings
from dr_pipelines.errors import ProcessError
from dr_pipelines.lab import schema
from dr_pipelines.lab.marks import WriterMarks, read_marks
from dr_pipelines.processes.identity import Identity, end_of, give_to, open_folder, server_identity
from dr_pipelines.processes.leases import Leases
from dr_pipelines.processes.ports import free_port
from dr_pipelines.processes.postgres import Server, find_binaries, initdb
from dr_pipelines.settings import Settings, variable
from dr_pipelines.timing import Clock, wait_until

__all__ = ["DATABASE", "LabDatabase", "LogWay"]

LogWay = Literal["archive", "stream", "synchronous"]
"""How the log leaves the host: by archive_command; streamed to an agent on the host; or streamed to an agent on a host
that survives, which every commit waits for."""

_PORTS_TRIED = 3

DATABASE = "hotel"
"""The database's name within the server."""


@dataclass(frozen=True)
class LabDatabase:
    """A database host of the lab; can be written down and used by another process."""

    owner: str
    """Whose leases its processes have."""
    folder: Path
    port: int
    password: str
    archive_timeout: timedelta
    major: int
    log: LogWay = "archive"

    @property
    def data(self) -> Path:
        """The server's data directory."""
        return self.folder / "host" / "data"

    @property
    def spool(self) -> Path:
        """Where archive_command, or the agent's receiver, puts log segments."""
        return self.folder / ("receiver" if self.log == "synchronous" else "host") / "spool"

    @property
    def marks(self) -> Path:
        """The writers' logs, outside the host."""
        return self.folder / "marks"

    def dsn(self, database: str = DATABASE) -> str:
        """The connection as superuser; holds the password."""
        return psycopg.conninfo.make_conninfo(
            "", host="127.0.0.1", port=self.port, user="postgres", password=self.password, dbname=database
        )

    def save(self) -> None:
        """Write it down in its folder, for a later process."""
        with open(self.folder / "lab.json", "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(_ADAPTER.dump_json(self))


_ADAPTER = TypeAdapter(LabDatabase)


def load(folder: Path) -> LabDatabase | None:
    """What `LabDatabase.save` wrote into this folder; None where nothing is."""
    with suppress(FileNotFoundError):
        return _ADAPTER.validate_json((folder / "lab.json").read_bytes())
    return None


def create(
    settings: Settings,
    leases: Leases,
    owner: str,
    *,
    ttl: timedelta,
    archive_timeout: timedelta,
    size_bytes: int,
    progress: Callable[[int, int], None],
    major: int | None = None,
    compressible: bool = True,
    persistent: bool = False,
    log: LogWay = "archive",
) -> LabDatabase:
    """Make the host, start its server and load the hotel's data. The archive waits in the spool until an agent comes.

    Its folder goes with its leases, unless it is `persistent`.
    """
    identity = server_identity(settings)
    binaries = find_binaries(settings, major)
    folder = open_folder(settings.state_dir / "lab") / owner
    lab = LabDatabase(owner, folder, free_port(), secrets.token_urlsafe(18), archive_timeout, binaries.major, log)
    folder.mkdir()
    try:
        for place in (folder, folder / "host", lab.spool.parent, lab.spool, lab.marks):
            open_folder(place).chmod(0o755)
        give_to(folder / "host", identity)
        give_to(lab.spool, identity)
        initdb(binaries, lab.data, identity=identity, password=lab.password)
    except BaseException:
        # No lease has it yet, so nobody else would remove it.
        shutil.rmtree(folder, ignore_errors=True)
        raise
    lab = _start_at_a_free_port(lab, settings, leases, ttl=ttl, persistent=persistent)
    with connect(lab.dsn("postgres")) as connection:
        connection.execute(f"CREATE DATABASE {DATABASE}")
    with psycopg.connect(lab.dsn()) as session:
        schema.create(session)
        schema.load(session, size_bytes, progress=progress, compressible=compressible)
    lab.save()
    return lab


def _start_at_a_free_port(
    lab: LabDatabase, settings: Settings, leases: Leases, *, ttl: timedelta, persistent: bool
) -> LabDatabase:
    """Start its server, at another port where somebody took this one since it was found free: initdb takes a while."""
    for _ in range(_PORTS_TRIED - 1):
        try:
            start_server(lab, settings, leases, ttl=ttl, persistent=persistent)
        except ProcessError as error:
            if "Address already in use" not in error.message:
                raise
            lab = replace(lab, port=free_port())
        else:
            return lab
    start_server(lab, settings, leases, ttl=ttl, persistent=persistent)
    return lab


def start_server(
    lab: LabDatabase, settings: Settings, leases: Leases, *, ttl: timedelta, persistent: bool = False
) -> None:
    """Start the host's PostgreSQL, archiving into the spool or made to be streamed."""
    identity = server_identity(settings)
    script = _archive_script(lab.folder / "host", identity)
    server = Server(
        binaries=find_binaries(settings, lab.major),
        data=lab.data,
        port=lab.port,
        identity=identity,
        password=lab.password,
    )
    # Where production has them, and not on the command line: they come back with a restore, and can be changed.
    own = {"max_wal_size": "2GB", **(_archiving(lab, script) if lab.log == "archive" else _STREAMED)}
    set_settings(lab.data, own, identity)
    server.start(leases, owner=lab.owner, ttl=ttl, folders=() if persistent else (lab.folder,))


_STREAMED = {"archive_mode": "off", "max_slot_wal_keep_size": "4GB"}


def _archiving(lab: LabDatabase, script: Path) -> dict[str, str]:
    return {
        "archive_mode": "on",
        "archive_command": archive_command(script, lab.spool),
        "archive_timeout": f"{int(lab.archive_timeout.total_seconds())}s",
    }


def start_agent(
    lab: LabDatabase,
    service: str,
    leases: Leases,
    environment: Mapping[str, str],
    *,
    ttl: timedelta,
    sandbox: str | None,
) -> None:
    """Start the agent; `environment` tells it the repository (DR_REPOSITORY and what belongs to it).

    Where commits are to wait for it, they do when this returns. Raises ProcessError where it does not come that far.
    """
    argv = [sys.executable, "-m", "dr_pipelines.agent", "--service", service]
    if lab.log != "archive":
        argv.append("--stream")
    if sandbox is not None:
        argv += ["--sandbox", sandbox]
    own = {variable("dsn", service): lab.dsn("postgres"), variable("spool", service): str(lab.spool)}
    leases.start(argv, kind="agent", owner=lab.owner, env={**environment, **own}, log=lab.folder / "agent.log", ttl=ttl)
    if lab.log == "synchronous":
        _wait_for_each_commit(lab, slot_of(service))


def _wait_for_each_commit(lab: LabDatabase, receiver: str) -> None:
    with connect(lab.dsn("postgres")) as connection:
        streaming = "SELECT count(*) FROM pg_stat_replication WHERE application_name = %s AND state = 'streaming'"
        if not wait_until(lambda: connection.execute(streaming, (receiver,)).fetchone() == (1,), timeout=30):
            raise ProcessError(f"the lab's agent does not stream: {end_of(lab.folder / 'agent.log', lines=3)}")
        # Not before: commits would wait for nobody.
        connection.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{receiver}'".encode())
        connection.execute("SELECT pg_reload_conf()")
        synchronous = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"
        if not wait_until(lambda: connection.execute(synchronous).fetchone() == (1,), timeout=30):
            raise ProcessError("the lab's server does not take its agent for a synchronous standby")


def start_writers(lab: LabDatabase, leases: Leases, count: int, rate: float, *, ttl: timedelta) -> None:
    """Start writers 1 to `count`, each writing `rate` rows a second; returns when each has noted its first row."""
    for number in range(1, count + 1):
        log = lab.marks / f"writer-{number}.log"
        leases.start(
            [
                *(sys.executable, "-m", "dr_pipelines.lab.writers"),
                *("--writer", str(number), "--log", str(log), "--rate", str(rate)),
            ],
            kind="writer",
            owner=lab.owner,
            env={"DR_WRITER_DSN": lab.dsn()},
            log=lab.folder / f"writer-{number}.out",
            ttl=ttl,
        )
    if not wait_until(lambda: sum(bool(writer.attempts) for writer in _begun(lab, count)) == count, timeout=30):
        said = "; ".join(end_of(lab.folder / f"writer-{number}.out", lines=3) for number in range(1, count + 1))
        raise ProcessError(f"the lab's writers do not write: {said}")


def _begun(lab: LabDatabase, count: int) -> tuple[WriterMarks, ...]:
    found = []
    for number in range(1, count + 1):
        with suppress(FileNotFoundError, ValueError):
            found.append(read_marks(lab.marks / f"writer-{number}.log"))
    return tuple(found)


def is_up(lab: LabDatabase, leases: Leases) -> bool:
    """Whether the host's server runs."""
    return any(leases.alive(lease) for lease in leases.of(lab.owner, "postgres"))


def kill_host(lab: LabDatabase, leases: Leases, clock: Clock) -> datetime:
    """SIGKILL every process of the host. Returns the moment before the first kill.

    The agent first: it is to save nothing that the server wrote last. One on a host of its own goes on.
    """
    kinds = ("postgres",) if lab.log == "synchronous" else ("agent", "postgres")
    host = [lease for kind in kinds for lease in leases.of(lab.owner, kind)]
    moment = clock.wall()
    for lease in host:
        leases.kill(lease)
    return moment


def delete_host(lab: LabDatabase) -> None:
    """Delete the host's data and what else is on it. Idempotent; what an interruption left is deleted too."""
    while (lab.folder / "host").exists():
        with suppress(FileNotFoundError):
            shutil.rmtree(lab.folder / "host")


def wait_for_writers(lab: LabDatabase, leases: Leases, timeout: float) -> None:
    """Return when the writers have noticed the loss and ended. Raises ProcessError where one goes on."""
    if not wait_until(
        lambda: not any(leases.alive(lease) for lease in leases.of(lab.owner, "writer")), timeout=timeout
    ):
        raise ProcessError("a writer of the lab still runs after its database was lost")


def _archive_script(folder: Path, identity: Identity | None) -> Path:
    """A copy of scripts/backup.sh where the unprivileged server can run it: the checkout may lie in a private home."""
    copy = folder / "backup.sh"
    shutil.copyfile(archive_script_source(), copy)
    copy.chmod(0o755)
    give_to(copy, identity)
    return copy


def archive_script_source() -> Path:
    """scripts/backup.sh of the checkout that this code was loaded from."""
    return Path(__file__).parents[2] / "scripts" / "backup.sh"
