"""A restored server is made ready for production: its own address, and its log archived on its new timeline.

What is set stands in the target's own configuration, so that whoever starts the server later, a service unit say,
starts the same one. Nothing of the restore is needed any more. All of it is done while the server is stopped, and
doing it again changes nothing.
"""

import os
import re
import shlex
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from dr_pipelines.engines.postgres.configuration import remove_recovery_settings
from dr_pipelines.engines.postgres.wal import FileKind, Lsn, Segment, kind_of, timeline_of
from dr_pipelines.errors import ConfigurationError, RestoreError
from dr_pipelines.processes.identity import Identity, give_to, run
from dr_pipelines.processes.postgres import Binaries, controldata

__all__ = [
    "Production",
    "archive_command",
    "mark_for_archive",
    "prepare_production",
    "require_free_port",
    "set_settings",
]

_AUTOMATIC = "postgresql.auto.conf"


@dataclass(frozen=True)
class Production:
    """How the server is to run in production."""

    listen: str
    """As listen_addresses has it."""
    port: int
    archive_command: str
    archive_timeout: timedelta | None
    """The longest that a segment may stay open, as promised; None where nothing is."""


def prepare_production(
    target: Path, binaries: Binaries, identity: Identity | None, wanted: Production, *, timeline: int
) -> tuple[str, ...]:
    """Configure the stopped server in `target` for production; returns what whoever runs it has to know.

    Raises RestoreError where its configuration cannot be read, with what to mend.
    """
    remove_recovery_settings(target)
    asks = _Effective(target, binaries, identity)
    _lead_into(target, asks, identity)
    settings = {
        "listen_addresses": wanted.listen,
        "port": str(wanted.port),
        "archive_mode": "on",
        "archive_command": wanted.archive_command,
    }
    told = []
    if binaries.major >= 15 and asks("archive_library"):
        settings["archive_library"] = ""
    timeout = int(asks("archive_timeout"))
    if wanted.archive_timeout is not None and not 0 < timeout <= wanted.archive_timeout.total_seconds():
        settings["archive_timeout"] = f"{int(wanted.archive_timeout.total_seconds())}s"
    if standbys := asks("synchronous_standby_names"):
        # Nobody of them follows this server yet: no commit would ever be acknowledged.
        settings["synchronous_standby_names"] = ""
        told.append(f"synchronous_standby_names is emptied, it was {standbys}: set it again when one follows")
    folders = [folder.strip() for folder in asks("unix_socket_directories").split(",") if folder.strip()]
    if (usable := [folder for folder in folders if _is_usable(folder, target, identity)]) != folders:
        settings["unix_socket_directories"] = ",".join(usable)
        told.append(f"its socket goes to {', '.join(usable) or 'no folder'}: {', '.join(folders)} cannot all be used")
    set_settings(target, settings, identity)
    mark_for_archive(target, binaries, timeline, identity)
    return tuple(told)


def archive_command(script: Path, spool: Path) -> str:
    """The archive_command that puts the log into the spool."""
    return f"DR_SPOOL={shlex.quote(str(spool))} {shlex.quote(str(script))} wal %p %f"


