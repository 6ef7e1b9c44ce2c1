"""Which services a command means, and who asks."""

import getpass
import os

from dr_pipelines.errors import UsageError
from dr_pipelines.plan import Plan
from dr_pipelines.runbooks.database_restore import Surroundings

__all__ = ["backed_up_services", "check_service", "who_asks"]


def check_service(plan: Plan | None, service: str) -> str:
    """Return the service. Raises UsageError where the plan does not know it or it is no PostgreSQL service.

    Without a plan (a restore has none but the repository's copy) any name is taken.
    """
    if plan is not None and plan.service(service).engine != "postgres":
        having = ", ".join(entry.name for entry in plan.services if entry.engine == "postgres") or "none"
        raise UsageError(f'"{service}" is no PostgreSQL service of the plan', hint=f"services that are: {having}")
    return service


def backed_up_services(around: Surroundings, service: str | None) -> tuple[str, ...]:
    """The service that was named, else every PostgreSQL service of the plan and whatever the repository holds."""
    if service is not None:
        stored = service in around.repository.services()
        return (service if stored else check_service(around.plan, service),)
    planned = [entry.name for entry in around.plan.services if entry.engine == "postgres"] if around.plan else []
    return tuple(dict.fromkeys([*planned, *around.repository.services()]))


def who_asks() -> str:
    """The user that called the command, for records."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"  # a container's user that has no name
