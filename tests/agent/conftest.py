"""Real servers that archive into a spool, real repositories, and made-up segments where no server is needed."""

import contextlib
import os
import random
import secrets
import shutil
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from pydantic import SecretStr

from dr_pipelines.agent import AgentOptions, run_agent
from dr_pipelines.agent.receiver import Stream
from dr_pipelines.engines.postgres.log import Log
from dr_pipelines.engines.postgres.position import Position
from dr_pipelines.engines.postgres.wal import Segment
from dr_pipelines.processes.identity import give_to, server_identity
from dr_pipelines.processes.leases import Leases
from dr_pipelines.processes.ports import free_port
from dr_pipelines.processes.postgres import Binaries, Server, all_binaries, initdb
from dr_pipelines.processes.seaweed import ObjectStorage
from dr_pipelines.repository.repository import Repository, open_repository
from dr_pipelines.settings import Settings
from dr_pipelines.timing import SystemClock, wait_until

SCRIPT = Path(__file__).parents[2] / "scripts" / "backup.sh"
SMALL = 1 << 20
SYSTEM = 7340000000000000001


def made_up(
    number: int, *, timeline: int = 1, system: int = SYSTEM, seed: int = 0, size: int = SMALL
) -> tuple[str, bytes]:
    """Name and content of a segment that no server has written."""
    segment = Segment(timeline, number, size)
    header = struct.pack("<HHIQI4xQII", 0xD118, 0x0007, timeline, segment.start.value, 0, system, size, 8192)
    return segment.name, header + random.Random(f"{number} {timeline} {seed}").randbytes(4096) + bytes(size - 4096 - 40)


@dataclass
class Agents:
    """Agents in threads of this process, over one spool and one repository."""

    spool: Path
    repository: Repository
    dsn: str | None = None
    stream: Stream | None = None
    _running: list[tuple[threading.Thread, threading.Event]] = field(default_factory=list)

    def options(self) -> AgentOptions:
        return AgentOptions(
            service="database",
            spool=self.spool,
            store=self.repository.service("database"),
            dsn=self.dsn,
            poll=0.05,
            sample_every=0.1,
            heartbeat=0.5,
            stream=self.stream,
            confirm=self.repository.confirm,
        )

    def start(self) -> None:
        stop = threading.Event()
        thread = threading.Thread(
            target=run_agent, args=[self.options()], kwargs={"clock": SystemClock(), "stop": stop}
        )
        thread.start()
        self._running.append((thread, stop))

    def stop(self) -> None:
        """Tell all to stop, and wait until they have."""
        for _, stop in self._running:
            stop.set()
        for thread, _ in self._running:
            thread.join(timeout=60)
            assert not thread.is_alive()
        self._running.clear()

    def drop(self, *files: tuple[str, bytes]) -> None:
        """Leave files in the spool as backup.sh does: complete from the moment they have their name."""
        for name, content in files:
            half = self.spool / f".{name}.tmp"
            half.write_bytes(content)
            half.rename(self.spool / name)

    def log(self, system: int | str = SYSTEM) -> Log:
        return Log(self.repository.service("database").child(str(system)))

    def position(self, system: int | str = SYSTEM) -> Position:
        position = self.log(system).read_position()
        assert position is not None
        return position

    def waiting(self) -> list[str]:
        """What is in the spool."""
        return sorted(name for name in os.listdir(self.spool) if not name.startswith("."))

    def await_empty(self, timeout: float = 20) -> None:
        assert wait_until(lambda: not self.waiting(), timeout=timeout), self.waiting()

    def await_position(self, condition: Callable[[Position], object], system: int | str = SYSTEM) -> Position:
        """Wait until the agent tells a position that meets the condition, and return it."""
        found: list[Position] = []

        def met() -> bool:
            position = self.log(system).read_position()
            if position is not None:
                found[:] = [position]
            return position is not None and bool(condition(position))

        assert wait_until(met, timeout=20), found
        return found[0]


