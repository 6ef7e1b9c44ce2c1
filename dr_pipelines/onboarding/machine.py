"""What this machine is like before anything is set up: users, files, folders, the repository. Nothing is changed."""

import grp
import os
import pwd
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict

from dr_pipelines.errors import ConfigurationError, DrError, MissingSoftware, RepositoryError, RepositoryMissing
from dr_pipelines.onboarding.environment import parse_environment
from dr_pipelines.onboarding.server import Server
from dr_pipelines.onboarding.wishes import Wishes
from dr_pipelines.plan import read_plan_text
from dr_pipelines.processes.identity import Identity, run
from dr_pipelines.processes.postgres import find_binaries
from dr_pipelines.processes.software import can_execute
from dr_pipelines.repository.repository import is_empty, open_repository
from dr_pipelines.settings import Settings

__all__ = ["Folder", "Machine", "Place", "identity_of", "read_machine", "read_text"]


class Place(StrEnum):
    """What is in the place that is to be the repository."""

    REPOSITORY = "repository"
    EMPTY = "empty"
    REFUSED = "refused"
    """Something else, or nothing that answers."""


@dataclass(frozen=True)
class Folder:
    """A folder as it is; None where it is not there."""

    mode: int
    owner: str
    group: str


@dataclass(frozen=True)
class Machine:
    """This machine, for one service."""

    name: str
    """Its host name."""
    user: str
    """Who we are here."""
    is_root: bool
    server_is_here: bool
    agent_is_here: bool
    """Whether the agent runs on the server's host, too."""
    server_user: str | None
    """Who the server runs as; None where that cannot be seen here."""
    access_file: Path | None
    """pg_hba.conf, where it is the server's own and we may write it."""
    agent_user: str
    agent_group: str
    agent_can_run: bool
    """Whether that user can execute `command`."""
    out_of_reach: str | None
    """What that user needs and cannot get at, and why."""
    command: Path
    """`dr`, as it was called."""
    script: Path
    """scripts/backup.sh of this installation."""
    script_text: str
    script_in_reach: bool
    """Whether the server's user can execute it there."""
    installed_script: str | None
    """What lies at the place that it is copied to, where it is not in reach."""
    spool: Path
    spool_folder: Folder | None
    state: Path
    plan: Path
    plan_text: str | None
    plan_problem: str | None
    environment: dict[str, str] | None
    """What the service's environment file says; None: it is not there."""
    environment_text: str | None
    may_configure: bool
    """Whether we may write environment file and unit."""
    unit_text: str | None
    supervised: bool
    """Whether systemd runs this machine."""
    place: Place
    place_problem: str
    beside_the_data: bool
    """Whether the repository is a folder on the disk that the server's data lie on."""
    free: int | None
    """Bytes free in the repository; None where that is not known."""
    spool_free: int | None
    data_free: int | None
    """Bytes free where the server's data lie; None where that cannot be seen."""
    variables: dict[str, str]
    """What else our environment says, of S3 and of PostgreSQL's binaries say; holds secrets."""
    binaries: str | None
    """PostgreSQL of the server's version, with which backups are made and restored here; None where there is none."""

    def environment_file(self, wishes: Wishes) -> Path:
        """Where the agent's environment is written down."""
        return wishes.configuration / f"{wishes.service}.env"

    def unit_file(self, wishes: Wishes) -> Path:
        """Where systemd looks for the agent."""
        return wishes.units / f"dr-agent@{wishes.service}.service"

    @property
    def installed(self) -> Path:
        """Where the script is copied to where the server cannot execute it in its place."""
        return self.state / "bin" / "backup.sh"


def identity_of(user: str) -> Identity:
    """A user of this machine. Raises ConfigurationError where there is none of that name."""
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise ConfigurationError(
            f'there is no user "{user}" on this machine', hint=f"useradd --system {user}, or name another"
        ) from None
    return Identity(user, entry.pw_uid, entry.pw_gid)


def read_machine(settings: Settings, wishes: Wishes, server: Server, dsn: str, spool: Path | None) -> Machine:
    """Look around. `spool` is the one that the server's archive_command names, where it does.

    Raises ConfigurationError where a user is named that is not there, or an environment file cannot be read.
    """
    data = Path(server.value("data_directory") or "/nonexistent")
    server_user = _owner(data) if _is_here(dsn, server, data) else None
    here = server_user is not None
    user = pwd.getpwuid(os.geteuid()).pw_name
    agent = identity_of(wishes.agent_user or server_user or user)
    script, command = _script(), _command()
    chosen = wishes.spool or spool or settings.spool_of(wishes.service)
    environment_file = wishes.configuration / f"{wishes.service}.env"
    environment = read_text(environment_file)
    plan_text, plan_problem = _plan(settings)
    place, place_problem, free = _place(wishes.repository, settings)
    installed = settings.state_dir / "bin" / "backup.sh"
    unit = wishes.units / f"dr-agent@{wishes.service}.service"
    return Machine(
        name=os.uname().nodename,
        user=user,
        is_root=os.geteuid() == 0,
        server_is_here=here,
        agent_is_here=here and wishes.agent_host is None,
        server_user=server_user,
        access_file=_access_file(server) if here else None,
        agent_user=agent.name,
        agent_group=grp.getgrgid(agent.gid).gr_name,
        agent_can_run=_may_run(command, agent),
        out_of_reach=_out_of_reach(wishes.repository, (chosen, settings.state_dir), settings.plan.absolute(), agent),
        command=command,
        script=script,
        script_text=read_text(script) or "",
        script_in_reach=server_user is not None and _may_run(script, identity_of(server_user)),
        installed_script=read_text(installed),
        spool=chosen,
        spool_folder=_folder(chosen),
        state=settings.state_dir,
        plan=settings.plan.absolute(),
        plan_text=plan_text,
        plan_problem=plan_problem,
        environment=parse_environment(environment) if environment is not None else None,
        environment_text=environment,
        may_configure=_may_write(environment_file) and _may_write(unit),
        unit_text=read_text(unit),
        supervised=Path("/run/systemd/system").is_dir(),
        place=place,
        place_problem=place_problem,
        beside_the_data=here and _same_disk(wishes.repository, data),
        free=free,
        spool_free=_free(chosen),
        data_free=_free(data) if here else None,
        variables=_variables(settings),
        binaries=_binaries(settings, server.facts.major),
    )


