"""What goes with an expiry beside backups: what drills had left in the repository."""

import os
from datetime import timedelta
from pathlib import Path

from dr_pipelines.plan import Retention
from dr_pipelines.runbooks.retention import SANDBOX_STAYS, expire_service
from dr_pipelines.settings import Settings
from dr_pipelines.timing import SystemClock
from tests import archived


def test_what_a_drill_left_goes_after_a_while_and_not_before(tmp_path: Path) -> None:
    repository = archived.new_repository(tmp_path / "repository")
    names = ("20260101T000000Z-drill-abcdef", "20260101T000000Z-drill-fedcba")
    for name in names:
        repository.sandbox(name).store.put("services/database/1/log/00000001/000000010000000000000001", [b"log"])
    old = (SystemClock().wall() - SANDBOX_STAYS - timedelta(hours=1)).timestamp()
    for path in (tmp_path / "repository" / "drills" / names[0]).rglob("*"):
        os.utime(path, (old, old))
    # One file of the other one is old too.
    os.utime(tmp_path / "repository" / "drills" / names[1] / "dr-repository.json", (old, old))
    around = archived.surroundings(Settings(state_dir=tmp_path / "state"), repository)

    expire_service(around, "database", Retention(keep=1), dry_run=True)
    assert repository.store.names("drills") == [f"{name}/" for name in names]
    expire_service(around, "database", Retention(keep=1))
    assert repository.store.names("drills") == [f"{names[1]}/"]
