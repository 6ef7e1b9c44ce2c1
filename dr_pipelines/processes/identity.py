"""Who servers and tools run as, and running a tool to its end.

PostgreSQL refuses to run as root, and no server needs root's rights: as root, servers are given an unprivileged user.
"""

import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypedDict

from dr_pipelines.errors import ConfigurationError, MissingSoftware, ProcessError
from dr_pipelines.settings import Settings

__all__ = [
    "Identity",
    "check_reachable",
    "credentials",
    "end_of",
    "environment",
    "give_to",
    "open_folder",
    "run",
    "server_identity",
]

_KEPT_WHEN_RIGHTS_DROP = ("PATH", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH")


@dataclass(frozen=True)
class Identity:
    """A user of this machine without special rights."""

    name: str
    uid: int
    gid: int


def server_identity(settings: Settings) -> Identity | None:
    """The user that servers run as; None where we are not root and they run as ourselves.

    As root it is `settings.server_user`, else "postgres" where that exists, else "nobody": initdb asks for a user that
    has a name. Raises ConfigurationError where there is none.
    """
    if os.geteuid() != 0:
        return None
    for name in [settings.server_user] if settings.server_user else ["postgres", "nobody"]:
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            if entry.pw_uid == 0:
                raise ConfigurationError(
                    f"servers cannot run as {name}: it is root", hint="set DR_SERVER_USER to a user without its rights"
                )
            return Identity(name, entry.pw_uid, entry.pw_gid)
    wanted = settings.server_user or '"postgres" or "nobody"'
    raise ConfigurationError(
        f"there is no user {wanted} to run servers as",
        hint="create one (useradd --system) and name it in DR_SERVER_USER",
    )


def give_to(path: Path, identity: Identity | None, *, recursive: bool = False) -> None:
    """Make `path`, with all below it where `recursive`, the identity's own; nothing happens unless we are root."""
    if identity is None or os.geteuid() != 0:
        return
    os.lchown(path, identity.uid, identity.gid)
    if not recursive or path.is_symlink():
        return
    for parent, folders, files in os.walk(path):
        for name in (*folders, *files):
            os.lchown(os.path.join(parent, name), identity.uid, identity.gid)


def open_folder(path: Path) -> Path:
    """Make sure that the folder is there; what is created, parents too, everybody may enter, whatever the umask.

    Raises ConfigurationError where it cannot be.
    """
    try:
        if not path.is_dir():
            open_folder(path.parent)
            with suppress(FileExistsError):
                path.mkdir()
                path.chmod(0o755)
    except OSError as error:
        raise ConfigurationError(
            f"the folder {path} cannot be made: {error.strerror}", hint="set DR_STATE_DIR to a folder that is yours"
        ) from None
    return path


def check_reachable(path: Path, identity: Identity | None) -> None:
    """Raise ConfigurationError where the identity cannot enter one of the folders above `path` that are there."""
    if identity is None:
        return
    for parent in path.absolute().parents:
        if not parent.exists():
            continue
        status = parent.stat()
        may_enter = status.st_mode & (
            0o100 if status.st_uid == identity.uid else 0o010 if status.st_gid == identity.gid else 0o001
        )
        if not may_enter:
            raise ConfigurationError(
                f"servers run as {identity.name}, who cannot enter {parent}",
                hint="set DR_STATE_DIR to a folder that every user can reach, such as /var/lib/dr_pipelines",
            )


def environment(identity: Identity | None, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a child: ours without PostgreSQL's own variables (PG*), then `extra`.

    Whoever runs with fewer rights than we do gets only path, language and time zone of ours: root's environment may
    hold the repository's keys, and anybody who may run SQL as superuser could read them there.
    """
    if identity is None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    else:
        inherited = {name: os.environ[name] for name in _KEPT_WHEN_RIGHTS_DROP if name in os.environ}
        # libpq fails on a home that it may not enter, not on one that is not there.
        inherited["HOME"] = "/nonexistent"
    return inherited | dict(extra or {})


class Credentials(TypedDict, total=False):
    """The arguments of subprocess.Popen that change the user."""

    user: int
    group: int
    extra_groups: list[int]


def credentials(identity: Identity | None) -> Credentials:
    """What to pass to subprocess.Popen so that the child runs as `identity`."""
    if identity is None or os.geteuid() != 0:
        return {}
    groups = os.getgrouplist(identity.name, identity.gid)
    return {"user": identity.uid, "group": identity.gid, "extra_groups": groups}


def end_of(text: str | Path, *, lines: int = 15, start: int = 0) -> str:
    """The last lines of an output, or of a log file from the byte `start` on, on one line, for an error's message."""
    if isinstance(text, Path):
        try:
            with text.open("rb") as file:
                file.seek(max(start, os.fstat(file.fileno()).st_size - 8192))
                text = file.read().decode(errors="replace")
        except FileNotFoundError:
            return "(no log)"
    kept = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return " | ".join(kept[-lines:]) or "(no output)"


def run(
    argv: Sequence[str],
    *,
    identity: Identity | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float,
    input: str | None = None,
    log: Path | None = None,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run a tool to its end, in a session of its own, as `identity`, in `cwd` (else "/").

    `env` is added to what `environment` gives. Output is returned, or appended to `log` where one is given. Raises
    ProcessError with the end of the output where the tool fails (unless `check` is off) or is not done after `timeout`
    seconds (it is killed then, with all it started); MissingSoftware where there is no such tool.
    """
    with log.open("a") if log else nullcontext() as file:
        process = _spawn(argv, identity=identity, env=env, cwd=cwd, output=file, has_input=input is not None)
        with process:
            try:
                stdout, stderr = process.communicate(input, timeout=timeout)
            except BaseException as error:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                # Our end first: whoever left the session may hold the other one open for long.
                for pipe in (process.stdin, process.stdout, process.stderr):
                    if pipe:
                        pipe.close()
                if isinstance(error, subprocess.TimeoutExpired):
                    said = end_of(log) if log else end_of(_text(error.output) + _text(error.stderr))
                    raise ProcessError(
                        f"{_name(argv)} was not done after {timeout:g} s and was killed: {said}"
                    ) from None
                raise
    if check and process.returncode != 0:
        said = end_of(log) if log else end_of((stdout or "") + (stderr or ""))
        raise ProcessError(f"{_name(argv)} failed with exit code {process.returncode}: {said}")
    return subprocess.CompletedProcess(list(argv), process.returncode, stdout or "", stderr or "")


def _spawn(
    argv: Sequence[str],
    *,
    identity: Identity | None,
    env: Mapping[str, str] | None,
    cwd: Path | None,
    output: IO[str] | None,
    has_input: bool,
) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(
            list(argv),
            stdin=subprocess.PIPE if has_input else subprocess.DEVNULL,
            stdout=output or subprocess.PIPE,
            stderr=output or subprocess.PIPE,
            text=True,
            errors="replace",
            cwd=cwd or "/",
            env=environment(identity, env),
            start_new_session=True,
            **credentials(identity),
        )
    except FileNotFoundError as error:
        if shutil.which(argv[0]):
            raise ProcessError(f"{_name(argv)} could not be started: {error}") from None
        raise MissingSoftware(f"{argv[0]} is not there", hint="`dr doctor` says what to install") from None
    except PermissionError as error:
        who = identity.name if identity else "this user"
        raise ProcessError(f"{who} may not run {_name(argv)}: {error}") from None


def _text(output: bytes | str | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def _name(argv: Sequence[str]) -> str:
    return Path(argv[0]).name