@pytest.fixture
def agents(world_readable_folder: Path) -> Iterator[Agents]:
    """No agent yet; the repository is a folder."""
    spool = world_readable_folder / "spool"
    spool.mkdir()
    repository = open_repository(str(world_readable_folder / "repository"), settings=Settings(), create=True)
    agents = Agents(spool, repository)
    yield agents
    agents.stop()


@pytest.fixture(scope="session")
def machine() -> Iterator[tuple[Settings, Leases]]:
    """A state folder that servers can reach; what still runs at the end is ended."""
    folder = Path(tempfile.mkdtemp(prefix="dr-test-", dir="/tmp"))
    folder.chmod(0o755)
    settings = Settings(state_dir=folder)
    leases = Leases(folder)
    yield settings, leases
    leases.end_owner("tests")
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def bucket(machine: tuple[Settings, Leases]) -> Iterator[Settings]:
    """Settings with which s3://dr-pipelines/… is reached."""
    settings, leases = machine
    storage = ObjectStorage.start(settings, leases, owner="tests")
    yield settings.model_copy(
        update={
            "s3_endpoint": storage.endpoint,
            "s3_access_key_id": SecretStr(storage.access_key),
            "s3_secret_access_key": SecretStr(storage.secret_key),
        }
    )
    storage.stop(leases)


@dataclass
class Host:
    """A server whose archive_command is backup.sh, and agents on its spool."""

    server: Server
    leases: Leases
    agents: Agents
    script: Path
    options: dict[str, str]

    def start(self, **more: str) -> None:
        self.server.start(self.leases, owner="tests", ttl=timedelta(hours=1), options=self.options | more)

    def connect(self) -> psycopg.Connection:
        """A connection that commits each statement."""
        return psycopg.connect(self.server.dsn(), autocommit=True)

    def ask(self, query: str) -> object:
        with self.connect() as connection:
            row = connection.execute(query.encode()).fetchone()
        assert row is not None
        return row[0]

    def do(self, statement: str) -> None:
        with self.connect() as connection:
            connection.execute(statement.encode())

    def now(self) -> datetime:
        """By the server's clock."""
        moment = self.ask("SELECT clock_timestamp()")
        assert isinstance(moment, datetime)
        return moment.astimezone(UTC)

    @property
    def system(self) -> str:
        return str(self.ask("SELECT system_identifier::text FROM pg_control_system()"))


@contextlib.contextmanager
def host(machine: tuple[Settings, Leases], binaries: Binaries, repository: Repository) -> Iterator[Host]:
    """A new server that runs and archives; gone afterwards."""
    settings, leases = machine
    identity = server_identity(settings)
    folder = Path(tempfile.mkdtemp(prefix="dr-test-", dir="/tmp"))
    folder.chmod(0o755)
    spool = folder / "spool"
    spool.mkdir()
    give_to(spool, identity)
    script = folder / "backup.sh"
    shutil.copy(SCRIPT, script)
    password = secrets.token_hex(8)
    (folder / "cluster").mkdir()
    give_to(folder / "cluster", identity)
    data = folder / "cluster" / "data"
    initdb(binaries, data, identity=identity, password=password, options=["--wal-segsize=1", "--no-sync"])
    server = Server(binaries, data, free_port(), identity, password)
    options = {
        "archive_mode": "on",
        "archive_command": f"DR_SPOOL={spool} {script} wal %p %f",
        "max_wal_size": "64MB",
        "fsync": "off",
    }
    agents = Agents(spool, repository, server.dsn())
    running = Host(server, leases, agents, script, options)
    try:
        running.start()
        yield running
    finally:
        agents.stop()
        server.kill()
        shutil.rmtree(folder)


def wheel(settings: Settings) -> Binaries:
    """The newest PostgreSQL of this machine."""
    return all_binaries(settings)[0]


@pytest.fixture
def folder_host(machine: tuple[Settings, Leases], world_readable_folder: Path) -> Iterator[Host]:
    """The newest PostgreSQL, its repository a folder."""
    repository = open_repository(str(world_readable_folder / "repository"), settings=machine[0], create=True)
    with host(machine, wheel(machine[0]), repository) as running:
        yield running
