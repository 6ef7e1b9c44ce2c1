"""Whose archive_command is it, and how should the log leave the server? Pure."""

import re
from dataclasses import dataclass
from pathlib import Path

from dr_pipelines.engines.postgres.inspect import spool_of_command
from dr_pipelines.errors import ConfigurationError

__all__ = ["Archiver", "archive_command", "archiver_of"]

_TOOLS = {
    "pgBackRest": r"pgbackrest",
    "Barman": r"barman",
    "WAL-G": r"wal-?g\b",
    "WAL-E": r"wal-?e\b",
    "pg_probackup": r"pg_probackup",
    "pghoard": r"pghoard",
}
_THROWN_AWAY = re.compile(r"\s*(|\(disabled\)|:|(/usr)?/bin/true|true|exit 0|cd \.)\s*")
_OURS = re.compile(r"backup\.sh['\"]?\s+wal\s")


@dataclass(frozen=True)
class Archiver:
    """Who takes the segments that archive_command hands out; `owner` None: nobody, or ourselves."""

    owner: str | None
    spool: Path | None = None
    """Where ours puts them."""

    @property
    def is_ours(self) -> bool:
        """Whether it is scripts/backup.sh."""
        return self.spool is not None


def archiver_of(command: str, library: str = "") -> Archiver:
    """Whose archive_command, or archive_library, this is. What throws segments away is nobody's."""
    if library.strip():
        return Archiver(f"the library {library.strip()}")
    if _THROWN_AWAY.fullmatch(command):
        return Archiver(None)
    if _OURS.search(command) and (spool := spool_of_command(command)):
        return Archiver(None, spool)
    for tool, pattern in _TOOLS.items():
        if re.search(pattern, command, re.IGNORECASE):
            return Archiver(tool)
    return Archiver("a command of somebody's own")


def archive_command(script: Path, spool: Path) -> str:
    """The command that hands segments to the spool. Raises ConfigurationError for paths that it cannot hold."""
    for path in (script, spool):
        # PostgreSQL replaces what follows a %, and a shell reads the whole.
        if re.search(r"""[%'"\\\n]""", str(path)) or not path.is_absolute():
            raise ConfigurationError(
                f"{path} cannot stand in archive_command",
                hint="give an absolute path without quotes, % and backslashes",
            )
    return f"DR_SPOOL='{spool}' '{script}' wal %p %f"
