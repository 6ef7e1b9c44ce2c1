"""What a restored server is configured with: its recovery, and nothing of the source's surroundings.

It gets its own port, never archives (a restored server must not write into the place of the one it came from), and
where the configuration does not lie in the data directory (Debian keeps it in /etc) it gets a minimal one. The private
socket, in a folder that only the server's user can enter, lets the restore look at it whatever the source's pg_hba.conf
and passwords are.
"""

import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from dr_pipelines.engines.postgres.staging import Stage
from dr_pipelines.engines.postgres.target import ACCESS_RULES, PRIVATE
from dr_pipelines.processes.identity import Identity
from dr_pipelines.processes.postgres import Binaries, controldata

__all__ = ["allow_prepared_transactions", "configure", "remove_recovery_settings", "start_command"]

_MARK = "# dr_pipelines: recovery"
_TOLD_BY_CONTROL = (
    ("wal_level", "wal_level"),
    ("max_connections", "max_connections"),
    ("max_worker_processes", "max_worker_processes"),
    ("max_wal_senders", "max_wal_senders"),
    ("max_prepared_xacts", "max_prepared_transactions"),
    ("max_locks_per_xact", "max_locks_per_transaction"),
    ("track_commit_timestamp", "track_commit_timestamp"),
)


def configure(
    target: Path,
    binaries: Binaries,
    stage: Stage,
    target_time: datetime | None,
    identity: Identity | None,
    target_timeline: str = "latest",
) -> None:
    """Write what PostgreSQL needs to recover by itself whenever it is started: recovery.signal and its settings."""
    moment = target_time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f+00") if target_time is not None else ""
    lines = [
        f"{_MARK} begin",
        f"restore_command = '{stage.restore_command}'",
        f"recovery_target_timeline = '{target_timeline}'",
        # Without a target too: one may stand in the source's postgresql.conf, which is read before this file.
        f"recovery_target_time = '{moment}'",
        "recovery_target_inclusive = 'on'",
        "recovery_target_action = 'promote'",
        f"{_MARK} end",
    ]
    automatic = target / "postgresql.auto.conf"
    remove_recovery_settings(target)
    _write(automatic, _read(automatic) + "\n".join(lines) + "\n", identity)
    _write(target / "recovery.signal", "", identity)
    for name, text in (
        ("postgresql.conf", _minimal(controldata(binaries, target))),
        ("pg_hba.conf", "host all all 127.0.0.1/32 scram-sha-256\n"),
        ("pg_ident.conf", ""),
    ):
        if not (target / name).exists():
            _write(target / name, text, identity)


def allow_prepared_transactions(target: Path, number: int, identity: Identity | None) -> None:
    """Let so many be prepared, from the next start on and for good: what is prepared stays so."""
    automatic = target / "postgresql.auto.conf"
    _write(automatic, _read(automatic) + f"max_prepared_transactions = {number}\n", identity)


def remove_recovery_settings(target: Path) -> None:
    """Take out what `configure` wrote, and what the source had of the same kind."""
    automatic = target / "postgresql.auto.conf"
    text = _read(automatic) if automatic.exists() else ""
    text = re.sub(rf"{_MARK} begin\n.*?{_MARK} end\n", "", text, flags=re.DOTALL)
    text = re.sub(r"^[ \t]*(restore_command|recovery_target\w*)[ \t]*=.*\n?", "", text, flags=re.MULTILINE)
    if automatic.exists():
        automatic.write_bytes(text.encode(errors="surrogateescape"))
    else:
        automatic.touch(0o600)


def start_command(target: Path, binaries: Binaries, identity: Identity | None, port: int, socket: str) -> list[str]:
    """The command that starts the restored server, reachable at `port` on loopback and in the folder `socket`."""
    hba = target / ACCESS_RULES
    _write(hba, "local all all trust\n" + _read(target / "pg_hba.conf"), identity)
    options = {
        # A data_directory in the source's configuration would lead to the live data.
        "data_directory": str(target),
        "config_file": str(target / "postgresql.conf"),
        "hba_file": str(hba),
        "ident_file": str(target / "pg_ident.conf"),
        "port": str(port),
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": socket,
        # Empty would be taken for a name.
        "external_pid_file": str(target / PRIVATE / "server.pid"),
        "archive_mode": "off",
        # What it writes itself is archived if it takes the lost one's place; a checkpoint would let it go before.
        "wal_keep_size": "256MB",
        "hot_standby": "off",
        "ssl": "off",
        "logging_collector": "off",
        "log_destination": "stderr",
        "log_min_messages": "log",
        # The restore reads the log, so it is in one language.
        "lc_messages": "C",
        "primary_conninfo": "",
        # Its subscriptions would take from the publisher, through the same slots, what the source has yet to get.
        "max_logical_replication_workers": "0",
        "cluster_name": "restored",
        # What a source that was itself restored, or a standby once, may still have set.
        "recovery_target": "",
        "recovery_target_lsn": "",
        "recovery_target_name": "",
        "recovery_target_xid": "",
        "recovery_min_apply_delay": "0",
        # These delete and switch over what lies beside the source, which may be the same machine.
        "archive_cleanup_command": "",
        "recovery_end_command": "",
        # Nobody is there to confirm a commit; a restore that is not on disk is none.
        "synchronous_standby_names": "",
        "fsync": "on",
    }
    settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    return [binaries["postgres"], "-D", str(target), *settings]


def _minimal(control: Mapping[str, str]) -> str:
    """A postgresql.conf with what the source's log asks for: prepared transactions need their room."""
    lines = ["# The source's configuration does not lie in its data directory."]
    lines += [
        f"{name} = {control[f'{told} setting']}" for told, name in _TOLD_BY_CONTROL if f"{told} setting" in control
    ]
    return "\n".join(lines) + "\n"


def _read(path: Path) -> str:
    """Its text, whatever its encoding: comments are in anybody's."""
    return path.read_bytes().decode(errors="surrogateescape")


def _write(path: Path, text: str, identity: Identity | None) -> None:
    path.write_bytes(text.encode(errors="surrogateescape"))
    path.chmod(0o600)
    if identity is not None:
        os.chown(path, identity.uid, identity.gid)