def require_free_port(listen: str, port: int) -> None:
    """Raise ConfigurationError where this machine cannot listen there, because another server does, say."""
    for address in [each.strip() for each in listen.split(",")]:
        hosts = ["0.0.0.0"] if address == "*" else [address]
        try:
            found = socket.getaddrinfo(hosts[0], port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, kind, protocol, _, where = found[0]
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(where)
        except OSError as error:
            raise ConfigurationError(
                f"this machine cannot listen on {address}, port {port}: {error.strerror}",
                hint="give the new server an address and a port of its own (--listen, --port), or free them",
            ) from None


def mark_for_archive(target: Path, binaries: Binaries, timeline: int, identity: Identity | None) -> None:
    """Have what the stopped server wrote while it did not archive archived as soon as it does; the rest never.

    That is its timeline's history and the segments that it has filled. What it was restored from is in the repository,
    under the names that it has here.
    """
    log, control = target / "pg_wal", controldata(binaries, target)
    size = int(control["Bytes per WAL segment"])
    written = Lsn.parse(control["Latest checkpoint location"]).value // size
    for name in _names(log):
        own = timeline_of(name) == timeline
        if own and kind_of(name) is FileKind.SEGMENT and Segment.of_name(name, size).number >= written:
            continue  # open, or one that is to be used again: the server itself hands it over when it is full
        status = log / "archive_status" / name
        if not any(status.with_name(f"{name}.{state}").exists() for state in ("ready", "done")):
            note = status.with_name(f"{name}.{'ready' if own else 'done'}")
            note.touch(0o600)
            give_to(note, identity)


def _names(log: Path) -> Iterator[str]:
    for entry in sorted(log.iterdir()):
        if entry.is_file() and kind_of(entry.name) in (FileKind.SEGMENT, FileKind.HISTORY):
            yield entry.name


@dataclass(frozen=True)
class _Effective:
    """What a setting is, wherever it stands."""

    target: Path
    binaries: Binaries
    identity: Identity | None

    def __call__(self, name: str) -> str:
        command = [self.binaries["postgres"], "-C", name, "-D", str(self.target)]
        done = run(command, identity=self.identity, env={"LC_ALL": "C"}, timeout=30, check=False)
        if done.returncode:
            raise RestoreError(
                f"the configuration of the restored server cannot be read: {' '.join(done.stderr.split())}",
                hint=f"mend {self.target}/postgresql.conf, then go on with the cutover",
            )
        return done.stdout.strip()


def _lead_into(target: Path, asks: _Effective, identity: Identity | None) -> None:
    """Let no setting of the source lead out of the target: with its data_directory this would start on the live data.

    At the end of postgresql.conf, where it wins over all before; postgresql.auto.conf may not have these.
    """
    wanted = {
        "data_directory": target,
        "hba_file": target / "pg_hba.conf",
        "ident_file": target / "pg_ident.conf",
    }
    astray = [name for name, place in wanted.items() if Path(asks(name)).resolve() != place.resolve()]
    if astray:
        lines = ["# dr_pipelines: these led to where the source has them"]
        lines += [f"{name} = {_quoted(str(wanted[name]))}" for name in astray]
        main = target / "postgresql.conf"
        _replace(main, _read(main).rstrip("\n") + "\n" + "\n".join(lines) + "\n", identity)


def _is_usable(folder: str, target: Path, identity: Identity | None) -> bool:
    if folder.startswith("@"):
        return True
    tried = run(["test", "-d", folder, "-a", "-w", folder], identity=identity, cwd=target, timeout=10, check=False)
    return tried.returncode == 0


def set_settings(target: Path, settings: Mapping[str, str], identity: Identity | None) -> None:
    """Set them as ALTER SYSTEM does, in a data directory whose server is stopped; what was said of them is replaced."""
    text = _read(target / _AUTOMATIC)
    for name, value in settings.items():
        text = re.sub(rf"^[ \t]*{name}\b.*\n?", "", text, flags=re.MULTILINE | re.IGNORECASE)
        text = (text.rstrip("\n") + "\n" if text.strip() else "") + f"{name} = {_quoted(value)}\n"
    _replace(target / _AUTOMATIC, text, identity)


def _quoted(value: str) -> str:
    """As configuration files want it: a backslash escapes there."""
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


def _read(path: Path) -> str:
    """Its text, whatever its encoding: comments are in anybody's."""
    return path.read_bytes().decode(errors="surrogateescape")


def _replace(path: Path, text: str, identity: Identity | None) -> None:
    """Whole or not at all."""
    draft = path.with_name(f"{path.name}.dr_draft")
    with open(draft, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(text.encode(errors="surrogateescape"))
        file.flush()
        os.fsync(file.fileno())
    give_to(draft, identity)
    draft.replace(path)
