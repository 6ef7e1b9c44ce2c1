"""One backup or one restore by this project's own functions; prints the seconds that the function took."""

import sys
from pathlib import Path
from typing import Literal

from benchmarks.database import SERVICE
from dr_pipelines.engines.postgres.backup import take_backup
from dr_pipelines.engines.postgres.coverage import choose, newest_system
from dr_pipelines.engines.postgres.restore import restore_files
from dr_pipelines.engines.postgres.target import Note, claim
from dr_pipelines.errors import BackupError, RestoreError
from dr_pipelines.processes.identity import server_identity
from dr_pipelines.processes.postgres import find_binaries
from dr_pipelines.repository.repository import open_repository
from dr_pipelines.settings import load_settings
from dr_pipelines.timing import Stopwatch, SystemClock


def _quiet(done: int, total: int) -> None:
    pass


def main(argv: list[str]) -> int:
    """`backup`, `incremental`, or `restore TARGET [BACKUP_ID]`; the environment names repository and server."""
    settings, clock = load_settings(), SystemClock()
    assert settings.repository is not None
    repository = open_repository(settings.repository, settings=settings)
    watch = Stopwatch(clock)
    binaries = find_binaries(settings)
    if argv[0] != "restore":
        dsn = settings.dsn_of(SERVICE)
        assert dsn is not None
        kind: Literal["full", "incremental"] = "incremental" if argv[0] == "incremental" else "full"
        made = take_backup(
            SERVICE, dsn, repository, binaries, settings, clock=clock, progress=_quiet, kind=kind, full_every=100
        )
        if made.instead is not None:
            raise BackupError(made.instead)
    else:
        target, identity = Path(argv[1]), server_identity(settings)
        store = newest_system(repository.service(SERVICE))
        chosen = choose(store, None, argv[2] if len(argv) > 2 else None)
        manifest = chosen.manifest
        claim(target, Note("benchmark", manifest.backup_id, manifest.system_identifier), identity)
        _, verified = restore_files(
            store, chosen.links, target, binaries, identity=identity, workers=settings.workers, progress=_quiet
        )
        if not verified.passed:
            raise RestoreError(verified.detail)
    print(f"seconds {watch.elapsed().total_seconds():.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
