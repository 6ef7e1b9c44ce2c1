"""SIGKILL of a drill: its servers go on without it, until the next drill ends them, and nobody else's."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from dr_pipelines.drills import database as drill
from dr_pipelines.processes import proc
from dr_pipelines.processes.leases import Lease, Leases
from dr_pipelines.repository.identifiers import timed_id
from dr_pipelines.repository.repository import Repository
from dr_pipelines.settings import Settings
from dr_pipelines.timing import SystemClock
from tests import archived
from tests.faults.conftest import Start

pytestmark = pytest.mark.slow


def of(settings: Settings, execution_id: str) -> list[Lease]:
    leases = Leases(settings.state_dir).all(ending=True)
    return [lease for lease in leases if lease.owner in (execution_id, f"lab-{execution_id}")]


def restored(settings: Settings, execution_id: str) -> Path:
    return settings.state_dir / "restores" / execution_id / "data"


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize(
    "moment",
    [
        lambda settings, killed: {lease.kind for lease in of(settings, killed)} >= {"postgres", "agent", "writer"},
        lambda settings, killed: "recovery" in read(restored(settings, killed) / "dr_restore" / "server.log"),
    ],
    ids=["under load", "in the middle of the restore"],
)
def test_the_next_drill_ends_what_it_left(
    start: Start, settings: Settings, repository: Repository, moment: Callable[[Settings, str], object]
) -> None:
    killed, another = (timed_id("drill", SystemClock().wall()) for _ in range(2))
    victim = start("tests.faults.child", "drill", killed, environment=settings.as_environment())
    victim.kill_when(lambda: moment(settings, killed))
    left = of(settings, killed)
    assert left

    around = archived.surroundings(settings, repository)
    options = drill.DrillOptions(size_bytes=1_000_000, writers=1, archive_timeout=timedelta(seconds=1))
    staged = drill.set_the_stage(around, options, another)
    assert of(settings, killed) == []
    assert not [lease for lease in left if proc.is_alive(lease.pid, lease.start_ticks)]
    assert not restored(settings, killed).parent.exists()
    assert not (settings.state_dir / "lab" / f"lab-{killed}").exists()
    assert not list(repository.store.list(f"drills/{killed}/"))

    # One whose run lives is left alone.
    around.leases.reap(dead_holders=lambda lease: "-drill-" in lease.owner)
    assert Path(staged.lab_folder).exists()
    assert {lease.kind for lease in of(settings, another)} == {"postgres", "agent", "writer"}
    drill.end_drill(around, another, None, keep=False)
    assert of(settings, another) == []
    assert not Path(staged.lab_folder).exists()
