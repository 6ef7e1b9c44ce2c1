"""`dr init`: a database of one's own under protection, from a look at its server to the first backup."""

import ipaddress
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, TypeVar

import psycopg
import typer
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pydantic import SecretStr, TypeAdapter, ValidationError

from dr_pipelines.cli.first_backup import first_backup
from dr_pipelines.cli.frame import Json, Terminal
from dr_pipelines.cli.init_show import Outcome, document, hindrances, lost_password, show
from dr_pipelines.cli.variables import settings_with
from dr_pipelines.engines.findings import Level
from dr_pipelines.engines.postgres.connection import Connection
from dr_pipelines.engines.postgres.privileges import refusal_of_replication
from dr_pipelines.errors import ConfigurationError, ProcessError, UsageError
from dr_pipelines.onboarding.administrator import DSN_VARIABLE, PASSWORD_VARIABLE, administrator, default_dsn
from dr_pipelines.onboarding.applying import apply, try_role
from dr_pipelines.onboarding.environment import parse_environment
from dr_pipelines.onboarding.items import Item, Mode, Proposal
from dr_pipelines.onboarding.logs import archiver_of_server
from dr_pipelines.onboarding.machine import read_machine, read_text
from dr_pipelines.onboarding.plan_entry import asked_database
from dr_pipelines.onboarding.proposal import Seen, propose
from dr_pipelines.onboarding.role import Tried, role_dsn
from dr_pipelines.onboarding.server import read_server, read_tables
from dr_pipelines.onboarding.wishes import Wishes
from dr_pipelines.plan.values import Name, parse_cron
from dr_pipelines.settings import Settings
from dr_pipelines.timing import SystemClock, parse_duration

__all__ = ["init"]

_EXAMPLE = "host=db.internal user=postgres dbname=postgres"


