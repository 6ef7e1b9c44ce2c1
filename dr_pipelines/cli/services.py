"""Which services a command means, and who asks."""

import getpass
import os

from dr_pipelines.runbooks.database_restore import Surroundings

__all__ = ["backed_up_services", "who_asks"]


def backed_up_services(around: Surroundings, service: str | None) -> tuple[str, ...]:
    """The service that was named, else every PostgreSQL service of the plan and whatever the repository holds."""
    if service is not None:
        # Without a plan (a restore has none but the repository's copy) any name is taken.
        if around.plan is not None and service not in around.repository.services():
            around.plan.require_database(service)
        return (service,)
    planned = [entry.name for entry in around.plan.services if entry.engine == "postgres"] if around.plan else []
    return tuple(dict.fromkeys([*planned, *around.repository.services()]))


def who_asks() -> str:
    """The user that called the command, for records."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"  # a container's user that has no name
