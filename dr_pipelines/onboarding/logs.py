"""How the log leaves the server: which mode fits, and the settings that it takes. Pure."""

import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from psycopg import sql

from dr_pipelines.errors import ConfigurationError
from dr_pipelines.onboarding.archiving import Archiver, archive_command, archiver_of
from dr_pipelines.onboarding.items import Item, Mode, RunSql, State
from dr_pipelines.onboarding.machine import Machine
from dr_pipelines.onboarding.server import Server
from dr_pipelines.onboarding.wishes import Wishes
from dr_pipelines.settings import service_key, variable

__all__ = ["archiver_of_server", "choose_mode", "restart_item", "settings_item", "slot_item", "slot_name"]

_GIB = 1 << 30
_RELOAD = "SELECT pg_reload_conf()"


def slot_name(service: str) -> str:
    """The replication slot that the service's agent makes and takes the log through."""
    return f"dr_{service_key(service)}"


def archiver_of_server(server: Server) -> Archiver:
    """Who has archive_command now."""
    return archiver_of(server.archive_command, server.value("archive_library"))


def choose_mode(wishes: Wishes, server: Server, machine: Machine) -> tuple[Mode, str]:
    """The mode and why. Raises ConfigurationError where archive mode was asked for and cannot be."""
    archiver, wished = archiver_of_server(server), wishes.mode
    known = (machine.environment or {}).get(variable("log", wishes.service))
    against: str | None = None
    if archiver.owner is not None:
        against = f"archive_command belongs to {archiver.owner}, and stays as it is"
    elif not machine.agent_is_here:
        against = "the agent is not on the server's host, where archive_command would have to leave the log for it"
    if wished is Mode.ARCHIVE and against is not None:
        said = server.archive_command or server.value("archive_library") or "none is set"
        raise ConfigurationError(
            f"{against} ({said})", hint="--mode streaming takes the log beside it, and leaves archive_command alone"
        )
    if wished is not None:
        return wished, "as asked for"
    if known == "stream":
        return Mode.STREAMING, "it is set up so"
    if against is not None:
        return Mode.STREAMING, against
    if not archiver.is_ours and known is None and server.value("archive_mode") == "off":
        return Mode.STREAMING, "it loses seconds at most, and needs no restart, which archive_mode would"
    return Mode.ARCHIVE, "archive_command is ours or nobody's, and the agent is on the server's host"


@dataclass(frozen=True)
class _Wanted:
    name: str
    value: str
    why: str


def settings_item(
    mode: Mode, server: Server, machine: Machine, script: Path, archive_timeout: timedelta, *, incremental: bool
) -> Item:
    """The settings that are not as they have to be, by ALTER SYSTEM; an archive_command of somebody else's stays."""
    wanted = _common(server, mode, incremental)
    if mode is Mode.ARCHIVE:
        wanted += _archiving(server, archive_command(script, machine.spool), archive_timeout)
    else:
        wanted += _streaming(server, machine)
    title = "the server's settings"
    if not wanted:
        return Item("settings", title, "they are as they have to be", State.DONE)
    why = "; ".join(f"{each.name}: {each.why}" for each in wanted)
    statements = [
        sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(each.name), sql.Literal(each.value)).as_string(None)
        for each in wanted
    ]
    statements.append(_RELOAD)
    shown = "\n".join(f"{statement};" for statement in statements)
    undo = "\n".join(f"{statement};" for statement in (*(_undo(server, each.name) for each in wanted), _RELOAD))
    obstacle = _obstacle(server, wanted)
    if obstacle:
        return Item("settings", title, f"{why}; {obstacle}", State.BY_HAND, shown, undo)
    return Item("settings", title, why, State.TO_DO, shown, undo, (RunSql(tuple(statements)),))


def _common(server: Server, mode: Mode, incremental: bool) -> list[_Wanted]:
    """What a backup takes in either mode. All but the last needs a restart."""
    wanted = []
    if server.value("wal_level") == "minimal":
        wanted.append(_Wanted("wal_level", "replica", "a log that a restore can go by"))
    if int(server.value("max_wal_senders")) < (2 if mode is Mode.STREAMING else 1):
        wanted.append(_Wanted("max_wal_senders", "10", "a backup takes one, and so does a receiver"))
    wanted = [each for each in wanted if not server.settings[each.name].pending_restart]
    if incremental and server.value("summarize_wal") == "off":
        wanted.append(_Wanted("summarize_wal", "on", "incremental backups go by the summaries"))
    return wanted


