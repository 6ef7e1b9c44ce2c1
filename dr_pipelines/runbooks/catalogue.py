"""What things are called in Dagster's catalogue: derived from the plan's names, so that sensors and assets agree."""

from collections.abc import Sequence

from dr_pipelines.plan import Plan, Service

__all__ = [
    "ADHERENCE",
    "INTEGRITY",
    "NO_GAP",
    "RPO_MET",
    "RTO_MET",
    "SERVICE_TAG",
    "TURN_TAG",
    "VERIFIED",
    "database_services",
    "full_backup",
    "identifier",
    "incremental_backup",
    "recovery",
    "tags_of",
    "wal_archive",
]

ADHERENCE = "rto_rpo_adherence"
VERIFIED, NO_GAP = "verified", "no_gap_in_the_wal"
RTO_MET, RPO_MET, INTEGRITY = "rto_met", "rpo_met", "integrity"
SERVICE_TAG = "dr/service"
TURN_TAG = "dr/turn"
"""Runs with the same value wait for each other; it names what is done too: no restore waits for a backup."""


def database_services(plan: Plan) -> tuple[Service, ...]:
    """The plan's services whose engine is PostgreSQL."""
    return tuple(service for service in plan.services if service.engine == "postgres")


def identifier(service: str) -> str:
    """A service's name where only letters, digits and underscores may stand."""
    return service.replace("-", "_")


def full_backup(service: str) -> str:
    """The asset of a service's full backups."""
    return f"{identifier(service)}_full_backup"


def incremental_backup(service: str) -> str:
    """The asset of a service's incremental backups."""
    return f"{identifier(service)}_incremental_backup"


def wal_archive(service: str) -> str:
    """The asset of a service's log in the repository."""
    return f"{identifier(service)}_wal_archive"


def recovery(service: str) -> str:
    """The asset that drills and restores of a service report to."""
    return f"{identifier(service)}_recovery"


def tags_of(services: Sequence[Service], what: str) -> dict[str, str]:
    """The tags of the runs that do `what` with a service; none where it is not one alone."""
    if len(services) != 1:
        return {}
    return {SERVICE_TAG: services[0].name, TURN_TAG: f"{what} {services[0].name}"}
