"""Which schedules and sensors run, asked of Dagster in the checkout: a stop in its UI is told to nobody else."""

import json
from dataclasses import dataclass

from dr_pipelines.cli.dagster import run_module
from dr_pipelines.errors import DrError, ProcessError
from dr_pipelines.processes.identity import end_of
from dr_pipelines.runbooks.dagster_home import DAEMON_LIMIT
from dr_pipelines.settings import Settings

__all__ = ["DAEMON_LIMIT", "Schedules", "read_schedules", "switched_off"]


@dataclass(frozen=True)
class Schedules:
    """What would happen by itself; names as people know them: "schedule database_full_backup_daily"."""

    running: tuple[str, ...]
    stopped: tuple[str, ...]
    daemons: dict[str, float]
    """By name: seconds since it was last heard of. Empty where none ever ran."""

    @property
    def silent(self) -> tuple[str, ...]:
        """The daemons that have not been heard of for too long."""
        return tuple(name for name, age in self.daemons.items() if age > DAEMON_LIMIT)


def read_schedules(settings: Settings) -> Schedules:
    """Ask Dagster. Raises ConfigurationError without Dagster or a checkout, ProcessError where it cannot say."""
    done = run_module(settings, ["assets.status", "--json"])
    if done.returncode != 0:
        raise ProcessError(f"Dagster could not be asked: {end_of(done.stderr, lines=3)}", hint="is the plan accepted?")
    found = json.loads(done.stdout)
    names: dict[bool, list[str]] = {True: [], False: []}
    for entry in found["instigators"]:
        names[entry["running"]].append(f"{entry['kind']} {entry['name']}")
    daemons = {entry["name"]: float(entry["age_seconds"]) for entry in found["daemons"]}
    return Schedules(tuple(names[True]), tuple(names[False]), daemons)


def switched_off(settings: Settings) -> tuple[str, ...]:
    """What is switched off, in words, for a report; that nobody could look is one of them."""
    try:
        schedules = read_schedules(settings)
    except DrError as error:
        return (f"schedules and sensors were not looked at: {error.message}",)
    off = [f"the {name} is stopped" for name in schedules.stopped]
    if schedules.running and (not schedules.daemons or schedules.silent):
        off.append("Dagster's daemon does not run, so no schedule and no sensor does")
    return tuple(off)