def _is_here(dsn: str, server: Server, data: Path) -> bool:
    """Whether the server runs on this machine, and not behind a forwarded port: its folder and process are here."""
    host = str(conninfo_to_dict(dsn).get("host") or "")
    address = server.administrator.address
    if not (host.startswith("/") or address is None or address in ("127.0.0.1", "::1")) or not data.is_dir():
        return False
    with suppress(PermissionError):
        lines = (data / "postmaster.pid").read_text().splitlines() if (data / "postmaster.pid").exists() else []
        return len(lines) > 3 and lines[3] == server.value("port")
    return True  # its folder is closed to us, and there


def _owner(path: Path) -> str | None:
    """The user whom it belongs to; None where he has no name here, as in a container's volume."""
    with suppress(KeyError):
        return pwd.getpwuid(path.stat().st_uid).pw_name
    return None


def _access_file(server: Server) -> Path | None:
    path = Path(server.value("hba_file") or "/nonexistent").resolve()
    try:
        same = path.read_bytes() == server.access_text
    except OSError:
        return None
    return path if same and _may_write(path) else None


def _may_write(path: Path) -> bool:
    """Whether we may replace the file, or make it with the folders above."""
    for parent in path.parents:
        if parent.exists():
            return os.access(parent, os.W_OK | os.X_OK)
    return False


def _script() -> Path:
    # In a checkout a link that leads to scripts/, in the wheel the file itself.
    return (Path(__file__).parents[1] / "backup.sh").resolve()


def _command() -> Path:
    beside = Path(sys.executable).with_name("dr")
    return beside if beside.is_file() else Path(shutil.which("dr") or beside)


def _may_run(program: Path, identity: Identity) -> bool:
    if os.geteuid() not in (0, identity.uid):
        return os.access(program, os.X_OK)  # as far as we can tell
    return can_execute(program, identity)


def _out_of_reach(url: str, folders: tuple[Path, ...], plan: Path, agent: Identity) -> str | None:
    """What the agent's user cannot get at; None where that is nothing, or cannot be found out."""
    if os.geteuid() != 0 or agent.uid == 0:
        return None
    repository = (Path(url.removeprefix("file://")),) if "://" not in url or url.startswith("file://") else ()
    for path in (*repository, *folders, plan):
        # Below the first that is there folders are made that all may enter.
        for parent in reversed(path.parents):
            if parent.exists() and run(["test", "-x", str(parent)], identity=agent, timeout=30, check=False).returncode:
                return f"{agent.name} cannot enter {parent}, on the way to {path}"
    if plan.exists() and run(["test", "-r", str(plan)], identity=agent, timeout=30, check=False).returncode:
        return f"{agent.name} cannot read {plan}"
    return None


def _folder(path: Path) -> Folder | None:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    try:
        owner, group = pwd.getpwuid(status.st_uid).pw_name, grp.getgrgid(status.st_gid).gr_name
    except KeyError:
        owner, group = str(status.st_uid), str(status.st_gid)
    return Folder(status.st_mode & 0o7777, owner, group)


def read_text(path: Path) -> str | None:
    """A file's text, None where it is not there. Raises ConfigurationError where it cannot be read."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error}", hint="run dr init as root, or as its owner"
        ) from None


def _plan(settings: Settings) -> tuple[str | None, str | None]:
    if not settings.has_plan:
        return None, None
    try:
        return read_plan_text(settings.plan), None
    except DrError as error:
        return None, str(error)


def _place(url: str, settings: Settings) -> tuple[Place, str, int | None]:
    try:
        repository = open_repository(url, settings=settings)
    except RepositoryMissing as error:
        return (Place.EMPTY if is_empty(url, settings=settings) else Place.REFUSED), error.message, None
    except RepositoryError as error:
        return Place.REFUSED, str(error), None
    return Place.REPOSITORY, "", repository.store.free_bytes()


def _same_disk(url: str, data: Path) -> bool:
    if url.startswith("s3://"):
        return False
    path = Path(url.removeprefix("file://")).expanduser().absolute()
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    return there.stat().st_dev == data.stat().st_dev


def _free(path: Path) -> int:
    return shutil.disk_usage(next(folder for folder in (path, *path.parents) if folder.exists())).free


def _variables(settings: Settings) -> dict[str, str]:
    elsewhere = {"state_dir", "plan", "repository", "lab_repository", "dsn", "spool", "log"}
    kept = {f"DR_{name.upper()}" for name in settings.model_fields_set - elsewhere}
    return {name: value for name, value in settings.as_environment().items() if name in kept}


def _binaries(settings: Settings, major: int) -> str | None:
    try:
        found = find_binaries(settings, major)
    except MissingSoftware:
        return None
    return f"{found.version} in {found.folder}"
