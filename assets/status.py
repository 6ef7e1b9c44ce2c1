"""Which schedules and sensors run, and whether Dagster's daemons are alive: `python -m assets.status --json`.

For those who ask from outside (`dr doctor`). A stop in the UI is remembered and wins over the code, and Dagster itself
tells nobody; its own liveness check tolerates half an hour.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import dagster as dg
from dagster._core.scheduler.instigation import InstigatorStatus, InstigatorType

from dr_pipelines.errors import DrError
from dr_pipelines.runbooks.dagster_home import DAEMON_LIMIT
from dr_pipelines.settings import load_settings
from dr_pipelines.timing import format_moment

__all__ = ["Daemon", "Instigator", "Status", "read_status", "stopped"]

Kind = Literal["schedule", "sensor"]
_KINDS: dict[InstigatorType, Kind] = {InstigatorType.SCHEDULE: "schedule", InstigatorType.SENSOR: "sensor"}


@dataclass(frozen=True)
class Instigator:
    """A schedule or a sensor."""

    kind: Kind
    name: str
    running: bool
    """Whether it is switched on; that something happens takes a daemon too."""


@dataclass(frozen=True)
class Daemon:
    """One of Dagster's background threads."""

    name: str
    heartbeat_at: str
    age_seconds: float


@dataclass(frozen=True)
class Status:
    """What keeps going by itself."""

    instigators: tuple[Instigator, ...]
    daemons: tuple[Daemon, ...]
    """Empty where none ever ran with this home."""


def stopped(instance: dg.DagsterInstance, now: datetime) -> tuple[str, ...]:
    """What somebody switched off, and whether nothing happens by itself at all, in words."""
    states = instance.all_instigator_state(instigator_statuses={InstigatorStatus.STOPPED})
    off = sorted(f"the {_KINDS[state.instigator_type]} {state.name} is stopped" for state in states)
    ages = [daemon.age_seconds for daemon in _daemons(instance, now)]
    if not ages or max(ages) > DAEMON_LIMIT:
        off.append("Dagster's daemon does not run, so no schedule and no sensor does")
    return tuple(off)


def read_status(instance: dg.DagsterInstance, definitions: dg.Definitions, now: datetime) -> Status:
    """Every schedule and sensor of the definitions, and the heartbeats that the home has seen."""
    by_hand = {(_KINDS[state.instigator_type], state.name): state.status for state in instance.all_instigator_state()}

    def described(kind: Kind, name: str, default: str) -> Instigator:
        status = by_hand.get((kind, name), InstigatorStatus.DECLARED_IN_CODE)
        running = default == "RUNNING" if status is InstigatorStatus.DECLARED_IN_CODE else status.value == "RUNNING"
        return Instigator(kind, name, running)

    instigators = tuple(described(*entry) for entry in _declared(definitions))
    return Status(instigators, _daemons(instance, now))


def _daemons(instance: dg.DagsterInstance, now: datetime) -> tuple[Daemon, ...]:
    # A home remembers the heartbeats of daemons that an earlier configuration had.
    wanted = instance.get_required_daemon_types()
    return tuple(
        Daemon(
            name,
            format_moment(datetime.fromtimestamp(beat.timestamp, UTC)),
            round(now.timestamp() - beat.timestamp, 1),
        )
        for name, beat in sorted(instance.get_daemon_heartbeats().items())
        if name in wanted
    )


def _declared(definitions: dg.Definitions) -> Iterator[tuple[Kind, str, str]]:
    repository: Any = definitions.get_repository_def()
    for schedule in repository.schedule_defs:
        yield "schedule", schedule.name, schedule.default_status.value
    for sensor in repository.sensor_defs:
        yield "sensor", sensor.name, sensor.default_status.value


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the status of the home that the settings name; nothing is started or changed."""
    parser = argparse.ArgumentParser(prog="python -m assets.status", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    as_json = parser.parse_args(arguments).json
    try:
        from definitions import defs
        from dr_pipelines.runbooks.dagster_home import prepare_home

        with dg.DagsterInstance.from_config(str(prepare_home(load_settings()))) as instance:
            status = read_status(instance, defs, datetime.now(UTC))
    except DrError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if as_json:
        print(json.dumps(asdict(status)))
    else:
        for entry in status.instigators:
            print(f"{entry.kind} {entry.name}: {'running' if entry.running else 'STOPPED'}")
        for daemon in status.daemons:
            print(f"daemon {daemon.name}: last heard of {daemon.age_seconds:.0f} s ago")
    return 0


if __name__ == "__main__":
    sys.exit(main())