def init(
    service: Annotated[str, typer.Argument(metavar="SERVICE", help="The service's name in the plan.")],
    dsn: Annotated[
        str | None,
        typer.Option(metavar="DSN", help=f"How an administrator reaches the server; with a password: {DSN_VARIABLE}."),
    ] = None,
    mode: Annotated[Mode | None, typer.Option(help="How the log leaves the server; what fits where left out.")] = None,
    repository: Annotated[str | None, typer.Option(metavar="URL", help="Where backups go; DR_REPOSITORY.")] = None,
    role: Annotated[str, typer.Option(help="The role that backups are taken as.")] = "dr_backup",
    connect_to: Annotated[str, typer.Option(metavar="DATABASE", help="What the role connects to.")] = "postgres",
    reset_password: Annotated[
        bool, typer.Option("--reset-password", help="Give a role that is there a new one.")
    ] = False,
    spool: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the log waits for the agent.")] = None,
    agent_user: Annotated[
        str | None, typer.Option(metavar="USER", help="Who the agent runs as; the server's user.")
    ] = None,
    agent_host: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="The agent's host as the server sees it, where it is another.")
    ] = None,
    tier: Annotated[str | None, typer.Option(help="The service's tier in the plan; its first.")] = None,
    rto: Annotated[str | None, typer.Option(metavar="DURATION", help="Its own RTO, such as 1h.")] = None,
    rpo: Annotated[str | None, typer.Option(metavar="DURATION", help="Its own RPO, such as 15m.")] = None,
    full: Annotated[str | None, typer.Option(metavar="CRON", help='When full backups start: "0 3 * * *".')] = None,
    archive_timeout: Annotated[
        str | None, typer.Option(metavar="DURATION", help="How long a log segment stays open at most: 60s.")
    ] = None,
    database: Annotated[
        str | None, typer.Option(help="The database that a restored server is asked in; the largest.")
    ] = None,
    incremental: Annotated[
        bool, typer.Option("--incremental", help="Keep what incremental backups go by (17+).")
    ] = False,
    config_dir: Annotated[Path, typer.Option(metavar="DIR", help="For the agent's environment file.")] = Path(
        "/etc/dr_pipelines"
    ),
    unit_dir: Annotated[Path, typer.Option(metavar="DIR", help="For systemd's unit.")] = Path("/etc/systemd/system"),
    apply_it: Annotated[bool, typer.Option("--apply", help="Do what is proposed.")] = False,
    backup: Annotated[bool, typer.Option("--backup", help="Then make the first backup, and look at it all.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing, also on a terminal.")] = False,
    as_json: Json = False,
) -> int:
    """Look at a server and say what it takes to protect it, each item with why; --apply does it.

    Nothing is changed without --apply, and nothing with it that is not told, with how to take it back. Applied again it
    changes nothing. An archive_command of pgBackRest, Barman, WAL-G or anybody else stays as it is.

    Exit code 0: all of it is there, or can be applied; 3: something is left for a person, and told; 2: this server
    cannot be backed up, or the machine is not set up for it, and nothing was done; 1: it failed on the way.
    """
    # One long list of options and what each becomes; nothing is decided here.
    terminal = Terminal(as_json=as_json)
    if backup and not apply_it:
        raise UsageError("--backup takes --apply", hint="a first backup is made of what is set up")
    settings, asks = _settings(_name(service), config_dir), _Asking(on=not (yes or as_json) and sys.stdin.isatty())
    chosen = _administrators(dsn, asks)
    wishes = Wishes(
        service=_name(service),
        repository=_repository(repository, settings, asks),
        mode=mode,
        role=role,
        password=SecretStr(secrets.token_urlsafe(24)),
        password_is_new=True,
        reset_password=reset_password,
        connect_to=connect_to,
        spool=spool.absolute() if spool else None,
        agent_user=agent_user,
        agent_host=_address(agent_host),
        configuration=config_dir.absolute(),
        units=unit_dir.absolute(),
        full=_value("--full", full, parse_cron),
        archive_timeout=_value("--archive-timeout", archive_timeout, parse_duration),
        incremental=incremental,
        tier=tier,
        rto=_value("--rto", rto, parse_duration),
        rpo=_value("--rpo", rpo, parse_duration),
        database=database,
    )
    with _connected(chosen, asks) as (connection, given):
        proposal = _propose(connection, given, settings, _with_password(wishes, settings))
        if apply_it and asks.on:
            show(terminal.err, Outcome(proposal))
            apply_it = asks.confirm("apply what is marked to do?")
        outcome = _carry_out(terminal, proposal, connection, settings, backup) if apply_it else Outcome(proposal)
    terminal.result(document(outcome), lambda console: show(console, outcome))
    return outcome.exit_code


@contextmanager
def _connected(dsn: str, asks: "_Asking") -> Iterator[tuple[Connection, str]]:
    """The administrator's connection, and the string that led to it."""
    try:
        conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        # Its words would repeat a piece of the string, and that may be the password.
        raise ConfigurationError("the administrator's connection string cannot be read", hint=_EXAMPLE) from None
    with ExitStack() as stack:
        try:
            connection = stack.enter_context(administrator(dsn))
        except ProcessError as error:
            if not (asks.on and "no password supplied" in error.message):
                raise
            dsn = make_conninfo(dsn, password=asks.secret("the administrator's password"))
            connection = stack.enter_context(administrator(dsn))
        yield connection, dsn


def _settings(service: str, configuration: Path) -> Settings:
    """Ours, and where they say nothing what the service's environment file says: it may have been set up before."""
    text = read_text(configuration / f"{service}.env")
    variables = parse_environment(text) if text is not None else {}
    settings = settings_with({name: value for name, value in variables.items() if name not in os.environ})
    if "plan" in settings.model_fields_set or settings.has_plan:
        return settings
    return settings.model_copy(update={"plan": configuration / "recovery-plan.yaml"})


def _propose(connection: Connection, dsn: str, settings: Settings, wishes: Wishes) -> Proposal:
    try:
        server = read_server(connection, wishes.role, wishes.connect_to)
    except psycopg.Error as error:
        words = (error.diag.message_primary or str(error)).strip()
        raise ConfigurationError(f"the server cannot be looked at: {words}", hint="as another administrator?") from None
    if (database := asked_database(wishes, server)) in server.databases and database not in server.closed:
        with administrator(make_conninfo(dsn, dbname=database)) as other:
            server = replace(server, tables=read_tables(other))
    machine = read_machine(settings, wishes, server, dsn, archiver_of_server(server).spool)
    tried: Tried | None = None
    if server.role is not None and not wishes.password_is_new:
        tried = try_role(role_dsn(dsn, server, machine, wishes))
    refused = None
    if server.administrator.may_replicate and not server.administrator.superuser:
        refused = refusal_of_replication(dsn)
    return propose(Seen(server, machine, dsn, tried, refused), wishes)


