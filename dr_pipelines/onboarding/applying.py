"""Carrying a proposal out, item by item. What was done is told as it happens; the first failure ends it."""

import os
import pwd
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import psycopg
from psycopg import sql
from pydantic import SecretStr

from dr_pipelines.engines.postgres.connection import Connection, connect
from dr_pipelines.engines.postgres.privileges import refusal_of_replication
from dr_pipelines.errors import ConfigurationError, DrError, ProcessError
from dr_pipelines.onboarding.items import (
    Act,
    AppendRules,
    Item,
    Login,
    MakeFolder,
    MakeRepository,
    MakeRole,
    RunSql,
    State,
    WriteFile,
)
from dr_pipelines.onboarding.machine import identity_of
from dr_pipelines.onboarding.role import Tried
from dr_pipelines.processes.identity import give_to, open_folder
from dr_pipelines.repository.repository import open_repository
from dr_pipelines.settings import Settings
from dr_pipelines.timing import Clock, wait_until

__all__ = ["apply", "try_role"]

_STAYS = "what was done before stays; the same command goes on"
_PATIENCE = 5.0
"""Seconds that a server may take to read its configuration again."""


def apply(
    items: Iterable[Item], connection: Connection, settings: Settings, clock: Clock, *, tell: Callable[[Item], None]
) -> None:
    """Carry out what is to do, by the administrator's connection; `tell` is called after each item that was done.

    Raises the first error; what was done before it stays, and has been told.
    """
    for item in items:
        if item.state is not State.TO_DO:
            continue
        try:
            for act in item.acts:
                _carry_out(act, connection, settings, clock)
        except psycopg.Error as error:
            words = (error.diag.message_primary or str(error)).strip()
            raise ProcessError(f"{item.title}: the server refuses: {words}", hint=_STAYS) from None
        except OSError as error:
            raise ProcessError(f"{item.title}: {error}", hint=_STAYS) from None
        except DrError as error:
            # Not the wrong usage that it may be elsewhere: something has been done by now.
            raise ProcessError(f"{item.title}: {error.message}", hint=error.hint or _STAYS) from None
        tell(item)


def _carry_out(act: Act, connection: Connection, settings: Settings, clock: Clock) -> None:
    match act:
        case RunSql():
            for statement in act.statements:
                connection.execute(statement.encode())
        case MakeRole():
            with connection.transaction():
                for statement in act.statements:
                    connection.execute(statement.encode())
                if act.password is not None:
                    _set_password(connection, act.role, act.password)
        case AppendRules():
            _append(act, connection, clock)
        case Login():
            _require_login(act.dsn, clock)
        case MakeFolder():
            _make_folder(act)
        case WriteFile():
            _write(act)
        case MakeRepository():
            _make_repository(act, settings, clock)


def _set_password(connection: Connection, role: str, password: SecretStr) -> None:
    """As a SCRAM verifier made here: the password itself reaches neither the server's log nor anybody's statistics."""
    verifier = connection.pgconn.encrypt_password(password.get_secret_value().encode(), role.encode(), b"scram-sha-256")
    statement = sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(verifier.decode()))
    connection.execute(statement)


def try_role(dsn: str) -> Tried:
    """Log in as the role, and connect as for a backup."""
    login: str | None = None
    try:
        with connect(dsn):
            pass
    except DrError as error:
        login = error.message
    return Tried(login, refusal_of_replication(dsn))


def _require_login(dsn: SecretStr, clock: Clock) -> None:
    tried = Tried(None, None)

    def works() -> bool:
        nonlocal tried
        tried = try_role(dsn.get_secret_value())
        return tried.works

    # What was changed a moment ago is in force when the server has read it.
    if not wait_until(works, timeout=_PATIENCE, clock=clock, interval=0.2):
        raise ProcessError(
            f"the role cannot be used: {tried.login or tried.replication}",
            hint="a password that is not the role's: --reset-password; else see pg_hba.conf, and dr init again",
        )


def _append(act: AppendRules, connection: Connection, clock: Clock) -> None:
    """Add the lines, keep a copy of the file as it was, and see to it that the server takes them."""
    before = act.path.read_bytes()
    stamp = f"{clock.wall():%Y%m%dT%H%M%SZ}"
    shutil.copy2(act.path, act.path.with_name(f"{act.path.name}.{stamp}.before-dr-init"))
    _copy_owner(act.path, act.path.with_name(f"{act.path.name}.{stamp}.before-dr-init"))
    gap = b"" if not before or before.endswith(b"\n") else b"\n"
    _replace(act.path, before + gap + b"\n" + act.text.encode() + b"\n")
    number = before.count(b"\n") + len(gap) + 1
    errors = connection.execute(
        "SELECT line_number, error FROM pg_hba_file_rules WHERE error IS NOT NULL AND line_number > %s", [number]
    ).fetchall()
    there = connection.execute("SELECT pg_read_binary_file(current_setting('hba_file'))").fetchone()
    if errors or there is None or not bytes(there[0]).endswith(act.text.encode() + b"\n"):
        _replace(act.path, before)
        raise ProcessError(f"the server does not take the lines for {act.path}: {errors or 'it reads another file'}")
    connection.execute("SELECT pg_reload_conf()")


def _make_folder(act: MakeFolder) -> None:
    open_folder(act.path.parent)
    act.path.mkdir(exist_ok=True)
    identity = identity_of(act.owner)
    shutil.chown(act.path, identity.uid, act.group)
    act.path.chmod(act.mode)


def _make_repository(act: MakeRepository, settings: Settings, clock: Clock) -> None:
    repository = open_repository(act.url, settings=settings, create=True, clock=clock)
    if "://" not in act.url or act.url.startswith("file://"):
        # It was empty a moment ago: what is in it was made here.
        give_to(Path(repository.url), identity_of(act.owner), recursive=True)


def _write(act: WriteFile) -> None:
    open_folder(act.path.parent)
    path = act.path.resolve()
    if (path.read_text() if path.exists() else None) != act.replaces:
        raise ConfigurationError(f"{path} was changed in the meantime", hint="dr init again")
    _replace(path, act.content.encode(), mode=act.mode, owner=act.owner)


def _replace(path: Path, content: bytes, *, mode: int | None = None, owner: str | None = None) -> None:
    """The whole file or, whatever happens, the one that was there; with its mode and owner unless others are given."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            temporary.chmod(path.stat().st_mode & 0o7777)
            _copy_owner(path, temporary)
        if mode is not None:
            temporary.chmod(mode)
        if owner is not None and owner != pwd.getpwuid(os.geteuid()).pw_name:
            identity = identity_of(owner)
            os.chown(temporary, identity.uid, identity.gid)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _copy_owner(source: Path, target: Path) -> None:
    status, ours = source.stat(), target.stat()
    if (status.st_uid, status.st_gid) != (ours.st_uid, ours.st_gid):
        os.chown(target, status.st_uid, status.st_gid)