def _archiving(server: Server, command: str, archive_timeout: timedelta) -> list[_Wanted]:
    wanted, seconds = [], int(archive_timeout.total_seconds())
    if not archiver_of_server(server).is_ours:
        wanted.append(_Wanted("archive_command", command, "each full segment goes to the spool"))
    if not 0 < server.facts.archive_timeout <= seconds:
        wanted.append(_Wanted("archive_timeout", f"{seconds}s", "after that long a segment goes, full or not"))
    if server.value("archive_mode") == "off" and not server.settings["archive_mode"].pending_restart:
        wanted.append(_Wanted("archive_mode", "on", "without it archive_command is not called"))
    return wanted


def _streaming(server: Server, machine: Machine) -> list[_Wanted]:
    wanted = []
    if server.value("max_slot_wal_keep_size") == "-1":
        room = machine.data_free // 4 if machine.data_free is not None else 10 * _GIB
        size = f"{min(max(room // _GIB, 1), 64)}GB"
        why = (
            "while no agent comes, the slot keeps the log, and without a limit that fills the disk and stops the server"
        )
        wanted.append(_Wanted("max_slot_wal_keep_size", size, why))
    if int(server.value("max_replication_slots")) < 1 and not server.settings["max_replication_slots"].pending_restart:
        wanted.append(_Wanted("max_replication_slots", "10", "the log is taken through one"))
    return wanted


def slot_item(server: Server, service: str) -> Item:
    """The replication slot that the log is taken through."""
    name = slot_name(service)
    title, why = f"the replication slot {name}", "with it the server keeps the log until the agent has it"
    if name in server.slots:
        return Item("slot", title, why, State.DONE)
    administrator = server.administrator
    statement = sql.SQL("SELECT pg_create_physical_replication_slot({})").format(sql.Literal(name)).as_string(None)
    undo = f"SELECT pg_drop_replication_slot('{name}'); -- once no agent runs"
    if not (administrator.superuser or administrator.may_replicate) or int(server.value("max_replication_slots")) < 1:
        return Item("slot", title, f"{why}; the agent makes it when it starts", State.DONE, f"{statement};", undo)
    return Item("slot", title, why, State.TO_DO, f"{statement};", undo, (RunSql((statement,)),))


def _undo(server: Server, name: str) -> str:
    setting = server.settings.get(name)
    command = sql.SQL("ALTER SYSTEM RESET {}").format(sql.Identifier(name))
    if setting is not None and setting.from_alter_system:
        command = sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), sql.Literal(setting.value))
    return command.as_string(None)


def _obstacle(server: Server, wanted: list[_Wanted]) -> str:
    """Why they cannot be set from here; empty where they can."""
    names = [each.name for each in wanted]
    if not server.administrator.superuser:
        return f"{server.administrator.name} may not ALTER SYSTEM"
    if server.value("allow_alter_system") == "off":
        return "allow_alter_system is off: these belong where the server's configuration is kept"
    others = [slot for slot in server.slots if not slot.startswith("dr_")]
    if "max_slot_wal_keep_size" in names and others:
        return f"the limit holds for the slots {', '.join(others)} too, so it is for whoever has them to say"
    fixed = [name for name in names if server.settings[name].source == "command line"]
    return f"{', '.join(fixed)} is given on the server's command line, which overrides this" if fixed else ""


def restart_item(mode: Mode, server: Server) -> Item | None:
    """The restart that a setting waits for, which is never ours to do; None where none does."""
    waiting = [name for name, setting in server.settings.items() if setting.pending_restart]
    if mode is Mode.ARCHIVE and server.value("archive_mode") == "off":
        waiting.append("archive_mode")
    if mode is Mode.STREAMING and int(server.value("max_replication_slots")) < 1:
        waiting.append("max_replication_slots")
    waiting += [each.name for each in _common(server, mode, incremental=False)]
    if not waiting:
        return None
    names = ", ".join(dict.fromkeys(waiting))
    why = f"{names} takes effect with it; it ends every session, so the moment is yours. Then the same command again"
    packaged = re.match(r"/etc/postgresql/([^/]+)/([^/]+)/", server.value("config_file"))
    unit = f"postgresql@{packaged[1]}-{packaged[2]}" if packaged else "postgresql"
    return Item("restart", "a restart of the server", why, State.BY_HAND, f"systemctl restart {unit}")