def _carry_out(
    terminal: Terminal, proposal: Proposal, connection: Connection, settings: Settings, backup: bool
) -> Outcome:
    """Do what is to do, and make the first backup where that is wished for and can be."""
    for finding in proposal.findings:
        if finding.level is Level.PROBLEM:
            raise ConfigurationError(f"nothing was done: {finding.seen}", hint=finding.mend)
    done: list[Item] = []

    def tell(item: Item) -> None:
        done.append(item)
        terminal.note(f"done: {item.title}" + (f"\n    to take it back: {item.undo}" if item.undo else ""))

    try:
        apply(proposal.items, connection, settings, SystemClock(), tell=tell)
        hindered_by = hindrances(proposal) if backup else ()
        first = first_backup(terminal, proposal) if backup and not hindered_by else None
    except BaseException:
        if password := lost_password(proposal, done):
            terminal.note(f"the role's password, which is shown this once and stands in no file: {password}")
        raise
    return Outcome(proposal, tuple(done), hindered_by, first)


class _Asking:
    """Questions on a terminal; where nobody is there, the defaults."""

    def __init__(self, *, on: bool) -> None:
        self.on = on

    def text(self, question: str, default: str | None) -> str | None:
        return str(typer.prompt(question, default=default, err=True)) if self.on else default

    def secret(self, question: str) -> str:
        return str(typer.prompt(question, hide_input=True, err=True))

    def confirm(self, question: str) -> bool:
        return typer.confirm(question, default=False, err=True)


def _administrators(dsn: str | None, asks: _Asking) -> str:
    if dsn is not None:
        if re.search(r"password|//[^/@]*:[^/@]*@", dsn):
            raise UsageError(
                "a password on the command line can be read by every user of this machine",
                hint=f"put the string into {DSN_VARIABLE}, or the password into PGPASSWORD or ~/.pgpass",
            )
        return dsn
    return os.environ.get(DSN_VARIABLE) or asks.text("how an administrator reaches the server", default_dsn()) or ""


def _repository(url: str | None, settings: Settings, asks: _Asking) -> str:
    found = url or settings.repository or asks.text("the repository (a folder or s3://bucket/prefix)", None)
    if not found:
        raise ConfigurationError(
            "nobody said where backups go", hint="--repository or DR_REPOSITORY: a folder's path or s3://bucket/prefix"
        )
    return found if "://" in found else str(Path(found).expanduser().absolute())


def _name(service: str) -> str:
    try:
        return TypeAdapter(Name).validate_python(service)
    except ValidationError:
        raise UsageError(
            f'"{service}" cannot be a service\'s name', hint="small letters, digits, - and _, a letter first"
        ) from None


def _address(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        return str(ipaddress.ip_network(text, strict=False))
    except ValueError:
        raise UsageError(
            f'--agent-host: "{text}" is no address', hint="an IP address, or a network: 10.0.0.7, 10.0.0.0/24"
        ) from None


_Value = TypeVar("_Value")


def _value(option: str, text: str | None, read: Callable[[str], _Value]) -> _Value | None:
    if text is None:
        return None
    try:
        return read(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None


def _with_password(wishes: Wishes, settings: Settings) -> Wishes:
    """The role's password, where it is known: from the environment, or from the service's DSN."""
    if given := os.environ.get(PASSWORD_VARIABLE):
        return replace(wishes, password=SecretStr(given), password_is_new=False)
    if wishes.reset_password:
        return wishes
    known = conninfo_to_dict(settings.dsn_of(wishes.service) or "")
    if known.get("user") == wishes.role and known.get("password"):
        return replace(wishes, password=SecretStr(str(known["password"])), password_is_new=False)
    return wishes
