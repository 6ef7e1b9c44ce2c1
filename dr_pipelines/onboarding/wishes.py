"""What was asked for: flags, answers and defaults."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from pydantic import SecretStr

from dr_pipelines.onboarding.items import Mode

__all__ = ["Wishes"]


@dataclass(frozen=True)
class Wishes:
    """How a service is to be set up."""

    service: str
    repository: str
    mode: Mode | None
    """None: what fits the server."""
    role: str
    password: SecretStr
    password_is_new: bool
    """Whether it was made up just now, so that no role can have it yet."""
    reset_password: bool
    """Whether a role that is there gets it."""
    connect_to: str
    """The database that the role connects to."""
    spool: Path | None
    agent_user: str | None
    """The operating system's user that the agent runs as; None: the server's, or ours where that is not known."""
    agent_host: str | None
    """The address that the agent's host has for the server, where it is not this machine."""
    configuration: Path
    """The folder of environment files."""
    units: Path
    """The folder of systemd's units."""
    full: str | None
    """When full backups start, in cron's fields; None: as the plan says, else at three in the night."""
    archive_timeout: timedelta | None
    incremental: bool
    """Whether the server is to keep what incremental backups go by (PostgreSQL 17 and newer)."""
    tier: str | None
    rto: timedelta | None
    rpo: timedelta | None
    database: str | None
    """The database that a restored server is asked in."""
