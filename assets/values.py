"""What one op hands to the next: small, without secrets, and stored, so that a later run can begin in the middle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

# Only names: Dagster reads the types of ops when it loads, and what these import takes its time.
if TYPE_CHECKING:
    from dr_pipelines.drills.database import Lost, Staged
    from dr_pipelines.engines.postgres.recovery import RestoredServer
    from dr_pipelines.runbooks.database_restore import Assessment, RestoredFiles, Validated
    from dr_pipelines.runbooks.handover import Wish

__all__ = ["Assessed", "DatabaseLost", "FilesRestored", "InPlace", "ServerRuns", "ServerValidated", "StageSet"]


@dataclass(frozen=True)
class StageSet:
    """The drill's database runs under load, with a backup in the repository."""

    staged: Staged


@dataclass(frozen=True)
class DatabaseLost:
    """The drill's database is gone."""

    lost: Lost


@dataclass(frozen=True)
class Assessed:
    """After `assess` and `prepare`."""

    assessment: Assessment
    lost: Lost | None
    """What a drill destroyed; None for a restore that is no drill."""
    wish: Wish | None
    """How a restore that is no drill is to take the lost server's place; None where it is not to."""


@dataclass(frozen=True)
class FilesRestored(Assessed):
    """After `restore_latest_backup`."""

    files: RestoredFiles


@dataclass(frozen=True)
class ServerRuns(FilesRestored):
    """After `apply_wal`."""

    server: RestoredServer


@dataclass(frozen=True)
class ServerValidated(ServerRuns):
    """After `validate`."""

    validated: Validated


@dataclass(frozen=True)
class InPlace(ServerValidated):
    """After `cutover`, whether one was asked for or not."""

    problems: tuple[str, ...]
    """What went wrong though the service is back."""
