"""Real PostgreSQL servers to load, write to and kill."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest

from dr_pipelines.processes.identity import server_identity
from dr_pipelines.processes.postgres import find_binaries
from dr_pipelines.settings import Settings
from dr_pipelines.timing import wait_until

WHEEL = "wheel"
DEBIAN = [path.parts[-2] for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"))]


@pytest.fixture(scope="session")
def software() -> Iterator[Settings]:
    """Where binaries are copied to that servers could not reach otherwise."""
    folder = Path(tempfile.mkdtemp(prefix="dr-test-", dir="/tmp"))
    folder.chmod(0o755)
    yield Settings(state_dir=folder)
    shutil.rmtree(folder)


def _unprivileged() -> str | None:
    """The user a server runs as: servers refuse root."""
    identity = server_identity(Settings())
    return identity.name if identity is not None else None


@dataclass
class Server:
    """One PostgreSQL with its own data folder and port."""

    bin: Path
    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    _databases: list[str] = field(default_factory=list)

    @property
    def dsn(self) -> str:
        """Of the newest database that was made with `database`, else of the first one."""
        name = self._databases[-1] if self._databases else "postgres"
        return f"host=127.0.0.1 port={self.port} user=postgres dbname={name}"

    def start(self) -> None:
        """Start and wait until it answers."""
        command = [str(self.bin / "postgres"), "-D", str(self.folder / "data"), "-p", str(self.port)]
        settings = [f"unix_socket_directories={self.folder}", "listen_addresses=127.0.0.1", "max_wal_size=4GB"]
        for setting in settings:
            command += ["-c", setting]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd="/", user=_unprivileged(), start_new_session=True
            )
        assert wait_until(self._answers, timeout=30), (self.folder / "log").read_text()

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.dsn, connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def kill(self) -> None:
        """SIGKILL to the postmaster and to each of its children, which have process groups of their own."""
        if self.process is None:
            return
        server = self.process.pid
        children = Path(f"/proc/{server}/task/{server}/children").read_text() if self.process.poll() is None else ""
        for pid in (server, *map(int, children.split())):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.process = None

    def connect(self) -> psycopg.Connection:
        """A connection that commits each statement."""
        return psycopg.connect(self.dsn, autocommit=True)

    def database(self) -> None:
        """Make a new empty database, which `dsn` and `connect` name from now on."""
        name = f"hotel{len(self._databases)}"
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        self._databases.append(name)


@contextlib.contextmanager
def run_server(bin_folder: Path) -> Iterator[Server]:
    """A server that is gone afterwards, with all that it wrote."""
    user = _unprivileged()
    folder = Path(tempfile.mkdtemp(prefix="dr-test-", dir="/tmp"))
    folder.chmod(0o755)
    if user:
        shutil.chown(folder, user)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    server = Server(bin_folder, folder, port)
    try:
        subprocess.run(
            [bin_folder / "initdb", "-D", folder / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"],
            check=True, capture_output=True, cwd="/", user=user,
        )  # fmt: skip
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder)


@pytest.fixture(scope="session", params=[WHEEL, *DEBIAN])
def any_server(request: pytest.FixtureRequest, software: Settings) -> Iterator[Server]:
    """A server of each version that this machine has, shared: each test makes its own database in it."""
    major = None if request.param == WHEEL else int(request.param)
    with run_server(find_binaries(software, major).folder) as server:
        yield server


@pytest.fixture
def server(software: Settings) -> Iterator[Server]:
    """A server of one's own, which may be killed."""
    with run_server(find_binaries(software).folder) as server:
        yield server
