"""A process that backs up, ships or restores as the environment says, to be killed in the middle of it.

python -m tests.faults.child backup
python -m tests.faults.child restore EXECUTION
python -m tests.faults.child expire CHANGES
python -m tests.faults.child agent [stream]
"""

import logging
import os
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from dr_pipelines.agent import serve
from dr_pipelines.drills import database as drill
from dr_pipelines.engines.postgres.backup import take_backup
from dr_pipelines.engines.postgres.expiry import expire
from dr_pipelines.plan import Retention
from dr_pipelines.processes.postgres import find_binaries
from dr_pipelines.repository.folder import FolderStore
from dr_pipelines.repository.repository import open_repository
from dr_pipelines.runbooks import database_restore as runbook
from dr_pipelines.runbooks.execution import Journal
from dr_pipelines.settings import load_settings
from dr_pipelines.timing import SystemClock
from tests.faults import killing


def kill_itself_after(changes: int) -> None:
    """SIGKILL before the change of the repository that follows on so many; locks do not count."""
    left = changes

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def carry_out(store: FolderStore, key: str, *arguments: Any) -> Any:
            nonlocal left
            in_vain = change.__name__ == "put_if_absent" and store.info(key) is not None
            if not key.startswith("locks/") and not in_vain:
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
            return change(store, key, *arguments)

        return carry_out

    for name in ("put", "put_if_absent", "delete"):
        setattr(FolderStore, name, counted(getattr(FolderStore, name)))


def main(argv: list[str]) -> None:
    killing.arm()
    if argv[0] == "agent":
        sys.exit(serve("database", stream=argv[1:] == ["stream"]))
    settings = load_settings()
    assert settings.repository is not None
    repository = open_repository(settings.repository, settings=settings)
    if argv[0] == "backup":
        dsn = settings.dsn_of("database")
        assert dsn is not None
        binaries = find_binaries(settings)
        take_backup(
            "database",
            dsn,
            repository,
            binaries,
            settings,
            clock=SystemClock(),
            progress=lambda done, total: None,
            kind="incremental" if argv[1:] == ["incremental"] else "full",
        )
        return
    if argv[0] == "expire":
        kill_itself_after(int(argv[1]))
        expire("database", repository, Retention(keep=1), clock=SystemClock())
        return
    around = runbook.Surroundings(
        settings, None, repository, SystemClock(), logging.getLogger(), lambda what, done, total: None
    )
    if argv[0] == "drill":
        options = drill.DrillOptions(size_bytes=1_000_000, writers=1, archive_timeout=timedelta(seconds=1))
        drill.carry_out(around, drill.lose_database(around, drill.set_the_stage(around, options, argv[1])), None)
        return
    execution = Journal(repository.store, argv[1]).execution()
    assessment = runbook.prepare(around, runbook.assess(around, execution, None, None), None)
    files = runbook.restore_latest_backup(around, assessment, None)
    server = runbook.apply_wal(around, assessment, files, None)
    runbook.validate(around, assessment, files, server, None)
    # The last moments are short: whoever is to kill it may come a little late.
    signal.pause()


if __name__ == "__main__":
    main(sys.argv[1:])
